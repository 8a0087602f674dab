"""What finalists are polished from, which start wins, what it costs, and what the study keeps of it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from schedsearch.errors import EvaluationError
from schedsearch.optimize._display import Display
from schedsearch.optimize._finals import _kept, _restored
from schedsearch.optimize._fitting import FEW, FIT, POLISH, SKETCH, fitted, fitting_evals, starts
from schedsearch.schedule import Solver, with_solver_table
from schedsearch.search._rule_seeds import spaced_levels
from schedsearch.study import Objective
from schedsearch.testing import toy_joint_space

EULER, TABLE = Solver(), Solver(family="table", order=3)


@pytest.fixture(scope="module")
def space():
    return toy_joint_space()


def plan(space, n, solver=EULER, ops=(), **fields):
    solvers = (solver,) * n if isinstance(solver, Solver) else solver
    return dataclasses.replace(space.build(sigma=space.grid(n), solver=solvers, ops=ops), **fields)


def orders(schedule):
    return [(solver.family, solver.order) for solver in schedule.solver]


class TestStarts:
    def test_few_calls_start_from_their_own_levels_and_from_spaced_ones(self, space):
        one = plan(space, 3)

        found = starts(space, one)

        assert found[0] == one
        spaced = [plan(space, 3, sigma=spaced_levels(space, name, 3)) for name in ("shift1.5", "shift2")]
        assert [start.sigma for start in found[1:]] == [one.sigma, *(space.repair(s).sigma for s in spaced)]
        assert all(orders(start) == [("table", 1), ("table", 2), ("table", 3)] for start in found[1:])
        assert all(space.check(start) is None for start in found)

    def test_what_is_fitted_already_in_this_way_is_one_start_less(self, space):
        assert len(starts(space, plan(space, 3, TABLE))) == len(starts(space, plan(space, 3))) - 1

    def test_steps_without_a_call_go_and_what_is_left_out_in_a_call_stays_left_out(self, space):
        one = plan(
            space,
            5,
            ops=[("model", "CCRC1"), ("transformer_blocks.1", "CRCCC"), ("single_transformer_blocks.0.attn", "CCCSC")],
        )

        found = starts(space, one)[1:]

        assert {start.n_steps for start in found} == {3}
        assert found[0].sigma == pytest.approx((*(one.sigma[i] for i in (0, 1, 3)), 0.0), abs=1e-3)
        wanted = {"transformer_blocks.1": "CRC", "single_transformer_blocks.0.attn": "CCS"}
        assert [dict(start.ops) for start in found] == [wanted] * 3

    def test_where_it_came_from_goes_with_it(self, space):
        provenance = dataclasses.replace(plan(space, 3).provenance, searcher="auto", ask=7)
        assert all(s.provenance == provenance for s in starts(space, plan(space, 3, provenance=provenance)))

    @pytest.mark.parametrize(
        "narrow",
        [{"solvers": (EULER, Solver(family="adams", order=2))}, {"counts": (12,)}],
        ids=["no fitted steps", "no other number of steps"],
    )
    def test_what_the_space_does_not_open_stays(self, space, narrow):
        one = plan(space, 12, ops=[("model", "CCRRRRRRRRRC")])
        assert starts(space.restrict(**narrow), one) == (one,)

    def test_levels_that_are_not_free_are_the_default_ones(self, space):
        found = starts(space.restrict(free_sigma=False), plan(space, 3))
        assert [start.sigma for start in found] == [space.grid(3)] * 2

    def test_many_calls_are_their_own_start(self, space):
        assert len(starts(space, plan(space, FEW))) > 1
        assert starts(space, plan(space, FEW + 1)) == (plan(space, FEW + 1),)


class Evaluator:
    """Fits and polishes by leaving a mark; a schedule is the better the nearer its second level is to ``best``."""

    def __init__(self, best=0.0, broken=lambda _: False, better="max"):
        self.objectives = (
            Objective(name="latency_ms", unit="ms", better="min"),
            Objective(name="psnr", unit="dB", better=better),
        )
        self.best, self.broken, self.sign = best, broken, 1.0 if better == "max" else -1.0
        self.spent, self.polished = 0, []

    def prepare(self, n):
        return 28 * n

    def fit(self, schedule, n):
        self.spent = n
        if self.broken(schedule):
            raise EvaluationError("it strays")
        rows = [[1.0] if solver.family == "table" else [] for solver in schedule.solver]
        return with_solver_table(schedule, rows) if schedule.unfitted else schedule

    def polish(self, schedule, n, *, rounds, levels):
        assert (rounds, levels) == (1, True)
        self.spent = 10 * n
        self.polished.append((schedule.sigma, n))
        return schedule

    def evaluate(self, candidate, *, fidelity):
        self.spent = 0
        assert fidelity == POLISH
        value = -self.sign * abs(candidate.schedule.sigma[1] - self.best)
        return SimpleNamespace(status="ok", values=(1.0, value))


def bench_of(space, evaluator):
    settings = SimpleNamespace(search="auto", seed=0)
    return SimpleNamespace(space=space, settings=settings, display=Display(), evaluator=lambda *_, **__: evaluator)


TOLD = SimpleNamespace(fitting=lambda plans: [SimpleNamespace(kind="fit", seconds=1.0)] * (1 + len(plans)))
PROMPTS = tuple(str(i) for i in range(FIT))


@pytest.mark.parametrize("better", ["max", "min"])
def test_the_best_start_wins_and_only_it_sees_more_prompts(space, better):
    wanted = starts(space, plan(space, 3))[2]
    evaluator = Evaluator(best=wanted.sigma[1], better=better)

    found, evals = fitted(bench_of(space, evaluator), PROMPTS, {"a": plan(space, 3)}, TOLD, later=0.0)

    assert found["a"].sigma == wanted.sigma
    assert not found["a"].unfitted
    assert [n for _, n in evaluator.polished] == [SKETCH] * 4 + [POLISH]
    assert evals == 28 * FIT + 4 * SKETCH + 10 * (4 * SKETCH + POLISH)


def test_many_calls_are_fitted_on_all_prompts_and_polished_while_these_decide_them(space):
    evaluator = Evaluator()
    last = plan(space, 9, (EULER,) * 7 + (TABLE,) * 2)
    plans = {"few numbers": last, "many": plan(space, 9, TABLE)}

    found, evals = fitted(bench_of(space, evaluator), PROMPTS, plans, TOLD, later=0.0)

    assert [sigma for sigma, _ in evaluator.polished] == [plans["few numbers"].sigma]
    assert not any(schedule.unfitted for schedule in found.values())
    assert evals == 28 * FIT + 2 * FIT + 10 * POLISH


def test_what_has_no_numbers_costs_nothing(space):
    plans = {"many": plan(space, 9)}
    assert fitted(bench_of(space, None), PROMPTS, plans, TOLD, later=0.0) == (plans, 0)
    assert fitting_evals(space, plans["many"]) == 0


def test_a_start_that_fails_does_not_take_the_others_with_it(space):
    one = plan(space, 3, TABLE)
    evaluator = Evaluator(best=1.0, broken=lambda schedule: schedule.sigma != one.sigma)

    found, _ = fitted(bench_of(space, evaluator), PROMPTS, {"a": one}, TOLD, later=0.0)

    assert found["a"].sigma == one.sigma


def test_what_cannot_be_fitted_is_left_out_and_said(space, capsys):
    plans = {"a": plan(space, 9, TABLE), "b": plan(space, 3), "c": plan(space, 9)}
    evaluator = Evaluator(broken=lambda _: True)

    found, evals = fitted(bench_of(space, evaluator), PROMPTS, plans, TOLD, later=0.0)

    assert found == {"c": plans["c"]}
    assert "Left out a: it strays" in capsys.readouterr().out
    assert evals > 28 * FIT


def test_what_comes_to_the_same_is_kept_once(space):
    spaced = starts(space, plan(space, 3))[2]
    plans = {"a": plan(space, 9), "b": plan(space, 3), "c": plan(space, 3, Solver(family="adams", order=2))}

    found, _ = fitted(bench_of(space, Evaluator(best=spaced.sigma[1])), PROMPTS, plans, TOLD, later=0.0)

    assert list(found) == ["a", "b"]


def test_the_order_of_the_finalists_is_kept(space):
    plans = {"a": plan(space, 9), "b": plan(space, 9, TABLE), "c": plan(space, 8)}
    assert list(fitted(bench_of(space, Evaluator()), PROMPTS, plans, TOLD, later=0.0)[0]) == ["a", "b", "c"]


def test_few_calls_are_forecast_by_their_starts(space):
    counted = {n: fitting_evals(space, plan(space, n)) for n in range(1, FEW + 1)}
    assert list(counted.values()) == sorted(counted.values())
    assert counted[1] > 0
    # at most eighty calls per prompt in a round: of four starts on two prompts, of one on eight
    assert counted[FEW] < 80 * (4 * SKETCH + POLISH) + 4 * POLISH * FEW


@pytest.mark.parametrize("is_fitted", [True, False])
def test_a_finished_schedule_comes_back_from_the_study_as_it_was(space, is_fitted):
    one = plan(space, 3, TABLE) if is_fitted else plan(space, 3)
    one = dataclasses.replace(one, sigma=(1.0, 0.61803398875, 1.0 / 3.0, 0.0))
    done = with_solver_table(one, [[1.0, -0.1], [1.0, 0.2, 0.3], [0.9, 1.0 / 3.0, 0.5, 0.7]]) if is_fitted else one

    assert _restored(*_kept(done)) == done
