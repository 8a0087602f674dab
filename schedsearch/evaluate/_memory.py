"""How many bytes a schedule's weights and caches take, predicted from shapes: checkpoint, resident, peak.

The peak counts the denoiser's weights as a device holds them once a schedule is applied with ``keep_base=False``, and
all caches of one image at once. Text encoders, VAE and activations come on top: they are the same for every schedule.
Nothing is run here but one call of the denoiser, which says how large the outputs of its modules are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from schedsearch.evaluate._linears import LinearLayer, Linears, linears_of, resident_bytes, weight_bytes
from schedsearch.evaluate._prices import LinearPrices
from schedsearch.evaluate._trace import capture_call
from schedsearch.evaluate._work import BlockLists
from schedsearch.evaluate._workload import Pipeline, Prompt, Workload
from schedsearch.runtime import block_lists_of, denoiser_of
from schedsearch.runtime._plan import KEEP, plan
from schedsearch.runtime._solver import program
from schedsearch.schedule import MODEL_ROW, PrecisionRule, Schedule


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """Predicts bytes.

    Attributes:
        linears: the denoiser's weights.
        block_lists: its blocks.
        outputs: bytes of what each block, each component and the whole denoiser (``model``) gives out, for one image.
        branches: calls per step under the pipeline's own guidance.
        prices: which formats the device carries out; ``None`` if none was timed, so that all are simulated.
    """

    linears: Linears
    block_lists: BlockLists
    outputs: Mapping[str, int]
    branches: int = 1
    prices: LinearPrices | None = None

    def checkpoint_bytes(self, schedule: Schedule) -> int:
        """Return the bytes of the denoiser's checkpoint as ``schedule`` runs it."""
        return weight_bytes(schedule, self.linears)

    def resident_bytes(self, schedule: Schedule) -> int:
        """Return the bytes of the denoiser's weights on the device, its own ones let go where low-bit ones stand."""
        return resident_bytes(schedule, self.linears, executed=self._executes, base_stays=False)

    def cache_bytes(self, schedule: Schedule) -> int:
        """Return the bytes of all caches of one image, guidance passes included."""
        second = {call.step: call.sigma for call in program(schedule) if call.extra}
        total = 0
        for site in plan(schedule, self.block_lists, second=second).sites:
            if KEEP in site.actions:
                held = self.outputs[site.modules[-1] if site.modules else MODEL_ROW]
                wide = 2 if self.linears.base == "fp16" else 1  # their divided differences are kept in float32
                total += held * (1 + wide * site.order)
        return total * self.branches

    def peak_bytes(self, schedule: Schedule) -> int:
        """Return the bytes of weights and caches together."""
        return self.resident_bytes(schedule) + self.cache_bytes(schedule)

    def why_not(self, schedule: Schedule, limit: int) -> str:
        """Return why ``schedule`` does not keep ``limit`` bytes; nothing if it does."""
        weights, caches = self.resident_bytes(schedule), self.cache_bytes(schedule)
        if weights + caches <= limit:
            return ""
        return (
            f"predicted peak memory: found {_shown(weights + caches)} (weights {_shown(weights)}, caches "
            f"{_shown(caches)}), expected at most {_shown(limit)}"
        )

    def _executes(self, rule: PrecisionRule, layer: LinearLayer) -> bool:
        return self.prices is not None and layer.tokens > 0 and self.prices.executes(rule, layer)


def memory_model(
    pipe: Pipeline, workload: Workload, prompt: Prompt, *, prices: LinearPrices | None = None
) -> MemoryModel:
    """Return the memory model of ``pipe``'s denoiser, from two calls of it.

    Args:
        pipe: the pipeline, without a schedule applied.
        workload: how it is called.
        prompt: what for; it does not matter.
        prices: what the device carries out.
    """
    denoiser = denoiser_of(pipe)
    kwargs = capture_call(pipe, workload, prompt).kwargs
    lists = block_lists_of(pipe)
    return MemoryModel(
        linears=linears_of(denoiser, kwargs),
        block_lists=lists,
        outputs=_output_bytes(denoiser, kwargs, lists),
        branches=workload.branches,
        prices=prices,
    )


def _output_bytes(denoiser: nn.Module, kwargs: Mapping[str, Any], lists: BlockLists) -> dict[str, int]:
    """Bytes of the outputs of the denoiser, its blocks and their components in one call."""
    found: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            first = output[0] if name == MODEL_ROW else output
            found[name] = sum(t.numel() * t.element_size() for t in _tensors(first))

        return leave

    names = [name for each in lists for b in each for name in (b.name, *(f"{b.name}.{part}" for part in b.components))]
    with ExitStack() as stack:
        for name in names:
            stack.callback(denoiser.get_submodule(name).register_forward_hook(note(name)).remove)
        stack.callback(denoiser.register_forward_hook(note(MODEL_ROW)).remove)
        stack.enter_context(torch.no_grad())
        denoiser(**kwargs)
    return found


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _shown(n_bytes: int) -> str:
    """Bytes for people: ``1.24 GB``, ``850 MB``, ``12.3 kB``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} B"
