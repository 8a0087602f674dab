"""The distinct operations of one denoiser call: what runs, on which shapes, how often, and the inputs to run it again.

Found on one real call: linear layers, attention, norms, modulations, the schedulable components and blocks, the whole
denoiser. Two modules are one operation if kind and shapes agree. Works on the ``meta`` device. Does not know time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- its usual name
from torch.overrides import TorchFunctionMode

from schedsearch.evaluate._work import BlockLists

_NORMS = ("LayerNorm", "RMSNorm", "FP32LayerNorm")
_MODULATION = "AdaLayerNorm"

Key = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One distinct operation of a denoiser call.

    Attributes:
        op: its kind, one of `OPS` in ``_latency_table``.
        name: block list, component or class it stands for; empty where the shape says all.
        shape: see `OpRow.shape`.
        n: how often the call does it.
        example: dotted name of the first module that does it; empty for attention and the denoiser.
        module: that module; ``None`` for attention.
        call: runs it on the inputs it had.
    """

    op: str
    name: str
    shape: tuple[int, ...]
    n: int
    example: str
    module: nn.Module | None = field(default=None, compare=False, repr=False)
    call: Callable[[], Any] = field(compare=False, repr=False)

    @property
    def key(self) -> Key:
        """What tells operations apart."""
        return self.op, self.name, self.shape


def operations_of(denoiser: nn.Module, kwargs: Mapping[str, Any], block_lists: BlockLists) -> tuple[Operation, ...]:
    """Return the distinct operations of ``denoiser(**kwargs)``, the whole call first, then from blocks to norms.

    The operations keep the inputs of their first occurrence alive, and nothing else of the call.

    Args:
        denoiser: the module to call.
        kwargs: its arguments for one image.
        block_lists: its blocks.
    """
    wanted = _wanted(denoiser, block_lists)
    found = _Found()
    with ExitStack() as stack:
        for dotted, kinds in wanted.items():
            module = denoiser.get_submodule(dotted)
            enter = partial(found.enter, dotted, kinds)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_Attention(found))
        denoiser(**kwargs)
    order = {op: i for i, op in enumerate(("denoiser", "block", "component", "linear", "attention", "modulation"))}
    return tuple(sorted(found.operations.values(), key=lambda each: order.get(each.op, len(order))))


def _wanted(denoiser: nn.Module, block_lists: BlockLists) -> dict[str, list[tuple[str, str]]]:
    """Kinds and names of every module that is an operation, or several, by dotted name."""
    wanted: dict[str, list[tuple[str, str]]] = {"": [("denoiser", type(denoiser).__name__)]}
    for block in (block for each in block_lists for block in each):
        family = block.name.rpartition(".")[0]
        wanted[block.name] = [("block", family)]
        for part in block.components:
            wanted[f"{block.name}.{part}"] = [("component", f"{family}.{part}")]
    for dotted, module in denoiser.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.Linear):
            wanted.setdefault(dotted, []).append(("linear", ""))
        elif kind.startswith(_MODULATION):
            wanted.setdefault(dotted, []).append(("modulation", kind))
        elif kind in _NORMS:
            wanted.setdefault(dotted, []).append(("norm", kind))
    return wanted


class _Found:
    """Operations by key, in the order of their first occurrence."""

    def __init__(self) -> None:
        self.operations: dict[Key, Operation] = {}

    def enter(
        self,
        dotted: str,
        kinds: list[tuple[str, str]],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Book a module that is about to run."""
        for op, name in kinds:
            self.add(
                Operation(
                    op=op,
                    name=name,
                    shape=_shape(op, module, args, kwargs),
                    n=1,
                    example=dotted,
                    module=module,
                    call=partial(module, *args, **kwargs),
                )
            )

    def add(self, operation: Operation) -> None:
        """Book one occurrence."""
        known = self.operations.get(operation.key)
        self.operations[operation.key] = operation if known is None else replace(known, n=known.n + 1)


def _shape(op: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if isinstance(module, nn.Linear) and op == "linear":
        return inputs[0].numel() // module.in_features, module.in_features, module.out_features
    if op in {"norm", "modulation"}:
        return tuple(inputs[0].shape[1:])
    streams = [value for value in inputs if value.ndim == 3]
    return (*(int(stream.shape[1]) for stream in streams), int(streams[0].shape[2]))


class _Attention(TorchFunctionMode):
    """Books every scaled dot-product attention, with the tensors it was given."""

    def __init__(self, found: _Found) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            query, key = given["query"], given["key"]
            self._found.add(
                Operation(
                    op="attention",
                    name="",
                    shape=(int(query.shape[1]), int(query.shape[2]), int(key.shape[2]), int(query.shape[3])),
                    n=1,
                    example="",
                    call=partial(func, *args, **(kwargs or {})),
                )
            )
        return func(*args, **(kwargs or {}))
