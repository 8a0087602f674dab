"""The default noise levels for another number of steps, and the lattice that free noise levels lie on.

Flow models space their steps evenly before a shift, ``sigma = s / (s + a (1 - s))`` with ``s = 1 - i / n``, which makes
``(1 / sigma - 1) / (u / (1 - u))`` with ``u = i / n`` the constant ``a``. Interpolating that ratio in ``u`` therefore
gives a shifted grid for any number of steps exactly, and a faithful one for grids of other kinds. This module does not
know where the default grid comes from.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from math import ceil, isfinite

import numpy as np

NEAR = 1e-6
"""A free level this close to a default one is that default one."""
_SAME = 1e-9
"""Levels of two default grids this close are one level, so that runs on both can share what they compute there."""


def resampled(sigma: Sequence[float], n_steps: int) -> tuple[float, ...]:
    """``n_steps + 1`` noise levels spaced like ``sigma``, with the same ends; levels that both have are equal.

    >>> resampled((1.0, 0.75, 0.5, 0.25, 0.0), 2)
    (1.0, 0.5, 0.0)
    """
    known = np.asarray(sigma, dtype=np.float64)
    if n_steps == len(known) - 1:
        return tuple(float(level) for level in known)
    if n_steps == 1:
        return float(known[0]), float(known[-1])
    u_known = np.arange(len(known)) / (len(known) - 1)
    u = np.arange(n_steps + 1) / n_steps
    levels = np.interp(u, u_known, known)
    if known[0] <= 1.0 and len(known) > 2:
        inner, inner_known = slice(1, -1), known[1:-1]
        odds_known = u_known[inner] / (1.0 - u_known[inner])
        ratio = np.interp(u[inner], u_known[inner], (1.0 / inner_known - 1.0) / odds_known)
        warped = levels.copy()
        warped[inner] = 1.0 / (1.0 + ratio * u[inner] / (1.0 - u[inner]))
        if np.all(np.diff(warped) < 0.0):
            levels = warped
    nearest = known[np.abs(levels[:, None] - known).argmin(axis=1)]
    merged = np.where(np.abs(nearest - levels) < _SAME, nearest, levels)
    if np.all(np.diff(merged) < 0.0):
        levels = merged
    return tuple(float(level) for level in levels)


def stretched(sigma: Sequence[float], n_steps: int) -> tuple[float, ...]:
    """``n_steps + 1`` noise levels on the straight lines between those of ``sigma``, over their index.

    >>> stretched((1.0, 0.5, 0.25, 0.1, 0.0), 2)
    (1.0, 0.25, 0.0)
    """
    if n_steps == len(sigma) - 1:
        return tuple(sigma)
    places = np.linspace(0.0, len(sigma) - 1.0, n_steps + 1)
    return tuple(float(level) for level in np.interp(places, np.arange(len(sigma)), sigma))


class Lattice:
    """Legal noise levels of a run of one number of steps.

    The first and the last are those of the default grid. An inner one is a level of the default grid for this number of
    steps, or for the model's default number, or a point of the lattice; points within `NEAR` of a default level are
    left out in its favour. Levels are numbered from the highest inner one (0) down.

    Attributes:
        levels: the inner levels, falling.
    """

    def __init__(self, grid: Sequence[float], known: Sequence[float], divisions: int) -> None:
        """Lay the lattice.

        Args:
            grid: `(n_steps + 1,)` the default levels for this number of steps.
            known: the model's default levels.
            divisions: parts the range from the last to the first level is cut into, at least 2.
        """
        self._first, self._last = grid[0], grid[-1]
        self._divisions = divisions
        self._scale = divisions / (self._first - self._last)
        marks = sorted(grid[1:-1])
        extra = [level for level in known if self._last < level < self._first and _nearest(marks, level, NEAR) is None]
        self._marks = sorted({*marks, *extra})  # rising, for bisection
        span = self._first - self._last
        points = [self._last + span * ((divisions - j) / divisions) for j in range(1, divisions)]
        reach = ceil(NEAR * self._scale)
        for mark in self._marks:
            j = round((self._first - mark) * self._scale)
            for near in range(max(j - reach, 1), min(j + reach, divisions - 1) + 1):
                if abs(points[near - 1] - mark) <= NEAR:
                    points[near - 1] = mark
        self.levels = tuple(sorted({*self._marks, *points}, reverse=True))
        self._number = {level: i for i, level in enumerate(self.levels)}
        self._points = [self._number[point] for point in points]

    def number(self, level: float) -> int:
        """The number of the legal inner level nearest to ``level``; a default level within `NEAR` comes first."""
        known = self._number.get(level)
        if known is not None:
            return known
        if not isfinite(level):
            return 0 if level > 0 else len(self.levels) - 1
        mark = _nearest(self._marks, level, NEAR)
        if mark is not None:
            return self._number[mark]
        j = round((self._first - level) * self._scale)
        return self._points[min(max(j, 1), self._divisions - 1) - 1]

    def sigma(self, numbers: Sequence[int]) -> tuple[float, ...]:
        """The noise levels of a run whose inner levels have these numbers."""
        return (self._first, *(self.levels[i] for i in numbers), self._last)

    def numbers(self, sigma: Sequence[float]) -> list[int]:
        """Numbers of the inner levels of ``sigma`` `(n_steps + 1,)`, rising; levels that coincide are moved apart."""
        wished = [self.number(level) for level in sigma[1:-1]]
        if all(a < b for a, b in pairwise(wished)):
            return wished
        wished.sort()
        for i in range(1, len(wished)):
            wished[i] = max(wished[i], wished[i - 1] + 1)
        top = len(self.levels) - 1
        for i in range(len(wished) - 1, -1, -1):
            wished[i] = min(wished[i], top)
            top = wished[i] - 1
        return wished

    def snapped(self, sigma: Sequence[float]) -> tuple[float, ...]:
        """The legal noise levels nearest to ``sigma`` `(n_steps + 1,)`, strictly falling."""
        return self.sigma(self.numbers(sigma))


def _nearest(rising: Sequence[float], level: float, within: float) -> float | None:
    """The entry of ``rising`` nearest to ``level`` and at most ``within`` away."""
    i = bisect_left(rising, level)
    beside = rising[max(i - 1, 0) : i + 1]
    best = min(beside, key=lambda other: abs(other - level), default=None)
    return best if best is not None and abs(best - level) <= within else None
