"""How many canonical schedules a space holds, exactly.

Canonical rows are counted by how often they compute, because that alone decides what finer rows can do: over ``k``
computed steps of its parent, a row with ``j`` computes is one of `rows_by_computes` ``(symbols, k)[j]``. How often the
``model`` row has computed also decides which solvers a step may take, so these are counted along with it, step by step.
Sums and products over levels follow; noise levels are a factor per number of steps. This module does not know
schedules, only symbols and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from schedsearch.schedule import COMPUTE, REUSE
from schedsearch.space._codes import needed


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedBlock:
    """What counting needs of a block: its symbols, those of each component, and whether it may be removed."""

    symbols: str
    components: tuple[str, ...]
    prunable: bool


@lru_cache(maxsize=4096)
def rows_by_computes(symbols: str, steps: int) -> tuple[int, ...]:
    """Number of canonical rows over ``steps`` with exactly ``j`` computes, for ``j`` in ``0..steps``.

    >>> rows_by_computes("CR", 3)   # CRR; CCR, CRC; CCC
    (0, 1, 2, 1)
    """
    return plans_by_computes(symbols, steps, _one_way)


Ways = Callable[[int, str, str, int], tuple[int, int]]
"""Choices at a step, given the computes before it, its symbol, the next symbol (empty at the last step) and a mark
(0 or 1) that the step before left: those that leave no mark, and those that do. Steps that do not compute neither get
nor leave marks, and it must not matter to them which symbol comes next."""


def _one_way(computes: int, symbol: str, following: str, mark: int) -> tuple[int, int]:  # noqa: ARG001 - all alike
    return 1, 0


def plans_by_computes(symbols: str, steps: int, ways: Ways) -> tuple[int, ...]:
    """Like `rows_by_computes`, with every cell weighted by what else may be chosen at its step.

    Args:
        symbols: what the row may hold.
        steps: its length.
        ways: the weight.
    """
    if steps == 0:
        return (1,)
    idle = symbols.replace(COMPUTE, "")
    # Plans by computes. Open ones end with a compute, which is weighted as soon as the next symbol is known; they are
    # counted without and with the mark that it got. The others are closed.
    opened, closed = ([0] * (steps + 1), [0] * (steps + 1)), [0] * (steps + 1)
    opened[0][1] = 1  # the first step computes
    for step in range(1, steps):
        following = "" if step == steps - 1 else COMPUTE
        grown = [0] * (steps + 1), [0] * (steps + 1)
        for computes in range(1, step + 1):
            unmarked, marked = _weighted(opened, computes, COMPUTE, ways)
            grown[0][computes + 1] = unmarked + closed[computes]
            grown[1][computes + 1] = marked
            plans = sum(_weighted(opened, computes, REUSE, ways)) + closed[computes]
            closed[computes] = plans * sum(
                ways(computes, symbol, following, 0)[0] for symbol in idle if needed(symbol) <= computes
            )
        opened = grown
    return (0, *(sum(_weighted(opened, computes, "", ways)) + closed[computes] for computes in range(1, steps + 1)))


def _weighted(opened: tuple[list[int], list[int]], computes: int, following: str, ways: Ways) -> tuple[int, int]:
    """Open plans of that many computes, once ``following`` is known: those that leave no mark, and those that do."""
    counted = [
        [plans[computes] * way for way in ways(computes - 1, COMPUTE, following, mark)]
        for mark, plans in enumerate(opened)
        if plans[computes]
    ]
    return sum(unmarked for unmarked, _ in counted), sum(marked for _, marked in counted)


def count_schedules(
    model: str, blocks: Sequence[CountedBlock], *, sigmas: Mapping[int, int], max_pruned: int,
    solvers: Ways,
) -> int:  # fmt: skip
    """Number of canonical schedules, exactly.

    Args:
        model: symbols of the ``model`` row.
        blocks: the blocks.
        sigmas: by legal number of steps, how many sequences of noise levels there are.
        max_pruned: most blocks that may be removed.
        solvers: how many solvers a step may take, where it stands in the ``model`` row.
    """
    cache: dict[int, int] = {}

    def finer(computed: int) -> int:
        if computed not in cache:
            cache[computed] = _blocks_over(blocks, computed, max_pruned)
        return cache[computed]

    return sum(
        grids * count * finer(computed)
        for steps, grids in sigmas.items()
        for computed, count in enumerate(plans_by_computes(model, steps, solvers))
        if count
    )


def _blocks_over(blocks: Sequence[CountedBlock], computed: int, max_pruned: int) -> int:
    """Ways to fill all block and component rows over ``computed`` steps with at most ``max_pruned`` blocks removed."""
    by_removed = [1] + [0] * max_pruned  # ways, by number of removed blocks so far
    for block in blocks:
        kept = _block_over(block.symbols, block.components, computed)
        by_removed = [
            ways * kept + (by_removed[removed - 1] if block.prunable and removed else 0)
            for removed, ways in enumerate(by_removed)
        ]
    return sum(by_removed)


@lru_cache(maxsize=8192)
def _block_over(symbols: str, components: tuple[str, ...], computed: int) -> int:
    """Ways to fill one block's rows over ``computed`` steps of the model."""
    return sum(
        count * prod(sum(rows_by_computes(component, inner)) for component in components)
        for inner, count in enumerate(rows_by_computes(symbols, computed))
        if count
    )
