"""Multiply-accumulates by counting: what one denoiser call does, and what a schedule does of it.

One call runs on the real model while every matrix product is intercepted as torch is asked for it: linear layers,
convolutions, plain products and scaled dot-product attention (both its products). Each is booked on the module that
was running. Norms, activations and rotary embeddings are not counted, as everywhere in the literature; text encoders
and the VAE run once per image whatever the schedule says and are left out too. A table holds for one resolution and
one image. Products hidden inside ``einsum`` or a foreign attention kernel are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- its usual name
from torch.overrides import TorchFunctionMode

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._trace import capture_call
from schedsearch.evaluate._work import BlockLists, step_work
from schedsearch.evaluate._workload import Pipeline, Prompt, Workload
from schedsearch.runtime import denoiser_of
from schedsearch.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class MacTable:
    """Multiply-accumulates of one denoiser call for one image.

    Attributes:
        total: the whole call.
        modules: ``(dotted name, macs)`` of every schedulable block and component, all it contains included.
    """

    total: int
    modules: tuple[tuple[str, int], ...]

    def of(self, name: str) -> int:
        """Return the multiply-accumulates of module ``name``.

        Raises:
            EvaluationError: if the table does not list it.
        """
        for known, macs in self.modules:
            if known == name:
                return macs
        raise EvaluationError(f"MacTable: found no module {name!r}, expected a block or component of the denoiser.")


def count_macs(
    pipe: Pipeline, workload: Workload, block_lists: BlockLists, *, prompt: Prompt = "a picture"
) -> MacTable:
    """Return the table of ``pipe``'s denoiser at the workload's resolution, counted on one real call.

    Raises:
        EvaluationError: if an attention module ran without an attention product being seen.
    """
    return count_call(denoiser_of(pipe), capture_call(pipe, workload, prompt).kwargs, block_lists)


def count_call(denoiser: nn.Module, kwargs: Mapping[str, Any], block_lists: BlockLists) -> MacTable:
    """Return the table of one call ``denoiser(**kwargs)``, divided by its batch; works on the ``meta`` device.

    Args:
        denoiser: the module to call.
        kwargs: its arguments; the first dimension of ``hidden_states`` is the batch.
        block_lists: its blocks.

    Raises:
        EvaluationError: if an attention module ran without an attention product being seen.
    """
    counter = _Counter()
    with ExitStack() as stack:
        for name, module in denoiser.named_modules():
            stack.callback(module.register_forward_pre_hook(counter.entering(name)).remove)
            stack.callback(module.register_forward_hook(counter.leave, always_call=True).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        denoiser(**kwargs)
    counter.check_attention()
    batch = int(kwargs["hidden_states"].shape[0])
    blocks = [block for each in block_lists for block in each]
    names = [name for block in blocks for name in (block.name, *(f"{block.name}.{part}" for part in block.components))]
    return MacTable(
        total=counter.inside("") // batch,
        modules=tuple((name, counter.inside(name) // batch) for name in names),
    )


def schedule_macs(schedule: Schedule, table: MacTable, block_lists: BlockLists, *, branches: int = 1) -> float:
    """Return the multiply-accumulates of all denoiser calls of one image under ``schedule``.

    Args:
        schedule: what is run.
        table: counts of one call.
        block_lists: the denoiser's blocks.
        branches: denoiser calls per step under the pipeline's own guidance: 1, or 2 with an unconditional pass. Where
            the schedule says per step whether there is an unconditional pass, that decides.
    """
    blocks = math.fsum(table.of(block.name) for each in block_lists for block in each)
    total = 0.0
    for work in step_work(schedule, block_lists, branches=branches):
        if work.runs_denoiser:
            inside = sum(table.of(name) for name in work.blocks) - sum(table.of(name) for name in work.left_out)
            total += work.calls * (table.total - blocks + inside)
    return total


class _Counter(TorchFunctionMode):
    """Books every matrix product on the module that is running."""

    def __init__(self) -> None:
        super().__init__()
        self._running: list[str] = []
        self._booked: dict[str, int] = {}
        self._attended: set[str] = set()
        self._attention: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        rule = _RULES.get(func)
        if rule is not None and self._running:
            name = self._running[-1]
            self._booked[name] = self._booked.get(name, 0) + rule(out, *args, **(kwargs or {}))
            if func is F.scaled_dot_product_attention:
                self._attended.add(name)
        return out

    def entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        """Return the hook that notes that module ``name`` starts."""

        def enter(module: nn.Module, _args: Any) -> None:
            self._running.append(name)
            if hasattr(module, "to_q") or hasattr(module, "to_qkv"):
                self._attention.add(name)

        return enter

    def leave(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        """Note that the innermost module ends."""
        self._running.pop()

    def inside(self, name: str) -> int:
        """Return what was booked on module ``name`` and on all below it; everything for the empty name."""
        if not name:
            return sum(self._booked.values())
        return sum(macs for booked, macs in self._booked.items() if booked == name or booked.startswith(f"{name}."))

    def check_attention(self) -> None:
        """Raise if attention ran through a kernel this counter cannot see."""
        unseen = sorted(self._attention - self._attended)
        if unseen:
            raise EvaluationError(
                f"count_macs: found no attention product in {unseen[0]} ({len(unseen)} modules), expected "
                "scaled_dot_product_attention. Count with diffusers' native attention backend."
            )


def _linear(_out: Tensor, source: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return source.numel() * int(weight.shape[0])


def _convolution(out: Tensor, _input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return out.numel() * (weight.numel() // int(weight.shape[0]))


def _product(out: Tensor, left: Tensor, _right: Tensor, *_: Any, **__: Any) -> int:
    return out.numel() * int(left.shape[-1])


def _attention(_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """``Q K^T`` costs one product of the query's width per pair of tokens, ``A V`` one of the value's."""
    pairs = query.numel() // int(query.shape[-1]) * int(key.shape[-2])
    return pairs * (int(query.shape[-1]) + int(value.shape[-1]))


_RULES: Mapping[Any, Callable[..., int]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    torch.matmul: _product,
    torch.bmm: _product,
    torch.mm: _product,
    torch.Tensor.matmul: _product,
    torch.Tensor.__matmul__: _product,
    torch.Tensor.bmm: _product,
    torch.Tensor.mm: _product,
    F.scaled_dot_product_attention: _attention,
}
"""From torch function to the multiply-accumulates of one call, given its result and arguments."""
