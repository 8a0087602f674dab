"""Random parts of a schedule: rows, noise levels, solvers. Wide rather than uniform: what is likely good is likely.

This module does not know what is legal; `SearchSpace.build` makes it so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from schedsearch.errors import SpaceError
from schedsearch.schedule import COMPUTE, OPS, Solver
from schedsearch.space._codes import Codes
from schedsearch.space._warps import WARPS, warp

_DRAWN = {"shift": {"shift": (0.25, 8.0)}, "quadratic": {"power": (0.5, 3.0)}, "karras": {"rho": (1.0, 10.0)}}
"""Ranges of warp parameters, drawn evenly in their logarithm; others keep their defaults."""


def random_cells(rng: np.random.Generator, symbols: str, shape: tuple[int, int]) -> Codes:
    """Cells `(n_rows, n_steps)`: a uniform share computes; rows alike or not; the rest one symbol or a mix."""
    idle = [OPS.index(char) for char in symbols if char != COMPUTE]
    share, together, one_symbol = rng.random(), rng.random() < 0.5, rng.random() < 0.5
    computes = np.broadcast_to(rng.random((1, shape[1]) if together else shape) < share, shape)
    filling = rng.choice(idle) if one_symbol else rng.choice(idle, size=shape)
    return np.where(computes, 0, filling).astype(np.int8)


def random_sigma(rng: np.random.Generator, grid: Sequence[float]) -> tuple[float, ...]:
    """Noise levels `(n_steps + 1,)` with the ends of the default ones, ``grid``.

    A quarter are the default ones, a quarter shifted, a quarter of any family of `WARPS`, a quarter anywhere. Of the
    first three, every other one is jittered by up to half the distance to the next level.
    """
    n_steps, first, last = len(grid) - 1, float(grid[0]), float(grid[-1])
    kind = int(rng.integers(4))
    if kind == 3:
        inner = np.sort(rng.random(n_steps - 1))[::-1]
        return first, *(float(last + (first - last) * share) for share in inner), last
    levels = np.array(grid if kind == 0 else _warped(rng, "shift" if kind == 1 else "", grid), dtype=np.float64)
    if rng.random() < 0.5 and n_steps > 1:
        steps = -np.diff(levels)
        room = np.minimum(steps[:-1], steps[1:])
        levels[1:-1] += rng.uniform(-0.5, 0.5, len(room)) * room
    return first, *(float(level) for level in levels[1:-1]), last


def _warped(rng: np.random.Generator, name: str, grid: Sequence[float]) -> Sequence[float]:
    """Levels of one family, any if ``name`` is empty, with a random parameter; the default ones if it cannot fall."""
    name = name or str(rng.choice(list(WARPS)))
    params: Any = {key: float(np.exp(rng.uniform(*np.log(_DRAWN[name][key])))) for key in _DRAWN.get(name, {})}
    try:
        return warp(name, len(grid) - 1, first=grid[0], last=grid[-1], **params)
    except SpaceError:
        return grid


def random_solvers(rng: np.random.Generator, solvers: Sequence[Solver], n_steps: int) -> tuple[Solver, ...]:
    """One solver per step: the same one throughout, two with a change between, or a mix."""
    kind = rng.random()
    if kind < 0.5:
        return (solvers[int(rng.integers(len(solvers)))],) * n_steps
    if kind < 0.75:
        change = int(rng.integers(n_steps + 1))
        before, after = (solvers[int(i)] for i in rng.integers(len(solvers), size=2))
        return (before,) * change + (after,) * (n_steps - change)
    return tuple(solvers[int(i)] for i in rng.integers(len(solvers), size=n_steps))
