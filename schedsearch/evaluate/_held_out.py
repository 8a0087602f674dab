"""The numbers that leave the program: quality on held-out prompts, and measured, paired, interleaved wall time.

Rows are the plain run, schedules, and plain runs of fewer steps, all from the same noise and timed in the same rounds.
Does not know how schedules were found.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from schedsearch.errors import UsageError
from schedsearch.evaluate._calibrate import call_once
from schedsearch.evaluate._latency import LatencySamples, Ratio, TimedRun, measure_latency, paired_ratio
from schedsearch.evaluate._macs import MacTable, schedule_macs
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._quality import REFERENCES, QualityMetric, metrics_at_hand
from schedsearch.evaluate._reference import PairedRuns, Reference
from schedsearch.evaluate._scoring import Pictures, Samples, Scoring
from schedsearch.evaluate._trace import capture_call, counting_calls
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import apply, block_lists_of, denoiser_of, identity_schedule
from schedsearch.schedule import Schedule

FULL = "full"

REPEATS = 10
"""Timed rounds."""

WARMUP = 1
"""Rounds before them that do not count; every run has been drawn many times by then."""

HELD_OUT_ROUNDS = WARMUP + REPEATS
"""All of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRow:
    """One line of the results table.

    Attributes:
        name: of the schedule, or ``full``, or such as ``7 steps``.
        kind: what it is.
        n_steps: denoising steps.
        speedup: plain wall time over this one's, round by round; batch 1, the whole ``pipe(...)`` call.
        latency: its wall times.
        samples: per image, ``(metric, (value, ...))``, against the plain run and (``converged_psnr`` and so on) against
            the converged run; prompts vary fastest, seeds slowest.
        sets: ``(metric, value)`` of metrics of whole sets, such as ``kid[flux-mini-clip]``; the mean over seeds.
        macs: multiply-accumulates per image.
        macs_fraction: of the plain run's.
        denoiser_calls: real ones per image, counted.
    """

    name: str
    kind: Literal["full", "schedule", "fewer steps"]
    n_steps: int
    speedup: Ratio
    latency: LatencySamples
    samples: tuple[tuple[str, tuple[float, ...]], ...]
    macs: float
    macs_fraction: float
    denoiser_calls: float
    sets: tuple[tuple[str, float], ...] = ()

    def values(self, metric: str) -> tuple[float, ...]:
        """Return the numbers of ``metric``, one per image.

        Raises:
            UsageError: if it was not measured.
        """
        for name, values in self.samples:
            if name == metric:
                return values
        raise UsageError(f"metric: found {metric!r}, expected one of {', '.join(name for name, _ in self.samples)}.")

    def mean(self, metric: str) -> float:
        """Return the mean of ``metric`` over images, or its value for the set."""
        over_sets = dict(self.sets)
        return over_sets[metric] if metric in over_sets else statistics.fmean(self.values(metric))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """A way to run the pipeline: its state, and the steps it is asked for."""

    name: str
    kind: Literal["full", "schedule", "fewer steps"]
    n_steps: int
    macs: float
    prepare: Callable[[], AbstractContextManager[object]]


def evaluate_held_out(
    pipe: Pipeline,
    card: ModelCard,
    schedules: Mapping[str, Schedule],
    prompts: Sequence[str],
    *,
    mac_table: MacTable,
    fewer_steps: Iterable[int] = (),
    metrics: Sequence[QualityMetric] | None = None,
    seeds: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
    batch: int = 8,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    on_progress: Callable[[int, int], None] | None = None,
    on_pictures: Callable[[str, int, Pictures], None] | None = None,
) -> tuple[HeldOutRow, ...]:
    """Return one row for the plain run, one per schedule and one per plain run of fewer steps, in this order.

    Args:
        pipe: the pipeline, without a schedule applied.
        card: how it is called.
        schedules: by name.
        prompts: held-out prompts.
        mac_table: counts of one denoiser call.
        fewer_steps: step numbers for the plain pipeline with its own scheduler.
        metrics: what to score; by default all that are at hand for this model.
        seeds: of the noise; give seeds that no search has used.
        device: where the pipeline is.
        batch: images per call for quality; time is measured at batch 1.
        repeats: timed rounds.
        warmup: rounds that do not count.
        on_progress: called with the units of work done and in all.
        on_pictures: called with a run's name, the number of the first prompt and what was drawn of it and the next
            ones, in the order of the prompts; for the first seed.

    Raises:
        UsageError: if there are no prompts or seeds, or a schedule is called like a plain run.
    """
    if not prompts or not seeds:
        raise UsageError(
            f"evaluate_held_out: found {len(prompts)} prompts and {len(seeds)} seeds, expected one of each at least."
        )
    workload = Workload.from_card(card)
    variants = _variants(pipe, workload, schedules, fewer_steps, mac_table)
    progress = _Progress(len(variants) * len(seeds) + warmup + repeats, on_progress)
    if metrics is None:
        metrics = metrics_at_hand(card.metric_weights, device=device)
    samples, sets, calls = _quality(
        pipe,
        workload,
        variants,
        tuple(prompts),
        metrics=metrics,
        seeds=seeds,
        batch=batch,
        progress=progress,
        on_pictures=on_pictures,
    )
    call = partial(call_once, pipe, workload, prompts[0])
    runs = {v.name: TimedRun(call=partial(call, steps=v.n_steps), prepare=v.prepare) for v in variants}
    latency = measure_latency(
        runs, repeats=repeats, warmup=warmup, device=device, on_round=lambda _done: progress.advance()
    )
    return tuple(
        HeldOutRow(
            name=v.name,
            kind=v.kind,
            n_steps=v.n_steps,
            speedup=paired_ratio(latency[FULL], latency[v.name]),
            latency=latency[v.name],
            samples=tuple(samples[v.name].items()),
            macs=v.macs,
            macs_fraction=v.macs / variants[0].macs,
            denoiser_calls=calls[v.name],
            sets=tuple((name, statistics.fmean(values)) for name, values in sets[v.name].items()),
        )
        for v in variants
    )


class _Progress:
    """Counts units of work for whoever shows them."""

    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._report = report

    def advance(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total)


def _variants(
    pipe: Pipeline,
    workload: Workload,
    schedules: Mapping[str, Schedule],
    fewer_steps: Iterable[int],
    mac_table: MacTable,
) -> tuple[_Variant, ...]:
    lists = block_lists_of(pipe)

    def macs(schedule: Schedule) -> float:
        return schedule_macs(schedule, mac_table, lists, branches=workload.branches)

    def plain(name: str, kind: Literal["full", "fewer steps"], steps: int) -> _Variant:
        schedule = identity_schedule(pipe, steps, height=workload.height, width=workload.width)
        return _Variant(name=name, kind=kind, n_steps=steps, macs=macs(schedule), prepare=nullcontext)

    found = [plain(FULL, "full", workload.steps)]
    found += [
        _Variant(name=name, kind="schedule", n_steps=s.n_steps, macs=macs(s), prepare=partial(apply, pipe, s))
        for name, s in schedules.items()
    ]
    found += [plain(f"{steps} steps", "fewer steps", steps) for steps in dict.fromkeys(fewer_steps)]
    names = [v.name for v in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"schedules: found the name {twice[0]!r} twice, expected names of their own.")
    return tuple(found)


def _quality(
    pipe: Pipeline,
    workload: Workload,
    variants: Sequence[_Variant],
    prompts: tuple[str, ...],
    *,
    metrics: Sequence[QualityMetric],
    seeds: Sequence[int],
    batch: int,
    progress: _Progress,
    on_pictures: Callable[[str, int, Pictures], None] | None,
) -> tuple[dict[str, Samples], dict[str, Samples], dict[str, float]]:
    """Return each variant's numbers per image, its numbers of the set per seed, and its denoiser calls per image."""
    samples: dict[str, Samples] = {v.name: {} for v in variants}
    sets: dict[str, Samples] = {v.name: {} for v in variants}
    calls: dict[str, float] = {}
    counter = partial(counting_calls, denoiser_of(pipe), capture_call(pipe, workload, prompts[0]).sentinel)
    for seed in seeds:
        runs = PairedRuns(pipe, workload, prompts, seed=seed, batch=batch)
        references = {name: Reference(runs, name=name) for name in REFERENCES}
        default, converged = (references[name] for name in REFERENCES)
        with counter() as plain_calls:
            default.prepare(len(prompts))
        converged.prepare(len(prompts))
        scoring = Scoring(metrics, REFERENCES, prompts)
        ranges = tuple(runs.batches(len(prompts)))
        for v in variants:
            tally = scoring.tally(ranges)
            is_full = v.kind == "full"
            with v.prepare(), counter() as count:
                for start, stop in ranges:
                    # The plain run is a reference already; drawn again it would be the same, to the bit.
                    pictures = default.pictures(start, stop) if is_full else runs.run(start, stop, steps=v.n_steps)
                    if on_pictures is not None and seed == seeds[0]:
                        on_pictures(v.name, start, pictures)
                    tally.add((start, stop), pictures, {n: r.pictures(start, stop) for n, r in references.items()})
            calls[v.name] = (plain_calls if is_full else count).value / len(ranges)
            _extend(samples[v.name], tally.samples)
            _extend(sets[v.name], {name: (value,) for name, value in tally.sets().items()})
            progress.advance()
    return samples, sets, calls


def _extend(known: Samples, more: Samples) -> None:
    for name, values in more.items():
        known[name] = known.get(name, ()) + values
