"""Programs: which calls a schedule makes, what they look back on, and that the numbers add up."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.runtime._solver import (
    FLOW,
    HISTORY,
    VP,
    Term,
    advance,
    call_sigmas,
    columns,
    fit,
    fitted,
    n_calls,
    n_evaluations,
    program,
)
from schedsearch.schedule import Schedule, Solver
from schedsearch.testing import toy_model_ref, toy_sigmas
from schedsearch.testing._gaussian import replayed

FAMILIES = ("euler", "heun", "adams", "plms", "dpm", "unipc")


def solver(family="euler", order=1, **record):
    return Solver(family=family, order={"euler": 1, "heun": 2}.get(family, order), **record)


def schedule(*solvers, sigma=None, row=None, n_steps=None):
    """A schedule over the toy model; one solver stands for all steps."""
    n_steps = n_steps or (len(sigma) - 1 if sigma else len(solvers) if len(solvers) > 1 else len(row or "CCCCCC"))
    solvers = solvers * n_steps if len(solvers) == 1 else solvers
    ops = (("model", row),) if row else ()
    return Schedule(sigma=sigma or toy_sigmas(n_steps), solver=solvers, model=toy_model_ref(), ops=ops)


@st.composite
def schedules(draw):
    """Any solvers on any levels that are not so close that extrapolating from them loses all digits."""
    n_steps = draw(st.integers(1, 7))
    levels = draw(st.lists(st.integers(1, 39), min_size=n_steps - 1, max_size=n_steps - 1, unique=True))
    ends = draw(st.sampled_from([(1.0, 0.0), (0.99, 0.01)]))
    solvers = [
        solver(
            draw(st.sampled_from(FAMILIES)),
            draw(st.integers(1, 4)),
            prediction=draw(st.sampled_from(["velocity", "noise", "data"])),
            corrector=draw(st.sampled_from(["none", "pseudo", "implicit"])),
        )
        for _ in range(n_steps)
    ]
    estimates = [draw(st.sampled_from(["default", "taylor", "midpoint", "heun", "bh1", "bh2"])) for _ in range(n_steps)]
    solvers = [
        replace(s, estimate=e) if s.family in ("dpm", "unipc") else s for s, e in zip(solvers, estimates, strict=True)
    ]
    row = "C" + "".join(draw(st.sampled_from("CCCR12")) for _ in range(n_steps - 1))
    sigma = (ends[0], *(level / 40 for level in sorted(levels, reverse=True)), ends[1])
    return schedule(*solvers, sigma=sigma, row=row, n_steps=n_steps)


class TestCalls:
    def test_a_plain_step_is_one_call_and_knows_its_length(self):
        calls = program(schedule(solver(), sigma=(1.0, 0.75, 0.25, 0.0)))
        assert [(c.step, c.sigma, c.target, c.delta) for c in calls] == [
            (0, 1.0, 0.75, -0.25),
            (1, 0.75, 0.25, -0.5),
            (2, 0.25, 0.0, -0.25),
        ]

    @pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
    @pytest.mark.parametrize("family", ["euler", "adams", "plms", "dpm", "unipc"])
    def test_every_family_is_the_same_plain_step_at_order_1(self, family, prediction):
        plain = program(schedule(solver()))
        calls = program(schedule(solver(family, prediction=prediction)))
        assert [c.nxt for c in calls] == [c.nxt for c in plain]
        assert [c.delta for c in calls] == [c.delta for c in plain]

    def test_two_calls_a_step_but_one_to_level_0(self):
        for record in (solver("heun"), solver("dpm", 2, prediction="data", corrector="implicit")):
            plan = schedule(record, sigma=(1.0, 0.6, 0.3, 0.0))
            calls = program(plan)
            assert [(c.step, c.sigma, c.extra, c.keep) for c in calls] == [
                (0, 1.0, False, True),
                (0, 0.6, True, False),
                (1, 0.6, False, True),
                (1, 0.3, True, False),
                (2, 0.3, False, True),
            ]
            assert call_sigmas(plan) == tuple(c.sigma for c in calls)
            assert n_calls(plan) == n_evaluations(plan) == 5

    def test_predicted_outputs_are_calls_but_not_evaluations(self):
        plan = schedule(solver("heun"), sigma=(1.0, 0.7, 0.4, 0.2), row="CRC")
        assert [c.computes for c in program(plan)] == [True, True, False, False, True, True]
        assert (n_calls(plan), n_evaluations(plan)) == (6, 4)
        assert (n_calls(plan, begin=1), n_evaluations(plan, begin=1)) == (4, 4)  # nothing stored: it computes

    @given(schedules())
    @settings(max_examples=40, deadline=None)
    def test_helpers_agree_and_no_term_looks_too_far_back(self, plan):
        calls = program(plan)
        assert call_sigmas(plan) == tuple(c.sigma for c in calls)
        assert n_evaluations(plan) == sum(c.computes for c in calls)
        held = 0
        for call in calls:
            assert all(math.isfinite(t.weight) for t in (*call.base, *call.nxt))
            assert max((t.lag for t in (*call.base, *call.nxt)), default=0) <= held <= HISTORY
            held = min(HISTORY, held + call.keep) - call.drop

    def test_orders_are_clipped_to_the_history_plus_one(self):
        calls = program(schedule(solver("adams", 4), row="CRCCCC"))
        assert [c.order for c in calls] == [1, 2, 2, 3, 4, 4]
        assert [c.keep for c in calls] == [True, False, True, True, True, True]

    def test_orders_mix_step_by_step(self):
        mixed = [
            solver(),
            solver("dpm", 2, prediction="data"),
            solver("adams", 3),
            solver("plms", 4),
            solver("unipc", 2),
        ]
        assert [c.order for c in program(schedule(*mixed))] == [1, 2, 3, 4, 2]

    def test_a_run_that_begins_later_has_no_history(self):
        calls = program(schedule(solver("adams", 3), row="CCCRCC"), begin=3)
        assert [(c.step, c.order, c.computes) for c in calls] == [(3, 1, True), (4, 2, True), (5, 3, True)]


class TestSums:
    @given(schedules())
    @settings(max_examples=80, deadline=None)
    def test_constant_data_and_noise_are_carried_exactly(self, plan):
        """Then velocity, noise and data are all constant, so every family, order, corrector, row and end is exact."""
        x0, eps = np.array([1.5, -0.5]), np.array([-1.0, 2.0])
        start, end = plan.sigma[0], plan.sigma[-1]
        out = replayed(plan, lambda x, _: eps - x0 + 0 * x, (1 - start) * x0 + start * eps)
        assert out == pytest.approx((1 - end) * x0 + end * eps, abs=1e-6)

    @given(schedules(), st.sampled_from(["noise", "data"]))
    @settings(max_examples=40, deadline=None)
    def test_so_they_are_in_variance_preserving_levels(self, plan, output):
        """The velocity of these levels is not constant: steps written in it are of finite order."""
        quantity = ["noise" if s.prediction == "velocity" else s.prediction for s in plan.solver]
        solvers = tuple(replace(s, prediction=q) for s, q in zip(plan.solver, quantity, strict=True))
        plan = replace(plan, sigma=tuple(9.0 * s for s in plan.sigma), solver=solvers)
        x0, eps = np.array([1.5, -0.5]), np.array([-1.0, 2.0])
        start, end = plan.sigma[0], plan.sigma[-1]
        value = {"noise": eps, "data": x0}[output]
        out = replayed(
            plan, lambda x, _: value + 0 * x, VP.alpha(start) * x0 + VP.std(start) * eps, levels=VP, output=output
        )
        assert out == pytest.approx(VP.alpha(end) * x0 + VP.std(end) * eps, abs=1e-6)

    @pytest.mark.parametrize("order", [1, 2, 3, 4])
    def test_adams_integrates_polynomials_of_its_order_exactly(self, order):
        plan = schedule(solver("adams", order), sigma=(1.0, 0.9, 0.6, 0.55, 0.2))
        calls = program(plan)
        x, history = np.zeros(1), ()
        for call in calls[:-1]:
            x, history = advance(call, history, x, np.array([call.sigma ** (order - 1)]))
        before = x
        x, _ = advance(calls[-1], history, x, np.array([calls[-1].sigma ** (order - 1)]))
        assert x - before == pytest.approx((0.2**order - 0.55**order) / order)

    @pytest.mark.parametrize("family", ["adams", "plms", "dpm", "unipc"])
    @pytest.mark.parametrize("corrector", ["pseudo", "implicit"])
    def test_a_corrector_reads_the_value_at_the_end(self, family, corrector):
        record = solver(family, 2, prediction="data", corrector=corrector)
        calls = program(schedule(record, sigma=(0.9, 0.6, 0.4, 0.2)))
        terms = calls[2].base if corrector == "pseudo" else calls[3].nxt
        assert {t.lag for t in terms if t.source == "output"} == {0, 1, 2}
        assert {t.lag for t in terms if t.source == "base"} == {1}

    def test_a_pseudo_corrector_needs_both_outputs_computed(self):
        record = solver("unipc", 2, prediction="data", corrector="pseudo")
        calls = program(schedule(record, row="CCRCC", sigma=(0.9, 0.7, 0.5, 0.4, 0.3, 0.1)))
        assert [bool(c.base) for c in calls] == [False, True, False, False, True]


class TestEnds:
    """log(SNR) is infinite at both ends; no number may be."""

    @pytest.mark.parametrize("family", ["dpm", "unipc"])
    def test_the_last_step_to_0_is_the_data_prediction(self, family):
        for prediction in ("noise", "data"):
            last = program(schedule(solver(family, 3, prediction=prediction)))[-1]
            terms = {(t.source, t.lag): t.weight for t in last.nxt}
            assert terms.pop(("base", 0)) == pytest.approx(1.0)
            assert terms.pop(("output", 0)) == pytest.approx(-last.sigma)
            assert not terms

    def test_a_value_at_flow_level_1_weighs_nothing_in_lambda(self):
        """The limit of the published formula, whose ratio r0 is then infinite."""
        near, end = (
            program(schedule(solver("dpm", 2, prediction="data"), sigma=(s, 0.8, 0.5, 0.1))) for s in (1 - 1e-300, 1.0)
        )
        assert [t.lag for t in end[1].nxt if abs(t.weight) > 1e-12] == [0, 0]
        nudged = program(schedule(solver("dpm", 2, prediction="data"), sigma=(1 - 1e-6, 0.8, 0.5, 0.1)))
        assert max(abs(t.weight) for t in nudged[1].nxt if t.lag == 1) < 0.04
        assert near[0].nxt == end[0].nxt

    def test_no_update_can_be_written_in_the_noise_where_there_is_no_data(self):
        """From level 1 the step is taken in the velocity instead: Heun's there is the plain trapezoid."""
        noise, velocity = (program(schedule(solver("heun", prediction=p))) for p in ("noise", "velocity"))
        assert noise[1].nxt == velocity[1].nxt
        assert noise[3].nxt != velocity[3].nxt


class TestHistoryAndReuse:
    """The history holds computed outputs only; a predicted one counts at its own step."""

    @staticmethod
    def run(plan, values):
        """A run on outputs that depend on the level alone, through the row's own predictions."""
        return replayed(plan, lambda x, s: values(s) + 0 * x, np.zeros(1))[0]

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_adams_integrates_a_forecast_exactly(self, order):
        """Order o + 1 through the forecast's own values is the forecast's polynomial."""
        sigma = (1.0, 0.93, 0.8, 0.74, 0.6, 0.47, 0.3, 0.1)
        row = "CCCC" + str(order) * 3
        plan = schedule(solver("adams", order + 1), sigma=sigma, row=row)
        known = sigma[4 - order - 1 : 4]
        poly = np.polynomial.Polynomial.fit(known, np.exp(known), order)
        antiderivative = poly.integ()
        run_until_4 = self.run(schedule(solver("adams", order + 1), sigma=sigma[:5]), np.exp)
        assert self.run(plan, np.exp) - run_until_4 == pytest.approx(antiderivative(0.1) - antiderivative(0.6))

    def test_a_reused_output_is_eulers_step_with_the_old_value_at_any_order(self):
        sigma = (1.0, 0.8, 0.7, 0.4, 0.2)
        euler = self.run(
            schedule(solver("adams", 2), solver("adams", 2), solver(), solver(), sigma=sigma, row="CCRR"), np.exp
        )
        adams = self.run(schedule(solver("adams", 2), sigma=sigma, row="CCRR"), np.exp)
        assert adams == pytest.approx(euler, abs=1e-14)

    def test_later_steps_do_not_look_back_on_predictions(self):
        plan = schedule(solver("adams", 2), sigma=(1.0, 0.8, 0.7, 0.4, 0.2), row="CRRC")
        last = program(plan)[-1]
        # nodes 0.4 and 1.0, not 0.7: the older weight is h^2 / 2 / (1.0 - 0.4)
        assert {t.lag: t.weight for t in last.nxt if t.source == "output"}[1] == pytest.approx(0.2**2 / 2 / 0.6)

    def test_the_second_call_of_a_predicted_step_is_predicted_and_forgotten(self):
        plan = schedule(solver("heun"), sigma=(1.0, 0.8, 0.6, 0.4, 0.2), row="CC1C")
        calls = program(plan)
        assert [(c.computes, c.keep, c.drop) for c in calls[4:6]] == [(False, True, False), (False, False, True)]
        history, lengths = (), []
        for call in calls:
            _, history = advance(call, history, np.zeros(1), np.zeros(1))
            lengths.append(len(history))
        assert lengths == [1, 1, 2, 2, 3, 2, 3, 3]
        # trapezoid of a linear forecast: exact for linear outputs
        assert self.run(plan, lambda s: s) == pytest.approx((0.2**2 - 1.0) / 2)


class TestTable:
    SIGMA = (1.0, 0.8, 0.5, 0.0)
    PLAN = schedule(solver("table", 1), solver("table", 2), solver("table", 3), sigma=SIGMA)
    ROWS = ((0.9, -0.2, 0.0, 0.0), (1.1, -0.4, 0.1, 0.0), (1.0, -0.7, 0.2, -0.1))

    def test_without_scalars_it_says_so(self):
        call = program(self.PLAN)[1]
        assert (call.unfitted, call.family, call.order) == (True, "table", 2)
        with pytest.raises(ValueError, match=r"steps.solver\[1\]: found a table step without scalars"):
            advance(call, (), np.zeros(1), np.zeros(1))

    def test_its_scalars_multiply_its_columns(self):
        rng = np.random.default_rng(0)
        x, history = rng.normal(size=3), ()
        for call, row in zip(program(self.PLAN, weights=self.ROWS), self.ROWS, strict=True):
            output = rng.normal(size=3)
            expected = sum(c * part for c, part in zip(row, columns(call, history, x, output), strict=False))
            assert len(columns(call, history, x, output)) == call.order + 1
            x, history = advance(call, history, x, output)
            assert x == pytest.approx(expected)

    def test_fitting_fills_the_call(self):
        call = program(self.PLAN)[1]
        assert fitted(call, self.ROWS[1][:3]) == program(self.PLAN, weights=self.ROWS)[1]
        with pytest.raises(ValueError, match="found 2 scalars, expected 3: one for the sample and 2 for outputs"):
            fitted(call, (1.0, 2.0))

    def test_falls_back_to_adams_of_the_order_there_is(self):
        """Too little history, or a run that begins in the middle: the scalars were fitted to something else."""
        short = schedule(solver("table", 3), sigma=self.SIGMA)
        adams = schedule(solver("adams", 3), sigma=self.SIGMA)
        assert [c.nxt for c in program(short)][:2] == [c.nxt for c in program(adams)][:2]
        assert [c.unfitted for c in program(short)] == [False, False, True]
        later = program(short, begin=1, weights=self.ROWS)
        assert [c.nxt for c in later] == [c.nxt for c in program(adams, begin=1)]
        assert {c.family for c in later} == {"adams"}

    def test_least_squares_are_those_of_numpy(self):
        rng = np.random.default_rng(1)
        a, b = rng.normal(size=(40, 3)), rng.normal(size=40)
        found = fit((a.T @ a).tolist(), (a.T @ b).tolist())
        assert found == pytest.approx(np.linalg.lstsq(a, b)[0], abs=1e-8)

    def test_equal_columns_share_their_weight(self):
        rng = np.random.default_rng(1)
        a = rng.normal(size=(40, 2))[:, [0, 1, 1]]
        found = fit((a.T @ a).tolist(), (a.T @ (a @ [2.0, 3.0, 0.0])).tolist())
        assert found == pytest.approx((2.0, 1.5, 1.5), abs=1e-5)


class TestArrays:
    PLAN = schedule(
        solver(), solver("unipc", 2, prediction="data", corrector="pseudo"), solver("heun"),
        solver("dpm", 3, prediction="noise"), solver("adams", 4), sigma=(1.0, 0.9, 0.7, 0.5, 0.3, 0.1),
    )  # fmt: skip

    def test_numpy_and_torch_agree(self):
        rng = np.random.default_rng(0)
        x, history = rng.normal(size=(4, 3)), ()
        y, past = torch.from_numpy(x), ()
        for call in program(self.PLAN):
            output = rng.normal(size=(4, 3))
            x, history = advance(call, history, x, output)
            y, past = advance(call, past, y, torch.from_numpy(output))
            assert y.numpy() == pytest.approx(x, abs=1e-12)

    def test_nothing_is_changed_in_place(self):
        history, seen = (), []
        x = torch.ones(4)
        for call in program(self.PLAN):
            output = torch.full((4,), call.sigma)
            seen += [(x, x.clone()), (output, output.clone())]
            x, history = advance(call, history, x, output)
        assert all(torch.equal(now, then) for now, then in seen)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_single_and_handed_back_as_it_came(self, dtype):
        history, x = (), torch.linspace(-1, 1, 8).to(dtype)
        wide, past = x.double(), ()
        for call in program(self.PLAN):
            output = torch.sin(3 * x.float() + call.sigma).to(dtype)
            before = x
            x, history = advance(call, history, before, output)
            assert x.dtype == dtype
            wide, past = advance(call, past, before.double(), output.double())
            assert torch.allclose(x.double(), wide, atol=8 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_plain_step_is_the_arithmetic_of_diffusers(self, dtype):
        levels = torch.tensor(toy_sigmas(6), dtype=torch.float32)
        deltas = (levels[1:] - levels[:-1]).unbind()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, generator=generator).to(dtype)
        for call, delta in zip(program(schedule(solver(), n_steps=6)), deltas, strict=True):
            v = torch.randn(64, generator=generator).to(dtype)
            expected = (x.to(torch.float32) + delta * v).to(dtype)
            assert call.nxt == (Term("base", 0, 1.0), Term("output", 0, call.delta))
            x, _ = advance(call, (), x, v, delta=delta)
            assert torch.equal(x, expected)

    def test_needs_no_array_library(self):
        code = "import sys, schedsearch.runtime._solver; print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"


def test_levels_are_inverse_to_their_signal_to_noise():
    for levels, s in ((FLOW, 0.3), (VP, 2.5)):
        assert levels.lam(s) == pytest.approx(math.log(levels.alpha(s) / levels.std(s)))
    assert FLOW.lam(1.0) == -math.inf
    assert FLOW.lam(0.0) == VP.lam(0.0) == math.inf
