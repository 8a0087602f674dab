"""Predictors of rank: how good they are on schedules they never saw, how sure and how fast; they disturb nobody."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.schedule import Schedule, Solver
from schedsearch.search._features import Features
from schedsearch.search._surrogate import KernelRanker, LstmConfig, LstmRanker, quality
from schedsearch.space import SearchSpace, mutated
from schedsearch.study import Candidate
from schedsearch.testing import GaussianEvaluator, toy_blocks, toy_evaluator, toy_model_ref, toy_sigmas, toy_space

SOLVERS = (
    Solver(), *(Solver(family="adams", order=o) for o in (2, 3, 4)),
    *(Solver(family="dpm", order=o, prediction=p) for o in (1, 2, 3) for p in ("data", "noise")),
    Solver(family="unipc", order=2, prediction="data", corrector="pseudo"), Solver(family="heun", order=2),
)  # fmt: skip
STEPS = SearchSpace(
    name="steps", model=toy_model_ref(), blocks=toy_blocks(1, 0), sigma=toy_sigmas(10), levels=(),
    counts=tuple(range(3, 13)), solvers=SOLVERS, free_sigma=True,
)  # fmt: skip
TRUTH = Schedule(sigma=toy_sigmas(100), solver=(Solver(family="adams", order=3),) * 100, model=toy_model_ref())
OPS = toy_space((("model", "CR12"), ("component", "CR")))
SMALL = LstmConfig.small()


def population(space, seed, n=300) -> list[Schedule]:
    """Half random, half mutants of one another."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < n:
        known = list(found)
        is_random = len(known) < 20 or rng.random() < 0.5
        found[space.sample(rng) if is_random else mutated(known[rng.integers(len(known))], space, rng)] = None
    return list(found)


def losses(space, schedules) -> np.ndarray:
    full = TRUTH if space.free_sigma else space.base
    evaluator = GaussianEvaluator(blocks=space.blocks, full=full)
    values = [evaluator.evaluate(Candidate(schedule=s, searcher="", ask=0), fidelity=2).values[0] for s in schedules]
    return np.log(np.array(values) + 1e-9)


def unseen(ranker, schedules, scores, n=100):
    """Quality on all but the first ``n``, after a fit on those."""
    ranker.fit(schedules[:n], scores[:n])
    return quality(ranker.rank(schedules[n:]), scores[n:], n_fitted=n)


class TestQuality:
    def test_in_words(self):
        found = quality(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), n_fitted=7, group=5)
        assert str(found) == "5 calls: Spearman -1.00, Kendall -1.00 on 3 unseen schedules, fitted on 7"

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
    @settings(max_examples=25)
    def test_ties_and_all_agree_with_scipy(self, pairs):
        from scipy.stats import kendalltau, spearmanr

        predicted, true = np.array(pairs, dtype=float).T
        found = quality(predicted, true)
        if len(set(predicted)) > 1 and len(set(true)) > 1:
            assert found.spearman == pytest.approx(spearmanr(predicted, true).statistic, abs=1e-9)
            assert found.kendall == pytest.approx(kendalltau(predicted, true).statistic, abs=1e-9)
        else:
            assert (found.spearman, found.kendall) == (0.0, 0.0)

    def test_infinite_losses_rank_last(self):
        assert quality(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.5, np.inf])).spearman == pytest.approx(1.0)


class TestFeatures:
    schedules = population(STEPS, 0, 40) + population(OPS, 1, 40)
    features = Features(schedules)

    def test_a_vector_depends_on_its_own_schedule_alone(self):
        together = self.features.of(self.schedules)
        alone = np.concatenate([self.features.of([schedule]) for schedule in self.schedules])
        assert np.isfinite(together).all()
        assert together == pytest.approx(alone, abs=1e-12)

    def test_different_schedules_have_different_vectors(self):
        assert len(np.unique(self.features.of(self.schedules).round(12), axis=0)) == len(set(self.schedules))

    def test_rows_outside_the_vocabulary_are_left_out(self):
        plain = OPS.base
        other = replace(plain, ops=(("somewhere.else", "C" + "R" * 9),))
        assert self.features.of([plain]).tolist() == self.features.of([other]).tolist()

    def test_interpolation_error_is_the_textbook_one(self):
        """Euler over even steps of h in [0, 1]: n steps of h * h / 2 each, so the sum is h / 2."""
        sigma = tuple(float(level) for level in np.linspace(1.0, 0.0, 6))
        schedule = Schedule(sigma=sigma, solver=(Solver(),) * 5, model=toy_model_ref())
        assert np.abs(self.features.of([schedule])[0] - np.log(0.1 + 1e-6)).min() < 1e-9

    def test_other_noise_levels_than_flow(self):
        sigma = (14.6, 3.0, 0.5, 0.0)
        schedule = Schedule(sigma=sigma, solver=(Solver(),) * 3, model=toy_model_ref())
        assert np.isfinite(Features([schedule]).of([schedule])).all()


@pytest.fixture(scope="module")
def steps():
    """Populations of free steps and solvers, by seed, with their losses."""
    found = {seed: population(STEPS, seed) for seed in range(3)}
    return {seed: (schedules, losses(STEPS, schedules)) for seed, schedules in found.items()}


class TestOnUnseenSchedules:
    """Fitted on 100 records, tested on 200 others."""

    @pytest.mark.parametrize("seed", range(3))
    def test_regression_ranks_steps_and_solvers(self, steps, seed):
        found = unseen(KernelRanker(), *steps[seed])
        assert found.spearman >= 0.6, found
        assert (found.n, found.n_fitted) == (200, 100)

    def test_regression_ranks_schedules_of_equally_many_steps(self):
        space = replace(STEPS, counts=(10,))
        schedules = population(space, 5)
        found = unseen(KernelRanker(), schedules, losses(space, schedules))
        assert found.spearman >= 0.6, found

    def test_regression_ranks_op_rows(self):
        schedules = population(OPS, 6)
        found = unseen(KernelRanker(), schedules, losses(OPS, schedules))
        assert found.spearman >= 0.6, found

    def test_the_network_ranks_steps_and_solvers(self, steps):
        found = unseen(LstmRanker(seed=0, config=SMALL), *steps[0])
        assert found.spearman >= 0.6, found


class TestKernelRanker:
    def test_predicts_every_objective_and_knows_what_it_knows(self, steps):
        schedules, scores = steps[0]
        both = np.column_stack([scores, [float(schedule.n_steps) for schedule in schedules]])
        ranker = KernelRanker()
        ranker.fit(schedules[:150], both[:150])
        mean, spread = ranker.predict(schedules)
        assert mean.shape == spread.shape == (300, 2)
        z = (mean - both)[150:, 0] / spread[150:, 0]
        assert 0.5 < np.sqrt((z**2).mean()) < 2.0
        assert spread[:150, 0].mean() < 0.7 * spread[150:, 0].mean()
        assert np.abs(mean[150:, 1] - both[150:, 1]).mean() < 0.05  # the number of steps is no secret
        first = KernelRanker()
        first.fit(schedules[:150], scores[:150])
        assert first.predict(schedules)[0].shape == (300,)

    def test_predicts_the_cost_of_steps_and_rows_together(self):
        space = replace(OPS, counts=tuple(range(4, 11)))
        schedules = population(space, 8, 250)
        judge = toy_evaluator(space)
        cost = [judge.evaluate(Candidate(schedule=s, searcher="", ask=0), fidelity=1).values[1] for s in schedules]
        ranker = KernelRanker()
        ranker.fit(schedules[:150], np.log(cost[:150]))
        off = ranker.predict(schedules[150:])[0] - np.log(cost[150:])
        assert np.sqrt((off**2).mean()) < 0.08

    def test_optimism_moves_what_is_hardly_known_forward(self, steps):
        schedules, scores = steps[0]
        ranker = KernelRanker(optimism=2.0)
        ranker.fit(schedules[:100], scores[:100])
        mean, spread = ranker.predict(schedules)
        assert ranker.rank(schedules) == pytest.approx(mean - 2.0 * spread)

    def test_failures_and_perfect_scores_do_not_spoil_it(self, steps):
        schedules, scores = steps[0]
        spoilt = scores.copy()
        spoilt[:4], spoilt[4], spoilt[int(np.argmin(scores[:100]))] = np.inf, np.nan, -np.inf
        ranker = KernelRanker()
        ranker.fit(schedules[:100], spoilt[:100])
        assert quality(ranker.rank(schedules[100:]), scores[100:]).spearman > 0.5

    def test_all_alike_and_alone_are_no_problem(self):
        ranker = KernelRanker()
        ranker.fit([STEPS.base], np.array([1.0]))
        assert ranker.rank([STEPS.base]) == pytest.approx([1.0])
        ranker.fit([STEPS.base] * 3, np.full(3, np.inf))
        assert np.isfinite(ranker.rank([STEPS.base])).all()

    def test_keeps_the_best_records_when_there_are_too_many(self, steps):
        schedules, drawn = steps[0]
        scores = np.argsort(np.argsort(drawn)).astype(float)  # evenly spread: no outlier is drawn in
        ranker = KernelRanker(limit=60)
        ranker.fit(schedules, scores)
        kept = np.argsort(scores)[:60]
        other = KernelRanker()
        other.fit([schedules[i] for i in np.sort(kept)], scores[np.sort(kept)])
        assert ranker.rank(schedules).tolist() == other.rank(schedules).tolist()

    def test_is_fast(self):
        rng = np.random.default_rng(0)
        schedules = population(STEPS, 7, 1000)
        known, scores = schedules[:500], rng.normal(size=500)
        ranker, times = KernelRanker(), []
        ranker.fit(known, scores)
        for _ in range(20):  # the least of several says what the code needs; a burst of other work passes
            started = time.process_time()
            ranker.fit(known, scores)
            middle = time.process_time()
            ranker.predict(schedules[500:])
            times.append((middle - started, time.process_time() - middle))
            if max(times[-1]) < 0.1:
                break
        refit, predict = np.min(times, axis=0)
        # less than 20 ms each on an idle core; busy machines take their time
        assert max(refit, predict) < 0.1, (refit, predict)

    def test_wants_a_fit_first(self):
        with pytest.raises(UsageError, match=r"KernelRanker.predict: found no records, expected a fit first"):
            KernelRanker().rank([STEPS.base])


class TestLstmRanker:
    def test_is_a_function_of_its_seed_and_leaves_global_random_states_alone(self, steps):
        schedules, scores = steps[1]
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
        torch.manual_seed(1)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        few = replace(SMALL, epochs=3)
        first, again, other = (LstmRanker(seed=seed, config=few) for seed in (3, 3, 4))
        for ranker in (first, again, other):
            ranker.fit(schedules[:40], scores[:40])
            torch.rand(1)  # a state that was read would show
        torch.manual_seed(1)
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        assert first.rank(schedules).tolist() == again.rank(schedules).tolist() != other.rank(schedules).tolist()

    def test_padding_does_not_matter(self, steps):
        schedules, scores = steps[1]
        ranker = LstmRanker(seed=0, config=replace(SMALL, epochs=2))
        ranker.fit(schedules[:40], scores[:40])
        alone = [ranker.rank([schedule])[0] for schedule in schedules[:20]]
        assert ranker.rank(schedules[:20]) == pytest.approx(alone, abs=1e-5)

    def test_learns_what_it_is_shown(self):
        """The number of steps decides: two epochs in, the order is right."""
        schedules = [STEPS.build(sigma=STEPS.grid(n), solver=(Solver(),) * n) for n in STEPS.counts]
        ranker = LstmRanker(seed=0, config=replace(SMALL, epochs=100))
        scores = -np.array([schedule.n_steps for schedule in schedules], dtype=float)
        ranker.fit(schedules, scores)
        assert quality(ranker.rank(schedules), scores).spearman > 0.9

    def test_has_the_published_size(self):
        config = LstmConfig()
        assert (config.sinusoid, config.step_width, config.hidden, config.head) == (128, 64, 128, (200, 200, 200))
        assert (config.op_width, config.order_width, config.margin, config.min_gap) == (32, 16, 1.0, 0.25)
        assert (config.pairs, config.batch, config.epochs, config.rate) == (2, 512, 1000, 1e-3)
        ranker = LstmRanker(seed=0, config=replace(config, epochs=1))
        ranker.fit([STEPS.base, OPS.base], np.array([0.0, 1.0]))
        lstm = 4 * 128 * (2 * 64 + 16 + 32 + 128 + 2)
        assert sum(p.numel() for p in ranker._network.steps.parameters()) == lstm

    def test_equal_scores_teach_nothing_and_break_nothing(self):
        ranker = LstmRanker(seed=0, config=replace(SMALL, epochs=2))
        ranker.fit([STEPS.base, OPS.base], np.zeros(2))
        assert np.isfinite(ranker.rank([STEPS.base])).all()

    def test_wants_a_fit_first(self):
        with pytest.raises(UsageError, match=r"LstmRanker.rank: found no records, expected a fit first"):
            LstmRanker(seed=0).rank([STEPS.base])


def test_torch_is_not_imported_before_a_network_is_fitted():
    code = "import sys, schedsearch.search._surrogate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
