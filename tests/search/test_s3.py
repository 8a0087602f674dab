"""S^3: its genes, its stages, and that the predictor saves measurements."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import SpaceError, UsageError
from schedsearch.schedule import Schedule, Solver
from schedsearch.search import S3, S3Config, make_searcher
from schedsearch.search._s3_genes import Breeding, Genes, deleted, inserted, n_calls, spread
from schedsearch.space import SearchSpace, warp
from schedsearch.study import Candidate, Objective
from schedsearch.testing import (
    TOY_OBJECTIVES,
    GaussianEvaluator,
    SearcherContract,
    toy_blocks,
    toy_evaluator,
    toy_model_ref,
    toy_sigmas,
)

SOLVERS = (
    Solver(), *(Solver(family="adams", order=o) for o in (2, 3, 4)),
    *(Solver(family="dpm", order=o, prediction=p) for o in (1, 2, 3) for p in ("data", "noise")),
    *(Solver(family="unipc", order=o, prediction="data", corrector="pseudo") for o in (1, 2, 3)),
    Solver(family="heun", order=2),
)  # fmt: skip
SPACE = SearchSpace(
    name="steps", model=toy_model_ref(), blocks=toy_blocks(1, 0), sigma=toy_sigmas(10), levels=(),
    counts=tuple(range(2, 13)), solvers=SOLVERS, free_sigma=True,
)  # fmt: skip
TRUTH = Schedule(sigma=toy_sigmas(200), solver=(Solver(family="adams", order=3),) * 200, model=toy_model_ref())


def made(space=SPACE, *, seed=0, **options) -> S3:
    searcher = make_searcher("s3", space, seed=seed, objectives=TOY_OBJECTIVES, **options)
    assert isinstance(searcher, S3)
    return searcher


def evaluator(seed=0) -> GaussianEvaluator:
    """Errors relative to a converged run."""
    return GaussianEvaluator(blocks=SPACE.blocks, full=TRUTH, seed=seed)


def error(schedule, judge) -> float:
    return judge.evaluate(Candidate(schedule=schedule, searcher="", ask=0), fidelity=2).values[0]


def curve(trials, *, mixtures=0, **options) -> np.ndarray:
    """The least error after each of ``trials`` measurements."""
    searcher, judge, found = made(**options), evaluator(mixtures), []
    while len(found) < trials and (candidates := searcher.ask(1)):
        told = [judge.evaluate(candidate, fidelity=2) for candidate in candidates]
        found += [evaluation.values[0] for evaluation in told]
        searcher.tell(told)
    assert len(found) >= trials
    return np.minimum.accumulate(found[:trials])


class TestContract(SearcherContract):
    levels = ()
    trials = 44
    contest_trials = 90
    reference_point = (0.5, 8.0)

    def space(self):
        return replace(SPACE, sigma=toy_sigmas(6), counts=(3, 4, 5, 6), solvers=SOLVERS[:8])

    def make(self, space, *, seed):
        return make_searcher(
            "s3", space, seed=seed, objectives=TOY_OBJECTIVES, predictor="ridge", first=8, stages=12, measured=3,
            pool=8,
        )  # fmt: skip


class TestContractOfPlainEvolution(TestContract):
    contest_trials = 120

    def make(self, space, *, seed):
        return make_searcher("s3", space, seed=seed, objectives=TOY_OBJECTIVES, predictor="none", first=8)


class TestBudgets:
    def test_three_to_twelve_calls_as_far_as_the_space_goes(self):
        assert made()._calls == tuple(range(3, 13))
        assert made(replace(SPACE, counts=(4, 6), solvers=SOLVERS[:4]))._calls == (4, 6)
        assert made(replace(SPACE, counts=(28,), solvers=SOLVERS[:1], sigma=toy_sigmas(28)))._calls == (28,)

    def test_asks_for_each_and_for_nothing_else(self):
        searcher, judge = made(calls=[4, 7], predictor="ridge", first=8, stages=2, measured=3, pool=10), evaluator()
        calls = Counter()
        while candidates := searcher.ask(1):
            calls.update(n_calls(candidate.schedule) for candidate in candidates)
            searcher.tell([judge.evaluate(candidate, fidelity=1) for candidate in candidates])
        assert calls == {4: 14, 7: 14}
        assert searcher.predictor_quality[0].n == 3
        assert [(q.group, q.n_fitted) for q in searcher.predictor_quality] == [(4, 16), (7, 16), (4, 22), (7, 22)]

    @given(st.integers(0, 1000), st.integers(3, 12))
    def test_calls_are_those_the_evaluator_counts(self, seed, calls):
        rng, breed = np.random.default_rng(seed), Breeding(SPACE, S3Config())
        a, b = (SPACE.sample(rng) for _ in range(2))
        child = breed.child(a, b, calls, rng)
        assert child is not None
        assert SPACE.check(child) is None
        found = toy_evaluator(SPACE).evaluate(Candidate(schedule=child, searcher="", ask=0), fidelity=1)
        assert n_calls(child) == calls == found.denoiser_evals

    def test_impossible_ones_are_refused(self):
        with pytest.raises(UsageError, match=r"calls\[1\]: found 99, expected denoiser calls of this space, 2, 3, 4"):
            made(calls=[5, 99])


class TestObjective:
    def test_is_the_first_that_is_no_cost(self):
        for objectives in (TOY_OBJECTIVES, TOY_OBJECTIVES[::-1]):
            searcher = S3(SPACE, seed=0, objectives=objectives)
            assert searcher._objective.name == "latent_error"

    def test_losses_are_less_for_better(self):
        evaluation = evaluator().evaluate(Candidate(schedule=SPACE.base, searcher="", ask=0), fidelity=1)
        psnr = S3(SPACE, seed=0, objectives=(Objective(name="psnr", unit="dB", better="max"),))
        assert psnr.loss_of(replace(evaluation, values=(30.0,))) == -30.0
        assert made().loss_of(replace(evaluation, values=(1.0, 5.0))) == 0.0
        assert made().loss_of(replace(evaluation, values=(0.0, 5.0))) == -np.inf
        assert made().loss_of(replace(evaluation, status="failed", values=())) == np.inf


class TestGenes:
    breed = Breeding(SPACE, S3Config())

    @given(st.integers(0, 10_000))
    def test_a_schedule_survives_its_genes(self, seed):
        schedule = SPACE.sample(np.random.default_rng(seed))
        assert self.breed.schedule(self.breed.genes(schedule)) == schedule

    @given(st.lists(st.floats(-1.0, 2.0), max_size=12))
    def test_times_end_up_in_order(self, times):
        found = (0.0, *spread(times), 1.0)
        assert (np.diff(found) > 0.0).all()

    def test_a_step_inserted_or_deleted_is_one_more_or_less(self):
        rng = np.random.default_rng(0)
        genes = Genes((0.25, 0.5), (SOLVERS[0], SOLVERS[1], SOLVERS[2]))
        more, less = inserted(genes, rng), deleted(genes, rng)
        assert (len(more.times), len(more.solvers), len(less.times), len(less.solvers)) == (3, 4, 1, 2)
        assert set(more.times) > set(genes.times) > set(less.times)
        alone = Genes((), (SOLVERS[0],))
        assert deleted(alone, rng) is alone

    def test_orders_are_drawn_as_published(self):
        rng = np.random.default_rng(0)
        drawn = Counter(self.breed._drawn("order", rng) for _ in range(4000))
        assert [drawn[order] / 4000 for order in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.3, 0.1], abs=0.03)
        fair = Counter(self.breed._drawn("corrector", rng) for _ in range(2000))
        assert fair["none"] / 2000 == pytest.approx(0.5, abs=0.04)

    def test_mutation_rates_are_those_of_the_options(self):
        breed, rng = Breeding(SPACE, S3Config(local=0.0, insert=0.0, delete=0.0)), np.random.default_rng(0)
        genes = Genes(tuple(i / 10 for i in range(1, 10)), (SOLVERS[0],) * 10)
        children = [breed.mutated(genes, rng) for _ in range(500)]
        moves = np.array([np.sort(child.times) - genes.times for child in children])
        assert (moves != 0.0).mean() == pytest.approx(0.4, abs=0.1)  # neighbours that change places count too
        kept = np.mean([[solver == SOLVERS[0] for solver in child.solvers] for child in children])
        assert 0.2 < kept < 0.7
        calm = Breeding(SPACE, S3Config(local=1.0, insert=0.0, delete=0.0))
        quiet = [calm.mutated(genes, rng) for _ in range(500)]
        assert np.mean([[solver == SOLVERS[0] for solver in child.solvers] for child in quiet]) > kept

    def test_the_nearest_legal_solver_has_the_gene_that_was_drawn(self):
        wish = replace(SOLVERS[1], prediction="noise")
        assert self.breed.nearest(wish, "prediction").prediction == "noise"
        assert self.breed.nearest(replace(SOLVERS[0], order=3), "order").order == 3

    def test_crossover_mixes_parents_only(self):
        rng = np.random.default_rng(0)
        a = Genes(tuple(i / 5 for i in range(1, 5)), (SOLVERS[1],) * 5)
        b = Genes(tuple(i / 5 - 0.1 for i in range(1, 5)), (SOLVERS[5],) * 5)
        for deep in (0.0, 1.0):
            breed = Breeding(SPACE, S3Config(deep=deep))
            children = [breed.crossed(a, b, rng) for _ in range(50)]
            times = {round(time, 9) for child in children for time in child.times}
            assert times <= {round(time, 9) for time in (*a.times, *b.times)}
            assert len({child.solvers for child in children}) > 1
        assert {child.times for child in children} == {a.times, b.times}  # deep: whole grids

    def test_frozen_noise_levels_stay(self):
        space = replace(SPACE, free_sigma=False, counts=(6,))
        searcher = made(space, predictor="ridge", first=5, stages=1, measured=3, pool=6)
        assert {candidate.schedule.sigma for candidate in searcher.ask(1)} == {space.base.sigma}


class TestFirstPopulation:
    def test_has_each_solver_on_the_default_grid_and_other_spacings(self):
        found = Breeding(SPACE, S3Config()).first(6, 30, np.random.default_rng(0))
        assert len(set(found)) == 30
        plain = [s for s in found if s.sigma == SPACE.grid(6)]
        assert {s.solver[-2] for s in plain} >= {solver for solver in SOLVERS if solver.family in ("adams", "unipc")}
        assert len({s.sigma for s in found}) > 8


def test_a_search_with_a_network_is_repeatable():
    trails = []
    for _ in range(2):
        searcher, judge = made(calls=[4, 5], first=4, stages=1, measured=3, pool=4), evaluator()
        trails.append([])
        while candidates := searcher.ask(1):
            trails[-1] += [candidate.schedule.id for candidate in candidates]
            searcher.tell([judge.evaluate(candidate, fidelity=1) for candidate in candidates])
    assert trails[0] == trails[1]
    assert len(trails[0]) == 14
    assert len(searcher.predictor_quality) == 2


def test_options_out_of_range_are_refused():
    for options, text in (
        ({"predictor": "oracle"}, r"predictor: found 'oracle', expected one of lstm, lstm-small, ridge, none"),
        ({"pool": 0}, r"pool: found 0, expected 1 or more"),
        ({"stages": -1}, r"stages: found -1, expected 0 or more"),
        ({"deep": 1.5}, r"deep: found 1.5, expected a probability"),
        ({"optimism": -1.0}, r"optimism: found -1.0, expected 0 or more"),
        ({"order_weights": [1.0]}, r"order_weights: found \(1.0,\), expected four weights"),
    ):
        with pytest.raises(UsageError, match=text):
            made(**options)


def test_published_probabilities_are_the_defaults():
    config = S3Config()
    assert (config.parents, config.crossover, config.insert, config.delete) == (15, 0.5, 0.2, 0.2)
    assert (config.order, config.order_weights) == (0.3, (0.2, 0.4, 0.3, 0.1))


# ---- what it is for


def best_fixed(calls, judge) -> float:
    """The least error of one solver for all steps, over solvers and spacings: shift, EDM and even log(SNR), swept."""
    floors = (0.02, 0.05, 0.1, 0.15)
    spacings = [("shift", {"shift": float(shift)}) for shift in np.exp(np.linspace(-1.5, 2.0, 12))]
    spacings += [("karras", {"rho": rho, "floor": floor}) for rho in (2.0, 3.0, 5.0, 7.0) for floor in floors]
    spacings += [("logsnr", {"floor": floor}) for floor in floors]
    errors = []
    for solver in SOLVERS:
        for n_steps in {calls, (calls + 1) // 2 if solver.family == "heun" else calls}:
            for name, parameters in spacings:
                try:
                    sigma = warp(name, n_steps, first=1.0, last=0.0, **parameters)
                except SpaceError:
                    continue
                schedule = SPACE.repair(Schedule(sigma=sigma, solver=(solver,) * n_steps, model=SPACE.model))
                if n_calls(schedule) == calls:
                    errors.append(error(schedule, judge))
    assert len(errors) > 300
    return min(errors)


def saved(calls, *, trials, seeds) -> list[float]:
    """Per seed the share of plain evolution's measurements after which ``ridge`` is as good as it ends."""
    shares = []
    for seed in seeds:
        plain = curve(trials, seed=seed, calls=[calls], predictor="none", stages=trials)
        guided = curve(trials, seed=seed, calls=[calls], predictor="ridge", stages=trials)
        hits = np.flatnonzero(guided <= plain[-1])
        shares.append((hits[0] + 1) / trials if len(hits) else np.inf)
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("calls", [5, 10])
def test_a_searched_schedule_beats_every_fixed_solver(calls):
    found = [curve(200, seed=seed, calls=[calls], predictor="ridge", stages=200)[-1] for seed in range(3)]
    fixed = best_fixed(calls, evaluator())
    assert np.median(found) < fixed, found


@pytest.mark.slow
@pytest.mark.parametrize("calls", [5, 10])
def test_the_predictor_saves_measurements_in_the_median_of_five_seeds(calls):
    shares = saved(calls, trials=100, seeds=range(5))
    assert np.median(shares) <= 0.7, shares
