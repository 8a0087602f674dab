"""Benchmark: does the cost model predict what random schedules really cost on this device?

    python -m schedsearch.evaluate._bench_cost --schedules 20 --csv cost.csv

Measures a cost model, draws schedules with rows at all three levels and any number of steps, times them interleaved
with the plain run, and compares. The measured time of a schedule is its median ratio to the plain runs just before and
after it, times the plain time the model was anchored with: this takes out a machine that has become slower since.
"""

# ruff: noqa: T201 -- a program
from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from schedsearch.evaluate._bench_program import common_options, opened, write_rows
from schedsearch.evaluate._calibrate import call_once, measure_anchored, measure_cost, timed_schedule
from schedsearch.evaluate._cost import CostModel
from schedsearch.evaluate._latency import device_name
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import blocks_of, identity_schedule
from schedsearch.schedule import MODEL_ROW, Schedule, Solver
from schedsearch.types import BlockSpec

SOLVERS = (Solver(), Solver(family="adams", order=2), Solver(family="adams", order=4), Solver(family="heun", order=2))
"""Solvers that random schedules take their steps with."""

TOLERANCE = 0.10
"""Relative error a prediction may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One schedule: predicted and measured milliseconds, and ``error`` = predicted / measured - 1."""

    name: str
    steps: int
    predicted_ms: float
    measured_ms: float
    error: float


def random_schedule(pipe: Pipeline, workload: Workload, seed: int) -> Schedule:
    """Return a legal schedule drawn from ``seed``: 4 steps or more, rows at one, two or all three levels, and one
    solver for all steps or another for each.
    """
    rng = random.Random(seed)
    steps = rng.randint(min(4, workload.steps), workload.steps)
    schedule = identity_schedule(pipe, steps, height=workload.height, width=workload.width)
    blocks = blocks_of(pipe)
    rows: dict[str, str] = {}
    levels = rng.choice(["model", "block", "component", "model block", "block component", "model block component"])
    if "model" in levels:
        rows[MODEL_ROW] = _random_row(rng, steps, "R123")
    if "block" in levels:
        rows |= _block_rows(rng, blocks, steps)
    if "component" in levels:
        chosen = rng.sample(blocks, rng.randint(1, len(blocks)))
        rows |= {f"{b.name}.{part}": _random_row(rng, steps, "R12S") for b in chosen for part in b.components[:2]}
    solvers = tuple(rng.choice(SOLVERS) for _ in range(steps))
    solver = solvers if rng.random() < 0.5 else solvers[:1] * steps
    return dataclasses.replace(schedule, ops=tuple(rows.items()), solver=solver)


def _block_rows(rng: random.Random, blocks: Sequence[BlockSpec], steps: int) -> dict[str, str]:
    """A range of neighbours with one row, or a row for each of some blocks."""
    if rng.random() < 0.5:
        start = rng.randrange(len(blocks))
        row = _random_row(rng, steps, "R123S")
        return {block.name: row for block in blocks[start : start + rng.randint(1, len(blocks))]}
    return {b.name: _random_row(rng, steps, "R123S") for b in rng.sample(blocks, rng.randint(1, len(blocks)))}


def _random_row(rng: random.Random, steps: int, others: str) -> str:
    share = rng.uniform(0.1, 0.9)
    return "C" + "".join("C" if rng.random() < share else rng.choice(others) for _ in range(steps - 1))


def compare(
    pipe: Pipeline,
    workload: Workload,
    model: CostModel,
    *,
    schedules: int,
    rounds: int,
    device: torch.device | str,
    on_round: Callable[[int], None] | None = None,
) -> tuple[CostRow, ...]:
    """Return predicted and measured times of random schedules with seeds 0, 1, ... (``schedules`` of them)."""
    drawn = {f"seed {seed}": random_schedule(pipe, workload, seed) for seed in range(schedules)}
    call = partial(call_once, pipe, workload, "a picture")
    runs = {name: timed_schedule(pipe, schedule, call) for name, schedule in drawn.items()}
    anchored = measure_anchored(call, runs, repeats=rounds, warmup=1, device=device, on_round=on_round)
    rows = []
    for name, schedule in drawn.items():
        measured = anchored.ratios[name] * model.full_ms
        predicted = model.predict_ms(schedule)
        rows.append(
            CostRow(
                name=name,
                steps=schedule.n_steps,
                predicted_ms=predicted,
                measured_ms=measured,
                error=predicted / measured - 1.0,
            )
        )
    return tuple(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table, write the CSV; 0 if every prediction holds, else 1."""
    parser = common_options("Compare predicted with measured time on random schedules.")
    parser.add_argument("--schedules", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    _, pipe, workload = opened(options)
    model = measure_cost(pipe, workload, device=options.device, repeats=options.rounds)
    rows = compare(pipe, workload, model, schedules=options.schedules, rounds=options.rounds, device=options.device)
    print(f"{device_name(options.device)}; plain run {model.full_ms:.1f} ms, floor {model.floor_ms:.1f} ms")
    for row in rows:
        print(
            f"{row.name:10} {row.steps:3} steps  predicted {row.predicted_ms:7.1f} ms  "
            f"measured {row.measured_ms:7.1f} ms  {row.error:+6.1%}"
        )
    worst = max(abs(row.error) for row in rows)
    print(f"largest error {worst:.1%}, allowed {TOLERANCE:.0%}")
    write_rows(options.csv, rows)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
