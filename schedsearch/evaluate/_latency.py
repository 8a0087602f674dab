"""Wall time, measured the only way it is quoted: interleaved, warmed up, synchronised, as medians and paired ratios.

Machines drift: clocks change, neighbours come and go. Runs that are to be compared are therefore timed in rounds
(A B C, A B C, ...), and a ratio is taken inside each round before the median over rounds. Does not know pipelines.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from schedsearch.errors import UsageError

LOW_QUANTILE = 0.1
HIGH_QUANTILE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio taken round by round: its ``median`` and its 10 % and 90 % quantiles over ``n`` rounds."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySamples:
    """Milliseconds of one run, in the order of the rounds."""

    name: str
    ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median over rounds."""
        return statistics.median(self.ms)

    def quantile(self, q: float) -> float:
        """Return the ``q`` quantile, interpolated linearly between samples.

        Raises:
            UsageError: if ``q`` is outside [0, 1].
        """
        return quantile(self.ms, q)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRun:
    """A run whose preparation is not part of its time.

    Attributes:
        call: what is timed.
        prepare: gives a context that is entered before the clock starts and left after it has stopped, such as a
            schedule applied to the pipeline.
    """

    call: Callable[[], object]
    prepare: Callable[[], AbstractContextManager[object]]


def quantile(values: tuple[float, ...], q: float) -> float:
    """Return the ``q`` quantile of ``values``, interpolated linearly.

    >>> quantile((1.0, 2.0, 3.0, 4.0), 0.5)
    2.5

    Raises:
        UsageError: if ``values`` is empty or ``q`` is outside [0, 1].
    """
    if not values or not 0.0 <= q <= 1.0:
        raise UsageError(f"quantile: found q={q} of {len(values)} values, expected q in [0, 1] and at least one value.")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def paired_ratio(numerator: LatencySamples, denominator: LatencySamples) -> Ratio:
    """Return ``numerator / denominator`` taken inside each round; a speedup is ``paired_ratio(plain, scheduled)``.

    Raises:
        UsageError: if the two were not measured in the same number of rounds.
    """
    if len(numerator.ms) != len(denominator.ms):
        raise UsageError(
            f"paired_ratio: found {len(numerator.ms)} rounds of {numerator.name} and {len(denominator.ms)} of "
            f"{denominator.name}, expected runs of one measurement."
        )
    ratios = tuple(a / b for a, b in zip(numerator.ms, denominator.ms, strict=True))
    return Ratio(
        median=statistics.median(ratios),
        low=quantile(ratios, LOW_QUANTILE),
        high=quantile(ratios, HIGH_QUANTILE),
        n=len(ratios),
    )


def measure_latency(
    runs: Mapping[str, Callable[[], object] | TimedRun],
    *,
    repeats: int = 10,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, LatencySamples]:
    """Return the wall time of each run, measured in interleaved rounds.

    Args:
        runs: what to time, by name; a plain callable, or a `TimedRun`.
        repeats: timed rounds.
        warmup: rounds before them that do not count.
        device: where the work happens; it is drained before each reading of the clock.
        clock: seconds; injectable for tests.
        on_round: called with the number of finished rounds, warm-up included.

    Raises:
        UsageError: if there is nothing to time or ``repeats`` is less than 1.
    """
    if not runs or repeats < 1 or warmup < 0:
        raise UsageError(
            f"measure_latency: found {len(runs)} runs, repeats={repeats}, warmup={warmup}; "
            "expected at least one run, repeats >= 1 and warmup >= 0."
        )
    times: dict[str, list[float]] = {name: [] for name in runs}
    drain = synchroniser(device)
    with quiet_gc():
        for done in range(warmup + repeats):
            for name, run in runs.items():
                seconds = _time_once(run, drain, clock)
                if done >= warmup:
                    times[name].append(seconds * 1e3)
            # Between rounds, never inside one: a collection would be billed to whichever run it hits.
            gc.collect(0)
            if on_round is not None:
                on_round(done + 1)
    return {name: LatencySamples(name=name, ms=tuple(ms)) for name, ms in times.items()}


def _time_once(run: Callable[[], object] | TimedRun, drain: Callable[[], None], clock: Callable[[], float]) -> float:
    """Return the seconds of one call, its preparation excluded."""
    if isinstance(run, TimedRun):
        with run.prepare():
            return _time_once(run.call, drain, clock)
    drain()
    start = clock()
    run()
    drain()
    return clock() - start


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Keep Python's garbage collector from running on its own, and put it back as it was."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def synchroniser(device: torch.device | str) -> Callable[[], None]:
    """Return the function that waits until ``device`` has done all it was given; nothing to wait for on a CPU."""
    place = torch.device(device)
    if place.type == "cuda":
        return lambda: torch.cuda.synchronize(place)
    if place.type == "mps":
        return torch.mps.synchronize
    if place.type == "xpu":
        return lambda: torch.xpu.synchronize(place)
    return _nothing


def _nothing() -> None:
    """Wait for nothing."""


def device_name(device: torch.device | str) -> str:
    """Return the machine in words: the GPU's name, or the CPU's with the number of threads torch uses."""
    place = torch.device(device)
    if place.type == "cuda":
        return str(torch.cuda.get_device_name(place))
    if place.type == "cpu":
        threads = torch.get_num_threads()
        return f"{_cpu_name()}, {threads} thread{'' if threads == 1 else 's'}"
    return f"{platform.machine()} {place.type}"


def _cpu_name() -> str:
    """Return the processor's name, or the architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"
