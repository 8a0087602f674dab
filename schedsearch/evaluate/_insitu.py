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
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._cost import ModuleTimes
from schedsearch.evaluate._latency import quiet_gc, synchroniser

if TYPE_CHECKING:
    from schedsearch.evaluate._work import BlockLists


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the time of a plain call goes, in milliseconds, as medians over calls.

    Attributes:
        floor_ms: before the first and after the last denoiser call.
        loop_ms: between two denoiser calls.
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
        self._on_gpu = device.type == "cuda"
        self._marks: dict[str, list[Any]] = {}

    def mark(self, name: str) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
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
    device: torch.device,
    repeats: int,
) -> Breakdown:
    """Return where the time of ``call`` goes, from ``repeats`` runs with hooks.

    Hooks cost time, and a machine may be slower now than when ``full_ms`` was measured. So each run gives shares of its
    own whole, and the shares are of ``full_ms``.

    Args:
        call: the plain pipeline call, warmed up, of at least two steps.
        denoiser: the module it calls once per step.
        block_lists: the denoiser's blocks.
        full_ms: measured time of the call without hooks.
        device: where it runs.
        repeats: runs.

    Raises:
        EvaluationError: if the call makes fewer than two denoiser calls.
    """
    blocks = [block for each in block_lists for block in each]
    names = [name for block in blocks for name in (block.name, *(f"{block.name}.{part}" for part in block.components))]
    runs = [_marked_run(call, denoiser, names, device) for _ in range(repeats)]
    steps = len(runs[0].between("start:", "end:"))
    if steps < 2:
        raise EvaluationError(f"measure_breakdown: found {steps} denoiser calls, expected a run of two steps at least.")
    floor_ms = full_ms * statistics.median(run.outside() / run.whole() for run in runs)
    loop_ms = full_ms * _share(runs, "end:", "start:", offset=1)
    denoiser_ms = (full_ms - floor_ms) / steps - loop_ms
    # Medians of parts do not add up to the median of the whole: the parts are scaled to do so.
    scale = denoiser_ms / _share(runs, "start:", "end:")
    modules = {name: scale * _share(runs, f"start:{name}", f"end:{name}") for name in names}
    rest_ms = max(denoiser_ms - sum(modules[block.name] for block in blocks), 0.0)
    lists = tuple(tuple(each) for each in block_lists)
    times = ModuleTimes(block_lists=lists, rest_ms=rest_ms, modules=tuple(modules.items()))
    return Breakdown(floor_ms=floor_ms, loop_ms=loop_ms, denoiser_ms=denoiser_ms, times=times)


def _share(runs: list[_Marks], start: str, end: str, *, offset: int = 0) -> float:
    """Return the median time between two marks, as a share of the whole call."""
    return statistics.median(ms / run.whole() for run in runs for ms in run.between(start, end, offset=offset))


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
