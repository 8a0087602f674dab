"""What linear layers see while a schedule runs: statistics per channel and step, and a bounded sample of rows.

Hooks watch the layers; the pipeline's own loop runs. Which rows are kept is decided by the seed, the layer, the step
and the batch, so the same call keeps the same rows. Everything is kept in float32 in main memory. Does not know what
the rows are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._policy import CalibrationPolicy
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.evaluate._work import step_work
from schedsearch.quantize import ChannelStatistics
from schedsearch.runtime import apply, block_lists_of, denoiser_of
from schedsearch.runtime._precision import linears_of
from schedsearch.schedule import Schedule

MAX_BYTES = 2**30
"""Memory for the rows of layers that are recorded at once; more layers take more runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """What one layer saw.

    Attributes:
        statistics: maxima and squares per channel and step, of all rows of the steps recorded.
        rows: `(n, in)` float32 sampled rows, in the order of steps.
        judged: `(m, in)` further ones.
        counts: `(n_steps,)` how many of the rows come from each step.
    """

    statistics: ChannelStatistics
    rows: Tensor
    judged: Tensor
    counts: tuple[int, ...]

    def by_step(self) -> list[list[Tensor]]:
        """Return the rows of each step, as `step_scales` takes them: none for a step that was not seen."""
        return [[part] if len(part) else [] for part in self.rows.split(self.counts)]


def record_inputs(
    runs: PairedRuns,
    schedule: Schedule,
    layers: Sequence[str],
    policy: CalibrationPolicy,
    *,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Iterator[dict[str, LayerInputs]]:
    """Yield the inputs of these layers under a schedule, in groups of layers whose rows fit into memory; a run each.

    A layer that never ran at a step that the policy asks for is left out.

    Args:
        runs: the prompts; as many as there are.
        schedule: what runs; its precision rules as well, so leave those out whose effect is not wanted.
        layers: dotted names of linear layers.
        policy: which steps, and how many rows.
        seed: decides which rows are kept.
        max_bytes: memory for rows.

    Raises:
        EvaluationError: a layer is not there.
        UsageError: a layer saw values that are no numbers.
    """
    linears = linears_of(denoiser_of(runs.pipe))
    for name in layers:
        if name not in linears:
            raise EvaluationError(f"calibration: found no linear layer {name}, expected one of the denoiser's.")
    sizes = {name: (policy.rows + policy.judged) * linears[name].in_features * 4 for name in layers}
    for group in grouped(sizes, max_bytes):
        yield _recorded(runs, schedule, {name: linears[name] for name in group}, policy, seed)


def grouped(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Return names in groups whose sizes add up to at most ``most``, in order; what is larger stands alone.

    >>> grouped({"a": 3, "b": 3, "c": 9, "d": 1}, 6)
    [['a', 'b'], ['c'], ['d']]
    """
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return groups


@dataclass(slots=True)
class _At:
    """Where the run is: the batch, the denoiser call, and that call's step."""

    batch: int = 0
    call: int = 0
    step: int = 0


class _Recorder:
    """Takes rows of one layer: so many at each step and batch, of its first input there."""

    def __init__(self, name: str, linear: nn.Linear, n_steps: int, seed: int) -> None:
        self.statistics = ChannelStatistics(linear.in_features, n_steps=n_steps)
        self._name, self._seed = name, seed
        self._taken: set[tuple[int, int]] = set()
        self._rows: list[tuple[int, Tensor]] = []
        self._judged: list[tuple[int, Tensor]] = []

    def take(self, x: Tensor, at: _At, n_rows: int, n_judged: int) -> None:
        """Notes one input; of too few rows as many are for judging as their share is."""
        rows = x.detach().reshape(-1, x.shape[-1])
        self.statistics.update(rows, step=at.step)
        wanted = min(n_rows + n_judged, len(rows))
        if not wanted or (at.step, at.batch) in self._taken:
            return
        self._taken.add((at.step, at.batch))
        if wanted < n_rows + n_judged:
            n_judged = wanted * n_judged // (n_rows + n_judged)
        label = f"rows:{self._seed}:{self._name}:{at.step}:{at.batch}"
        source = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big") >> 1)
        places = torch.randperm(len(rows), generator=source)[:wanted].to(rows.device)
        chosen = rows[places].float().cpu()
        self._judged.append((at.step, chosen[:n_judged]))
        self._rows.append((at.step, chosen[n_judged:]))

    def inputs(self) -> LayerInputs | None:
        """What was taken; nothing if there were no rows."""
        counts = [0] * len(self.statistics.count)
        for step, rows in self._rows:
            counts[step] += len(rows)
        if not sum(counts):
            return None
        return LayerInputs(
            statistics=self.statistics,
            rows=_in_order(self._rows),
            judged=_in_order(self._judged),
            counts=tuple(counts),
        )


def _in_order(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    return torch.cat([rows for _, rows in sorted(parts, key=lambda part: part[0])])


def _recorded(
    runs: PairedRuns, schedule: Schedule, linears: Mapping[str, nn.Linear], policy: CalibrationPolicy, seed: int
) -> dict[str, LayerInputs]:
    work = step_work(schedule, block_lists_of(runs.pipe))
    running = [step for step, each in enumerate(work) if each.runs_denoiser]
    batches = list(runs.batches(len(runs)))
    fitted = policy.quotas(schedule.n_steps, running, policy.rows)
    judging = policy.quotas(schedule.n_steps, running, policy.judged)
    recorders = {name: _Recorder(name, linear, schedule.n_steps, seed) for name, linear in linears.items()}
    at = _At()

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if fitted.get(at.step, 0) or judging.get(at.step, 0):
                parts = (_part(quotas.get(at.step, 0), at.batch, len(batches)) for quotas in (fitted, judging))
                recorders[name].take(args[0], at, *parts)

        return enter

    with ExitStack() as stack:
        handle = stack.enter_context(apply(runs.pipe, schedule))
        for name, linear in linears.items():
            stack.callback(linear.register_forward_pre_hook(note(name)).remove)
        calls = [step for step, _ in handle.plan.calls]

        def move(index: int, *_: object) -> None:
            at.call = index + 1
            at.step = calls[at.call] if at.call < len(calls) else -1

        handle.on_call = move
        for at.batch, (start, stop) in enumerate(batches):
            move(-1)
            runs.latents(start, stop, steps=schedule.n_steps)
    found = {name: recorder.inputs() for name, recorder in recorders.items()}
    return {name: inputs for name, inputs in found.items() if inputs is not None}


def _part(total: int, index: int, n: int) -> int:
    """The ``index``-th of ``n`` parts of a number that differ by at most one."""
    return total * (index + 1) // n - total * index // n
