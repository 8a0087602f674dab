"""Measured orders of convergence on the closed-form mixture.

The grids are uniform in the variable a family's polynomial lives in, between levels where everything is smooth (flow
0.7 to 0.2, variance preserving 3 to 0.25), and the first ``order - 1`` steps are put on the true trajectory: what is
measured is the family, neither its warm-up at low order nor the ends of the range.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from schedsearch.runtime._solver import FLOW, VP, advance, program
from schedsearch.schedule import Schedule, Solver
from schedsearch.testing import GaussianMixture, toy_model_ref

MIXTURE = replace(GaussianMixture.random(1, n_components=3, n_dims=2), scale=0.6)
NOISE = np.random.default_rng(0).normal(size=(8, 2))
RANGE = {"flow": (0.74, 0.2), "vp": (3.0, 0.25)}
FINE = 240
COUNTS = (30, 40, 60, 120)

VARIABLES = {
    "time": (lambda levels, s: levels.time(s), lambda levels, t: t if levels is FLOW else math.tan(t)),
    "noise": (
        lambda levels, s: levels.std(s) / levels.alpha(s),
        lambda levels, u: u / (1 + u) if levels is FLOW else u,
    ),
    "data": (
        lambda levels, s: levels.alpha(s) / levels.std(s),
        lambda levels, u: 1 / (1 + u) if levels is FLOW else 1 / u,
    ),
    "lambda": (
        lambda levels, s: levels.lam(s),
        lambda levels, v: 1 / (1 + math.exp(v)) if levels is FLOW else math.exp(-v),
    ),
}


@lru_cache
def trajectory(levels, variable):
    """Levels uniform in ``variable`` and the true states there."""
    there, back = VARIABLES[variable]
    high, low = RANGE[levels.name]
    grid = [back(levels, v) for v in np.linspace(there(levels, high), there(levels, low), FINE + 1)]
    states = [NOISE]
    for s0, s1 in itertools.pairwise(grid):
        states.append(MIXTURE.truth(states[-1], s0, s1, levels, n_steps=3))
    return grid, states


def error(solver, levels, variable, n_steps):
    grid, states = trajectory(levels, variable)
    stride = FINE // n_steps
    early = solver.order - 1
    solvers = (replace(solver, corrector="none"),) * early + (solver,) * (n_steps - early)
    plan = Schedule(sigma=tuple(grid[::stride]), solver=solvers, model=toy_model_ref())
    x, history = NOISE, ()
    for call in program(plan, levels=levels):
        x, history = advance(call, history, x, MIXTURE.velocity(x, call.sigma, levels))
        if call.step < early:
            x = states[stride * (call.step + 1)]
    return float(np.sqrt(np.mean((x - states[-1]) ** 2)))


def slope(solver, levels, variable):
    high = solver.order + (solver.corrector != "none") >= 4
    counts = [2 * n for n in COUNTS] if high else COUNTS  # high orders show themselves later
    errors = [error(solver, levels, variable, n) for n in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


FAMILIES = [
    *[(Solver(family="adams", order=o, prediction="velocity"), "time", o) for o in (1, 2, 3, 4)],
    *[(Solver(family="adams", order=o, prediction="noise"), "noise", o) for o in (1, 2, 3, 4)],
    *[(Solver(family="adams", order=o, prediction="data"), "data", o) for o in (1, 2, 3, 4)],
    *[(Solver(family="plms", order=o, prediction="noise"), "noise", o) for o in (1, 2, 3, 4)],
    *[(Solver(family="dpm", order=o, prediction=p), "lambda", o) for o in (1, 2) for p in ("noise", "data")],
    *[(Solver(family="dpm", order=2, prediction=p, estimate="heun"), "lambda", 2) for p in ("noise", "data")],
    *[
        (Solver(family="dpm", order=o, prediction=p, estimate="taylor"), "lambda", o)
        for o in (1, 2, 3, 4)
        for p in ("noise", "data")
    ],
    (Solver(family="dpm", order=4, prediction="data"), "lambda", 4),
    *[(Solver(family="unipc", order=o, prediction=p), "lambda", o) for o in (1, 2, 3, 4) for p in ("noise", "data")],
    (Solver(family="unipc", order=2, prediction="data", estimate="bh1"), "lambda", 2),
    (Solver(family="heun", order=2), "time", 2),
    (Solver(family="heun", order=2, prediction="noise"), "noise", 2),
    (Solver(family="heun", order=2, prediction="data"), "data", 2),
]
CORRECTED = [
    *[(Solver(family="unipc", order=o, prediction="data", corrector="pseudo"), "lambda", o + 1) for o in (1, 2, 3)],
    *[(Solver(family="unipc", order=o, prediction="data", corrector="implicit"), "lambda", o + 1) for o in (1, 2, 3)],
    *[(Solver(family="adams", order=o, corrector="pseudo"), "time", o + 1) for o in (1, 2, 3)],
    *[(Solver(family="plms", order=o, prediction="noise", corrector="implicit"), "noise", o + 1) for o in (1, 2, 3)],
]


@pytest.mark.parametrize("levels", [FLOW, VP], ids=["flow", "vp"])
@pytest.mark.parametrize(("solver", "variable", "order"), FAMILIES)
def test_a_family_is_of_its_order(levels, solver, variable, order):
    assert slope(solver, levels, variable) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("levels", [FLOW, VP], ids=["flow", "vp"])
@pytest.mark.parametrize(("solver", "variable", "order"), CORRECTED)
def test_a_corrector_adds_an_order(levels, solver, variable, order):
    assert slope(solver, levels, variable) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("levels", [FLOW, VP], ids=["flow", "vp"])
def test_uneven_gaps_are_accounted_for(levels):
    """A grid that is uniform in another variable; equal-gap coefficients lose their order there."""
    assert slope(Solver(family="adams", order=3), levels, "lambda") == pytest.approx(3, abs=0.3)
    assert slope(Solver(family="plms", order=3), levels, "lambda") < 2.7


def test_the_published_third_order_of_dpm_solver_is_of_second():
    """Its term of second order has half the coefficient of the expansion; ``taylor`` has the whole one. The published
    one is kept as the default because it is what diffusers runs.
    """
    published, exact = (Solver(family="dpm", order=3, prediction="data", estimate=e) for e in ("default", "taylor"))
    assert slope(published, FLOW, "lambda") == pytest.approx(2, abs=0.3)
    assert error(exact, FLOW, "lambda", 120) < 0.5 * error(published, FLOW, "lambda", 120)
