"""Which format for which layer, which blocks to leave out: the exact choice under sums.

One option per item, the sum of losses least, the sum of costs within a limit: the multiple-choice knapsack, solved as a
mixed-integer linear programme by HiGHS (`scipy.optimize.milp`) to a proven optimum. That the loss of a choice is the
sum of its parts' is an assumption about the model; `additivity` says how far it holds. Removing blocks: Zhang 2024
(LAPTOP-Diff, arXiv 2404.11098). Knows neither formats nor modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from schedsearch.errors import UsageError

_LOSS_RANGE = 1e6
"""The largest loss as the solver sees it: its absolute gap of 1e-6 is then a trillionth of it."""

_COST_RANGE = 1e4
_TRIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to treat an item: what it is called, what it loses (less is better) and what it costs."""

    word: str
    loss: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One option per item.

    Attributes:
        picks: ``(item, word)`` in the order of the items.
        loss: sum of losses.
        cost: sum of costs, within the limit.
    """

    picks: tuple[tuple[str, str], ...]
    loss: float
    cost: float


def assigned(options: Mapping[str, Sequence[Option]], limit: float) -> Assignment:
    """Return the choice of least loss whose cost is at most ``limit``.

    Args:
        options: by item; one or more each.
        limit: most that all may cost together.

    Raises:
        UsageError: there are no items, an item has no option, or even the cheapest choice costs more.

    >>> ways = [Option(word="big", loss=0.0, cost=2.0), Option(word="small", loss=1.0, cost=1.0)]
    >>> others = [Option(word="big", loss=0.0, cost=2.0), Option(word="small", loss=3.0, cost=1.0)]
    >>> assigned({"a": ways, "b": others}, 3.0).picks
    (('a', 'small'), ('b', 'big'))
    """
    efficient = {item: _efficient(item, ways) for item, ways in options.items()}
    if not efficient:
        raise UsageError("assignment: found no items, expected one or more.")
    least = sum(ways[-1].cost for ways in efficient.values())
    if least > limit:
        raise UsageError(f"assignment: found a limit of {limit:g}, expected at least {least:g}, the cheapest choice.")
    if sum(ways[0].cost for ways in efficient.values()) <= limit:
        return _made({item: ways[0] for item, ways in efficient.items()})
    refused: list[dict[str, Option]] = []
    for _ in range(_TRIES):
        chosen = _solved(efficient, limit, refused)
        found = _made(chosen)
        if found.cost <= limit:
            return found
        # The solver allows a millionth of its unit beyond the limit: that very choice is ruled out.
        refused.append(chosen)
    raise UsageError(f"assignment: found no choice within {limit:g} that the solver and exact sums agree on.")


def _efficient(item: str, ways: Sequence[Option]) -> list[Option]:
    """The options worth having, the dearest first: each costs less than the one before and loses more."""
    if not ways:
        raise UsageError(f"assignment.{item}: found no option, expected one or more.")
    for way in ways:
        if not (np.isfinite(way.loss) and np.isfinite(way.cost)):
            raise UsageError(
                f"assignment.{item}.{way.word}: found loss {way.loss} and cost {way.cost}, expected finite numbers."
            )
    kept: list[Option] = []
    for way in sorted(ways, key=lambda way: (way.loss, way.cost)):
        if not kept or way.cost < kept[-1].cost:
            kept.append(way)
    return kept


def _solved(
    options: Mapping[str, Sequence[Option]], limit: float, refused: Sequence[Mapping[str, Option]]
) -> dict[str, Option]:
    """The solver's choice, none of ``refused``."""
    flat = [(item, way) for item, ways in options.items() for way in ways]
    places = {item: i for i, item in enumerate(options)}
    base = {item: ways[0].loss for item, ways in options.items()}
    losses = np.array([way.loss - base[item] for item, way in flat])
    costs = np.array([way.cost for _, way in flat])
    one_each = np.zeros((len(options), len(flat)))
    for j, (item, _) in enumerate(flat):
        one_each[places[item], j] = 1.0
    unit = max(float(np.abs(costs).max()), abs(limit), 1e-300) / _COST_RANGE
    found = milp(
        losses * (_LOSS_RANGE / max(float(losses.max()), 1e-300)),
        integrality=np.ones(len(flat), dtype=np.int64),
        bounds=Bounds(0.0, 1.0),
        constraints=[
            LinearConstraint(one_each, 1.0, 1.0),
            LinearConstraint(costs[None, :] / unit, -np.inf, limit / unit),
            *(
                LinearConstraint([[float(other[item] is way) for item, way in flat]], -np.inf, len(options) - 1.0)
                for other in refused
            ),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise UsageError(f"assignment: found no solution ({found.message}), expected one.")
    chosen: dict[str, tuple[float, Option]] = {}
    for share, (item, way) in zip(found.x, flat, strict=True):
        if item not in chosen or share > chosen[item][0]:
            chosen[item] = (float(share), way)
    return {item: chosen[item][1] for item in options}


def _made(chosen: Mapping[str, Option]) -> Assignment:
    return Assignment(
        picks=tuple((item, way.word) for item, way in chosen.items()),
        loss=sum(way.loss for way in chosen.values()),
        cost=sum(way.cost for way in chosen.values()),
    )
