"""What a search was told, as losses that can be compared: smaller is better, on a common set of prompts.

A candidate may have been measured on few prompts and another on many. Where an objective has numbers per prompt, both
count on the prompts they share, which are the first ones; so noise and prompts are paired. Objectives that are positive
and better when small are taken in logarithms: a factor counts the same at every speed.

The first objective without numbers per prompt is the cost, and comes first in every row of losses: parents are drawn
and children judged by the best that is known at or below a cost. Only what is clearly cheaper than the plain run counts
for the volume. This module does not know who proposes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import Schedule
from schedsearch.search._objectives import may_be_negative
from schedsearch.study import Evaluation, Objective

Floats = npt.NDArray[np.float64]

WORTHWHILE = 1.25
"""How many times cheaper than the first schedule told, the plain run, a schedule must be to count."""

OVERDRAFT = 1.12
"""How far over a cost a parent may lie whose children shall keep it."""

TRIMMABLE = 1.35
"""How far over a cost a schedule may lie that is made to keep it by computing less of some steps."""

BEYOND = 0.3
"""How far outside the frontier's extent, as a share of it, losses are still told apart by what is learnt from them."""

TRIM_LOSS = 4.0
"""Quality such a schedule is expected to lose per saved cost, both as shares of the frontier's extent."""

FOCUS_WEIGHT = 0.3
"""What a gain at one of the wanted costs counts beside a gain in volume."""


class Archive:
    """All that was told; the fullest measurement of each schedule, and of each that was polished.

    Args:
        objectives: what losses are made of, in their order.
        focus: wanted values of the cost.
    """

    def __init__(self, objectives: Sequence[Objective], focus: Sequence[float] = ()) -> None:
        self._objectives = tuple(objectives)
        self._order = tuple(range(len(self._objectives)))
        self._focus = tuple(float(np.log(value)) for value in focus)
        self._found: dict[str, Evaluation] = {}
        self._full: set[str] = set()
        self._plain: str = ""
        self._known: tuple[list[Schedule], Floats] | None = None
        self._scale: tuple[Floats, Floats] | None = None

    def add(self, evaluation: Evaluation) -> None:
        """Take one evaluation in; of what failed or was stopped only the fact is remembered."""
        key = evaluation.candidate.key
        self._plain = self._plain or key
        self._known = None
        if evaluation.candidate.share == 1.0:
            self._full.add(key)
        if evaluation.status == "ok" and not self._found:
            sampled = {name for name, _ in evaluation.samples}
            self._order = tuple(sorted(self._order, key=lambda k: self._objectives[k].name in sampled))
        if evaluation.status == "ok" and (key not in self._found or evaluation.fidelity >= self._found[key].fidelity):
            self._found[key] = evaluation

    def known(self) -> tuple[list[Schedule], Floats]:
        """Schedules, and their losses `(n, n_objectives)` on the prompts all were measured on."""
        if self._known is None:
            records = list(self._found.values())
            shared = min((record.fidelity for record in records), default=0)
            losses = [[self._loss(record, k, shared) for k in self._order] for record in records]
            table = np.array(losses, dtype=np.float64).reshape(len(records), len(self._objectives))
            self._known = [record.candidate.schedule for record in records], table
        return self._known

    def settle(self) -> None:
        """Fix the scale of all losses by what is known now: 0 is the best of the frontier, 1 its worst.

        Volumes can be compared from then on.
        """
        _, losses = self.known()
        if len(losses):
            self._scale = self._extent(losses)

    def worth_measuring(self, slack: float) -> list[Schedule]:
        """Schedules on the frontier, or within ``slack`` of its extent, that were not measured in full yet.

        A schedule that gains nothing over another at any cost is not among them; the cheapest come first.
        """
        schedules, losses = self.known()
        if not schedules:
            return []
        scaled = self._scaled(losses)
        near = [
            (tuple(mine), s)
            for key, s, mine in zip(self._found, schedules, scaled, strict=True)
            if key not in self._full and mine[0] <= 1.0 + slack and not _dominated(mine - slack, scaled)
        ]
        return [s for _, s in sorted(near, key=lambda pair: (pair[0], pair[1].id))]

    def best(self, n: int) -> list[Schedule]:
        """Up to ``n`` schedules of the frontier where it matters, spread evenly over it, the cheapest first."""
        ordered = self.front()
        places = np.linspace(0, len(ordered) - 1, min(n, len(ordered))).round().astype(int)
        return [ordered[place] for place in dict.fromkeys(places.tolist())]

    def front(self) -> list[Schedule]:
        """The schedules of the frontier where it matters, the cheapest first."""
        schedules, losses = self.known()
        if not schedules:
            return []
        scaled = self._scaled(losses)
        front = [
            (tuple(mine), s)
            for s, mine, is_best in zip(schedules, scaled, _non_dominated(scaled), strict=True)
            if mine[0] <= 1.0 and is_best
        ]
        return [s for _, s in sorted(front, key=lambda pair: (pair[0], pair[1].id))]

    def parent(self, rng: np.random.Generator, *, focused: bool = False) -> Schedule | None:
        """One of the best schedules at a cost drawn at random, or at one of the wanted costs.

        Args:
            rng: source of the draw.
            focused: take one of the wanted costs, the first one as often as all others together.
        """
        schedules, losses = self.known()
        if not schedules:
            return None
        scaled = self._scaled(losses)
        cost = self._drawn_cost(rng, focused=focused)
        reach = self._scaled_cost(np.log(OVERDRAFT) + self._unscaled_cost(cost))
        merit = scaled[:, 1:].sum(axis=1) if scaled.shape[1] > 1 else scaled[:, 0]
        merit = np.where(scaled[:, 0] <= reach, merit + 0.5 * np.maximum(0.0, scaled[:, 0] - cost), np.inf)
        if not np.isfinite(merit).any():
            merit = scaled[:, 0]
        return _among_the_best(rng, schedules, merit)

    def costlier(self, rng: np.random.Generator, *, focused: bool = False) -> tuple[Schedule, float] | None:
        """One of the best schedules somewhat above a cost, and the share of its cost that must go to keep that cost.

        `None` where there is none, or where there is but one objective. The arguments are those of `parent`.
        """
        schedules, losses = self.known()
        if not schedules or losses.shape[1] < 2:
            return None
        cost = self._unscaled_cost(self._drawn_cost(rng, focused=focused))
        over = losses[:, 0] - cost
        scaled = self._scaled(losses)
        lost = TRIM_LOSS * (scaled[:, 0] - self._scaled_cost(cost))
        merit = np.where((over > 0.0) & (over <= np.log(TRIMMABLE)), scaled[:, 1:].sum(axis=1) + lost, np.inf)
        if not np.isfinite(merit).any():
            return None
        chosen = _among_the_best(rng, schedules, merit)
        return chosen, float(1.0 - np.exp(-over[schedules.index(chosen)]))

    def _drawn_cost(self, rng: np.random.Generator, *, focused: bool) -> float:
        """A scaled cost: anywhere, or one of those wanted."""
        if not (focused and self._focus):
            return float(rng.uniform(0.0, 1.0))
        pick = 0 if rng.random() < 0.5 else int(rng.integers(len(self._focus)))
        return self._scaled_cost(self._focus[pick])

    def lessons(self) -> tuple[list[Schedule], Floats, Floats]:
        """Schedules to learn from, their scaled losses, and their costs `(n,)`.

        How bad the bad ones are does not matter, and is cut off. What was polished says nothing about schedules that
        are not, and is left out.
        """
        schedules, losses = self.known()
        records = list(self._found.values())
        kept = [i for i, record in enumerate(records) if not record.candidate.polish]
        scaled = self._scaled(losses)[kept]
        scaled[:, 1:] = np.clip(scaled[:, 1:], -BEYOND, 1.0 + BEYOND)
        return [schedules[i] for i in kept], scaled, np.array([records[i].values[self._order[0]] for i in kept])

    def scaled_costs(self, costs: Floats) -> Floats:
        """Costs `(n,)` as scaled losses."""
        return np.array([self._scaled_cost(self._raw_loss(float(cost), self._order[0])) for cost in costs])

    def gains(self, scaled: Floats) -> Floats:
        """What each predicted vector of ``scaled`` losses `(n, n_objectives)` would add.

        Volume, and quality at the wanted costs. Where none adds anything, how little each lies behind the frontier, as
        negative numbers.
        """
        everything = self._scaled(self.known()[1])
        front = _front(everything)
        volume = _volume(front)
        gains = np.array([_volume_with(front, volume, point) - volume for point in scaled])
        for wanted in self._focus if scaled.shape[1] > 1 else ():
            cost = self._scaled_cost(wanted)
            best = everything[everything[:, 0] <= cost, 1:].sum(axis=1).min(initial=float(scaled.shape[1] - 1))
            better = np.maximum(0.0, best - scaled[:, 1:].sum(axis=1))
            gains += FOCUS_WEIGHT * np.where(scaled[:, 0] <= cost, better, 0.0)
        if gains.max(initial=0.0) > 0.0:
            return gains
        return np.array([-float((point - front).max(axis=1).min()) for point in scaled])

    def volume(self) -> float:
        """Hypervolume of the frontier in scaled losses."""
        schedules, losses = self.known()
        return _volume(_front(self._scaled(losses))) if schedules else 0.0

    # ---- scaling

    def _extent(self, losses: Floats) -> tuple[Floats, Floats]:
        """Best and worst loss of the frontier where it matters.

        That is among what is clearly cheaper than the plain run, and not much cheaper than the cheapest wanted.
        """
        limit, least = np.inf, -np.inf
        if len(self._objectives) > 1 and self._plain in self._found:
            place = list(self._found).index(self._plain)
            limit = float(losses[place, 0]) - np.log(WORTHWHILE)
            least = min(self._focus, default=-np.inf) - np.log(WORTHWHILE)
        counting = losses[(losses[:, 0] <= limit) & (losses[:, 0] >= least)]
        front = _front(counting if len(counting) > 1 else losses)
        high = front.max(axis=0)
        if np.isfinite(limit):
            high[0] = limit
        return front.min(axis=0), high

    def _scaled(self, losses: Floats) -> Floats:
        low, high = self._scale or self._extent(self.known()[1])
        return (losses - low) / np.where(high > low, high - low, 1.0)

    def _scaled_cost(self, loss: float) -> float:
        low, high = self._scale or self._extent(self.known()[1])
        return float((loss - low[0]) / (high[0] - low[0] if high[0] > low[0] else 1.0))

    def _unscaled_cost(self, scaled: float) -> float:
        low, high = self._scale or self._extent(self.known()[1])
        return float(low[0] + scaled * (high[0] - low[0] if high[0] > low[0] else 1.0))

    def _loss(self, record: Evaluation, k: int, shared: int) -> float:
        for name, values in record.samples:
            if name == self._objectives[k].name and len(values) >= shared > 0:
                return self._raw_loss(float(np.mean(values[:shared])), k)
        return self._raw_loss(record.values[k], k)

    def _raw_loss(self, value: float, k: int) -> float:
        if self._objectives[k].better == "max":
            return -value
        if may_be_negative(self._objectives[k]):
            return value
        return float(np.log(value)) if value > 0.0 else -30.0


def _among_the_best(rng: np.random.Generator, schedules: Sequence[Schedule], merit: Floats) -> Schedule:
    """A draw with a geometric preference for small ``merit``: the best are refined, others are not forgotten."""
    order = np.argsort(merit, kind="stable")[: int(np.isfinite(merit).sum())]
    return schedules[int(order[(int(rng.geometric(0.3)) - 1) % len(order)])]


def _front(points: Floats) -> Floats:
    return points[_non_dominated(points)]


def _non_dominated(points: Floats) -> npt.NDArray[np.bool_]:
    """`(n,)` which of ``points`` no other dominates; equal ones do not dominate each other."""
    import moocore

    if not len(points):
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=bool)


def _dominated(point: Floats, points: Floats) -> bool:
    """Whether one of ``points`` is at least as good everywhere and better somewhere."""
    return bool(np.any((points <= point).all(axis=1) & (points < point).any(axis=1)))


def _volume(front: Floats) -> float:
    """Volume up to the corner at 1 in every objective."""
    import moocore

    corner = np.ones(front.shape[1])
    inside = front[(front < corner).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0


def _volume_with(front: Floats, volume: float, point: Floats) -> float:
    """Volume of ``front``, which has ``volume``, and one more point."""
    if (point >= 1.0).any() or (front <= point).all(axis=1).any():
        return volume
    return _volume(np.vstack([front, point]))
