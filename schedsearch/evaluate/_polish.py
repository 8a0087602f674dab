"""The numbers of all ``table`` steps at once: Gauss-Newton towards the teacher's final latents.

`_fit.py` aims every step at the teacher's state at that step's end. With a handful of calls that is not the best way to
the end: a step may leave the teacher's path if later ones make up for it. Minimising the error of the final state alone
is what S4S does (Frankel 2025, arXiv 2502.17423, eq. 5), by gradient descent through the denoiser. Here derivatives
are differences of runs, so nothing is kept for a backward pass, and a run with a changed scalar begins behind the calls
before it, which the prefix tree holds. With few numbers hardly anything is overfitted. Several steps are taken with the
derivatives of one round, brought up to date by what each step did (Broyden 1965, Math. Comp. 19, 577).

Inner noise levels may move as well (S4S-Alt, in the same paper, fits both in turns): a level between two ``table``
steps says only what the denoiser is told, since the scalars say where the sample goes.

What is minimised is the mean over prompts of the logarithm of their squared error, so in effect a mean PSNR of latents:
each round weighs a prompt by the inverse of its present error. Steps are damped as by Levenberg and Marquardt, and what
does not lower the error is not taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from schedsearch.errors import ScheduleError
from schedsearch.evaluate._rollout import HopelessError, Rolled, Runner
from schedsearch.schedule import COMPUTE, MODEL_ROW, TABLE_FAMILY, Schedule, solver_table, with_solver_table

LEAST = 0.005
"""Fall of the mean decimal logarithm of the squared error (0.05 dB) under which no further step or round pays."""

DAMPINGS = (1e-4, 1e-2, 1.0)
"""Shares of the diagonal that are added to the normal equations, tried in turn until the error falls."""

DIFFERENCE = 1e-3
"""What is added to a number for a derivative, times its magnitude or 1, whichever is more."""

MAX_VALUES = 2**25
"""Values of all derivatives together; where latents have more, evenly spaced ones of them stand for the rest."""

REACHED = 1e-12
"""Mean squared error, of latents whose values are around 1, below which a prompt is where the teacher is."""

STEPS = 4
"""Steps at most that are taken with the derivatives of one round."""

Vector = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Values = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Derivatives = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]


def polishing_calls(schedule: Schedule, *, levels: bool = False) -> int:
    """Return the denoiser calls per prompt that one round takes: a run per scalar, from behind its step on, one per
    noise level that moves, from its step on, and one of the whole schedule; a step that calls twice counts once.
    """
    row = schedule.row(MODEL_ROW)
    calls = [row[i:].count(COMPUTE) for i in range(schedule.n_steps + 1)]
    scalars = sum((1 + s.order) * calls[i + 1] for i, s in enumerate(schedule.solver) if s.family == TABLE_FAMILY)
    moved = sum(calls[i] for i in _levels(schedule)) if levels else 0
    return calls[0] + scalars + moved


def _levels(schedule: Schedule) -> list[int]:
    """The steps whose noise level can move: the denoiser is asked at it, and a ``table`` step leads to it and another
    from it, whose scalars take its place in the update.
    """
    row = schedule.row(MODEL_ROW)
    is_table = [solver.family == TABLE_FAMILY for solver in schedule.solver]
    return [i for i in range(1, schedule.n_steps) if row[i] == COMPUTE and is_table[i - 1] and is_table[i]]


def polished(runner: Runner, schedule: Schedule, n: int, *, rounds: int = 2, levels: bool = False) -> Schedule:
    """Return ``schedule`` with other numbers in its ``table`` steps, and final latents nearer to the teacher's.

    Args:
        runner: runs schedules; its tree should have room for the calls of one.
        schedule: a fitted one, or one whose steps are fitted on the way.
        n: prompts.
        rounds: how often derivatives are taken at most; each time a few steps are taken with them.
        levels: whether inner noise levels between ``table`` steps move as well.

    Raises:
        ApplyError: it cannot be put on this pipeline.
        HopelessError: it strays beyond the runner's bound.
        FloatingPointError: the denoiser gave values that are no numbers.
    """
    rolled = runner.roll(schedule, n)
    if not any(rolled.scalars):
        return schedule
    best = with_solver_table(schedule, rolled.scalars)
    fit = _JointFit(runner, best, n, rolled, _levels(schedule) if levels else ())
    error = fit.error(rolled)
    for _ in range(rounds):
        before = error
        best, error = fit.improved(best, error)
        if before - error < LEAST:
            break
    return best


def _rows(schedule: Schedule) -> list[Sequence[float]]:
    """The scalars of every step, without those it has no use for."""
    used = [1 + solver.order if solver.family == TABLE_FAMILY else 0 for solver in schedule.solver]
    return [row[:n] for row, n in zip(solver_table(schedule) or (), used, strict=True)]


class _JointFit:
    """What the final latents of a schedule should be, and what of it may move.

    Args:
        runner: runs it.
        schedule: fitted.
        n: prompts.
        rolled: a run of it.
        levels: steps whose noise levels move.
    """

    def __init__(self, runner: Runner, schedule: Schedule, n: int, rolled: Rolled, levels: Sequence[int]) -> None:
        self._runner = runner
        self._n = n
        self._levels = tuple(levels)
        self._goals = [runner.teacher.trajectory(*batch).at(rolled.calls[-1].target) for batch in rolled.batches]
        n_derivatives = len(self._values(schedule))
        self._every = -(-n_derivatives * sum(latents.numel() for latents in rolled.latents) // MAX_VALUES)

    def improved(self, schedule: Schedule, error: float) -> tuple[Schedule, float]:
        """Return a better schedule and its error after one round: derivatives, and steps with them while they pay; the
        same where none is found.
        """
        values, now = self._values(schedule), self._residual(schedule)
        derivatives = self._derivatives(schedule, values, now)
        for _ in range(STEPS):
            found = self._step(schedule, values, now, derivatives, error)
            if found is None:
                break
            before = error
            schedule, error = found
            if before - error < LEAST:
                break
            moved, reached = self._values(schedule), self._residual(schedule)
            # Broyden's rank-one update: the derivatives now account for what this step did.
            move = moved - values
            missed = reached - now - np.tensordot(move, derivatives, 1)
            derivatives += np.multiply.outer(move / (move @ move), missed)
            values, now = moved, reached
        return schedule, error

    def _derivatives(self, schedule: Schedule, values: Vector, now: Values) -> Derivatives:
        """`(values, prompts, latents)` how the residual changes with each value, by differences."""
        found = np.empty((len(values), *now.shape))
        for k, by in enumerate(self._moves(schedule, values)):
            changed = values.copy()
            changed[k] += by
            found[k] = (self._residual(self._with(schedule, changed)) - now) / by
        return found

    def _moves(self, schedule: Schedule, values: Vector) -> Vector:
        """How far each value is moved for its derivative; a level by half the way to the one before at most."""
        room = [(schedule.sigma[i - 1] - schedule.sigma[i]) / 2.0 for i in self._levels]
        unbounded = [math.inf] * (len(values) - len(room))
        return np.minimum(DIFFERENCE * np.maximum(1.0, np.abs(values)), [*unbounded, *room])

    def _step(
        self, schedule: Schedule, values: Vector, now: Values, derivatives: Derivatives, error: float
    ) -> tuple[Schedule, float] | None:
        """A better schedule and its error after one damped Gauss-Newton step; ``None`` where no damping helps."""
        weights = 1.0 / np.maximum((now**2).mean(1), REACHED)
        gram = sum(w * derivatives[:, p] @ derivatives[:, p].T for p, w in enumerate(weights))
        moments = sum(w * derivatives[:, p] @ now[p] for p, w in enumerate(weights))
        # A value that does nothing, such as the scalar of an output that is zero, has no derivative and is not moved.
        floor = np.finfo(float).eps * float(gram.trace()) + np.finfo(float).tiny
        for damping in DAMPINGS:
            move = np.linalg.solve(gram + np.diag(damping * gram.diagonal() + floor), -moments)
            try:
                tried = self._with(schedule, values + move)
                found = self.error(self._runner.roll(tried, self._n))
            except (ScheduleError, HopelessError, FloatingPointError):
                continue
            if found < error:
                return tried, found
        return None

    def error(self, rolled: Rolled) -> float:
        """Return the mean over prompts of the decimal logarithm of the mean squared error."""
        squares = torch.cat([d.double().square().mean(1) for d in self._differences(rolled)])
        error = float(squares.clamp_min(REACHED).log10().mean())
        if not math.isfinite(error):
            raise FloatingPointError("final latents hold NaN or infinity")
        return error

    def _values(self, schedule: Schedule) -> Vector:
        """What moves: the scalars, row by row, then the levels."""
        scalars = [value for row in _rows(schedule) for value in row]
        return np.array([*scalars, *(schedule.sigma[i] for i in self._levels)])

    def _with(self, schedule: Schedule, values: Vector) -> Schedule:
        """The schedule with other values of what moves; the inverse of `_values`."""
        left = iter(values.tolist())
        rows = [[next(left) for _ in row] for row in _rows(schedule)]
        sigma = list(schedule.sigma)
        for i in self._levels:
            sigma[i] = next(left)
        return with_solver_table(dataclasses.replace(schedule, sigma=tuple(sigma)), rows)

    def _residual(self, schedule: Schedule) -> Values:
        """`(prompts, values)` latents minus the teacher's, thinned so that all derivatives can be held at once."""
        differences = self._differences(self._runner.roll(schedule, self._n))
        found: Values = np.concatenate([d[:, :: self._every].double().cpu().numpy() for d in differences])
        return found

    def _differences(self, rolled: Rolled) -> list[torch.Tensor]:
        pairs = zip(rolled.latents, self._goals, strict=True)
        return [(latents - goal.to(latents.device)).flatten(1) for latents, goal in pairs]
