"""The closed-form model against independent truth."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from schedsearch.study import Candidate
from schedsearch.testing import GaussianMixture, toy_evaluator, toy_sigmas, toy_space
from schedsearch.testing._gaussian import forecast, replayed

SPACE = toy_space((("model", "CR123"), ("block", "CRS"), ("component", "CRS")), n_steps=12)
ONE = GaussianMixture(means=np.array([[1.0, -2.0]]), weights=np.array([1.0]), scale=0.4)


def valued(**changes):
    candidate = Candidate(schedule=replace(SPACE.base, **changes), searcher="", ask=0)
    return toy_evaluator(SPACE).evaluate(candidate, fidelity=2).values


class TestVelocity:
    def test_is_the_posterior_mean_of_noise_minus_data(self):
        """Importance-weighted draws from the data, independent of the formula."""
        mixture = GaussianMixture.random(3, n_components=3, n_dims=2)
        rng = np.random.default_rng(0)
        x, sigma = np.array([[0.3, -0.2]]), 0.6
        kinds = rng.choice(3, size=400_000, p=mixture.weights)
        x0 = mixture.means[kinds] + mixture.scale * rng.normal(size=(400_000, 2))
        eps = (x - (1 - sigma) * x0) / sigma
        weights = np.exp(-0.5 * (eps**2).sum(axis=1))
        truth = (weights[:, None] * (eps - x0)).sum(axis=0) / weights.sum()
        assert mixture.velocity(x, sigma)[0] == pytest.approx(truth, abs=0.01)

    def test_is_the_derivative_of_the_closed_flow(self):
        x = np.array([[0.5, 0.1], [-1.0, 2.0]])
        for sigma in (0.9, 0.5, 0.1):
            slope = (ONE.flowed(x, sigma, sigma + 1e-6) - ONE.flowed(x, sigma, sigma - 1e-6)) / 2e-6
            assert ONE.velocity(x, sigma) == pytest.approx(slope, abs=1e-6)

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
