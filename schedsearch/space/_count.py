"""How many canonical schedules a space holds, exactly.

Canonical rows are counted by how often they compute, because that alone decides what finer rows can do: over ``k``
computed steps of its parent, a row with ``j`` computes is one of `rows_by_computes` ``(symbols, k)[j]``. How often the
``model`` row has computed also decides which solvers a step may take, so these are counted along with it, step by step.
Sums and products over levels follow; noise levels are a factor per number of steps, formats of layers one per block
that is kept. This module does not know schedules, only symbols and numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    solvers: Ways, groups: Sequence[frozenset[int]] = (), choices: int = 1,
) -> int:  # fmt: skip
    """Number of canonical schedules, exactly.

    Args:
        model: symbols of the ``model`` row.
        blocks: the blocks.
        sigmas: by legal number of steps, how many sequences of noise levels there are.
        max_pruned: most blocks that may be removed.
        solvers: how many solvers a step may take, where it stands in the ``model`` row.
        groups: of the layers that have a format: numbers of the blocks each group is in, none for outside blocks.
        choices: formats each may have. A group all of whose blocks are removed has one.
    """
    cache: dict[int, int] = {}
    inside = Counter(groups)
    formats = [choices ** inside[frozenset((i,))] for i in range(len(blocks))]
    across = [(blocks_of, choices**count) for blocks_of, count in inside.items() if len(blocks_of) > 1]
    terms = list(_removals(across, max_pruned))
    outside: int = choices ** inside[frozenset()]

    def finer(computed: int) -> int:
        if computed not in cache:
            kept = [
                ways * _block_over(block.symbols, block.components, computed)
                for block, ways in zip(blocks, formats, strict=True)
            ]
            cache[computed] = sum(
                weight * _over_removals([0 if i in gone else ways for i, ways in enumerate(kept)], blocks, max_pruned)
                for weight, gone in terms
            )
        return cache[computed] * outside

    return sum(
        grids * count * finer(computed)
        for steps, grids in sigmas.items()
        for computed, count in enumerate(plans_by_computes(model, steps, solvers))
        if count
    )


def _removals(
    across: Sequence[tuple[frozenset[int], int]], max_pruned: int, gone: frozenset[int] = frozenset()
) -> Iterator[tuple[int, frozenset[int]]]:
    """Weights of sets of removed blocks, by inclusion and exclusion.

    A set of blocks with ``ways`` choices among its groups has all of them, less all but one where all of it is removed.
    So the choices of several sets are a sum over which of them are removed entirely, whatever else is removed.
    """
    if not across:
        yield 1, gone
        return
    (blocks, ways), rest = across[0], across[1:]
    for weight, removed in _removals(rest, max_pruned, gone):
        yield ways * weight, removed
    if len(gone | blocks) <= max_pruned:
        for weight, removed in _removals(rest, max_pruned, gone | blocks):
            yield (1 - ways) * weight, removed


def _over_removals(kept: Sequence[int], blocks: Sequence[CountedBlock], max_pruned: int) -> int:
    """Ways to fill all rows of blocks with at most ``max_pruned`` removed; ``kept`` are the ways of each that stays."""
    by_removed = [1] + [0] * max_pruned  # ways, by number of removed blocks so far
    for block, ways_kept in zip(blocks, kept, strict=True):
        by_removed = [
            ways * ways_kept + (by_removed[removed - 1] if block.prunable and removed else 0)
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
