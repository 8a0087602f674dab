"""Benchmark: what replaying a schedule costs beyond the work it asks for.

    python -m schedsearch.evaluate._bench_overhead --rounds 15 --csv overhead.csv

    ratio = scheduled call / (bare calls of exactly what it computes + fixed part)

The *bare* time is a loop over the same denoiser calls, without pipeline, sampler or schedule: the denoiser as often as
the schedule runs it, with exactly the blocks it runs, on recorded inputs. The *fixed part* is the same pipeline call
with its own scheduler and as many steps, its denoiser replaced by one that returns a recorded tensor. All three are
timed interleaved and the ratio is taken round by round.
"""

# ruff: noqa: T201 -- a program
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from schedsearch.evaluate._bench_program import common_options, opened, write_rows
from schedsearch.evaluate._calibrate import call_once, timed_schedule
from schedsearch.evaluate._latency import LatencySamples, Ratio, TimedRun, device_name, measure_latency, paired_ratio
from schedsearch.evaluate._trace import capture_call
from schedsearch.evaluate._work import BlockLists, StepWork, step_work
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import block_lists_of, blocks_of, denoiser_of, identity_schedule
from schedsearch.schedule import MODEL_ROW, Schedule

BOUND = 1.02
"""Largest ratio that is allowed."""

CONTROL = "plain"
"""Row of the pipeline without any schedule: what the comparison itself costs. No bound applies to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadRow:
    """One schedule: medians in milliseconds, and the paired ratio."""

    name: str
    scheduled_ms: float
    bare_ms: float
    fixed_ms: float
    ratio: float
    low: float
    high: float


def bench_schedules(pipe: Pipeline, workload: Workload) -> dict[str, Schedule]:
    """Return the control, schedules near 2x, 4x and 8x with forecasts of the whole denoiser, and one of block rows."""
    full = identity_schedule(pipe, workload.steps, height=workload.height, width=workload.width)
    n = workload.steps
    found = {CONTROL: full}
    for factor in (2, 4, 8):
        # The plain call's fixed part eats into the budget of computed steps.
        period = factor if factor < 8 else 10
        row = "".join("C" if i % period == 0 else "1" for i in range(n))
        found[f"{factor}x model"] = dataclasses.replace(full, ops=((MODEL_ROW, row),))
    names = [block.name for block in blocks_of(pipe)][2:]
    row = "".join("C" if i % 3 == 0 else "1" for i in range(n))
    found["blocks"] = dataclasses.replace(full, ops=tuple((name, row) for name in names))
    return found


def measure_overhead(
    pipe: Pipeline,
    workload: Workload,
    schedules: Mapping[str, Schedule],
    *,
    rounds: int,
    device: torch.device | str,
    prompt: str = "a picture",
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[OverheadRow, ...]:
    """Return one row per schedule; their rows may speak of the model and of whole blocks, not of components."""
    denoiser = denoiser_of(pipe)
    kwargs = capture_call(pipe, workload, prompt).kwargs
    lists = block_lists_of(pipe)
    with torch.no_grad():
        output = denoiser(**kwargs)
    call = partial(call_once, pipe, workload, prompt)
    runs: dict[str, TimedRun | Callable[[], object]] = {}
    for name, schedule in schedules.items():
        runs[f"scheduled {name}"] = call if name == CONTROL else timed_schedule(pipe, schedule, call)
        runs[f"bare {name}"] = TimedRun(
            call=_bare_calls(denoiser, kwargs, step_work(schedule, lists)),
            prepare=partial(_only_running, denoiser, lists),
        )
        runs[f"fixed {name}"] = TimedRun(
            call=partial(call, steps=schedule.n_steps), prepare=partial(_stub, denoiser, output)
        )
    samples = measure_latency(runs, repeats=rounds, warmup=3, device=device, clock=clock)
    return tuple(_row(name, samples) for name in schedules)


def _row(name: str, samples: Mapping[str, LatencySamples]) -> OverheadRow:
    scheduled, bare, fixed = (samples[f"{part} {name}"] for part in ("scheduled", "bare", "fixed"))
    ideal = LatencySamples(name=name, ms=tuple(b + f for b, f in zip(bare.ms, fixed.ms, strict=True)))
    ratio: Ratio = paired_ratio(scheduled, ideal)
    return OverheadRow(
        name=name,
        scheduled_ms=scheduled.median_ms,
        bare_ms=bare.median_ms,
        fixed_ms=fixed.median_ms,
        ratio=ratio.median,
        low=ratio.low,
        high=ratio.high,
    )


class _Running:
    """Which blocks run in the bare call under way."""

    names: frozenset[str] | None = None


def _bare_calls(denoiser: nn.Module, kwargs: Mapping[str, Any], steps: Sequence[StepWork]) -> Callable[[], None]:
    """Return a loop over the denoiser calls that ``steps`` compute, each with exactly the blocks it computes."""
    patterns = [frozenset(work.blocks) for work in steps if work.runs_denoiser for _ in range(work.calls)]

    def loop() -> None:
        # As pipelines do; inference_mode would make small operations cheaper than in the pipeline.
        with torch.no_grad():
            for names in patterns:
                _Running.names = names
                denoiser(**kwargs)

    return loop


@contextmanager
def _only_running(denoiser: nn.Module, lists: BlockLists) -> Iterator[None]:
    """Make blocks outside `_Running.names` hand their streams on."""

    def passing(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*, hidden_states: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
            if _Running.names is None or name in _Running.names:
                return forward(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)
            return encoder_hidden_states, hidden_states

        return run

    with ExitStack() as stack:
        for name in (block.name for blocks in lists for block in blocks):
            module = denoiser.get_submodule(name)
            stack.enter_context(_replaced(module, passing(name, module.forward)))
        yield


@contextmanager
def _stub(denoiser: nn.Module, output: Any) -> Iterator[None]:
    """Make the denoiser answer with ``output`` at once."""
    with _replaced(denoiser, lambda *_args, **_kwargs: output):
        yield


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table, write the CSV; 0 if all ratios hold, else 1."""
    parser = common_options("Measure what replaying a schedule costs beyond its work.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, not wall time: for a CPU that others are using meanwhile",
    )
    options = parser.parse_args(arguments)
    _, pipe, workload = opened(options)
    schedules = bench_schedules(pipe, workload)
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows = measure_overhead(pipe, workload, schedules, rounds=options.rounds, device=options.device, clock=clock)
    kind = "processor" if options.cpu_time else "wall"
    print(f"{device_name(options.device)}; {kind} time, {options.rounds} rounds")
    for row in rows:
        print(
            f"{row.name:10} scheduled {row.scheduled_ms:7.1f} ms = bare {row.bare_ms:7.1f} + fixed {row.fixed_ms:5.1f}"
            f"  x {row.ratio:.4f} ({row.low:.4f} to {row.high:.4f})"
        )
    worst = max(row.ratio for row in rows if row.name != CONTROL)
    print(f"largest ratio {worst:.4f}, allowed {BOUND}")
    write_rows(options.csv, rows)
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
