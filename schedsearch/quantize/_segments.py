"""Where a layer's input and output are made of segments: Zhang 2025 (SegQuant, arXiv 2507.14811), by watching.

`find_segments` runs a module once and follows which columns of which layer each number of each tensor comes from:
through views, copies and pointwise operations, at the level of torch's own operators. It knows no model and no module
but `torch.nn.Linear`.

What it does not see: a concatenation that is written into a buffer part by part, one that goes through a norm before it
meets the layer, and matmuls outside `torch.nn.Linear`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from schedsearch.errors import UsageError

_JOINS = (torch.ops.aten.cat, torch.ops.aten.stack)
_MOVES = (*_JOINS, torch.ops.aten.repeat, torch.ops.aten._unsafe_view)
_COPIES = (torch.ops.aten._to_copy,)  # the only pointwise ones that do not call themselves so


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Where a linear layer's input and output are made of parts.

    Attributes:
        name: dotted name of the layer.
        columns: sizes of the parts its input is concatenated from, in order; one size where it is not.
        rows: sizes of the parts its output is used in, in order; one size where it is used whole.
    """

    name: str
    columns: tuple[int, ...]
    rows: tuple[int, ...]


def find_segments(module: nn.Module, run: Callable[[], object]) -> tuple[Segments, ...]:
    """Returns the segments of every linear layer that ran, in the order of their first run.

    A part counts if it is one run of neighbouring columns: the even and odd channels of a rotary embedding, or the same
    half of every head, are no segments.

    Args:
        module: a block or a whole denoiser. Its hooks are as before when this returns.
        run: calls it once on small inputs, such as ``lambda: block(x, emb)``. Gradients are off while it runs.

    Raises:
        UsageError: no linear layer of the module ran.
    """
    watch = _Watch([*module.parameters(), *module.buffers()])
    removals = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            removals += [layer.register_forward_pre_hook(_entering(watch, name))]
            removals += [layer.register_forward_hook(_leaving(watch, name))]
    try:
        with torch.no_grad(), watch:
            returned = run()
    finally:
        for removal in removals:
            removal.remove()
    for tensor in _tensors(returned):
        watch.used(tensor)
    if not watch.layers:
        raise UsageError("segments: found no linear layer that ran, expected one or more; run the module given")
    return tuple(layer.segments(name) for name, layer in watch.layers.items())


def _entering(watch: _Watch, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Linear)  # noqa: S101 - registered on no other
        with _disable_current_modes():
            watch.entered(name, layer, args[0])

    return hook


def _leaving(watch: _Watch, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def hook(_layer: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
        with _disable_current_modes():
            watch.left(name, out)

    return hook


@dataclass(slots=True)
class _Layer:
    """A linear layer and the borders found in its input and output.

    Attributes:
        first: number of its first output column, counted over all layers; numbers start at 1, 0 is no column.
        columns: input channels.
        rows: output channels.
    """

    first: int
    columns: int
    rows: int
    column_cuts: set[int] = field(default_factory=set)
    row_cuts: set[int] = field(default_factory=set)

    def segments(self, name: str) -> Segments:
        return Segments(
            name=name, columns=_between(self.column_cuts, self.columns), rows=_between(self.row_cuts, self.rows)
        )


def _between(cuts: set[int], size: int) -> tuple[int, ...]:
    return tuple(end - start for start, end in pairwise(sorted({0, *cuts, size})))


class _Marks:
    """A whole number for every element of some tensors. The tensors are kept, so that no other gets their identity."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor | None:
        return self._kept[id(tensor)][1] if id(tensor) in self._kept else None

    def put(self, tensor: Tensor, marks: Tensor | None) -> None:
        """Marks a tensor with numbers that broadcast to its shape, laid out in memory as it is; or takes them away."""
        if marks is None:
            self._kept.pop(id(tensor), None)
        else:
            self._kept[id(tensor)] = (tensor, torch.zeros_like(tensor, dtype=torch.int64).copy_(marks))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operator. ``columns`` marks where an element stood in the output of a layer, ``parts`` which part
    of a concatenation it is from.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: dict[str, _Layer] = {}
        self.columns = _Marks()
        self.parts = _Marks()
        self._n_columns = 0
        self._n_parts = 0
        self._kept = list(constants)  # as long as they live, no other storage has their address
        self._constant = {_address(tensor) for tensor in self._kept}

    def entered(self, name: str, layer: nn.Linear, x: Tensor) -> None:
        """Notes the input of a layer."""
        if name not in self.layers:
            found = _Layer(self._n_columns + 1, layer.in_features, layer.out_features)
            self.layers[name] = found
            self._n_columns += layer.out_features
        parts = self.parts.of(x)
        if parts is not None:
            self.layers[name].column_cuts |= _borders(parts.reshape(-1, parts.shape[-1]))

    def left(self, name: str, out: Tensor) -> None:
        """Notes the output of a layer."""
        layer = self.layers[name]
        self.columns.put(out, torch.arange(layer.first, layer.first + layer.rows, device=out.device))
        self.parts.put(out, None)

    def used(self, tensor: Tensor) -> None:
        """Notes that these elements are used together."""
        marks = self.columns.of(tensor)
        if marks is None:
            return
        numbers = _distinct(marks)
        for layer in self.layers.values():
            mine = numbers[(numbers >= layer.first) & (numbers < layer.first + layer.rows)] - layer.first
            if len(mine) and int(mine[-1] - mine[0]) + 1 == len(mine):
                layer.row_cuts |= {int(mine[0]), int(mine[-1]) + 1}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        outputs = _tensors(out)
        if all(self._is_constant(tensor) for tensor in inputs):
            if inputs:
                self._kept += outputs
                self._constant |= {_address(tensor) for tensor in outputs}
            return out
        if func.is_view or func.overloadpacket in _MOVES:
            self._moved(func, args, kwargs, outputs)
        elif torch.Tag.pointwise in func.tags or func.overloadpacket in _COPIES:
            self._computed_each(inputs, outputs)
        else:
            self._mixed(inputs, outputs)
        return out

    def _is_constant(self, tensor: Tensor) -> bool:
        return tensor.ndim == 0 or _address(tensor) in self._constant

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: list[Tensor]) -> None:
        """Elements stand elsewhere now: the same is done to their marks."""
        for marks in (self.columns, self.parts):
            sources = _tensors((args, kwargs))
            joins = marks is self.parts and func.overloadpacket in _JOINS and len(sources) > 1
            if not joins and all(marks.of(tensor) is None for tensor in sources):
                moved: list[Tensor | None] = [None] * len(outputs)
            else:
                moved = self._replayed(marks, func, args, kwargs, joins=joins) or [None] * len(outputs)
            if outputs and moved[0] is None:
                for tensor in sources if marks is self.columns else ():
                    self.used(tensor)
            for tensor, its in zip(outputs, moved, strict=True):
                marks.put(tensor, its)
        for tensor in outputs:  # to cut something out is to say that it is one thing
            self.used(tensor)

    def _replayed(
        self, marks: _Marks, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, joins: bool
    ) -> list[Tensor | None] | None:
        def stand_in(tensor: Tensor) -> Tensor:
            found = marks.of(tensor)
            if found is not None:
                return found
            self._n_parts += joins
            return torch.full_like(tensor, self._n_parts if joins else 0, dtype=torch.int64)

        try:
            return list(_tensors(func(*tree_map_only(Tensor, stand_in, args), **kwargs)))
        except RuntimeError:  # a view as another dtype, such as complex: not where elements stand, but what they are
            return None

    def _computed_each(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Every element for itself. Where two tensors meet that both depend on the input, their columns are used."""
        varying = [tensor for tensor in inputs if not self._is_constant(tensor)]
        alone = self.columns.of(varying[0]) if len(varying) == 1 else None
        parts = next((found for tensor in varying if (found := self.parts.of(tensor)) is not None), None)
        if len(varying) > 1:
            for tensor in varying:
                self.used(tensor)
        for tensor in outputs:
            self.columns.put(tensor, alone)
            self.parts.put(tensor, parts)

    def _mixed(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Matmuls, norms, sums: what goes in is used, what comes out is new."""
        for tensor in inputs:
            self.used(tensor)
        for tensor in outputs:
            self.columns.put(tensor, None)
            self.parts.put(tensor, None)


def _borders(parts: Tensor) -> set[int]:
    """Returns where the part changes along `(rows, columns)`; nothing if a part comes back after another one."""
    cuts: set[int] = set()
    for row in _distinct(parts, dim=0):
        runs = row.unique_consecutive()
        if len(runs) != len(_distinct(row)):
            return set()
        cuts |= {int(place) + 1 for place in (row[1:] != row[:-1]).nonzero()[:, 0]}
    return cuts


def _distinct(marks: Tensor, dim: int | None = None) -> Tensor:
    found: Tensor = torch.unique(marks, dim=dim)
    return found


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
