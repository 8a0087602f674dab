"""What a search was told, as losses that can be compared: smaller is better, on a common set of prompts.

A candidate may have been measured on few prompts and another on many. Where an objective has numbers per prompt, both
count on the prompts they share, which are the first ones; so noise and prompts are paired. Objectives that are positive
and better when small are taken in logarithms: a factor counts the same at every speed. This module does not know who
proposes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import Schedule
from schedsearch.study import Evaluation, Objective

Floats = npt.NDArray[np.float64]

MARGIN = 0.1
"""How far beyond the worst known loss the reference point of the volume lies, as a share of the extent."""


class Archive:
    """All that was told; the latest and fullest measurement of each schedule."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = tuple(objectives)
        self._found: dict[str, Evaluation] = {}
        self._full: set[str] = set()
        self._dead: set[str] = set()
        self._corner: tuple[Floats, Floats] | None = None
        self._cached: tuple[list[Schedule], Floats] | None = None

    def add(self, evaluation: Evaluation) -> None:
        """Take one evaluation in; what failed or was stopped is only remembered as such."""
        key = evaluation.candidate.schedule.id
        self._cached = None
        if evaluation.candidate.share == 1.0:
            self._full.add(key)
        if evaluation.status != "ok":
            self._dead.add(key)
        elif key not in self._found or evaluation.fidelity >= self._found[key].fidelity:
            self._found[key] = evaluation

    def known(self) -> tuple[list[Schedule], Floats]:
        """Schedules, and their losses `(n, n_objectives)` on the prompts all were measured on."""
        if self._cached is None:
            records = list(self._found.values())
            shared = min((record.fidelity for record in records), default=0)
            losses = [[self._loss(record, k, shared) for k in range(len(self._objectives))] for record in records]
            table = np.array(losses, dtype=np.float64).reshape(len(records), len(self._objectives))
            self._cached = [record.candidate.schedule for record in records], table
        return self._cached

    def worth_measuring(self, slack: float) -> list[Schedule]:
        """Schedules whose first look lies on the frontier, or within ``slack`` of its extent, not measured in full."""
        schedules, losses = self.known()
        if not schedules:
            return []
        scaled = self._scaled(losses)
        near = [
            s
            for s, mine in zip(schedules, scaled, strict=True)
            if s.id not in self._full and not _dominated(mine - slack, scaled)
        ]
        return sorted(near, key=lambda s: s.id)

    def parent(self, rng: np.random.Generator, *, focus: float = 0.0) -> Schedule | None:
        """One of the best schedules: near the frontier, towards a random preference among the objectives.

        Args:
            rng: source of the draw.
            focus: value of the first objective to stay close to; 0 for anywhere.
        """
        schedules, losses = self.known()
        if not schedules:
            return None
        scaled = self._scaled(losses)
        if focus > 0.0:
            wanted = self._scaled_value(focus, losses)
            distance = np.abs(scaled[:, 0] - wanted)
            over = np.maximum(0.0, scaled[:, 0] - wanted)
            merit = scaled[:, 1:].sum(axis=1) + 2.0 * over + 0.3 * distance
        else:
            weights = rng.dirichlet(np.ones(scaled.shape[1]))
            merit = (weights * scaled).max(axis=1) + 0.05 * (weights * scaled).sum(axis=1)
        order = np.argsort(merit, kind="stable")
        # Geometric preference for the best few: the front is refined, its surroundings are not forgotten.
        place = min(int(rng.geometric(0.3)) - 1, len(order) - 1)
        return schedules[int(order[place])]

    def gains(self, losses: Floats, *, focus: float = 0.0) -> Floats:
        """How much each predicted loss vector of ``losses`` `(n, n_objectives)` would add to the volume.

        Where none adds anything, how little each lies behind the frontier, as negative numbers. Gains near ``focus``
        count up to three times.
        """
        _, known = self.known()
        scaled, front = self._scaled(losses, known), self._front()
        gains = np.array([_added(front, point) for point in scaled])
        if focus > 0.0:
            distance = np.abs(scaled[:, 0] - self._scaled_value(focus, known))
            gains *= 1.0 + 2.0 * np.exp(-0.5 * (distance / 0.1) ** 2)
        if gains.max(initial=0.0) > 0.0:
            return gains
        behind = [-float((point - front).max(axis=1).min()) if len(front) else 0.0 for point in scaled]
        return np.array(behind)

    def volume(self) -> float:
        """Hypervolume of the frontier in scaled losses; the reference point is fixed by the first call."""
        schedules, losses = self.known()
        if self._corner is None and len(schedules):
            self._corner = losses.min(axis=0), losses.max(axis=0)
        return _volume(self._front()) if len(schedules) else 0.0

    # ---- scaling

    def _front(self) -> Floats:
        scaled = self._scaled(self.known()[1])
        return np.array([mine for mine in scaled if not _dominated(mine, scaled)]).reshape(-1, len(self._objectives))

    def _scaled(self, losses: Floats, known: Floats | None = None) -> Floats:
        """Losses with the extent of what is known as unit, 0 at its best."""
        low, high = self._corner or _extent(losses if known is None else known)
        return (losses - low) / np.where(high > low, high - low, 1.0)

    def _scaled_value(self, value: float, losses: Floats) -> float:
        """A raw value of the first objective as a scaled loss."""
        low, high = self._corner or _extent(losses)
        return float((self._raw_loss(value, 0) - low[0]) / (high[0] - low[0] if high[0] > low[0] else 1.0))

    def _loss(self, record: Evaluation, k: int, shared: int) -> float:
        for name, values in record.samples:
            if name == self._objectives[k].name and len(values) >= shared > 0:
                return self._raw_loss(float(np.mean(values[:shared])), k)
        return self._raw_loss(record.values[k], k)

    def _raw_loss(self, value: float, k: int) -> float:
        if self._objectives[k].better == "max":
            return -value
        return float(np.log(value)) if value > 0.0 else -30.0


def _extent(losses: Floats) -> tuple[Floats, Floats]:
    return losses.min(axis=0), losses.max(axis=0)


def _dominated(point: Floats, points: Floats) -> bool:
    """Whether one of ``points`` is at least as good everywhere and better somewhere."""
    return bool(np.any((points <= point).all(axis=1) & (points < point).any(axis=1)))


def _volume(front: Floats) -> float:
    import moocore

    corner = np.full(front.shape[1], 1.0 + MARGIN)
    inside = front[(front < corner).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0


def _added(front: Floats, point: Floats) -> float:
    return _volume(np.vstack([front, point])) - _volume(front)
