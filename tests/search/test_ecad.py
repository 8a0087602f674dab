"""ECAD as published: operators, rates, first population."""

from __future__ import annotations

import numpy as np
import pytest

from schedsearch.search import Ecad, EcadConfig, make_searcher
from schedsearch.space import SearchSpace
from schedsearch.testing import (
    TOY_OBJECTIVES,
    searched,
    toy_blocks,
    toy_evaluator,
    toy_model_ref,
    toy_sigmas,
    toy_space,
)

FLUX = SearchSpace(
    name="flux", model=toy_model_ref(), blocks=toy_blocks(19, 38), sigma=toy_sigmas(20),
    levels=(("model", "CR"), ("component", "CR")), counts=(20,),
)  # fmt: skip
TOY = toy_space((("component", "CR"),))


def made(space=FLUX, **options) -> Ecad:
    return make_searcher("ecad", space, seed=0, objectives=TOY_OBJECTIVES, **options)


class TestFirstPopulation:
    population = made().first_population(np.random.default_rng(0))

    def test_has_the_published_size_and_genome(self):
        assert self.population.shape == (24, 3420)  # 20 steps x (19 x 3 + 38 x 3) components
        assert len(np.unique(self.population, axis=0)) == 24

    def test_begins_with_the_plain_run_and_fora(self):
        # full steps of 20 at N = 2..7, as the published costs imply
        counts = self.population[:7].sum(axis=1) / 171
        assert counts.tolist() == [20, 10, 7, 5, 4, 4, 3]

    def test_rows_are_whole_steps_but_for_one(self):
        per_step = self.population.reshape(24, 20, 171).sum(axis=2)
        partial = ((per_step > 0) & (per_step < 171)).sum(axis=1)
        assert partial.max() <= 1
        assert per_step[:, 0].min() == 171

    def test_recompute_fractions_span_the_published_range(self):
        fractions = self.population.mean(axis=1)
        assert fractions.min() == pytest.approx(0.15)
        assert fractions.max() == 1.0

    def test_small_genomes_give_smaller_populations(self):
        space = toy_space((("component", "CR"),), n_steps=1, n_double=0, n_single=1)
        assert len(made(space).first_population(np.random.default_rng(0))) == 1


class TestOperators:
    """pymoo's meaning of the published settings, measured."""

    def test_mutation_takes_one_child_in_twenty_and_flips_one_bit_on_average(self):
        from pymoo.core.population import Population

        algorithm = made()._algorithm
        rng = np.random.default_rng(0)
        before = rng.random((4000, 3420)) < 0.5
        after = algorithm.mating.mutation(
            algorithm.problem, Population.new(X=before.copy()), random_state=np.random.default_rng(1)
        ).get("X")
        flips = (before != after).sum(axis=1)
        # handed to the mutation: 5 %; of those, 1 - (1 - 1/n)^n = 63 % change at all
        assert pytest.approx((flips > 0).sum(), rel=0.3) == 4000 * 0.05 * 0.632
        assert flips.sum() / 4000 == pytest.approx(0.05, rel=0.3)

    def test_crossover_joins_parents_at_four_cuts_nine_times_in_ten(self):
        from pymoo.core.population import Population

        algorithm = made()._algorithm
        parents = Population.new(X=np.array([np.zeros(3420, dtype=bool), np.ones(3420, dtype=bool)] * 500))
        children = algorithm.mating.crossover(
            algorithm.problem, parents, np.arange(1000).reshape(-1, 2), random_state=np.random.default_rng(0)
        ).get("X")
        cuts = (children[:, 1:] != children[:, :-1]).sum(axis=1)
        assert set(cuts.tolist()) == {0, 4}
        assert (cuts == 4).mean() == pytest.approx(0.9, abs=0.04)

    def test_flattening_is_step_then_double_then_single_then_component(self):
        searcher = made()
        genome = np.ones(3420, dtype=bool)
        genome[171 * 2 + 1] = False  # step 2, first double block, second component
        genome[171 * 3 + 57] = False  # step 3, first single block, first component
        genome[171 * 4 + 170] = False  # step 4, the very last
        assert dict(searcher.schedule_of(genome).ops) == {
            "transformer_blocks.0.ff": "CCR" + "C" * 17,
            "single_transformer_blocks.0.attn": "CCCR" + "C" * 16,
            "single_transformer_blocks.37.proj_out": "CCCCR" + "C" * 15,
        }

    def test_components_without_a_cache_recompute(self):
        searcher = made(TOY)
        schedule = searcher.schedule_of(np.zeros(120, dtype=bool))
        assert {row for _, row in schedule.ops} == {"C" + "R" * 9}
        assert len(schedule.ops) == 12


class TestRun:
    def test_asks_generations_of_the_population_and_ends(self):
        searcher, evaluator, sizes = made(TOY, population=8, generations=3), toy_evaluator(TOY), []
        while candidates := searcher.ask(1):
            sizes.append(len(candidates))
            searcher.tell([evaluator.evaluate(candidate, fidelity=1) for candidate in candidates])
        assert len(sizes) == 3
        assert max(sizes) <= 8

    def test_the_plain_run_breaks_the_constraint_and_leaves(self):
        searcher, evaluator = made(TOY, population=8), toy_evaluator(TOY)
        for _ in range(4):
            candidates = searcher.ask(1)
            searcher.tell([evaluator.evaluate(candidate, fidelity=1) for candidate in candidates])
        assert not searcher._algorithm.pop.get("X").all(axis=1).any()

    def test_infinite_values_do_not_spoil_the_crowding(self):
        searcher, evaluator = made(TOY, population=8), toy_evaluator(TOY)
        for _ in range(3):
            told = [evaluator.evaluate(candidate, fidelity=1) for candidate in searcher.ask(1)]
            from dataclasses import replace

            searcher.tell(
                [replace(e, values=(-np.inf if e.values[0] == 0.0 else e.values[0], e.values[1])) for e in told]
            )
        assert np.isfinite(searcher._algorithm.pop.get("F")).all()

    def test_comes_near_the_known_front(self):
        """The synthetic error is additive over components, so the front is a sum of small ones, known exactly."""
        known = known_front_volume(TOY, reference=(0.5, 10.0))
        study, _ = searched(made(TOY), TOY, trials=360)
        volume = study.frontier().hypervolume((0.5, 10.0))
        assert 0.75 * known < volume <= known + 1e-9


def known_front_volume(space, *, reference):
    """Volume of the exact front: fronts of single components (all 2^9 rows each), summed set by set."""
    import moocore

    evaluator = toy_evaluator(space)
    spans = -np.diff(space.sigma)
    rows = ((np.arange(512)[:, None] >> np.arange(9)) & 1).astype(bool)  # reuse at steps 1..9
    error, calls = np.zeros(512), np.full(512, 10.0)
    for i, row in enumerate(rows):
        stale = 0.0
        for step in range(1, 10):
            stale = stale + spans[step] if row[step - 1] else 0.0
            error[i] += spans[step] * stale
        calls[i] -= row.sum()
    front = np.array([[0.0, 0.1 * 10]])
    for name, weight in evaluator._weight.items():
        part = np.column_stack([error * weight, 0.9 * evaluator._share[name] * calls])
        part = moocore.filter_dominated(part)
        front = moocore.filter_dominated((front[:, None, :] + part[None, :, :]).reshape(-1, 2))
        front = thinned(front)
    return float(moocore.hypervolume(front, ref=np.array(reference))) * 1.002  # what thinning may have taken


def thinned(front, cells=3000):
    """At most about ``cells`` points: the cheapest in every narrow band of error."""
    order = np.argsort(front[:, 0])
    front = front[order]
    band = np.floor(front[:, 0] / (0.5 / cells)).astype(int)
    keep = np.append(band[1:] != band[:-1], True)
    return front[keep]


def test_config_is_the_published_one():
    config = EcadConfig()
    assert (config.population, config.generations, config.crossover_points) == (24, 250, 4)
    assert (config.crossover, config.mutation) == (0.9, 0.05)
