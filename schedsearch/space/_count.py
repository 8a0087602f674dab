"""How many canonical schedules a space holds, exactly.

Canonical rows are counted by how often they compute, because that alone decides what finer rows can do: over ``k``
computed steps of its parent, a row with ``j`` computes is one of `rows_by_computes` ``(symbols, k)[j]``. Sums and
products over levels follow. This module does not know schedules, only symbols and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from schedsearch.schedule import OPS


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
    counts = [0] * (steps + 1)
    if steps == 0:
        return (1,)
    counts[1] = 1  # the first step computes
    for _ in range(steps - 1):
        following = [0] * (steps + 1)
        for computes, count in enumerate(counts):
            if count:
                following[computes + 1] += count
                following[computes] += count * _choices(symbols, computes)
        counts = following
    return tuple(counts)


def _choices(symbols: str, computes: int) -> int:
    """Ways not to compute after ``computes`` computes: code ``c`` of 1..4 needs ``c`` of them, a skip none."""
    return sum(1 for symbol in symbols if symbol != "C" and (symbol == "S" or OPS.index(symbol) <= computes))


def count_schedules(model: str, blocks: Sequence[CountedBlock], *, counts: Sequence[int], max_pruned: int) -> int:
    """Number of canonical schedules, exactly.

    Args:
        model: symbols of the ``model`` row.
        blocks: the blocks.
        counts: legal numbers of steps.
        max_pruned: most blocks that may be removed.
    """
    cache: dict[int, int] = {}

    def finer(computed: int) -> int:
        if computed not in cache:
            cache[computed] = _blocks_over(blocks, computed, max_pruned)
        return cache[computed]

    return sum(
        count * finer(computed)
        for steps in counts
        for computed, count in enumerate(rows_by_computes(model, steps))
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
