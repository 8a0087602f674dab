"""All scalars at once: the final error falls, to where nothing near is lower, at the calls that were promised."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from schedsearch.evaluate import _polish, polishing_calls
from schedsearch.evaluate._polish import polished
from schedsearch.evaluate._reference import Reference
from schedsearch.evaluate._rollout import Runner
from schedsearch.evaluate._tree import PrefixTree
from schedsearch.runtime import identity_schedule
from schedsearch.schedule import Solver, solver_table, with_solver_table


@pytest.fixture(scope="module")
def plan(tiny):
    """Three steps of rising order, where the teacher takes six."""
    grid = identity_schedule(tiny, 6, height=8, width=8)
    solver = tuple(Solver(family="table", order=order) for order in (1, 2, 3))
    return dataclasses.replace(grid, sigma=(*grid.sigma[:6:2], grid.sigma[-1]), solver=solver)


class Job:
    """A runner on few prompts, and how far from the teacher its runs end."""

    def __init__(self, runs):
        self.teacher = Reference(runs)
        self.n = len(runs)
        self.teacher.prepare(self.n)
        self.runner = Runner(runs, self.teacher, tree=PrefixTree(2**28), stray=float("inf"), on_images=lambda n: None)

    def fitted(self, plan):
        return with_solver_table(plan, self.runner.roll(plan, self.n).scalars)

    def error(self, schedule):
        """The mean over prompts of the decimal logarithm of their squared error."""
        rolled = self.runner.roll(schedule, self.n)
        squares = [
            (latents - self.teacher.trajectory(*batch).at(0.0)).double().square().mean((1, 2))
            for batch, latents in zip(rolled.batches, rolled.latents, strict=True)
        ]
        return float(torch.cat(squares).log10().mean())


@pytest.fixture(scope="module", params=[1, 3], ids=["one by one", "together"])
def job(request, tiny_runs):
    return Job(tiny_runs(n=3, batch=request.param))


def test_the_final_error_falls(job, plan):
    before = job.fitted(plan)

    after = polished(job.runner, before, job.n)

    assert job.error(after) < job.error(before) - 0.01
    assert (after.sigma, after.solver, after.ops) == (before.sigma, before.solver, before.ops)
    assert polished(job.runner, before, job.n).id == after.id


def test_open_steps_are_fitted_first(job, plan):
    assert polished(job.runner, plan, job.n).id == polished(job.runner, job.fitted(plan), job.n).id


def test_nothing_near_is_lower_after_enough_rounds(job, plan):
    found = polished(job.runner, job.fitted(plan), job.n, rounds=12)
    rows, best = solver_table(found), job.error(found)

    for seed in range(12):
        moves = np.random.default_rng(seed).normal(scale=3e-3, size=(3, 4))
        near = [
            [value + move for value, move in zip(row[: 2 + i], moves[i], strict=False)] for i, row in enumerate(rows)
        ]
        assert job.error(with_solver_table(plan, near)) > best - 1e-3


def test_where_the_teacher_is_reached_nothing_moves(job, tiny):
    full = identity_schedule(tiny, 6, height=8, width=8)
    euler = dataclasses.replace(full, solver=(Solver(family="table", order=1),) * 6)
    exact = with_solver_table(euler, [[1.0, b - a] for a, b in zip(full.sigma, full.sigma[1:], strict=False)])

    assert job.error(polished(job.runner, exact, job.n)) <= job.error(exact)
    assert np.allclose(solver_table(polished(job.runner, exact, job.n)), solver_table(exact), atol=1e-4)


def test_what_has_no_scalars_comes_back(job, plan):
    plain = dataclasses.replace(plan, solver=(Solver(),) * 3)

    assert polished(job.runner, plain, job.n) is plain


@pytest.mark.parametrize(("levels", "derivatives"), [(False, 2 * 2 + 3 * 1), (True, 2 * 2 + 3 * 1 + 2 + 1)])
def test_a_round_takes_the_calls_it_says(tiny_runs, plan, monkeypatch, levels, derivatives):
    monkeypatch.setattr(_polish, "STEPS", 1)
    job = Job(tiny_runs(n=2, batch=2))
    before = job.fitted(plan)
    made = []
    denoiser = job.runner.runs.pipe.transformer
    hook = denoiser.register_forward_pre_hook(lambda *_: made.append(1))
    try:
        polished(job.runner, before, job.n, rounds=1, levels=levels)
    finally:
        hook.remove()

    # Two scalars with two calls behind them, three with one, four with none, and a level with two, another with one;
    # then the whole run with the new ones, and again for every damping that did not help.
    assert polishing_calls(plan, levels=levels) == derivatives + 3
    assert derivatives + 3 <= len(made) <= derivatives + 3 * 3


def test_further_steps_of_a_round_need_no_derivatives(tiny_runs, plan, monkeypatch):
    job = Job(tiny_runs(n=2, batch=2))
    before = job.fitted(plan)
    made, errors = [], []
    real = _polish._JointFit._derivatives
    monkeypatch.setattr(_polish._JointFit, "_derivatives", lambda *of: made.append(1) or real(*of))
    for steps in (1, 4):
        monkeypatch.setattr(_polish, "STEPS", steps)
        errors.append(job.error(polished(job.runner, before, job.n, rounds=1, levels=True)))

    assert len(made) == 2
    assert errors[1] < errors[0]


def test_levels_lower_what_scalars_alone_cannot(job, plan):
    before = polished(job.runner, job.fitted(plan), job.n, rounds=12)

    both = polished(job.runner, before, job.n, rounds=12, levels=True)

    assert job.error(both) < job.error(before) - 0.01
    assert both.solver == before.solver
    assert (both.sigma[0], both.sigma[-1]) == (before.sigma[0], before.sigma[-1])
    assert all(now != then for now, then in zip(both.sigma[1:-1], before.sigma[1:-1], strict=True))


def test_a_level_stays_where_no_scalars_take_its_place(job, plan):
    mixed = dataclasses.replace(plan, solver=(plan.solver[0], plan.solver[1], Solver()))
    found = polished(job.runner, job.fitted(mixed), job.n, levels=True)
    assert found.sigma[1] != mixed.sigma[1]  # between two fitted steps
    assert found.sigma[2] == mixed.sigma[2]  # Euler's step reads it

    reused = dataclasses.replace(plan, ops=(("model", "CRC"),))
    assert polishing_calls(reused, levels=True) - polishing_calls(reused) == 1  # the one at which nothing is asked


def test_steps_without_a_call_cost_nothing(plan):
    assert polishing_calls(dataclasses.replace(plan, ops=(("model", "CR1"),))) == 1
    assert polishing_calls(dataclasses.replace(plan, ops=(("model", "CRC"),))) == 2 + 3 + 2
    assert polishing_calls(dataclasses.replace(plan, solver=(Solver(),) * 3)) == 3


def test_levels_that_nearly_touch_can_be_polished(job, plan):
    near = dataclasses.replace(plan, sigma=(1.0, 0.5, 0.49995, 0.0))
    before = job.fitted(near)

    after = polished(job.runner, before, job.n, levels=True)

    assert job.error(after) < job.error(before)
    assert all(earlier > later for earlier, later in itertools.pairwise(after.sigma))
