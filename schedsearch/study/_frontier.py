"""The best trade-offs found: non-dominated evaluations, as a value.

An evaluation dominates another if it is at least as good in every objective and better in one. Which evaluations are on
the frontier does not depend on the order in which they came. This module does not know who measured, or where records
are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan

import numpy as np
import numpy.typing as npt

from schedsearch.errors import UsageError
from schedsearch.schedule import html_table
from schedsearch.study._records import Evaluation, Objective


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Non-dominated evaluations.

    Make one with `Frontier.of`. Only evaluations that are ``ok`` count; of several with equal values the earliest
    stays.

    Attributes:
        objectives: `(n_objectives,)` what the values mean.
        evaluations: the frontier, ordered by values, the best in the first objective first.
    """

    objectives: tuple[Objective, ...]
    evaluations: tuple[Evaluation, ...] = ()

    @classmethod
    def of(cls, objectives: Sequence[Objective], evaluations: Iterable[Evaluation]) -> Frontier:
        """The frontier of ``evaluations``.

        Raises:
            UsageError: if an evaluation has another number of values than there are objectives.
        """
        objectives = tuple(objectives)
        distinct: dict[tuple[float, ...], Evaluation] = {}
        for evaluation in evaluations:
            if evaluation.status != "ok":
                continue
            if len(evaluation.values) != len(objectives) or any(isnan(value) for value in evaluation.values):
                names = ", ".join(objective.name for objective in objectives)
                raise UsageError(f"values: found {evaluation.values}, expected {len(objectives)} numbers ({names}).")
            held = distinct.setdefault(evaluation.values, evaluation)
            if _seniority(evaluation) < _seniority(held):
                distinct[evaluation.values] = evaluation
        losses = _losses(objectives, list(distinct))
        kept = [evaluation for evaluation, on in zip(distinct.values(), _non_dominated(losses), strict=True) if on]
        kept.sort(key=lambda evaluation: tuple(_losses(objectives, [evaluation.values])[0]))
        return cls(objectives=objectives, evaluations=tuple(kept))

    def __len__(self) -> int:
        return len(self.evaluations)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.evaluations)

    def add(self, evaluation: Evaluation) -> Frontier:
        """The frontier of this one and one more evaluation."""
        return Frontier.of(self.objectives, (*self.evaluations, evaluation))

    def merge(self, other: Frontier) -> Frontier:
        """The frontier of both.

        Raises:
            UsageError: if the other one speaks of other objectives.
        """
        if other.objectives != self.objectives:
            raise UsageError(f"merge: found objectives {other.objectives}, expected {self.objectives}.")
        return Frontier.of(self.objectives, (*self.evaluations, *other.evaluations))

    def values(self) -> npt.NDArray[np.float64]:
        """`(n, n_objectives)` values in their own units, in the order of ``evaluations``."""
        return np.array([e.values for e in self.evaluations], dtype=np.float64).reshape(-1, len(self.objectives))

    def hypervolume(self, reference_point: Sequence[float]) -> float:
        """Volume between the frontier and ``reference_point``, in the product of the objectives' units.

        Args:
            reference_point: `(n_objectives,)` finite; points that are not better than it everywhere add nothing. An
                infinite value (the PSNR of the full run against itself) makes the volume infinite.

        Raises:
            UsageError: if the reference point has another length, or is not finite.
        """
        import moocore

        if len(reference_point) != len(self.objectives) or not all(isfinite(value) for value in reference_point):
            raise UsageError(
                f"reference_point: found {tuple(reference_point)}, expected {len(self.objectives)} finite numbers."
            )
        losses = _losses(self.objectives, [evaluation.values for evaluation in self.evaluations])
        corner = _losses(self.objectives, [tuple(reference_point)])[0]
        losses = losses[(losses < corner).all(axis=1)]
        if not len(losses):
            return 0.0
        return float("inf") if np.isinf(losses).any() else float(moocore.hypervolume(losses, ref=corner))

    def knee(self) -> Evaluation | None:
        """The evaluation farthest from the chord between the extremes: the smallest sum of losses, each scaled to [0,
        1].

        ``None`` if the frontier is empty. Infinite values count as the best finite one.
        """
        if not self.evaluations:
            return None
        losses = _losses(self.objectives, [evaluation.values for evaluation in self.evaluations])
        for column in losses.T:
            finite = column[np.isfinite(column)]
            column[:] = np.clip(column, finite.min(), finite.max()) if len(finite) else 0.0
        span = losses.max(axis=0) - losses.min(axis=0)
        scaled = (losses - losses.min(axis=0)) / np.where(span > 0.0, span, 1.0)
        return self.evaluations[int(np.argmin(scaled.sum(axis=1)))]

    def best_within(self, objective: str, bound: float, *, best: str = "") -> Evaluation | None:
        """The evaluation best in one objective among those at least as good as ``bound`` in another.

        Args:
            objective: name of the bounded objective.
            bound: worst value allowed, in the objective's unit.
            best: name of the objective to be best in; may be left out where there are two.

        Raises:
            UsageError: if a name is unknown, or ``best`` is needed and missing.
        """
        bounded = self._place(objective)
        others = [other.name for other in self.objectives if other.name != objective]
        if not best and len(others) != 1:
            raise UsageError(f"best: found nothing, expected one of {', '.join(others)}.")
        wanted = self._place(best or others[0])
        limit = -bound if self.objectives[bounded].better == "max" else bound
        losses = _losses(self.objectives, [evaluation.values for evaluation in self.evaluations])
        within = [i for i, loss in enumerate(losses) if loss[bounded] <= limit]
        return self.evaluations[min(within, key=lambda i: losses[i][wanted])] if within else None

    def _repr_html_(self) -> str:
        """The evaluations as a table, as notebooks show it."""
        names = [f"{o.name} {o.unit}".strip() if o.unit != "1" else o.name for o in self.objectives]
        rows = [
            [
                e.candidate.schedule.id[7:15],
                *(f"{value:.4g}" for value in e.values),
                e.candidate.searcher,
                str(e.candidate.ask),
                str(e.candidate.schedule.n_steps),
            ]
            for e in self.evaluations
        ]
        shown = html_table(["schedule", *names, "searcher", "ask", "steps"], rows)
        return f"<div><p>{len(self)} schedules, none of them beaten in all objectives</p>{shown}</div>"

    def _place(self, name: str) -> int:
        for i, objective in enumerate(self.objectives):
            if objective.name == name:
                return i
        known = ", ".join(objective.name for objective in self.objectives)
        raise UsageError(f"objective: found {name!r}, expected one of {known}.")


def _losses(objectives: Sequence[Objective], values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """`(n, n_objectives)` values with their signs turned so that less is better."""
    signs = np.array([-1.0 if objective.better == "max" else 1.0 for objective in objectives])
    losses: npt.NDArray[np.float64] = np.array(values, dtype=np.float64).reshape(-1, len(objectives)) * signs
    return losses


def _non_dominated(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """`(n,)` which of the distinct ``losses`` `(n, n_objectives)` no other dominates."""
    kept = np.ones(len(losses), dtype=bool)
    for i, loss in enumerate(losses):
        kept[i] = not ((losses <= loss).all(axis=1) & (losses < loss).any(axis=1)).any()
    return kept


def _seniority(evaluation: Evaluation) -> tuple[int, str]:
    return evaluation.candidate.ask, evaluation.candidate.schedule.id
