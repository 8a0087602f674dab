"""Times several calls side by side on one device: warmed up, interleaved, each from an empty cache, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

Call = Callable[[], object]


class Stopwatch(Protocol):
    """Times one call at a time; readings may come later."""

    def time(self, call: Call) -> Callable[[], float]:
        """Runs ``call`` and returns what gives its milliseconds once everything has finished."""

    def finish(self) -> None:
        """Waits for all that was started."""


class HostStopwatch:
    """The processor's clock, for calls that have finished when they return."""

    def time(self, call: Call) -> Callable[[], float]:
        """Runs ``call``; its time is known at once."""
        start = time.perf_counter()
        call()
        ms = (time.perf_counter() - start) * 1e3
        return lambda: ms

    def finish(self) -> None:
        """Does nothing."""


class CudaStopwatch:
    """Events on the device.

    Before each call the second-level cache is overwritten, and the device is kept busy long enough for the host to
    queue the call: what is timed is the device's work, not Python's.
    """

    def __init__(self, device: torch.device) -> None:
        self._scratch = torch.empty(256 * 2**20, dtype=torch.int8, device=device)

    def time(self, call: Call) -> Callable[[], float]:
        """Queues ``call`` between two events."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._scratch.zero_()
        torch.cuda._sleep(1_000_000)  # cycles: about half a millisecond
        start.record()
        call()
        end.record()
        return lambda: float(start.elapsed_time(end))

    def finish(self) -> None:
        """Waits for the device."""
        torch.cuda.synchronize(self._scratch.device)


def stopwatch(device: torch.device) -> Stopwatch:
    """Returns what measures on ``device``."""
    return CudaStopwatch(device) if device.type == "cuda" else HostStopwatch()


def medians_ms(calls: Mapping[str, Call], watch: Stopwatch, *, rounds: int, warmup: int = 3) -> dict[str, float]:
    """Returns the median milliseconds of every call.

    Every round runs each call once, starting from another one each time, so that a device that slows down slows them
    all down.
    """
    for _ in range(warmup):
        for call in calls.values():
            call()
    watch.finish()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        shift = i % len(names)
        readings = {name: watch.time(calls[name]) for name in names[shift:] + names[:shift]}
        watch.finish()
        for name, reading in readings.items():
            samples[name].append(reading())
    return {name: statistics.median(values) for name, values in samples.items()}
