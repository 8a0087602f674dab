"""Exact optimal paths over the steps of a run: which of them to take, given what leaving out the others costs.

Nodes are the positions ``0..n`` of a grid of n steps; a path goes from 0 to n and its inner nodes are the steps that
are taken. An edge i -> j costs what is lost by going from i to j at once, or by computing at i and reusing until j.
Every function answers for all numbers of edges at once and is exact; ties go to the earlier node. The problems:

- least sum (Watson et al. 2021, arXiv 2106.03802; with ``gamma`` Chen et al. 2024, "GITS", arXiv 2405.11326);
- least sum where an edge's cost depends on the nodes before it, as that of a multistep solver does;
- lexicographically least worst edges (Gao et al. 2025, "LeMiCa", arXiv 2511.00090);
- groups of bounded length (Fisher 1958; Liu et al. 2025, "CacheQuant", arXiv 2503.01323).

This module does not know what costs mean.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rule = Literal["sum", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Nodes from 0 to n, strictly rising, and what they cost together."""

    nodes: tuple[int, ...]
    cost: float

    @property
    def n_edges(self) -> int:
        """Number of steps taken."""
        return len(self.nodes) - 1

    def mask(self) -> str:
        """The steps taken as a row: C where a step begins, R elsewhere.

        >>> Path(nodes=(0, 3, 4), cost=0.0).mask()
        'CRRC'
        """
        taken = set(self.nodes[:-1])
        return "".join("C" if step in taken else "R" for step in range(self.nodes[-1]))


def placed(
    costs: Sequence[Array], *, gamma: float = 1.0, rule: Rule = "sum", most: int | None = None
) -> dict[int, Path]:
    """The best path with k edges for every k that has one, where a cost may depend on the last nodes visited.

    With ``s`` counting edges from 0, the cost of a path is the sum (or the maximum) of ``gamma ** s`` times that of
    edge ``s``; GITS' backward recurrence ``V[j][k] = min_i (c[j][i] + gamma V[i][k-1])`` is this sum.

    Args:
        costs: one array per length of history. ``costs[0]`` `(n + 1, n + 1)` is indexed ``[i, j]`` for the edge i -> j
            at the start of a path, ``costs[1]`` ``[h, i, j]`` for one that came from h, and so on; the last one holds
            for all later edges. Costs that are inf forbid an edge.
        gamma: weight of an edge relative to the one before it.
        rule: how edges add up.
        most: paths with more edges are not looked for.

    Returns:
        Paths by number of edges. Time and memory grow as ``(n + 1) ** (len(costs) + 1)``, times n for time.
    """
    n_nodes, order = len(costs[0]), len(costs)
    costs = [_forward(cost) for cost in costs]
    values = np.full(n_nodes, np.inf)
    values[0] = 0.0
    came_from: list[npt.NDArray[np.int16] | None] = []
    paths = {}
    for s in range(min(n_nodes - 1, most or n_nodes)):
        edges = gamma**s * costs[min(s, order - 1)]
        if values.ndim < order:
            values = values[..., None] + edges if rule == "sum" else np.maximum(values[..., None], edges)
            came_from.append(None)
        else:
            values, best = _stepped(values, edges, rule)
            came_from.append(best)
        ended = values[..., -1]
        if np.isfinite(ended).any():
            last = tuple(int(i) for i in np.unravel_index(np.argmin(ended), ended.shape))
            paths[s + 1] = Path(nodes=_walked_back(came_from, (*last, n_nodes - 1)), cost=float(ended.min()))
    return paths


def _stepped(values: Array, edges: Array, rule: Rule) -> tuple[Array, npt.NDArray[np.int16]]:
    """Values after one more edge, and the oldest node of the best way there.

    Args:
        values: costs by the last ``order`` nodes.
        edges: costs by these nodes and the next.
        rule: how they add up.
    """
    if values.ndim == 1:  # small enough to look at once
        ways = values[:, None] + edges if rule == "sum" else np.maximum(values[:, None], edges)
        return ways.min(axis=0), ways.argmin(axis=0).astype(np.int16)
    best = np.full(values.shape, np.inf)
    oldest = np.zeros(values.shape, dtype=np.int16)
    for g in range(len(values)):
        # nodes rise, so everything after g lies in one corner
        later = tuple(slice(g + 1 + d, None) for d in range(values.ndim))
        before = values[g][later[:-1]][..., None]
        offered = before + edges[g][later] if rule == "sum" else np.maximum(before, edges[g][later])
        better = offered < best[later]
        np.copyto(best[later], offered, where=better)
        oldest[later][better] = g
    return best, oldest


def _forward(cost: Array) -> Array:
    """``cost`` with inf wherever the last two indices do not rise."""
    n_nodes = cost.shape[-1]
    return np.where(np.triu(np.ones((n_nodes, n_nodes), dtype=bool), k=1), cost, np.inf)


def _walked_back(came_from: Sequence[npt.NDArray[np.int16] | None], state: tuple[int, ...]) -> tuple[int, ...]:
    """All nodes of the path that ends in ``state``, the last nodes visited."""
    nodes = list(state)
    for best in reversed(came_from):
        if best is not None:
            nodes.insert(0, int(best[state]))
            state = (nodes[0], *state[:-1])
        else:
            state = state[:-1]
    return tuple(nodes)


def shortest(cost: Array, *, gamma: float = 1.0, most: int | None = None) -> dict[int, Path]:
    """The path of least sum with k edges, for every k, on a cost matrix `(n + 1, n + 1)`; see `placed`.

    >>> shortest(np.array([[0, 1, 5], [0, 0, 1], [0, 0, 0.0]]))[2]
    Path(nodes=(0, 1, 2), cost=2.0)
    """
    return placed([cost], gamma=gamma, most=most)


def minimax(cost: Array) -> dict[int, Path]:
    """The path with k edges whose worst edge is least, then its second worst, and so on; for every k.

    Comparing lists of costs in falling order is unchanged by adding the same edge to both, so the best path to a node
    is the best one to its predecessor and an edge. ``Path.cost`` is the worst edge.
    """
    n_nodes = len(cost)
    # per node: (costs of the edges so far, falling, as rising negatives; nodes)
    best: dict[int, tuple[list[float], tuple[int, ...]]] = {0: ([], (0,))}
    paths = {}
    for k in range(1, n_nodes):
        following: dict[int, tuple[list[float], tuple[int, ...]]] = {}
        for i, (edges, nodes) in best.items():
            for j in range(i + 1, n_nodes):
                if not np.isfinite(cost[i, j]):
                    continue
                merged = list(edges)
                insort(merged, -float(cost[i, j]))
                # falling costs compare as rising negatives do, the other way round
                if j not in following or merged > following[j][0]:
                    following[j] = (merged, (*nodes, j))
        best = following
        if n_nodes - 1 in best:
            edges, nodes = best[n_nodes - 1]
            paths[k] = Path(nodes=nodes, cost=-edges[0])
    return paths


# ---- groups of reused steps


def group_costs(distance: Array) -> Array:
    """Cost `(n + 1, n + 1)` of computing at i and reusing until j: ``D(i, j) = sum_{i <= t < j} distance[t, i]``.

    Args:
        distance: `(n, n)` how far the feature of step t is from that of step i.
    """
    n = len(distance)
    costs = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        costs[i, i + 1 :] = np.cumsum(distance[i:, i])
    return costs


def group_bounds(n: int, interval: float) -> tuple[int, int]:
    """Least and greatest length of a group: half and twice the mean ``interval`` (CacheQuant's bounds)."""
    return max(1, int(np.ceil(interval / 2.0 - 1e-9))), max(1, min(n, int(2.0 * interval + 1e-9)))


def within(cost: Array, low: int, high: int) -> Array:
    """``cost`` with edges shorter than ``low`` or longer than ``high`` forbidden."""
    spans = np.arange(cost.shape[-1])[None, :] - np.arange(cost.shape[-2])[:, None]
    return np.where((spans >= low) & (spans <= high), cost, np.inf)


def fisher(cost: Array, interval: int, *, rule: Rule = "sum") -> Path | None:
    """The best partition of n steps into ``ceil(n / interval)`` groups of bounded length, or ``None``.

    Fisher's optimal partition of ordered samples as CacheQuant applies it: group lengths lie in
    ``ceil(interval / 2) .. 2 interval``.

    Args:
        cost: `(n + 1, n + 1)`, such as from `group_costs`.
        interval: the paper's N.
        rule: whether costs of groups are summed, or the worst counts.
    """
    n = len(cost) - 1
    return partition(cost, -(-n // interval), interval=float(interval), rule=rule)


def partition(cost: Array, n_groups: int, *, interval: float | None = None, rule: Rule = "sum") -> Path | None:
    """The best partition into ``n_groups``; bounds come from ``interval``, by default the mean length of a group."""
    n = len(cost) - 1
    low, high = group_bounds(n, n / n_groups if interval is None else interval)
    bounded = within(cost, low, high)
    return (minimax(bounded) if rule == "max" else shortest(bounded, most=n_groups)).get(n_groups)


# ---- do summed costs tell the truth?


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation in -1..1 of two sequences of one length; nan if either is constant or shorter than 2.

    >>> spearman([1, 2, 3], [10, 20, 15])
    0.5
    """
    if len(a) < 2:
        return float("nan")
    x, y = (_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length > 0.0 else float("nan")


def _ranks(values: Array) -> Array:
    """Rank of every value, equal ones sharing the mean of theirs."""
    distinct, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    del distinct
    upper = np.cumsum(counts)
    ranks: Array = (upper - (counts - 1) / 2.0)[place]
    return ranks
