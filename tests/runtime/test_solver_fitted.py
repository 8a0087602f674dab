"""What fitted and linear multistep steps are worth on the closed-form mixture."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from schedsearch.runtime._solver import VP, advance, columns, fit, n_evaluations, program
from schedsearch.schedule import Schedule, Solver
from schedsearch.testing import GaussianMixture, toy_model_ref, toy_sigmas
from schedsearch.testing._gaussian import Run, fitted_table, replayed

CALIBRATION = np.random.default_rng(1).normal(size=(32, 4))
HELD_OUT = np.random.default_rng(2).normal(size=(256, 4))
EULER = Solver()


def plan(sigma, solvers):
    return Schedule(sigma=tuple(sigma), solver=tuple(solvers), model=toy_model_ref())


def tables(sigma, order):
    return plan(sigma, [Solver(family="table", order=min(i + 1, order)) for i in range(len(sigma) - 1)])


def teacher(mixture, sigma, noise):
    """True states at the levels."""
    states = {sigma[0]: noise}
    for s0, s1 in pairwise(sigma):
        states[s1] = mixture.truth(states[s0], s0, s1, n_steps=100)
    return states


class TestFittedSteps:
    """Liu 2023 (OLSS, arXiv 2305.14677): coefficients by least squares on a teacher's trajectory."""

    @pytest.mark.parametrize("n_steps", [5, 10])
    @pytest.mark.parametrize("order", [1, 2, 4])
    def test_no_step_along_the_teacher_is_worse_than_ddims(self, n_steps, order):
        """DDIM's step is one point of what is fitted."""
        mixture, sigma = GaussianMixture.random(0), toy_sigmas(n_steps)
        states, history = teacher(mixture, sigma, CALIBRATION), ()
        for call, plain in zip(program(tables(sigma, order)), program(plan(sigma, [EULER] * n_steps)), strict=True):
            x, goal = states[call.sigma], states[call.target]
            output = mixture.velocity(x, call.sigma)
            parts = np.stack([part.ravel() for part in columns(call, history, x, output)], axis=1)
            scalars = fit((parts.T @ parts).tolist(), (parts.T @ goal.ravel()).tolist())
            ddim, history = advance(plain, history, x, output)
            assert np.linalg.norm(parts @ scalars - goal.ravel()) < np.linalg.norm(ddim - goal)

    @pytest.mark.parametrize("n_steps", [5, 7, 10])
    @pytest.mark.parametrize("shift", [1.0, 3.0])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_held_out_runs_are_better_than_ddim_plms_and_adams(self, n_steps, shift, seed):
        mixture, sigma = GaussianMixture.random(seed), toy_sigmas(n_steps, shift)
        states = teacher(mixture, sigma, CALIBRATION)
        unfitted = tables(sigma, 4)
        run = Run("C" * n_steps, mixture.velocity, CALIBRATION)
        found = fitted_table(program(unfitted), [run], lambda s: [states[s]])
        truth = mixture.truth(HELD_OUT, 1.0, 0.0, n_steps=200)

        def error(schedule, weights=None):
            return np.linalg.norm(replayed(schedule, mixture.velocity, HELD_OUT, weights=weights) - truth)

        rows = [found[i] for i in range(n_steps)]
        others = [EULER, *(Solver(family=f, order=o) for f in ("plms", "adams") for o in (2, 3, 4))]
        best = min(error(plan(sigma, [other] * n_steps)) for other in others)
        assert error(unfitted, rows) < 0.8 * best
        assert n_evaluations(unfitted) == n_steps


class TestLinearMultistep:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_plms_with_50_steps_beats_ddim_with_250(self, seed):
        """Liu 2022 (PNDM, arXiv 2202.09778), on the levels of its linear training schedule; error to the true flow."""
        mixture = GaussianMixture.random(seed)
        cumulative = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))

        def error(n_steps, solvers):
            times = (np.arange(n_steps) * (1000 // n_steps) + 1)[::-1]
            sigma = [float(s) for s in np.sqrt((1 - cumulative[times]) / cumulative[times])] + [0.0]
            schedule = plan(sigma, solvers)
            out = replayed(schedule, mixture.network("noise", VP), HELD_OUT[:32], levels=VP, output="noise")
            truth = mixture.truth(HELD_OUT[:32], sigma[0], 0.0, VP, n_steps=1000)
            return np.linalg.norm(out - truth) / np.linalg.norm(truth), n_evaluations(schedule)

        start = Solver(family="heun", order=2, prediction="noise")
        plms, calls = error(50, [start, *[Solver(family="plms", order=4, prediction="noise")] * 49])
        ddim, many = error(250, [EULER] * 250)
        assert (calls, many) == (51, 250)
        assert plms < 0.4 * ddim
