"""The scalars of all ``table`` steps at once: Gauss-Newton towards the teacher's final latents.

`_fit.py` aims every step at the teacher's state at that step's end. With a handful of calls that is not the best way to
the end: a step may leave the teacher's path if later ones make up for it. Minimising the error of the final state alone
is what S4S does (Frankel 2025, arXiv 2502.17423, eq. 5), by gradient descent through the denoiser. Here derivatives
are differences of runs, so nothing is kept for a backward pass, and a run with a changed scalar begins behind the calls
before it, which the prefix tree holds. The scalars are few, so two rounds suffice and hardly anything is overfitted.

What is minimised is the mean over prompts of the logarithm of their squared error, so in effect a mean PSNR of latents:
each round weighs a prompt by the inverse of its present error. Steps are damped as by Levenberg and Marquardt, and what
does not lower the error is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from schedsearch.evaluate._fit import TABLE
from schedsearch.evaluate._rollout import HopelessError, Rolled, Runner
from schedsearch.schedule import COMPUTE, MODEL_ROW, Schedule, with_solver_table

LEAST = 0.005
"""Fall of the mean decimal logarithm of the squared error (0.05 dB) under which no further round pays."""

DAMPINGS = (1e-4, 1e-2, 1.0)
"""Shares of the diagonal that are added to the normal equations, tried in turn until the error falls."""

DIFFERENCE = 1e-3
"""What is added to a scalar for a derivative, times its magnitude or 1, whichever is more."""

MAX_VALUES = 2**25
"""Values of all derivatives together; where latents have more, evenly spaced ones of them stand for the rest."""

REACHED = 1e-12
"""Mean squared error, of latents whose values are around 1, below which a prompt is where the teacher is."""

Rows = list[list[float]]

Values = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def polishing_calls(schedule: Schedule) -> int:
    """Return the denoiser calls per prompt that one round takes: a run per scalar, from behind its step on, and one of
    the whole schedule; a step that calls twice counts once.
    """
    row = dict(schedule.ops).get(MODEL_ROW, COMPUTE * schedule.n_steps)
    after = [row[i + 1 :].count(COMPUTE) for i in range(schedule.n_steps)]
    scalars = [1 + s.order if s.family == TABLE else 0 for s in schedule.solver]
    return row.count(COMPUTE) + sum(n * calls for n, calls in zip(scalars, after, strict=True))


def polished(runner: Runner, schedule: Schedule, n: int, *, rounds: int = 2) -> Schedule:
    """Return ``schedule`` with scalars of ``table`` steps under which its final latents are nearer to the teacher's.

    Args:
        runner: runs schedules; its tree should have room for the calls of one.
        schedule: a fitted one, or one whose steps are fitted on the way.
        n: prompts.
        rounds: Gauss-Newton steps at most.

    Raises:
        ApplyError: it cannot be put on this pipeline.
        HopelessError: it strays beyond the runner's bound.
        FloatingPointError: the denoiser gave values that are no numbers.
    """
    rolled = runner.roll(schedule, n)
    rows = rolled.scalars
    if not any(rows):
        return schedule
    fit = _JointFit(runner, with_solver_table(schedule, rows), n, rolled)
    best = fit.error(rolled)
    for _ in range(rounds):
        before = best
        rows, best = fit.improved(rows, best)
        if before - best < LEAST:
            break
    return with_solver_table(schedule, rows)


class _JointFit:
    """One schedule and what its final latents should be.

    Args:
        runner: runs it.
        schedule: fitted.
        n: prompts.
        rolled: a run of it.
    """

    def __init__(self, runner: Runner, schedule: Schedule, n: int, rolled: Rolled) -> None:
        self._runner = runner
        self._schedule = schedule
        self._n = n
        self._goals = [runner.teacher.trajectory(*batch).at(rolled.calls[-1].target) for batch in rolled.batches]

    def improved(self, rows: Rows, error: float) -> tuple[Rows, float]:
        """Return better scalars and their error after one Gauss-Newton step; the same where none are found."""
        places = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
        now = self._residual(rows, len(places))
        weights = 1.0 / np.sqrt(np.maximum((now**2).mean(1, keepdims=True), REACHED))
        derivatives = np.empty((len(places), now.size))
        for k, (i, j) in enumerate(places):
            by = DIFFERENCE * max(1.0, abs(rows[i][j]))
            changed = self._residual(_moved(rows, [(i, j)], [by]), len(places))
            derivatives[k] = ((changed - now) / by * weights).ravel()
        gram, moments = derivatives @ derivatives.T, derivatives @ (now * weights).ravel()
        # A scalar that does nothing, such as that of an output that is zero, has no derivative and is not moved.
        floor = np.finfo(float).eps * float(gram.trace()) + np.finfo(float).tiny
        for damping in DAMPINGS:
            step = np.linalg.solve(gram + np.diag(damping * gram.diagonal() + floor), -moments)
            tried = _moved(rows, places, step.tolist())
            try:
                found = self.error(self._rolled(tried))
            except (HopelessError, FloatingPointError):
                continue
            if found < error:
                return tried, found
        return rows, error

    def error(self, rolled: Rolled) -> float:
        """Return the mean over prompts of the decimal logarithm of the mean squared error."""
        squares = torch.cat([d.double().square().mean(1) for d in self._differences(rolled)])
        error = float(squares.clamp_min(REACHED).log10().mean())
        if not math.isfinite(error):
            raise FloatingPointError("final latents hold NaN or infinity")
        return error

    def _rolled(self, rows: Rows) -> Rolled:
        return self._runner.roll(with_solver_table(self._schedule, rows), self._n)

    def _residual(self, rows: Rows, n_derivatives: int) -> Values:
        """`(prompts, values)` latents minus the teacher's, thinned so that as many of them can be held at once."""
        differences = self._differences(self._rolled(rows))
        every = -(-n_derivatives * sum(d.numel() for d in differences) // MAX_VALUES)
        found: Values = np.concatenate([d[:, ::every].double().cpu().numpy() for d in differences])
        return found

    def _differences(self, rolled: Rolled) -> list[torch.Tensor]:
        pairs = zip(rolled.latents, self._goals, strict=True)
        return [(latents - goal.to(latents.device)).flatten(1) for latents, goal in pairs]


def _moved(rows: Rows, places: Sequence[tuple[int, int]], by: Sequence[float]) -> Rows:
    """The scalars with some of them moved."""
    found = [list(row) for row in rows]
    for (i, j), amount in zip(places, by, strict=True):
        found[i][j] += amount
    return found
