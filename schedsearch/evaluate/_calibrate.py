"""Measures a `CostModel`: module times in place, then the coefficients from a few schedules run on the device.

The probes are whole calls at the extremes and in the middle of what a search will try: no cache, almost everything
cached, every second step, at each level, with and without forecasts; solvers of high order, and one of two calls per
step. They run interleaved with the plain call, and each counts as a ratio to the plain run of its own round, so a
machine that slows down for a while slows both.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import nnls

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._cost import FEATURES, CostModel, feature_amounts
from schedsearch.evaluate._insitu import Breakdown, measure_breakdown
from schedsearch.evaluate._latency import TimedRun, device_name, measure_latency
from schedsearch.evaluate._work import BlockLists
from schedsearch.evaluate._workload import Pipeline, Prompt, Workload, pipeline_kwargs
from schedsearch.runtime import apply, block_lists_of, denoiser_of, identity_schedule
from schedsearch.schedule import MODEL_ROW, Schedule, Solver

GROUP = 4
"""Runs timed between two plain runs."""

PRIOR_WEIGHTS = {"floor": 0.5, "loop": 0.5, "compute": 0.3, "saved": 0.3}
OTHER_PRIOR_WEIGHT = 0.03
"""Pull towards what was measured in place (nothing, for cache work), relative to a probe's own weight of 1.

Probes alone cannot tell a floor from a loop of a fixed number of steps; in-place shares can. The cache work is the
other way round: only probes see it.
"""

OUTLIER = 0.02
"""Relative error beyond which a probe counts as disturbed and its weight falls off (Huber 1964)."""


def measure_cost(
    pipe: Pipeline,
    workload: Workload,
    *,
    device: torch.device | str,
    prompt: Prompt = "a picture",
    repeats: int = 3,
    warmup: int = 1,
    on_round: Callable[[int, int], None] | None = None,
) -> CostModel:
    """Return the cost model of ``pipe`` at batch 1 on ``device``, measured and calibrated.

    Args:
        pipe: the pipeline, without a schedule applied.
        workload: how it is called.
        device: where it runs.
        prompt: one prompt; its text does not matter.
        repeats: rounds over all probes, and runs with hooks.
        warmup: rounds that do not count.
        on_round: called with the rounds done and the rounds in all.

    Raises:
        EvaluationError: if the plain run has fewer than two steps.
    """
    if workload.steps < 2:
        raise EvaluationError(f"measure_cost: found {workload.steps} step, expected a plain run of two steps at least.")
    place = torch.device(device)
    block_lists = block_lists_of(pipe)
    call = partial(call_once, pipe, workload, prompt)
    probes = probe_schedules(pipe, workload, block_lists)
    runs = {name: timed_schedule(pipe, schedule, call) for name, schedule in probes.items()}
    report = None if on_round is None else partial(_relay, on_round, warmup + repeats)
    anchored = measure_anchored(call, runs, repeats=repeats, warmup=warmup, device=place, on_round=report)
    full_ms = anchored.plain_ms
    breakdown = measure_breakdown(
        call,
        denoiser_of(pipe),
        block_lists,
        full_ms=full_ms,
        branches=workload.branches,
        device=place,
        repeats=repeats,
    )
    measured = {name: ratio * full_ms for name, ratio in anchored.ratios.items()}
    coefficients = _fit(probes, measured, breakdown)
    model = CostModel(
        device=device_name(place), full_ms=full_ms, times=breakdown.times, coefficients=coefficients, residual=0.0
    )
    residual = max(abs(model.predict_ms(probes[name]) / ms - 1.0) for name, ms in measured.items())
    return dataclasses.replace(model, residual=residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """Times as ratios to the plain run.

    Attributes:
        plain_ms: median of all plain runs.
        ratios: median over rounds of each run's time over that of the plain runs just before and after it.
    """

    plain_ms: float
    ratios: dict[str, float]


def measure_anchored(
    plain: Callable[[], object],
    runs: Mapping[str, TimedRun],
    *,
    repeats: int,
    warmup: int,
    device: torch.device | str,
    on_round: Callable[[int], None] | None = None,
) -> Anchored:
    """Return the ratios of ``runs`` to ``plain``, which is timed again before every few of them and at the end.

    One plain run per round would hand its own disturbances on to every ratio of the round.
    """
    names = list(runs)
    sequence: dict[str, TimedRun | Callable[[], object]] = {}
    for k, name in enumerate(names):
        if k % GROUP == 0:
            sequence[f"plain {k // GROUP}"] = plain
        sequence[f"run {name}"] = runs[name]
    groups = -(-len(names) // GROUP)
    sequence[f"plain {groups}"] = plain
    samples = measure_latency(sequence, repeats=repeats, warmup=warmup, device=device, on_round=on_round)
    plains = [samples[f"plain {g}"].ms for g in range(groups + 1)]
    ratios = {}
    for k, name in enumerate(names):
        before, after = plains[k // GROUP], plains[k // GROUP + 1]
        each = (2.0 * t / (a + b) for t, a, b in zip(samples[f"run {name}"].ms, before, after, strict=True))
        ratios[name] = statistics.median(each)
    return Anchored(plain_ms=statistics.median(ms for each in plains for ms in each), ratios=ratios)


def call_once(pipe: Pipeline, workload: Workload, prompt: Prompt, steps: int | None = None) -> torch.Tensor:
    """Return the images of one whole pipeline call, text encoders and VAE included, always with the same noise."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    images: torch.Tensor = pipe(**pipeline_kwargs(workload, prompt, generator=generator, steps=steps))[0]
    return images


def timed_schedule(pipe: Pipeline, schedule: Schedule, call: Callable[..., object]) -> TimedRun:
    """Return ``call`` under ``schedule``; putting the schedule on and taking it off is not part of its time."""
    return TimedRun(call=partial(call, steps=schedule.n_steps), prepare=partial(apply, pipe, schedule))


def probe_schedules(pipe: Pipeline, workload: Workload, block_lists: BlockLists) -> dict[str, Schedule]:
    """Return the schedules a cost model is calibrated with, by name."""
    n = workload.steps
    size = {"height": workload.height, "width": workload.width}
    full = identity_schedule(pipe, n, **size)
    blocks = [block for each in block_lists for block in each]
    names = [block.name for block in blocks]
    parts = [f"{block.name}.{part}" for block in blocks for part in block.components]
    quarter = identity_schedule(pipe, max(2, n // 4), **size)
    almost_nothing = (MODEL_ROW, "C" + "R" * (quarter.n_steps - 1))
    forecast_all = dataclasses.replace(full, ops=((MODEL_ROW, "CCCC"[:n] + "3" * (n - 4)),))
    probes = {
        "no cache": full,
        "a quarter of the steps": quarter,
        "a quarter of the steps, reuse all": dataclasses.replace(quarter, ops=(almost_nothing,)),
        "a quarter of the steps, order 4": _solved(quarter, Solver(family="adams", order=4)),
        "a quarter of the steps, twice": _solved(quarter, Solver(family="heun", order=2)),
        "forecast all, order 4": _solved(forecast_all, Solver(family="adams", order=4)),
    }
    for place, modules, patterns in (
        ("model", [MODEL_ROW], tuple(_ROWS)),
        ("blocks", names, tuple(_ROWS)),
        ("every second block", names[::2], ("reuse all", "forecast half")),
        ("components", parts, tuple(_ROWS)),
        ("attention", [name for name in parts if name.endswith("attn")], ("reuse half",)),
    ):
        for pattern in patterns:
            first, repeated = _ROWS[pattern]
            row = (first + repeated * n)[:n]
            probes[f"{place}, {pattern}"] = dataclasses.replace(full, ops=tuple((name, row) for name in modules))
    return probes


def _solved(schedule: Schedule, solver: Solver) -> Schedule:
    return dataclasses.replace(schedule, solver=(solver,) * schedule.n_steps)


_ROWS = {
    "reuse all": ("C", "R"),
    "reuse half": ("", "CR"),
    "forecast all": ("CCCC", "3"),
    "forecast half": ("CC", "C2"),
}
"""Near-empty and half rows, as a beginning and what is repeated after it."""


def _relay(on_round: Callable[[int, int], None], total: int, done: int) -> None:
    on_round(done, total)


def _fit(
    probes: Mapping[str, Schedule],
    measured: Mapping[str, float],
    breakdown: Breakdown,
) -> tuple[float, ...]:
    """Return the non-negative coefficients with the least relative error over the probes, near the measured parts."""
    prior = dict.fromkeys(FEATURES, 0.0) | {
        "floor": breakdown.floor_ms,
        "loop": breakdown.loop_ms,
        "compute": 1.0,
        "saved": 1.0,
    }
    table = [feature_amounts(probes[name], breakdown.times) for name in measured]
    rows = [[amount / ms for amount in amounts] for amounts, ms in zip(table, measured.values(), strict=True)]
    pulls, goals = [], []
    for j, name in enumerate(FEATURES):
        weight = PRIOR_WEIGHTS.get(name, OTHER_PRIOR_WEIGHT) * max(abs(row[j]) for row in rows)
        pulls.append([weight if k == j else 0.0 for k in range(len(FEATURES))])
        goals.append(weight * prior[name])
    trust = [1.0] * len(rows)
    for _ in range(5):
        weighted = [[w * x for x in row] for w, row in zip(trust, rows, strict=True)]
        found, _ = nnls(np.array(weighted + pulls), np.array(trust + goals))
        errors = np.abs(1.0 - np.array(rows) @ found)
        trust = [min(1.0, (OUTLIER / error) ** 0.5) if error else 1.0 for error in errors.tolist()]
    return tuple(float(value) for value in found)
