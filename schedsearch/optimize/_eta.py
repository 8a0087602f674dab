"""How long it will still take: the rest of the stage under way, and of the stages after it.

A stage that can say beforehand what its units cost gives a plan, and what was measured of each kind of unit scales it;
of others the newer half of the units done so far sets the pace, so that a slow start is forgotten and a slow end is
seen coming. Knows nothing of what the stages do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Clock = Callable[[], float]

PRIOR = 0.25
"""Seconds of the plan that count as measured before anything is: a unit of milliseconds says little about the rest."""


class Unit(NamedTuple):
    """A piece of work: its kind, and the seconds it is expected to take."""

    kind: str
    seconds: float


class Pace:
    """The pace of one stage.

    Args:
        plan: its units in order, if they are known.
        clock: seconds from any moment on.
    """

    def __init__(self, plan: Sequence[Unit] = (), *, clock: Clock = time.monotonic) -> None:
        self._plan = tuple(plan)
        self._clock = clock
        self._marks: list[tuple[float, float]] = []
        """What was done when: units and seconds, from the first word on."""
        self._began = clock()
        self._total: float | None = float(len(self._plan)) if self._plan else None

    def update(self, done: float, total: float | None) -> None:
        """Take note that ``done`` of ``total`` units are done now."""
        self._total = total
        if not self._marks or done > self._marks[-1][0]:
            self._marks.append((done, self._clock()))

    def remaining(self) -> float | None:
        """Return the seconds to the end of the stage, ``None`` as long as nobody can know."""
        if self._total is None:
            return None
        if self._plan and len(self._plan) == round(self._total):
            return self._planned()
        return self._measured(self._total)

    def _measured(self, total: float) -> float | None:
        """By the newer half of what this process has done; what was there before it began says nothing about pace."""
        if len(self._marks) < 2:
            return None
        (first, _), (done, last) = self._marks[0], self._marks[-1]
        middle = first + (done - first) / 2
        at, since = next(mark for mark in reversed(self._marks) if mark[0] <= middle)
        idle = self._clock() - last
        per_unit = max((last - since) / (done - at), (last - since + idle) / (done - at + 1.0))
        return _left(per_unit, idle, max(total - done - 1.0, 0.0) * per_unit) if total > done else 0.0

    def _planned(self) -> float:
        """By the plan, each kind scaled by what it took so far."""
        done = int(self._marks[-1][0]) if self._marks else 0
        took: dict[str, float] = {}
        meant: dict[str, float] = {}
        before, at = 0, self._began
        for mark, now in self._marks:
            units = self._plan[before : int(mark)]
            whole = sum(unit.seconds for unit in units) or 1.0
            for unit in units:  # what several units took together is theirs in proportion
                took[unit.kind] = took.get(unit.kind, 0.0) + (now - at) * unit.seconds / whole
                meant[unit.kind] = meant.get(unit.kind, 0.0) + unit.seconds
            before, at = int(mark), now
        if done >= len(self._plan):
            return 0.0
        current, idle = self._plan[done], self._clock() - at

        def scale(kind: str) -> float:
            so_far = (took.get(kind, 0.0) + PRIOR) / (meant.get(kind, 0.0) + PRIOR)
            if kind != current.kind:
                return so_far
            with_it = (took.get(kind, 0.0) + idle + PRIOR) / (meant.get(kind, 0.0) + current.seconds + PRIOR)
            return max(so_far, with_it)

        rest = sum(unit.seconds * scale(unit.kind) for unit in self._plan[done + 1 :])
        return _left(current.seconds * scale(current.kind), idle, rest)


def _left(current: float, idle: float, rest: float) -> float:
    """Seconds that are left of the unit under way, and of those after it: a late one does not shorten the rest."""
    return max(current - idle, 0.0) + rest


class Rate(NamedTuple):
    """Seconds that measuring takes: per denoiser evaluation, and per picture beside that."""

    per_eval: float
    per_image: float

    def seconds(self, *, evals: float, images: float) -> float:
        """Return what so many evaluations for so many pictures take."""
        return self.per_eval * evals + self.per_image * images


def fitted_rate(records: Iterable[tuple[float, float, float]], fallback: float) -> Rate:
    """Return the rate that explains ``records`` best: least squares, neither part below 0.

    Args:
        records: ``(seconds, denoiser evaluations, pictures)`` of what was measured.
        fallback: seconds per evaluation where there is nothing to go by.

    >>> rate = fitted_rate([(1.4, 10, 4), (2.2, 20, 2), (0.8, 4, 4)], fallback=1.0)
    >>> round(rate.per_eval, 3), round(rate.per_image, 3)
    (0.1, 0.1)
    """
    ee = ei = ii = se = si = total = evals = images = 0.0
    for seconds, n_evals, n_images in records:
        ee += n_evals * n_evals
        ei += n_evals * n_images
        ii += n_images * n_images
        se += seconds * n_evals
        si += seconds * n_images
        total, evals, images = total + seconds, evals + n_evals, images + n_images
    determinant = ee * ii - ei * ei
    if determinant > 1e-9 * max(ee * ii, 1e-300):
        rate = Rate((se * ii - si * ei) / determinant, (si * ee - se * ei) / determinant)
        if rate.per_eval >= 0.0 and rate.per_image >= 0.0:
            return rate
        if rate.per_image >= 0.0:
            return Rate(0.0, total / images)
    return Rate(total / evals, 0.0) if evals else Rate(fallback, 0.0)


def clock_text(seconds: float | None) -> str:
    """Return seconds as on a clock.

    >>> clock_text(3725.4), clock_text(59.6), clock_text(None)
    ('1:02:05', '1:00', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
