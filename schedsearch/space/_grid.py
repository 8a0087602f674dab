"""The default noise levels for another number of steps.

Flow models space their steps evenly before a shift, ``sigma = s / (s + a (1 - s))`` with ``s = 1 - i / n``, which makes
``(1 / sigma - 1) / (u / (1 - u))`` with ``u = i / n`` the constant ``a``. Interpolating that ratio in ``u`` therefore
gives a shifted grid for any number of steps exactly, and a faithful one for grids of other kinds. This module does not
know where the default grid comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def resampled(sigma: Sequence[float], n_steps: int) -> tuple[float, ...]:
    """``n_steps + 1`` noise levels spaced like ``sigma``, with the same ends.

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
    return tuple(float(level) for level in levels)
