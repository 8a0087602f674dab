"""The time of single operations: interleaved rounds, warmed up, medians, on the device's own clock.

On CUDA an operation lies between two events. Before each, a buffer larger than any cache is overwritten: inside a model
an operation does not find its weights in the cache either, and meanwhile the program gets ahead of the device, so that
the time to launch a kernel counts only where it would in a model, between the kernels of one operation. Elsewhere a
short operation is repeated until the clock can see it. Does not know what is timed.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from schedsearch.evaluate._latency import TimedRun, synchroniser

FLUSH_BYTES = 256 * 2**20
"""Several times the cache of the largest GPU."""

SHORTEST_S = 0.002
"""Seconds below which a run is repeated inside one reading of the clock."""

MOST_REPEATS = 1000

Run = Callable[[], object] | TimedRun


def median_ms(
    runs: Mapping[str, Run],
    *,
    repeats: int,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median milliseconds of each run, by name; gradients are off, as in a pipeline.

    The garbage collector is the caller's matter: while it is off (`quiet_gc`), new objects alone are collected here,
    between rounds.

    Args:
        runs: what to time; each has run before, so that nothing is compiled or tuned while others are timed.
        repeats: timed rounds over all runs.
        warmup: rounds before them that do not count.
        device: where the work happens.
        clock: seconds; injectable for tests; not used on CUDA devices.
    """
    place = torch.device(device)
    with torch.no_grad():
        if place.type == "cuda":
            return _by_events(runs, repeats=repeats, warmup=warmup, device=place)
        return _by_clock(runs, repeats=repeats, warmup=warmup, device=place, clock=clock)


def _by_clock(
    runs: Mapping[str, Run], *, repeats: int, warmup: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, float]:
    seconds = partial(_seconds, drain=synchroniser(device), clock=clock)
    times: dict[str, int] = {}
    for name, run in runs.items():
        once = max(min(seconds(run, 1), seconds(run, 1)), 1e-9)
        times[name] = max(1, min(MOST_REPEATS, math.ceil(SHORTEST_S / once)))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for done in range(warmup + repeats):
        for name, run in runs.items():
            each = seconds(run, times[name]) / times[name]
            if done >= warmup:
                found[name].append(each)
        gc.collect(0)
    return {name: statistics.median(each) * 1e3 for name, each in found.items()}


def _seconds(run: Run, times: int, *, drain: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of ``times`` calls in a row, their preparation excluded."""
    if isinstance(run, TimedRun):
        with run.prepare():
            return _seconds(run.call, times, drain=drain, clock=clock)
    drain()
    start = clock()
    for _ in range(times):
        run()
    drain()
    return clock() - start


def _by_events(runs: Mapping[str, Run], *, repeats: int, warmup: int, device: torch.device) -> dict[str, float]:
    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
    drain = synchroniser(device)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    for done in range(warmup + repeats):
        for name, run in runs.items():
            pair = _between_events(run, flush)
            if done >= warmup:
                marks[name].append(pair)
        drain()
        gc.collect(0)
    return {name: statistics.median(a.elapsed_time(b) for a, b in pairs) for name, pairs in marks.items()}


def _between_events(run: Run, flush: torch.Tensor) -> tuple[Any, Any]:
    if isinstance(run, TimedRun):
        with run.prepare():
            return _between_events(run.call, flush)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(flush.device)
    flush.zero_()
    start.record(stream)
    run()
    end.record(stream)
    return start, end
