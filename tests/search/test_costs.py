"""Errors of multistep steps from inner products, against runs with arrays."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from schedsearch.search._costs import adams_costs, emphasised, fitted_costs, forecast_costs
from schedsearch.search._paths import placed
from schedsearch.study import Probe
from schedsearch.testing import toy_sigmas
from schedsearch.testing._gaussian import GaussianMixture, forecast


def recorded(n_steps, *, n_dims=6, seed=0):
    """The probe of a plain run on a closed-form model, its samples and its outputs."""
    sigma = toy_sigmas(n_steps)
    rng = np.random.default_rng(seed)
    models = [GaussianMixture.random(seed * 10 + k, n_dims=n_dims) for k in range(2)]
    x = rng.normal(size=(2, 12, n_dims))
    samples, outputs = [x.ravel()], []
    for a, b in itertools.pairwise(sigma):
        v = np.array([model.velocity(part, a) for model, part in zip(models, x, strict=True)])
        x = x + (b - a) * v
        samples.append(x.ravel())
        outputs.append(v.ravel())
    basis = np.array([samples[0], *outputs])
    size = basis.shape[1]
    distances = np.abs(np.array(outputs)[:, None] - np.array(outputs)).mean(axis=2)
    return Probe(sigma=sigma, gram=basis @ basis.T / size, l1=distances), np.array(samples), np.array(outputs)


PROBE, SAMPLES, OUTPUTS = recorded(9)
SIGMA = np.array(PROBE.sigma)
CHAINS = [chain for used in (1, 2, 3) for chain in itertools.combinations(range(10), used + 1)]


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


class TestFitted:
    @pytest.mark.parametrize("free_base", [True, False])
    def test_are_least_squares_residuals_of_every_step(self, free_base):
        costs = fitted_costs(PROBE, 3, free_base=free_base)
        for *nodes, end in CHAINS:
            expected = PROBE.residual(nodes[-1], end, nodes, free_base=free_base)
            assert costs[len(nodes) - 1][(*nodes, end)] == pytest.approx(np.sqrt(expected), abs=1e-7)

    def test_more_history_never_hurts(self):
        one, two, three = fitted_costs(PROBE, 3)
        for g, h, i, j in itertools.combinations(range(10), 4):
            assert three[g, h, i, j] <= two[h, i, j] + 1e-9 <= one[i, j] + 2e-9

    def test_fitting_is_no_worse_than_adams_which_it_contains(self):
        for fitted, adams in zip(fitted_costs(PROBE, 3), adams_costs(PROBE, 3), strict=True):
            possible = np.isfinite(adams)
            assert (fitted[possible] <= adams[possible] + 1e-9).all()

    def test_steps_back_are_impossible(self):
        one, two, _ = fitted_costs(PROBE, 3)
        assert one[4, 2] == one[3, 3] == two[3, 2, 5] == two[1, 4, 4] == np.inf


class TestAdams:
    def test_are_errors_of_polynomial_integrals(self):
        for *nodes, end in CHAINS:
            start = nodes[-1]
            grid = np.linspace(SIGMA[start], SIGMA[end], 5)  # Simpson on two halves is exact for these polynomials
            known = [OUTPUTS[node] for node in nodes]
            values = [forecast(SIGMA[nodes], known, level, len(nodes) - 1) for level in grid]
            step = (SIGMA[end] - SIGMA[start]) / 12
            integral = sum(w * step * value for w, value in zip((1, 4, 2, 4, 1), values, strict=True))
            error = rms(SAMPLES[end] - SAMPLES[start] - integral)
            assert adams_costs(PROBE, 3)[len(nodes) - 1][(*nodes, end)] == pytest.approx(error, abs=1e-7)
            if (start, len(nodes)) == (4, 3):
                break  # the rest is more of the same

    def test_order_one_is_eulers_jump(self):
        assert adams_costs(PROBE, 1)[0] == pytest.approx(PROBE.jumps())


class TestForecasts:
    def test_are_errors_of_the_row_on_the_default_grid(self):
        costs = forecast_costs(PROBE, 3)
        for *nodes, end in CHAINS:
            start, state = nodes[-1], SAMPLES[nodes[-1]]
            for t in range(start, end):
                value = forecast(SIGMA[nodes], [OUTPUTS[node] for node in nodes], SIGMA[t], len(nodes) - 1)
                state = state + (SIGMA[t + 1] - SIGMA[t]) * value
            assert costs[len(nodes) - 1][(*nodes, end)] == pytest.approx(rms(SAMPLES[end] - state), abs=1e-7)

    def test_computing_every_step_costs_nothing(self):
        for history in (1, 2, 3):
            assert placed(forecast_costs(PROBE, history))[9].cost == pytest.approx(0.0, abs=1e-6)


class TestPlacement:
    def test_placed_steps_roll_out_better_than_even_ones(self):
        """Coefficients fitted along the run itself; calibration samples."""
        probe, samples, outputs = recorded(28, seed=3)
        costs = fitted_costs(probe, 3)
        for k in (5, 7):
            found = placed(costs)[k].nodes
            even = tuple(round(28 * i / k) for i in range(k + 1))
            assert teacher_forced(probe, samples, outputs, found) < teacher_forced(probe, samples, outputs, even)

    def test_emphasis_moves_steps_to_the_beginning(self):
        probe, *_ = recorded(28, seed=3)
        costs = fitted_costs(probe, 2)
        plain = placed(costs, rule="max")[6].nodes
        early = placed(emphasised(costs, probe, 2.0), rule="max")[6].nodes
        assert sum(early) < sum(plain)
        assert emphasised(costs, probe, 0.0)[0] == pytest.approx(costs[0])

    def test_28_steps_and_three_outputs_take_less_than_a_second(self):
        probe, *_ = recorded(28)
        started = time.process_time()
        paths = placed(fitted_costs(probe, 3))
        assert time.process_time() - started < 1.0
        assert set(paths) == set(range(1, 29))

    def test_few_steps_are_no_special_case(self):
        probe, *_ = recorded(2)
        for make in (fitted_costs, adams_costs, forecast_costs):
            assert placed(make(probe, 3))[2].nodes == (0, 1, 2)


def teacher_forced(probe, samples, outputs, nodes):
    """Sum over steps of the error that least squares on the arrays leaves."""
    total = 0.0
    for s in range(len(nodes) - 1):
        used = nodes[max(0, s - 2) : s + 1]
        basis = np.array([samples[nodes[s]], *(outputs[node] for node in used)]).T
        target = samples[nodes[s + 1]]
        total += rms(target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0])
    return total
