"""Module times measured in place: hooks around the denoiser, its blocks and components during plain runs.

In place, because a module timed alone has warmer caches and no neighbours on the stream. On a GPU the hooks record
events and nothing waits until the run is over. Does not know schedules.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._cost import ModuleTimes
from schedsearch.evaluate._latency import quiet_gc, synchroniser
from schedsearch.evaluate._work import BlockLists


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the time of a plain call goes, in milliseconds, as medians over calls.

    Attributes:
        floor_ms: before the first and after the last denoiser call.
        loop_ms: outside the denoiser, per step.
        denoiser_ms: one denoiser call.
        times: its parts.
    """

    floor_ms: float
    loop_ms: float
    denoiser_ms: float
    times: ModuleTimes


class _Marks:
    """Moments on the device's own time line."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._marks: dict[str, list[Any]] = {}

    def mark(self, name: str) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.setdefault(name, []).append(event)
        else:
            self._marks.setdefault(name, []).append(time.perf_counter())

    def between(self, start: str, end: str, *, offset: int = 0) -> list[float]:
        """Return milliseconds from the i-th ``start`` to the ``(i + offset)``-th ``end``."""
        return [self._ms(a, b) for a, b in zip(self._marks[start], self._marks[end][offset:], strict=False)]

    def whole(self) -> float:
        """Return the milliseconds of the whole call."""
        return self.between("begin", "finish")[0]

    def outside(self) -> float:
        """Return milliseconds before the first and after the last denoiser call."""
        marks = self._marks
        before = self._ms(marks["begin"][0], marks["start:"][0])
        return before + self._ms(marks["end:"][-1], marks["finish"][0])

    def _ms(self, a: Any, b: Any) -> float:
        return float(a.elapsed_time(b)) if self._on_gpu else float(b - a) * 1e3


def measure_breakdown(
    call: Callable[[], object],
    denoiser: nn.Module,
    block_lists: BlockLists,
    *,
    full_ms: float,
    branches: int,
    device: torch.device,
    repeats: int,
) -> Breakdown:
    """Return where the time of ``call`` goes, from ``repeats`` runs with hooks.

    Hooks cost time, and a machine may be slower now than when ``full_ms`` was measured. So the parts
    are scaled to add up to ``full_ms``.

    Args:
        call: the plain pipeline call, warmed up, of at least two steps.
        denoiser: the module it calls in every step.
        block_lists: the denoiser's blocks.
        full_ms: measured time of the call without hooks.
        branches: denoiser calls per step.
        device: where it runs.
        repeats: runs.

    Raises:
        EvaluationError: if the call makes fewer than two denoiser calls.
    """
    blocks = [block for each in block_lists for block in each]
    names = [name for block in blocks for name in (block.name, *(f"{block.name}.{part}" for part in block.components))]
    runs = [_marked_run(call, denoiser, names, device) for _ in range(repeats)]
    calls = len(runs[0].between("start:", "end:"))
    if calls < 2:
        raise EvaluationError(f"measure_breakdown: found {calls} denoiser calls, expected a run of two steps at least.")
    modules = {name: _typical(runs, f"start:{name}", f"end:{name}") for name in names}
    # The rest is measured in the gaps between blocks and not as a difference: on a busy machine the median of a whole
    # is more than the sum of the medians of its parts, and the difference would all be booked here.
    edges = ["start:", *(edge for block in blocks for edge in (f"start:{block.name}", f"end:{block.name}")), "end:"]
    rest_ms = sum(_typical(runs, end, start) for end, start in zip(edges[::2], edges[1::2], strict=True))
    denoiser_ms = rest_ms + sum(modules[block.name] for block in blocks)
    loop_ms = sum(_typical(runs, "end:", "start:", offset=1, every=branches, first=k) for k in range(branches))
    floor_ms = full_ms * statistics.median(run.outside() / run.whole() for run in runs)
    scale = (full_ms - floor_ms) / (calls / branches * loop_ms + calls * denoiser_ms)
    times = ModuleTimes(
        block_lists=tuple(tuple(each) for each in block_lists),
        branches=branches,
        rest_ms=rest_ms * scale,
        modules=tuple((name, ms * scale) for name, ms in modules.items()),
    )
    return Breakdown(floor_ms=floor_ms, loop_ms=loop_ms * scale, denoiser_ms=denoiser_ms * scale, times=times)


def _typical(runs: list[_Marks], start: str, end: str, *, offset: int = 0, every: int = 1, first: int = 0) -> float:
    """Return the median milliseconds between two marks; of every n-th pair where asked."""
    found = [ms for run in runs for ms in run.between(start, end, offset=offset)[first::every]]
    return statistics.median(found) if found else 0.0


def _marked_run(call: Callable[[], object], denoiser: nn.Module, names: list[str], device: torch.device) -> _Marks:
    marks = _Marks(device)
    drain = synchroniser(device)
    with ExitStack() as stack:
        for name in ("", *names):
            module = denoiser.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(_marker(marks, f"start:{name}")).remove)
            stack.callback(module.register_forward_hook(_marker(marks, f"end:{name}")).remove)
        stack.enter_context(quiet_gc())
        drain()
        marks.mark("begin")
        call()
        marks.mark("finish")
        drain()
    return marks


def _marker(marks: _Marks, name: str) -> Callable[..., None]:
    def note(*_: object) -> None:
        marks.mark(name)

    return note
