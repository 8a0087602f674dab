"""Schedules against the plain denoising loop, end to end, beside what a latency table predicts of them.

The loop is the pipeline's own, from given embeddings and noise to the last latents: text encoders and the VAE run once
per image whatever the schedule says, and a pipeline of random weights has none. Does not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from schedsearch.errors import EvaluationError, UsageError
from schedsearch.evaluate._bench_overhead import CONTROL, bench_schedules
from schedsearch.evaluate._calibrate import timed_schedule
from schedsearch.evaluate._cost import ModuleTimes, computed_ms
from schedsearch.evaluate._latency import TimedRun, measure_latency, paired_ratio
from schedsearch.evaluate._latency_table import LatencyTable, LoopRow, Mode
from schedsearch.evaluate._noise import initial_latents
from schedsearch.evaluate._prices import LinearPrices
from schedsearch.evaluate._work import BlockLists
from schedsearch.evaluate._workload import Pipeline, TextEmbeds, Workload, pipeline_kwargs
from schedsearch.evaluate.profile._random import random_embeds
from schedsearch.runtime import block_lists_of, denoiser_of, identity_schedule
from schedsearch.schedule import Schedule

PLAIN = "plain"


def table_times(
    table: LatencyTable, block_lists: BlockLists, *, branches: int = 1, mode: Mode = "eager"
) -> ModuleTimes:
    """Return module times from a table: those of a block list's first block hold for all of the list.

    Raises:
        EvaluationError: if the table lacks the time of the denoiser, a block or a component in that mode.
    """
    modules = []
    for block in (block for each in block_lists for block in each):
        family = block.name.rpartition(".")[0]
        modules.append((block.name, _ms(table, "block", family, mode)))
        modules += [
            (f"{block.name}.{part}", _ms(table, "component", f"{family}.{part}", mode)) for part in block.components
        ]
    times = dict(modules)
    inside = sum(times[block.name] for each in block_lists for block in each)
    whole = _ms(table, "denoiser", "", mode)
    return ModuleTimes(
        block_lists=tuple(tuple(each) for each in block_lists),
        branches=branches,
        rest_ms=max(0.0, whole - inside),
        modules=tuple(modules),
    )


def _ms(table: LatencyTable, op: str, name: str, mode: Mode) -> float:
    row = table.find(op, name=name)
    ms = None if row is None else row.ms(mode)
    if ms is None:
        raise EvaluationError(
            f"latency table: found no {mode} time of {op} {name or '(whole)'}, expected one. Let `schedsearch profile` "
            "finish the table."
        )
    return ms


def example_schedules(pipe: Pipeline, workload: Workload) -> dict[str, Schedule]:
    """Return schedules that need no search: the whole denoiser forecast at 2x, 4x and 8x, and rows of blocks."""
    return {name: schedule for name, schedule in bench_schedules(pipe, workload).items() if name != CONTROL}


def predicted_speedup(schedule: Schedule, plain: Schedule, times: ModuleTimes, prices: LinearPrices) -> float:
    """Return the plain computation over that of ``schedule``, by the table alone; all that is no module is free."""
    cheaper = times.cheaper(prices.saved_ms(schedule)) if schedule.precision else times
    return computed_ms(plain, times) / computed_ms(schedule, cheaper)


def require_size(schedules: Mapping[str, Schedule], workload: Workload) -> None:
    """Refuse a schedule for another resolution than the table is of.

    Raises:
        UsageError: one of ``schedules`` is.
    """
    for name, schedule in schedules.items():
        if (schedule.model.width, schedule.model.height) != (workload.width, workload.height):
            raise UsageError(
                f"{name}: model: found a schedule for {schedule.model.width}x{schedule.model.height} pixels, expected "
                f"{workload.width}x{workload.height}, which the table is of. Measure it elsewhere with "
                "`schedsearch evaluate`."
            )


def measure_loops(
    pipe: Pipeline,
    workload: Workload,
    schedules: Mapping[str, Schedule],
    table: LatencyTable,
    *,
    repeats: int = 5,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    on_round: Callable[[int], None] | None = None,
) -> tuple[LoopRow, ...]:
    """Return one row per schedule, all timed eagerly in the same rounds as the plain loop.

    Args:
        pipe: the pipeline, without a schedule applied.
        workload: how the plain loop is called.
        schedules: what to time, by name.
        table: what it predicts.
        repeats: timed rounds.
        warmup: rounds that do not count.
        device: where the pipeline is.
        on_round: called with the number of finished rounds, warm-up included.

    Raises:
        UsageError: if a schedule was made for another resolution.
        ApplyError: if a schedule was made for another model, or asks for what the runtime cannot do.
        EvaluationError: if the table is not complete.
    """
    require_size(schedules, workload)
    lists = block_lists_of(pipe)
    times = table_times(table, lists, branches=workload.branches)
    prices = LinearPrices.of(table)
    plain = identity_schedule(pipe, workload.steps, height=workload.height, width=workload.width)
    call = partial(_loop, pipe, workload, random_embeds(pipe, workload), _noise(pipe, workload))
    runs: dict[str, TimedRun | Callable[[], object]] = {PLAIN: call}
    runs |= {f"run {name}": timed_schedule(pipe, schedule, call) for name, schedule in schedules.items()}
    samples = measure_latency(runs, repeats=repeats, warmup=warmup, device=device, on_round=on_round)
    rows = []
    for name, schedule in schedules.items():
        found = samples[f"run {name}"]
        ratio = paired_ratio(samples[PLAIN], found)
        rows.append(
            LoopRow(
                schedule=schedule.id,
                name=name,
                steps=schedule.n_steps,
                plain_ms=samples[PLAIN].median_ms,
                scheduled_ms=found.median_ms,
                speedup=ratio.median,
                low=ratio.low,
                high=ratio.high,
                n=ratio.n,
                predicted=predicted_speedup(schedule, plain, times, prices),
                date=datetime.now(UTC).date().isoformat(),
            )
        )
    return tuple(rows)


def _noise(pipe: Pipeline, workload: Workload) -> torch.Tensor:
    parameter = next(denoiser_of(pipe).parameters())
    return initial_latents(pipe, workload, seed=0, indices=[0], device=parameter.device, dtype=parameter.dtype)


def _loop(pipe: Pipeline, workload: Workload, embeds: TextEmbeds, noise: torch.Tensor, steps: int | None = None) -> Any:
    """One denoising loop of the pipeline, without text encoders and VAE."""
    return pipe(**pipeline_kwargs(workload, embeds, latents=noise, steps=steps, output_type="latent"))[0]
