"""CacheQuant's DP schedule as a searcher: what it measures, what it proposes, whether losses add up."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from schedsearch.errors import UsageError
from schedsearch.search import _cachequant
from schedsearch.search._cachequant import CacheQuant, CacheQuantConfig
from schedsearch.study import Candidate, Evaluation, Objective, Probe
from schedsearch.testing import TOY_OBJECTIVES, SearcherContract, searched, toy_evaluator, toy_sigmas, toy_space

SPACE = toy_space((("model", "CR"),), n_steps=12)
SECONDS_FIRST = (
    Objective(name="latency_ms", unit="ms", better="min"),
    Objective(name="psnr", unit="dB", better="max"),
)


def made(space=SPACE, *, seed=0, probe=None, objectives=TOY_OBJECTIVES, **options):
    return CacheQuant(space, seed=seed, objectives=objectives, config=CacheQuantConfig(**options), probe=probe)


def drifting(n_steps, speed=None):
    """A probe whose outputs drift along a line at this speed per step."""
    places = np.concatenate([[0.0], np.cumsum(np.ones(n_steps - 1) if speed is None else speed)])
    l1 = np.abs(places[:, None] - places)
    return Probe(sigma=toy_sigmas(n_steps), gram=np.eye(n_steps + 1), l1=l1)


def rows_of(searcher, space=SPACE):
    evaluator, rows = toy_evaluator(space), []
    while candidates := searcher.ask(4):
        rows.append([candidate.schedule.row("model") for candidate in candidates])
        searcher.tell([evaluator.evaluate(candidate, fidelity=2) for candidate in candidates])
    return rows


class TestContract(SearcherContract):
    """Without a probe it measures groups first, so it is not compared with random draws at few evaluations."""

    levels = (("model", "CR"),)
    n_steps = 14
    beats_random = False

    def make(self, space, *, seed):
        return made(space, seed=seed)


class TestContractBesideOtherLevels(TestContract):
    levels = (("model", "CR123"), ("component", "CR"))


class TestAsPublished:
    def test_proposes_the_dp_schedule_of_every_interval_and_budget_at_once(self):
        batches = rows_of(made(probe=drifting(12)))
        rows = list(itertools.chain(*batches))
        assert len(rows) == len(set(rows))
        assert {row.count("C") for row in rows} == set(range(1, 13))
        assert "CRRCRRCRRCRR" in rows  # even drift, N = 3

    def test_is_the_best_of_all_partitions(self):
        rng = np.random.default_rng(0)
        probe = drifting(10, rng.uniform(0.0, 3.0, size=9))
        space = toy_space((("model", "CR"),), n_steps=10)
        for interval in (2, 3, 4):
            low, high, groups = -(-interval // 2), 2 * interval, -(-10 // interval)
            sums = {}
            for inner in itertools.combinations(range(1, 10), groups - 1):
                nodes = (0, *inner, 10)
                if all(low <= b - a <= high for a, b in itertools.pairwise(nodes)):
                    sums[nodes] = sum(probe.l1[t, i] for i, j in itertools.pairwise(nodes) for t in range(i, j))
            ((row,),) = rows_of(made(space, probe=probe, intervals=(interval,)), space)
            starts = tuple(i for i, char in enumerate(row) if char == "C")
            assert sums[*starts, 10] == pytest.approx(min(sums.values()))

    def test_crowds_where_features_change(self):
        probe = drifting(12, [4.0] * 4 + [0.1] * 7)
        ((row,),) = rows_of(made(probe=probe, budgets=(6,)))
        assert row[:5].count("C") > row[5:].count("C")

    def test_needs_no_measurement_of_groups(self):
        searcher = made(probe=drifting(12), budgets=(4,))
        assert searcher.ask(1)[0].schedule.row("model").count("C") == 4


class TestFinalError:
    def test_measures_each_group_alone_then_proposes(self):
        searcher = made(budgets=(6, 4, 3))
        rows = list(itertools.chain(*rows_of(searcher)))
        groups, plans = rows[:-3], rows[-3:]
        assert len(groups) == sum(12 - length + 1 for length in range(2, 7))
        assert all(len(set(row.strip("C"))) == 1 for row in groups)
        assert [row.count("C") for row in plans] == [6, 4, 3]

    def test_losses_are_the_measured_errors(self):
        searcher, evaluator = made(budgets=(4,), longest=3), toy_evaluator(SPACE)
        rows_of(searcher)
        schedule = replace(SPACE.base, ops=(("model", "CCCRRCCCCCCC"),))
        measured = evaluator.evaluate(Candidate(schedule=schedule, searcher="", ask=0), fidelity=2)
        assert searcher.losses[2, 5] == measured.values[0]
        assert searcher.losses[2, 6] == np.inf

    def test_beats_even_spacing(self):
        """Placed by measured losses, the schedule is better than recomputing every N steps."""
        study, ended = searched(made(budgets=(6, 4, 3)), SPACE, trials=1000)
        assert ended == "finished"
        error = {e.candidate.schedule.row("model"): e.values[0] for e in study.evaluations()}
        evaluator = toy_evaluator(SPACE)
        for every in (2, 3, 4):
            row = "".join("C" if step % every == 0 else "R" for step in range(12))
            plain = Candidate(schedule=replace(SPACE.base, ops=(("model", row),)), searcher="", ask=0)
            best = min(value for mask, value in error.items() if mask.count("C") == row.count("C"))
            assert best <= evaluator.evaluate(plain, fidelity=2).values[0] + 1e-12

    def test_groups_may_be_measured_on_fewer_prompts(self):
        searcher = made(budgets=(4,), share=0.5)
        assert searcher.ask(1)[0].share == 0.5

    def test_a_group_that_failed_is_not_used(self):
        searcher, evaluator = made(budgets=(6,)), toy_evaluator(SPACE, fails=lambda c: "CRR" in c.schedule.row("model"))
        while candidates := searcher.ask(8):
            told = [evaluator.evaluate(candidate, fidelity=1) for candidate in candidates]
            searcher.tell(told)
        assert candidates == ()
        assert told[-1].candidate.schedule.row("model") == "CR" * 6


class TestMinimax:
    def test_the_worst_group_is_as_good_as_it_can_be(self):
        rng = np.random.default_rng(1)
        probe = drifting(12, rng.uniform(0.0, 3.0, size=11))
        costs = _cachequant.group_costs(probe.l1)
        ((row,),) = rows_of(made(probe=probe, budgets=(4,), rule="minimax"))
        starts = [i for i, char in enumerate(row) if char == "C"]
        worst = max(costs[i, j] for i, j in itertools.pairwise((*starts, 12)))
        assert worst == pytest.approx(
            min(
                max(costs[i, j] for i, j in itertools.pairwise((0, *inner, 12)))
                for inner in itertools.combinations(range(1, 12), 3)
            )
        )

    def test_groups_are_no_longer_than_allowed(self):
        rows = list(itertools.chain(*rows_of(made(probe=drifting(12), rule="minimax", longest=3))))
        assert max(len(run) for row in rows for run in row.split("C")) == 2
        assert min(row.count("C") for row in rows) == 4


class TestAdditivity:
    def test_is_one_where_errors_are_sums_of_losses(self):
        probe = drifting(12, np.linspace(0.5, 2.0, 11))
        searcher = made(probe=probe)
        costs = _cachequant.group_costs(probe.l1)
        assert np.isnan(searcher.additivity)
        while candidates := searcher.ask(3):
            told = []
            for candidate in candidates:
                row = candidate.schedule.row("model")
                nodes = [i for i, char in enumerate(row) if char == "C"] + [12]
                error = float(sum(costs[i, j] for i, j in itertools.pairwise(nodes)))
                told.append(Evaluation(candidate=candidate, status="ok", values=(error, 1.0)))
            searcher.tell(told)
        assert searcher.additivity == pytest.approx(1.0)

    @pytest.mark.parametrize("probe", [None, drifting(12)])
    def test_on_the_closed_form_model_sums_rank_schedules_well(self, probe):
        searcher = made(probe=probe)
        rows_of(searcher)
        assert searcher.additivity > 0.8


class TestObjectives:
    def test_the_error_is_found_in_any_order(self):
        candidate = Candidate(schedule=SPACE.base, searcher="", ask=0)
        for objectives, values in ((SECONDS_FIRST, (9.0, 40.0)), (SECONDS_FIRST[::-1], (40.0, 9.0))):
            told = Evaluation(candidate=candidate, status="ok", values=values)
            assert made(objectives=objectives).error_of(told) == pytest.approx(0.01)
        named = made(objectives=SECONDS_FIRST, objective="latency_ms")
        assert named.error_of(Evaluation(candidate=candidate, status="ok", values=(9.0, 40.0))) == 9.0

    def test_a_similarity_counts_from_one(self):
        searcher = made(objectives=(Objective(name="ssim", unit="", better="max"),))
        told = Evaluation(candidate=Candidate(schedule=SPACE.base, searcher="", ask=0), status="ok", values=(0.75,))
        assert searcher.error_of(told) == 0.25


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"cost": "l2"}, "cost: found 'l2', expected one of l1, final"),
            ({"rule": "best"}, "rule: found 'best', expected one of sum, minimax"),
            ({"budgets": (0,)}, "budgets: found 0, expected 1 or more"),
            ({"budgets": (13,)}, "budgets: found 13, expected 1 to 12, the steps of the default run"),
            ({"intervals": (40,)}, "intervals: found 40"),
            ({"longest": 1}, "longest: found 1, expected 2 or more"),
            ({"share": 0.0}, "share: found 0.0, expected a share above 0"),
            ({"cost": "l1"}, 'found "l1" without a probe'),
            ({"cost": "l1", "probe": drifting(9)}, "found 9 steps, expected 12"),
            ({"objective": "beauty"}, "objective: found 'beauty', expected one of latent_error, cost"),
        ],
    )
    def test_options_that_cannot_be(self, options, said):
        with pytest.raises(UsageError, match=said):
            made(**options)

    def test_a_space_without_reuse_of_the_whole_model(self):
        with pytest.raises(UsageError, match="no model row that may hold R in space toy"):
            made(toy_space((("component", "CR"),)))


class TestLowBit:
    """``D_q(i, j) = sum_t |X_t - Q X_i|``, which is not symmetric and counts rounding at computed steps."""

    def test_is_the_best_of_all_partitions_whatever_the_distances(self):
        rng = np.random.default_rng(3)
        for n_steps in range(2, 11):
            low_bit = rng.uniform(0.0, 3.0, size=(n_steps, n_steps))
            probe = replace(drifting(n_steps), low_bit=low_bit)
            space = toy_space((("model", "CR"),), n_steps=n_steps)
            for groups in range(1, min(4, n_steps) + 1):
                mean = n_steps / groups
                low, high = max(1, -int(-mean / 2 // 1)), int(2 * mean + 1e-9)
                sums = {}
                for inner in itertools.combinations(range(1, n_steps), groups - 1):
                    nodes = (0, *inner, n_steps)
                    if all(low <= b - a <= high for a, b in itertools.pairwise(nodes)):
                        sums[nodes] = sum(low_bit[t, i] for i, j in itertools.pairwise(nodes) for t in range(i, j))
                ((row,),) = rows_of(made(space, probe=probe, budgets=(groups,)), space)
                starts = tuple(i for i, char in enumerate(row) if char == "C")
                assert sums[*starts, n_steps] == pytest.approx(min(sums.values())), (n_steps, groups)

    def test_it_is_taken_in_place_of_the_plain_distances(self):
        plain = drifting(12)
        low_bit = plain.l1.copy()
        low_bit[:, 4] += 100.0  # what the low-bit run gives at step 4 is good for nothing
        for probe, is_used in ((replace(plain, low_bit=plain.l1), True), (replace(plain, low_bit=low_bit), False)):
            rows = [row for row in itertools.chain(*rows_of(made(probe=probe))) if row.count("C") in (3, 4, 6)]
            assert any(row[4] == "C" for row in rows) is is_used

    def test_rounding_at_computed_steps_counts(self):
        low_bit = drifting(6).l1.copy() + np.diag([0.0, 9.0, 0.0, 0.0, 0.0, 0.0])
        searcher = made(
            toy_space((("model", "CR"),), n_steps=6), probe=replace(drifting(6), low_bit=low_bit), budgets=(6,)
        )
        (path,) = searcher.plans()
        assert path.cost == 9.0
