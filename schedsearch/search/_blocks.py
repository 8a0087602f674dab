"""Per-block decisions from how blocks change: when each refreshes, which must refresh together, which do nothing.

Update budgets and the bubbling union are those of Ji et al. 2025, "Block-wise Adaptive Caching" (arXiv 2506.13456):
each block has its own best refresh steps, but a feed-forward part that refreshes passes on the errors that caches
upstream have gathered, so the upstream blocks with large errors refresh with it. Intervals of blocks that hardly change
their input are what PPCL ("Pluggable Pruning with Contiguous Layer Distillation") removes. This module does not know
who measures changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import COMPUTE, MODEL_ROW, Schedule
from schedsearch.search._paths import Path, group_costs, shortest
from schedsearch.space import SearchSpace

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

FEED_FORWARD = frozenset({"ff", "ff_context", "mlp", "proj_mlp", "ffn"})
"""Components whose refresh passes on what caches upstream have lost."""


def change_distances(change: Array) -> Array:
    """Distance `(n, n)` of a block's residual at step t from that at step i, for t >= i; 0 elsewhere.

    Args:
        change: `(n, 3)` relative changes over 1, 2 and 3 steps from each step. Farther ones are chained from spans of
            three, an upper estimate by the triangle inequality; what is missing at the end counts as 0.
    """
    known = np.nan_to_num(np.asarray(change, dtype=np.float64), nan=0.0)
    n, reach = known.shape
    distance = np.zeros((n, n))
    for i in range(n):
        for t in range(i + 1, n):
            span = t - i
            distance[t, i] = known[i, span - 1] if span <= reach else distance[t - reach, i] + known[t - reach, -1]
    return distance


def block_updates(change: Array) -> dict[int, Path]:
    """The best refresh steps of one block, for every number of updates, by what its residual changes meanwhile."""
    return shortest(group_costs(change_distances(change)))


def shared_budget(losses: Array, total: int, *, weights: Sequence[int] | None = None) -> tuple[int, ...]:
    """Updates for each block such that the summed loss is least and the weighted number of updates is within ``total``.

    Args:
        losses: `(n_blocks, n)` loss of each block with 1..n updates.
        total: limit on the sum of updates, each counted ``weights[block]`` times; the least where several tie.
        weights: cost of one update of each block, whole numbers; 1 by default.

    Returns:
        `(n_blocks,)` numbers of updates, all 1 or more; empty if even one update each exceeds ``total``.
    """
    cost = [1] * len(losses) if weights is None else list(weights)
    best = np.full(total + 1, np.inf)
    best[0] = 0.0
    choices = np.zeros((len(losses), total + 1), dtype=np.intp)
    for block, row in enumerate(losses):
        following = np.full(total + 1, np.inf)
        for updates, loss in enumerate(row, start=1):
            spent = updates * cost[block]
            if spent > total:
                break
            offered = best[: total + 1 - spent] + loss
            better = offered < following[spent:]
            following[spent:][better] = offered[better]
            choices[block, spent:][better] = updates
        best = following
    if not np.isfinite(best).any():
        return ()
    place, updates_of = int(np.argmin(best)), [0] * len(losses)
    for block in reversed(range(len(losses))):
        updates_of[block] = int(choices[block, place])
        place -= updates_of[block] * cost[block]
    return tuple(updates_of)


def bubbling_union(refresh: Flags, *, downstream: Flags, flagged: Flags) -> Flags:
    """``refresh`` `(n_rows, n_steps)` with flagged rows refreshing wherever a downstream row after them does.

    Rows are in order of execution. One pass from the last row to the first is closed: whatever a flagged row gains, the
    rows flagged before it gain from the same downstream row.

    Args:
        refresh: which row refreshes at which step.
        downstream: `(n_rows,)` rows whose refresh passes errors on (feed-forward parts).
        flagged: `(n_rows,)` rows whose caches lose much.
    """
    out = refresh.copy()
    wanted = np.zeros(refresh.shape[1], dtype=bool)
    for row in reversed(range(len(out))):
        if flagged[row]:
            out[row] |= wanted
        if downstream[row]:
            wanted |= out[row]
    return out


def bubbled(schedule: Schedule, space: SearchSpace, flagged: Collection[str]) -> Schedule:
    """``schedule`` after the bubbling union, repaired: a fix that any search can apply to its proposals.

    At every step where a feed-forward part computes, all of every flagged block before its block computes too. A row of
    a block as a whole counts as feed-forward, since refreshing the block refreshes that part. Steps that the whole
    model skips refresh nothing, and removed blocks stay removed.

    Args:
        schedule: any schedule of ``space``.
        space: where the result is legal.
        flagged: names of blocks whose caches lose much, such as from `flagged_blocks`.
    """
    start = space.repair(schedule)
    alive = np.array([symbol == COMPUTE for symbol in start.row(MODEL_ROW)])
    wanted = np.zeros(start.n_steps, dtype=bool)
    rows = dict(start.ops)
    for block in reversed(space.blocks):
        if block.name in start.pruned:
            continue
        names = [block.name, *(f"{block.name}.{part}" for part in block.components)]
        if block.name in flagged:
            for name in names:
                rows[name] = "".join(
                    COMPUTE if step else symbol for symbol, step in zip(start.row(name), wanted, strict=True)
                )
        whole = alive & _computes(rows.get(block.name, COMPUTE * start.n_steps))
        parts = [part for part in block.components if part in FEED_FORWARD]
        for part in parts:
            wanted |= whole & _computes(rows.get(f"{block.name}.{part}", COMPUTE * start.n_steps))
        if not parts:
            wanted |= whole
    return space.repair(replace(start, ops=tuple(rows.items())))


def _computes(row: str) -> Flags:
    return np.array([symbol == COMPUTE for symbol in row])


def flagged_blocks(changes: Sequence[tuple[str, Array]], share: float = 0.25) -> tuple[str, ...]:
    """Names of the ``share`` of blocks whose residual changes most from step to step, in the order given.

    Args:
        changes: pairs of name and `(n, 3)` changes.
        share: how many of them, rounded up.
    """
    mean = [float(np.nanmean(change[:, 0])) if np.isfinite(change[:, 0]).any() else 0.0 for _, change in changes]
    wanted = set(np.argsort(mean, kind="stable")[::-1][: int(np.ceil(share * len(mean)))].tolist())
    return tuple(name for i, (name, _) in enumerate(changes) if i in wanted)


def near_identity(sizes: Sequence[float], *, below: float = 0.25) -> tuple[tuple[int, int], ...]:
    """Intervals ``[start, stop)`` of contiguous blocks that hardly change their input, in order.

    Args:
        sizes: `(n_blocks,)` relative size of what each block adds.
        below: a block counts if its size is less than this share of the median one.

    >>> near_identity([0.3, 0.01, 0.02, 0.4, 0.5, 0.001])
    ((1, 3), (5, 6))
    """
    if not len(sizes):
        return ()
    quiet = np.concatenate([[False], np.asarray(sizes) < below * float(np.median(sizes)), [False]])
    edges = np.flatnonzero(quiet[1:] != quiet[:-1])
    return tuple((int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True))
