"""Tables for modules that see finitely many inputs: Huang 2023 (TFMQ-DM, arXiv 2311.16503).

A module whose input is the timestep alone, such as the time embedding, gives one answer per scheduled step, and these
are known before the run starts. So it need not be quantised, nor run: its outputs are computed once, in full precision,
and looked up by the number of the call. A table belongs to one list of timesteps and one batch size.

Which modules these are is the caller's business; one that also sees the prompt or a guidance scale is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from schedsearch.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class FiniteTable:
    """The outputs of a module for a list of inputs.

    Attributes:
        outputs: for each tensor that a call returns, those of all calls, `(n_calls, ...)`.
        structure: how a call's tensors are put together: one tensor, a tuple, a dict.
    """

    outputs: tuple[Tensor, ...]
    structure: TreeSpec

    def __len__(self) -> int:
        return len(self.outputs[0])


@torch.no_grad()
def build_table(run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> FiniteTable:
    """Returns the table of what ``run`` returns for each list of arguments, bit for bit.

    Each call is made on its own, with tensors of the shapes they will have: a matmul of another size may round
    differently.

    Args:
        run: the module, in evaluation mode; called once per entry, and once more for the first.
        calls: positional arguments of each call, in the order of the run.

    Raises:
        UsageError: no calls; a call that does not return tensors, or not of the shapes of the first; or the first
            call, repeated, returns something else, so that the outputs are no function of the inputs.
    """
    if not calls:
        raise UsageError("finite table: found no calls, expected one or more")
    flat = [tree_flatten(run(*arguments)) for arguments in calls]
    first, structure = flat[0]
    if not first or not all(isinstance(leaf, Tensor) for leaf in first):
        raise UsageError("finite table: found a call that returns other things than tensors, expected tensors")
    for number, (leaves, its) in enumerate(flat):
        if its != structure or [(t.shape, t.dtype) for t in leaves] != [(t.shape, t.dtype) for t in first]:
            raise UsageError(
                f"finite table: found another shape or dtype at call {number} than at call 0, expected the same; "
                "build one table per shape"
            )
    again = tree_flatten(run(*calls[0]))[0]
    outputs = tuple(torch.stack(same) for same in zip(*(leaves for leaves, _ in flat), strict=True))
    if not all(_same_bits(kept[0], now) for kept, now in zip(outputs, again, strict=True)):
        raise UsageError(
            "finite table: found two answers for the first call, expected outputs that follow from the inputs; is the "
            "module in training mode, or does it see the prompt?"
        )
    return FiniteTable(outputs=outputs, structure=structure)


def lookup(table: FiniteTable, call: int) -> Any:
    """Returns what the call of that number returns, 0 first: views of the table, which must not be written to.

    Raises:
        UsageError: there is no such call.
    """
    if not 0 <= call < len(table):
        raise UsageError(f"finite table: found call {call}, expected 0 to {len(table) - 1}; it was built for others")
    return tree_unflatten([kept[call] for kept in table.outputs], table.structure)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
