"""Schedules elsewhere than where they were searched: another resolution, batch, or number of steps of the plain run.

A schedule is a complete plan and stays as it is, noise levels included; what changes is the call it is put on, and with
it the plain run it is compared with, from the same noise. Does not know files.
"""

from __future__ import annotations

import re
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice

import torch

from schedsearch.errors import ScheduleMismatchWarning, UsageError
from schedsearch.evaluate._calibrate import call_once, timed_schedule
from schedsearch.evaluate._latency import LatencySamples, Ratio, measure_latency, paired_ratio
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._quality import metrics_at_hand
from schedsearch.evaluate._reference import PairedRuns, Reference
from schedsearch.evaluate._scoring import Samples, Scoring
from schedsearch.evaluate._trace import capture_call, counting_calls
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import apply, denoiser_of
from schedsearch.schedule import Schedule

PLAIN = "plain"

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_COUNT = re.compile(r"(batch|steps)=([1-9]\d{0,3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How the pipeline is called.

    Attributes:
        width: pixels.
        height: pixels.
        batch: images per call.
        steps: denoising steps of the plain run.
    """

    width: int
    height: int
    batch: int
    steps: int

    @classmethod
    def of(cls, schedule: Schedule, card: ModelCard) -> Condition:
        """Return what ``schedule`` was searched at."""
        ref = schedule.model
        return cls(width=ref.width, height=ref.height, batch=ref.batch, steps=card.steps)

    def altered(self, text: str) -> Condition:
        """Return this condition with the changes that ``text`` names, separated by commas.

        >>> str(Condition(width=64, height=64, batch=1, steps=28).altered("96x128,batch=4"))
        '96x128, batch 4, 28 steps'

        Raises:
            UsageError: if ``text`` names something else, or the same thing twice.
        """
        changes: dict[str, int] = {}
        for word in (part.strip() for part in text.split(",")):
            if size := _SIZE.fullmatch(word):
                found = {"width": int(size[1]), "height": int(size[2])}
            elif count := _COUNT.fullmatch(word):
                found = {count[1]: int(count[2])}
            else:
                raise UsageError(
                    f"--at: found {text[:60]!r}, expected WIDTHxHEIGHT, batch=N, steps=N, or several of them joined by "
                    "commas, such as 96x96,batch=4."
                )
            if found.keys() & changes.keys():
                raise UsageError(f"--at: found {text[:60]!r}, expected each thing once. Use --at once per condition.")
            changes |= found
        return replace(self, **changes)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, batch {self.batch}, {self.steps} steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRow:
    """One schedule under one condition.

    Attributes:
        speedup: plain wall time over this one's, round by round; whole ``pipe(...)`` calls of the condition's batch.
        latency: wall times of its calls.
        samples: per image, ``(metric, (value, ...))`` against the plain run under the same condition.
        denoiser_calls: real ones per image, counted.
        sets: ``(metric, value)`` of metrics that compare whole sets.
    """

    speedup: Ratio
    latency: LatencySamples
    samples: tuple[tuple[str, tuple[float, ...]], ...]
    denoiser_calls: float
    sets: tuple[tuple[str, float], ...] = ()

    def mean(self, metric: str) -> float:
        """Return the mean of ``metric`` over images, or its value for the set."""
        over_sets = dict(self.sets)
        return over_sets[metric] if metric in over_sets else statistics.fmean(dict(self.samples)[metric])


def evaluate_at(
    pipe: Pipeline,
    card: ModelCard,
    schedules: Mapping[str, Schedule],
    prompts: Sequence[str],
    condition: Condition,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    repeats: int = 10,
    warmup: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, TransferRow]:
    """Return one row per schedule, all measured in the same rounds and from the same noise.

    Args:
        pipe: the pipeline, without a schedule applied.
        card: how it is called where ``condition`` does not say.
        schedules: by name.
        prompts: held-out prompts.
        condition: how the pipeline is called.
        seed: of the noise; give one that no search has used.
        device: where the pipeline is.
        repeats: timed rounds.
        warmup: rounds that do not count.
        on_progress: called with the units of work done and in all.

    Raises:
        UsageError: if there are no prompts, or the model cannot draw pictures of that size.
        ApplyError: if a schedule cannot be put on this pipeline.
    """
    if not prompts:
        raise UsageError("evaluate_at: found no prompts, expected one at least.")
    require_drawable(pipe, condition)
    size = {"width": condition.width, "height": condition.height}
    workload = replace(Workload.from_card(card), steps=condition.steps, **size)
    runs = PairedRuns(pipe, workload, tuple(prompts), seed=seed, batch=condition.batch)
    reference = Reference(runs)
    reference.prepare(len(runs))
    sentinel = capture_call(pipe, workload, prompts[0]).sentinel
    scoring = Scoring(metrics_at_hand(card.metric_weights, device=device), ("default",), prompts)
    quality = {}
    done, total = 0, len(schedules) + warmup + repeats
    with _elsewhere():
        for name, schedule in schedules.items():
            with apply(pipe, schedule), counting_calls(denoiser_of(pipe), sentinel) as count:
                samples, sets = _scores(runs, reference, scoring, schedule.n_steps)
            quality[name] = samples, sets, count.value / len(list(runs.batches(len(runs))))
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        call = partial(call_once, pipe, workload, list(islice(cycle(prompts), condition.batch)))
        timed = {name: timed_schedule(pipe, schedule, call) for name, schedule in schedules.items()}
        latency = measure_latency(
            {PLAIN: call, **timed},
            repeats=repeats,
            warmup=warmup,
            device=device,
            on_round=lambda n: None if on_progress is None else on_progress(done + n, total),
        )
    return {
        name: TransferRow(
            speedup=paired_ratio(latency[PLAIN], latency[name]),
            latency=latency[name],
            samples=tuple(samples.items()),
            denoiser_calls=calls,
            sets=tuple(sets.items()),
        )
        for name, (samples, sets, calls) in quality.items()
    }


def require_drawable(pipe: Pipeline, condition: Condition) -> None:
    """Refuse a size that the pipeline would round.

    Raises:
        UsageError: naming what it can draw.
    """
    patch = int(pipe.vae_scale_factor) * 2
    if condition.width % patch or condition.height % patch:
        raise UsageError(
            f"--at: found {condition.width}x{condition.height}, expected multiples of {patch} pixels for this model."
        )


def _scores(runs: PairedRuns, reference: Reference, scoring: Scoring, n_steps: int) -> tuple[Samples, dict[str, float]]:
    """Return each metric's numbers of the pipeline in its present state: those per image, and those of the set."""
    ranges = tuple(runs.batches(len(runs)))
    tally = scoring.tally(ranges)
    for start, stop in ranges:
        pictures = runs.run(start, stop, steps=n_steps)
        tally.add((start, stop), pictures, {"default": reference.pictures(start, stop)})
    return tally.samples, tally.sets()


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Leave out the warning about another resolution: here it is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the schedule was searched at", ScheduleMismatchWarning)
        yield
