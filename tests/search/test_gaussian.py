"""The closed-form model against independent truth."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from schedsearch.runtime._solver import FLOW, VP, program
from schedsearch.schedule import Solver, with_solver_table
from schedsearch.study import Candidate
from schedsearch.testing import GaussianMixture, toy_evaluator, toy_sigmas, toy_space
from schedsearch.testing._gaussian import forecast, replayed

SPACE = toy_space((("model", "CR123"), ("block", "CRS"), ("component", "CRS")), n_steps=12)
ONE = GaussianMixture(means=np.array([[1.0, -2.0]]), weights=np.array([1.0]), scale=0.4)


def valued(**changes):
    candidate = Candidate(schedule=replace(SPACE.base, **changes), searcher="", ask=0)
    return toy_evaluator(SPACE).evaluate(candidate, fidelity=2).values


class TestOutputs:
    @pytest.mark.parametrize(("levels", "sigma"), [(FLOW, 0.6), (VP, 1.3)], ids=["flow", "vp"])
    def test_are_posterior_means(self, levels, sigma):
        """Importance-weighted draws from the data, independent of the formula."""
        mixture = GaussianMixture.random(3, n_components=3, n_dims=2)
        rng = np.random.default_rng(0)
        a, b = levels.alpha(sigma), levels.std(sigma)
        x = np.array([[0.3, -0.2]])
        kinds = rng.choice(3, size=400_000, p=mixture.weights)
        x0 = mixture.means[kinds] + mixture.scale * rng.normal(size=(400_000, 2))
        eps = (x - a * x0) / b
        weights = np.exp(-0.5 * (eps**2).sum(axis=1))
        weights /= weights.sum()
        data, noise = weights @ x0, weights @ eps
        velocity = noise - data if levels is FLOW else a * noise - b * data
        assert mixture.data(x, sigma, levels)[0] == pytest.approx(data, abs=0.01)
        assert mixture.noise(x, sigma, levels)[0] == pytest.approx(noise, abs=0.01)
        assert mixture.velocity(x, sigma, levels)[0] == pytest.approx(velocity, abs=0.01)

    @pytest.mark.parametrize("levels", [FLOW, VP], ids=["flow", "vp"])
    def test_velocity_is_the_derivative_of_the_closed_flow(self, levels):
        x = np.array([[0.5, 0.1], [-1.0, 2.0]])
        for sigma in (0.9, 0.5, 0.1):
            ahead, behind = sigma + 1e-6, sigma - 1e-6
            change = ONE.flowed(x, sigma, ahead, levels) - ONE.flowed(x, sigma, behind, levels)
            slope = change / (levels.time(ahead) - levels.time(behind))
            assert ONE.velocity(x, sigma, levels) == pytest.approx(slope, abs=1e-6)

    @pytest.mark.parametrize(("levels", "start"), [(FLOW, 1.0), (VP, 80.0)], ids=["flow", "vp"])
    def test_the_followed_flow_is_the_closed_one(self, levels, start):
        x = np.random.default_rng(0).normal(size=(8, 2))
        assert ONE.truth(x, start, 0.0, levels) == pytest.approx(ONE.flowed(x, start, 0.0, levels), abs=1e-9)

    def test_the_closed_flow_is_for_one_component(self):
        with pytest.raises(ValueError, match="found 2 components, expected 1"):
            GaussianMixture.random(0, n_components=2).flowed(np.zeros((1, 4)), 1.0, 0.0)


class TestReplay:
    def test_euler_is_of_first_order(self):
        noise = np.random.default_rng(0).normal(size=(64, 2))
        truth = ONE.flowed(noise, 1.0, 0.0)
        errors = []
        for n_steps in (40, 80, 160):
            schedule = replace(SPACE.base, sigma=toy_sigmas(n_steps), solver=SPACE.base.solver[:1] * n_steps)
            errors.append(np.abs(replayed(schedule, ONE.velocity, noise) - truth).max())
        assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)
        assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.1)

    @pytest.mark.parametrize("order", [0, 1, 2, 3])
    def test_forecasts_are_exact_on_polynomials_of_their_order(self, order):
        sigmas = [1.0, 0.9, 0.65, 0.6]  # uneven gaps
        values = [np.array([level**order]) for level in sigmas]
        assert forecast(sigmas, values, 0.35, order) == pytest.approx(0.35**order)

    def test_what_a_row_says_is_done(self):
        calls = []

        def velocity(x, sigma):
            calls.append(sigma)
            return np.full_like(x, sigma)

        schedule = replace(SPACE.base, ops=(("model", "CCR1CCCCCCCC"),))
        out = replayed(schedule, velocity, np.zeros((1, 1)))
        sigma = np.array(schedule.sigma)
        used = sigma[:-1].copy()
        used[2] = sigma[1]  # reused; the forecast of order 1 of a linear field is exact
        assert out[0, 0] == pytest.approx((used * np.diff(sigma)).sum())
        assert calls == [level for i, level in enumerate(schedule.sigma[:-1]) if i not in (2, 3)]

    def test_solvers_are_obeyed_and_their_calls_made(self):
        calls = []

        def velocity(x, sigma):
            calls.append(sigma)
            return ONE.velocity(x, sigma)

        noise = np.random.default_rng(0).normal(size=(64, 2))
        truth = ONE.flowed(noise, 1.0, 0.0)
        errors = []
        for solver in (Solver(), Solver(family="adams", order=2), Solver(family="heun", order=2)):
            schedule = replace(SPACE.base, solver=(solver,) * 12)
            errors.append(np.abs(replayed(schedule, velocity, noise) - truth).max())
            assert calls == [call.sigma for call in program(schedule)]
            calls.clear()
        assert errors[0] > max(errors[1:])


class TestEvaluator:
    def test_the_full_run_has_no_error_and_costs_every_call(self):
        assert valued() == pytest.approx((0.0, 12.0))

    def test_less_computing_costs_less_and_errs_more(self):
        reuse = valued(ops=(("model", "CRCRCRCRCRCR"),))
        assert reuse[1] == pytest.approx(6.0)
        assert 0.0 < reuse[0] < valued(ops=(("model", "CRRRCRRRCRRR"),))[0]

    def test_forecasts_cost_as_little_as_reuse_and_err_less(self):
        reuse, linear = (valued(ops=(("model", f"CC{op}C{op}C{op}C{op}C{op}C"),)) for op in "R1")
        assert linear[1] == reuse[1]
        assert linear[0] < reuse[0]

    def test_finer_rows_and_removed_blocks_have_the_synthetic_error_and_cost(self):
        block = "transformer_blocks.1"
        stale = valued(ops=((f"{block}.attn", "CRRRRRRRRRRR"),))
        whole = valued(ops=((block, "CRRRRRRRRRRR"),))
        skipped = valued(ops=((block, "CSSSSSSSSSSS"),))
        gone = valued(pruned=(block,))
        assert 0.0 < stale[0] < whole[0] < skipped[0] < gone[0]
        assert 12.0 > stale[1] > whole[1] == pytest.approx(skipped[1])
        assert skipped[1] > gone[1] > 0.1 * 12

    def test_every_evaluation_is_counted_and_paid(self):
        heun = replace(SPACE.base, solver=(Solver(family="heun", order=2),) * 12, ops=(("model", "CCCCCCCCCCRC"),))
        evaluation = toy_evaluator(SPACE).evaluate(Candidate(schedule=heun, searcher="", ask=0), fidelity=2)
        assert evaluation.values[1] == pytest.approx(21.0)  # twice a step, once to level 0, never where it reuses
        assert evaluation.metrics == (("calls", 21.0),)
        assert evaluation.denoiser_evals == 2 * 21

    def test_table_steps_are_fitted_to_the_full_run(self):
        """Five levels between those of the full run, so that its states there are interpolated."""
        sigma = (1.0, 0.93, 0.8, 0.6, 0.3, 0.0)

        def error(*solvers):
            return valued(sigma=sigma, solver=solvers)[0]

        euler, adams = (error(*[Solver(family=f, order=o)] * 5) for f, o in (("euler", 1), ("adams", 2)))
        table = [error(*(Solver(family="table", order=min(o, i + 1)) for i in range(5))) for o in (1, 2, 3)]
        assert table[0] < euler
        assert 2 * table[1] < min(adams, euler)
        assert table[2] < table[1]

    def test_table_steps_that_come_with_scalars_use_them(self):
        sigma = (1.0, 0.8, 0.5, 0.0)
        plan = replace(SPACE.base, sigma=sigma, solver=(Solver(family="table"),) * 3)
        filled = with_solver_table(plan, [(1.0, s1 - s0) for s0, s1 in pairwise(sigma)])
        euler = replace(plan, solver=(Solver(),) * 3)
        as_euler, as_table, fitted = (
            toy_evaluator(SPACE).evaluate(Candidate(schedule=s, searcher="", ask=0), fidelity=2).values[0]
            for s in (euler, filled, plan)
        )
        assert as_table == pytest.approx(as_euler)
        assert fitted < as_euler

    def test_is_repeatable_and_fast(self):
        evaluator, rng = toy_evaluator(SPACE), np.random.default_rng(0)
        candidates = [Candidate(schedule=SPACE.sample(rng), searcher="", ask=i) for i in range(40)]
        started = time.process_time()
        first = [evaluator.evaluate(candidate, fidelity=2).values for candidate in candidates]
        assert (time.process_time() - started) / 40 < 0.02  # about 1 ms on an idle core
        assert first == [toy_evaluator(SPACE).evaluate(candidate, fidelity=2).values for candidate in candidates]

    def test_fidelity_is_the_number_of_prompts(self):
        candidate = Candidate(schedule=replace(SPACE.base, ops=(("model", "CRRRRRRRRRRR"),)), searcher="", ask=0)
        one = toy_evaluator(SPACE).evaluate(candidate, fidelity=1)
        assert (len(one.samples[0][1]), one.denoiser_evals) == (1, 1)
