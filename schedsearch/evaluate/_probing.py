"""Measures a `Probe`: what one plain run per prompt tells about its outputs and its blocks.

With precision rules a second run per prompt follows, in low bits along its own trajectory, and its outputs are compared
with those of the plain one: what the dynamic programme of CacheQuant needs to know of both.

The outputs come from the scheduler's side and the blocks' residuals from forward hooks, so nothing is run that the
plain run would not run, and the run is the plain one bit for bit. Does not know what a probe is used for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from schedsearch.evaluate._affine import AffineSums
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.evaluate._trace import capture_call, counting_calls
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import apply, block_lists_of, denoiser_of, identity_schedule, topology_of
from schedsearch.runtime._solver import Call, History
from schedsearch.schedule import PrecisionRule, Schedule, Tables
from schedsearch.study import BlockProbe, Probe

REACH = 3
"""How many steps ahead the change of a block is recorded."""

TOKENS = 256
"""Tokens of each stream that residuals are compared on; of longer ones every second, third, ... is taken."""


def measure_probe(
    pipe: Pipeline,
    workload: Workload,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    batch: int = 8,
    precision: Sequence[PrecisionRule] = (),
    tables: Tables | None = None,
    is_corrected: bool = False,
) -> tuple[Probe, int]:
    """Return the probe of ``pipe`` over ``prompts``, and the denoiser evaluations it took: one plain run each, and one
    in low bits if there are rules.

    Args:
        pipe: the pipeline, without a schedule applied.
        workload: how it is called.
        prompts: calibration prompts.
        seed: of the noise; with that of an evaluator, the runs are its reference runs.
        batch: images per call.
        precision: rules of the run in low bits; nothing for no such run.
        tables: of these layers.
        is_corrected: count what is left of the distances between the two runs after the best scale and shift per
            channel (see ``_correction.py``), because that is what a corrected schedule will lose.

    Raises:
        ApplyError: the rules or tables do not fit the pipeline.
        EvaluationError: with ``is_corrected``, the run in low bits gave values that are no numbers.
    """
    runs = PairedRuns(pipe, workload, tuple(prompts), seed=seed, batch=batch)
    schedule = identity_schedule(pipe, workload.steps, height=workload.height, width=workload.width)
    rounded = replace(schedule, precision=tuple(precision), tables=tables) if precision else None
    pairs = _Pairs(schedule.n_steps)
    blocks = _Blocks(pipe, schedule.n_steps)
    sums = _Sums(schedule.n_steps)
    evaluations = 0
    sentinel = capture_call(pipe, workload, prompts[0]).sentinel
    for start, stop in runs.batches(len(runs)):
        outputs: list[torch.Tensor] = []
        halfway: list[torch.Tensor] = []
        with ExitStack() as stack:
            calls = stack.enter_context(counting_calls(denoiser_of(pipe), sentinel))
            handle = stack.enter_context(apply(pipe, schedule))
            stack.callback(blocks.watch())

            def note(
                index: int,
                call: Call,
                sample: torch.Tensor,
                output: torch.Tensor,
                _history: History,
                found: tuple[list[torch.Tensor], list[torch.Tensor]] = (outputs, halfway),
            ) -> None:
                found[0].append(output.detach().float().cpu())
                if index == schedule.n_steps // 2:
                    found[1].append((sample - call.sigma * output).detach())
                blocks.step_done()

            handle.on_call = note
            final = runs.latents(start, stop, steps=schedule.n_steps)
        evaluations += calls.value * (stop - start)
        sums.add(runs.noise(start, stop), outputs)
        sums.add_pictures(runs, halfway[0], final)
        if rounded is not None:
            pairs.add(outputs, _outputs(runs, rounded, start, stop))
            evaluations += schedule.n_steps * runs.workload.branches * (stop - start)
    low_bit = None if rounded is None else pairs.distances(is_corrected=is_corrected)
    return (
        Probe(
            sigma=schedule.sigma, gram=sums.gram, l1=sums.l1, blocks=blocks.found(), scale=sums.scale, low_bit=low_bit
        ),
        evaluations,
    )


def _outputs(runs: PairedRuns, schedule: Schedule, start: int, stop: int) -> list[torch.Tensor]:
    """The denoiser's output at every step of ``schedule``, in single precision and main memory."""
    found: list[torch.Tensor] = []
    with apply(runs.pipe, schedule) as handle:

        def note(_index: int, _call: Call, _sample: torch.Tensor, output: torch.Tensor, _history: History) -> None:
            found.append(output.detach().float().cpu())

        handle.on_call = note
        runs.latents(start, stop, steps=schedule.n_steps)
    return found


class _Pairs:
    """Outputs of two runs of the same prompts, and how far one step's is from another's."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._batches: list[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]] = []

    def add(self, wanted: Sequence[torch.Tensor], seen: Sequence[torch.Tensor]) -> None:
        """Takes in the outputs of one batch, step by step."""
        self._batches.append((wanted, seen))

    def distances(self, *, is_corrected: bool) -> Any:
        """Return `(n, n)` mean ``|wanted_t - seen_i|``; each pair with its own scale and shift if ``is_corrected``."""
        found = np.zeros((self._n, self._n))
        for t in range(self._n):
            for i in range(self._n):
                found[t, i] = self._distance(t, i, is_corrected=is_corrected and t > i)
        return found

    def _distance(self, t: int, i: int, *, is_corrected: bool) -> float:
        pairs = [(wanted[t], seen[i]) for wanted, seen in self._batches]
        table = None
        if is_corrected:
            sums = AffineSums(pairs[0][1].shape[-1])
            for wanted, seen in pairs:
                sums.add(seen, wanted)
            table = sums.fit().table
        total = count = 0.0
        for wanted, seen in pairs:
            value = seen if table is None else torch.addcmul(table[1], seen, table[0])
            total += float((wanted - value).abs().double().sum())
            count += value.numel()
        return total / count


class _Sums:
    """Inner products and distances of outputs, added up over batches."""

    def __init__(self, n: int) -> None:
        self._gram = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        self._l1 = torch.zeros(n, n, dtype=torch.float64)
        self._numbers = 0
        self._of_images = self._of_latents = 0.0

    def add(self, noise: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        rows = torch.stack([noise.float().cpu().reshape(-1), *(v.reshape(-1) for v in outputs)]).double()
        self._gram += rows @ rows.T
        for i, row in enumerate(rows[1:]):
            self._l1[i] += (rows[1:] - row).abs().sum(dim=1)
        self._numbers += rows.shape[1]

    def add_pictures(self, runs: PairedRuns, early: torch.Tensor, final: torch.Tensor) -> None:
        """Compares the final sample with the one foreseen halfway: an error as cheaper runs make it."""
        one, other = runs.pictures(early), runs.pictures(final)
        self._of_images += float((one.images - other.images).square().mean()) * len(other.images)
        self._of_latents += float((one.latents - other.latents).square().mean()) * len(other.latents)

    @property
    def gram(self) -> Any:
        mean = self._gram / self._numbers
        return ((mean + mean.T) / 2.0).numpy()

    @property
    def l1(self) -> Any:
        mean = self._l1 / self._numbers
        return ((mean + mean.T) / 2.0).numpy()

    @property
    def scale(self) -> float:
        return self._of_images / self._of_latents if self._of_latents else 1.0


class _Blocks:
    """Residuals of all blocks along a run, compared with those of the last few steps."""

    def __init__(self, pipe: Pipeline, n: int) -> None:
        self._denoiser = denoiser_of(pipe)
        self._streams = {blocks.name: blocks.streams for blocks in topology_of(pipe).lists}
        self._names = [block.name for each in block_lists_of(pipe) for block in each]
        self._n = n
        self._changes = {name: np.zeros((n, REACH)) for name in self._names}
        self._sizes = {name: np.zeros((n, 2)) for name in self._names}
        self._lengths = {name: np.zeros(n) for name in self._names}
        self._last: dict[str, list[torch.Tensor]] = {}
        self._step = 0
        self._seen: set[str] = set()

    def watch(self) -> Callable[[], None]:
        """Begin a run; return what ends the watching."""
        self._last = {name: [] for name in self._names}
        self._step = 0
        self._seen = set()
        hooks = []
        for name in self._names:
            module = self._denoiser.get_submodule(name)
            hooks.append(module.register_forward_hook(self._hook(name, module), with_kwargs=True))

        def end() -> None:
            for hook in hooks:
                hook.remove()

        return end

    def step_done(self) -> None:
        """Note that the next call belongs to the next step."""
        self._step += 1
        self._seen.clear()

    def _hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        streams = self._streams[name.rsplit(".", 1)[0]]
        places = list(inspect.signature(module.forward).parameters)

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: tuple[torch.Tensor]) -> None:
            if name in self._seen:  # the unconditional pass of the same step
                return
            self._seen.add(name)
            before = [kwargs[s] if s in kwargs else args[places.index(s)] for s in streams]
            self._compare(name, [_thinned(t) for t in before], [_thinned(t) for t in out])

        return note

    def _compare(self, name: str, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> None:
        step, last = self._step, self._last[name]
        residual = torch.cat([(b - a).reshape(-1) for a, b in zip(before, after, strict=True)])
        length = float(residual.abs().sum())
        self._sizes[name][step] += (length, float(sum(a.abs().sum() for a in before)))
        self._lengths[name][step] += length
        for k, older in enumerate(last):
            self._changes[name][step - 1 - k, k] += float((residual - older).abs().sum())
        last.insert(0, residual)
        del last[REACH:]

    def found(self) -> tuple[BlockProbe, ...]:
        """Return the records of all blocks."""
        return tuple(self._block(name) for name in self._names)

    def _block(self, name: str) -> BlockProbe:
        change = np.full((self._n, REACH), np.nan)
        for k in range(1, REACH + 1):
            change[: self._n - k, k - 1] = self._changes[name][: self._n - k, k - 1] / self._lengths[name][k:]
        sizes = self._sizes[name]
        return BlockProbe(name=name, change=change, size=float((sizes[:, 0] / sizes[:, 1]).mean()))


def _thinned(stream: torch.Tensor) -> torch.Tensor:
    """Some tokens of ``stream`` `(n, tokens, width)`, in single precision."""
    every = -(-stream.shape[1] // TOKENS)
    return stream[:, ::every].detach().float()
