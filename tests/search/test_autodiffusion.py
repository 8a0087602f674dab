"""AutoDiffusion as published: epochs, stages, budgets; and what four placed steps gain on closed-form models."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from schedsearch.errors import UsageError
from schedsearch.runtime._solver import FLOW, VP, Levels
from schedsearch.schedule import Solver
from schedsearch.search import Stop, run
from schedsearch.search._autodiffusion import AutoDiffusion, AutoDiffusionConfig
from schedsearch.space import SearchSpace
from schedsearch.study import Evaluation, Objective, Study
from schedsearch.testing import (
    TOY_OBJECTIVES,
    GaussianMixture,
    SearcherContract,
    searched,
    toy_blocks,
    toy_evaluator,
    toy_model_ref,
    toy_sigmas,
)
from schedsearch.testing._gaussian import replayed

SMALL = {"population": 10, "parents": 4, "mutations": 6, "crossovers": 3}
COST, ERROR = TOY_OBJECTIVES[1], TOY_OBJECTIVES[0]


def space_of(levels=(("block", "CRS"),), *, n_steps=12, counts=range(3, 13), n_double=10, **axes) -> SearchSpace:
    return SearchSpace(
        name="toy", model=toy_model_ref(), blocks=toy_blocks(n_double, n_double), sigma=toy_sigmas(n_steps),
        levels=levels, counts=tuple(counts), **axes,
    )  # fmt: skip


FREE = space_of(free_sigma=True)


def made(space=FREE, *, seed=0, objectives=TOY_OBJECTIVES, **options) -> AutoDiffusion:
    return AutoDiffusion(space, seed=seed, objectives=objectives, config=AutoDiffusionConfig(**options))


def epochs(searcher, evaluate):
    """Candidates of each ask, with every one told what ``evaluate`` makes of its schedule."""
    asked = []
    while candidates := searcher.ask(1):
        asked.append(candidates)
        searcher.tell(
            [Evaluation(candidate=c, status="ok", values=(evaluate(c.schedule), 1.0), fidelity=1) for c in candidates]
        )
    return asked


def kept(schedule, space=FREE) -> int:
    """Blocks computed in the whole run."""
    skips = sum(row.count("S") for _, row in schedule.ops)
    return schedule.row("model").count("C") * len(space.blocks) - skips


def arbitrary(schedule) -> float:
    """A number that has nothing to do with quality, but is the same each time."""
    return int(schedule.id[7:15], 16) / 16**8


class TestContractOnASubsetOfTheGrid(SearcherContract):
    """Noise levels are frozen: timesteps are steps of the default grid."""

    levels = (("model", "CR"),)
    n_steps = 20
    trials = 40
    contest_trials = 160
    reference_point = (0.3, 7.5)

    def make(self, space, *, seed):
        steps = tuple(k for k in (5, 4, 3, 6, 2, 7) if k <= space.n_steps) or (1,)
        return made(space, seed=seed, steps=steps, reach=3, **SMALL)


class TestContractWithFreeLevelsAndBlocks(SearcherContract):
    """Both stages; it is about quality at a fixed budget, so no contest for volume."""

    beats_random = False
    trials = 40

    def space(self):
        return FREE

    def make(self, space, *, seed):
        return made(space, seed=seed, steps=(min(4, space.n_steps),), max_skip=0.2, **SMALL)


class TestPublishedSettings:
    def test_defaults(self):
        config = AutoDiffusionConfig()
        assert (config.population, config.parents, config.mutations, config.crossovers) == (50, 10, 25, 15)
        assert (config.mutation, config.epochs, config.joint_epochs, config.max_skip) == (0.25, 10, 15, 0.1)

    def test_the_first_epoch_is_uniform_then_random_then_lightly_mutated(self):
        first = [c.schedule for c in made(steps=(6,)).ask(1)]
        uniform = FREE.grid(6)
        assert len(first) == 50
        assert first[0].sigma == pytest.approx(uniform, abs=2e-3)
        shared = [len(set(schedule.sigma[1:-1]) & set(first[0].sigma)) for schedule in first]
        assert np.mean(shared[1:27]) < 0.5  # 26 random plans
        assert np.mean(shared[27:]) > 3.5  # a tenth of five timesteps changes

    def test_later_epochs_are_mutations_crossovers_and_fresh_ones(self):
        asked = epochs(made(steps=(6,), max_skip=0.0), arbitrary)
        assert len(asked) == 10
        for candidates in asked[1:]:
            parents = [len(c.parents) for c in candidates]
            assert parents[:25] == [1] * 25
            assert set(parents[25:40]) <= {1, 2}  # both parents may be the same
            assert parents[40:] == [0] * 10

    def test_parents_are_the_ten_best_ever(self):
        seen: dict[str, float] = {}
        for i, candidates in enumerate(epochs(made(steps=(5,), max_skip=0.0), arbitrary)):
            best = set(sorted(seen, key=seen.get)[:10])
            assert not i or {parent for c in candidates for parent in c.parents} <= best
            seen |= {c.schedule.id: arbitrary(c.schedule) for c in candidates}

    def test_budgets_advance_in_turn(self):
        asked = epochs(made(steps=(4, 6), max_skip=0.0, epochs=3, **SMALL), arbitrary)
        assert [candidates[0].schedule.n_steps for candidates in asked] == [4, 6, 4, 6, 4, 6]

    def test_default_budgets_are_parts_of_the_default_run(self):
        asked = epochs(made(max_skip=0.0, epochs=1, **SMALL), arbitrary)
        assert [candidates[0].schedule.n_steps for candidates in asked] == [3, 4, 6]


class TestStages:
    def stages(self, evaluate, **options):
        return epochs(made(steps=(6,), max_skip=0.2, **options), evaluate)

    def test_blocks_are_skipped_after_the_best_is_unchanged(self):
        """The uniform plan is the best from the start, so stage 2 begins with the third epoch."""
        uniform = made(steps=(6,)).ask(1)[0].schedule.id
        asked = self.stages(lambda schedule: 0.0 if schedule.id == uniform else 1.0)
        skips = [any(c.schedule.ops for c in candidates) for candidates in asked]
        assert skips == [False, False] + [True] * 13

    def test_blocks_are_skipped_at_the_latest_after_epoch_5(self):
        count = iter(range(10_000, 0, -1))  # every plan is better than those before
        asked = self.stages(lambda _: float(next(count)))
        assert [any(c.schedule.ops for c in candidates) for candidates in asked].index(True) == 6

    def test_the_most_skipped_grows_by_a_fifth_per_epoch(self):
        uniform = made(steps=(6,)).ask(1)[0].schedule.id
        asked = epochs(
            made(steps=(6,), max_skip=0.5), lambda schedule: 0.0 if schedule.id == uniform else arbitrary(schedule) + 1
        )
        most = [max(max(_skipped(c.schedule)) for c in candidates) for candidates in asked]
        assert most[:7] == [0, 0, 2, 4, 6, 8, 10]  # of 20 blocks
        assert max(most) == 10

    def test_the_budget_is_kept_and_used(self):
        asked = self.stages(arbitrary, min_skip=0.1)
        schedules = [c.schedule for candidates in asked for c in candidates]
        assert max(kept(schedule) for schedule in schedules) == 6 * 20
        assert min(kept(schedule) for schedule in schedules) >= 6 * 20 - 19
        assert {schedule.n_steps for schedule in schedules} >= {6, 7}
        assert all(schedule.n_steps == 6 for schedule in schedules if not schedule.ops)

    def test_mutation_changes_which_blocks_and_how_many(self):
        """The release assigns nothing and never changes the number."""
        searcher = made(steps=(6,), max_skip=0.4, mutation=0.5)
        evolution = searcher._runs[0]
        evolution._upper = 0.4
        before = frozenset({0, 1, 2})
        after = [evolution._mutated_blocks(before, 0.5) for _ in range(200)]
        assert {len(blocks) for blocks in after} > {1, 2, 3, 4}
        assert any(len(blocks) == 3 and len(blocks & before) == 2 for blocks in after)

    def test_children_keep_distinct_timesteps_in_order(self):
        for candidates in self.stages(arbitrary):
            for candidate in candidates:
                assert candidate.schedule.n_steps >= 6
                assert FREE.check(candidate.schedule) is None

    def test_without_blocks_that_skip_there_is_one_stage(self):
        assert len(epochs(made(space_of((("block", "CR"),), free_sigma=True), steps=(6,)), arbitrary)) == 10


def _skipped(schedule):
    """Blocks skipped at each step."""
    return [sum(row[step] == "S" for _, row in schedule.ops) for step in range(schedule.n_steps)]


class TestNarrowedSpaces:
    def test_timesteps_are_steps_of_the_default_grid(self):
        space = space_of((("model", "CR"), ("block", "CS")))
        for candidates in epochs(made(space, steps=(5,), max_skip=0.0, epochs=4), arbitrary):
            for candidate in candidates:
                assert candidate.schedule.sigma == space.sigma
                assert candidate.schedule.row("model").count("C") == 5

    def test_skipping_plans_compute_at_more_steps_of_the_grid(self):
        space = space_of((("model", "CR"), ("block", "CS")))
        schedules = [c.schedule for asked in epochs(made(space, steps=(6,), max_skip=0.5), arbitrary) for c in asked]
        assert max(schedule.row("model").count("C") for schedule in schedules) > 6
        assert max(kept(schedule, space) for schedule in schedules) <= 6 * 20

    def test_a_subset_under_euler_is_the_schedule_of_those_steps(self):
        space, mixture = space_of((("model", "CR"),)), GaussianMixture.random(1)
        noise = np.random.default_rng(0).normal(size=(8, 4))
        schedule = made(space, steps=(5,)).ask(1)[7].schedule
        sigma = [*(s for s, symbol in zip(space.sigma, schedule.row("model"), strict=False) if symbol == "C"), 0.0]
        x = noise
        for start, end in pairwise(sigma):
            x = x + (end - start) * mixture.velocity(x, start)
        assert replayed(schedule, mixture.velocity, noise) == pytest.approx(x, abs=1e-12)

    def test_without_either_only_blocks_are_searched(self):
        asked = epochs(made(space_of((("block", "CS"),)), steps=(6,), max_skip=0.3, **SMALL), arbitrary)
        schedules = [c.schedule for candidates in asked for c in candidates]
        assert all(schedule.sigma == space_of().grid(schedule.n_steps) for schedule in schedules)
        assert {schedule.n_steps for schedule in schedules} > {6}

    def test_the_solver_is_chosen_by_family_in_its_highest_order(self):
        solvers = (Solver(), Solver(family="adams", order=2), Solver(family="adams", order=3))
        space = space_of(free_sigma=True, solvers=solvers)
        orders = [solver.order for solver in made(space, steps=(5,), solver="adams").ask(1)[0].schedule.solver]
        assert orders == [1, 2, 3, 3, 3]
        assert set(made(space, steps=(5,)).ask(1)[0].schedule.solver) == {Solver()}


class TestObjective:
    PSNR = Objective(name="psnr", unit="dB", better="max")
    MACS = Objective(name="macs", unit="MAC", better="min")

    @pytest.mark.parametrize("objectives", [(PSNR,), (MACS, PSNR), (PSNR, MACS)])
    def test_is_the_quality_wherever_it_stands(self, objectives):
        searcher = made(steps=(6,), max_skip=0.0, objectives=objectives, **SMALL)
        candidates = searcher.ask(1)
        best = candidates[3]
        values = {self.PSNR: lambda c: 40.0 if c is best else 20.0, self.MACS: lambda c: float(c.ask)}
        searcher.tell(
            [Evaluation(candidate=c, status="ok", values=tuple(values[o](c) for o in objectives)) for c in candidates]
        )
        assert searcher._runs[0]._archive[0] == next(
            plan for plan, schedule in searcher._runs[0]._schedules.items() if schedule.id == best.schedule.id
        )

    def test_failures_never_beat_a_measurement(self):
        searcher = made(steps=(6,), max_skip=0.0, **SMALL)
        candidates = searcher.ask(1)
        searcher.tell(
            [Evaluation(candidate=c, status="ok" if c is candidates[-1] else "pruned", reason="", values=(9.0, 9.0))
             for c in candidates]
        )  # fmt: skip
        evolution = searcher._runs[0]
        assert evolution._schedule_of(evolution._archive[0]).id == candidates[-1].schedule.id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": (40,)}, r"steps\[0\]: found 40, expected one of 3, 4"),
        ({"objective": "fid"}, "objective: found 'fid', expected one of latent_error, cost"),
        ({"solver": "unipc"}, "solver: found 'unipc', expected one of euler"),
        ({"population": 30}, r"mutations \+ crossovers: found 25 \+ 15, expected at most population, 30"),
        ({"min_skip": 0.5}, "min_skip, max_skip: found 0.5 to 0.1"),
        ({"mutation": 2.0}, "mutation: found 2.0, expected a probability"),
        ({"epochs": 0}, "epochs: found 0, expected 1 or more"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        made(**options)


# ---- four steps


@dataclass(kw_only=True)
class ClosedFormEvaluator:
    """Euler (flow) or DDIM (variance-preserving) on a mixture; exact moments of the data for Frechet distances."""

    mixture: GaussianMixture
    reference: tuple[float, ...]
    levels: Levels
    measure: str
    objectives: tuple[Objective, ...] = TOY_OBJECTIVES[:1]
    noise: np.ndarray = field(default_factory=lambda: np.random.default_rng(0).normal(size=(512, 4)))

    def __post_init__(self):
        m = self.mixture
        self.mean = m.weights @ m.means
        spread = m.means - self.mean
        self.cov = m.scale**2 * np.eye(m.means.shape[1]) + spread.T @ (m.weights[:, None] * spread)
        values, axes = np.linalg.eigh(self.cov)
        self.root = (axes * np.sqrt(values)) @ axes.T
        self.truth = self.samples(self.reference)

    def samples(self, sigma):
        x = self.noise * self.levels.std(sigma[0])
        for start, end in pairwise(sigma):
            if self.levels is FLOW:
                x = x + (end - start) * self.mixture.velocity(x, start)
            else:  # x / alpha moves along the predicted noise
                eps = self.mixture.noise(x, start, VP)
                x = VP.alpha(end) * (x / VP.alpha(start) + (end - start) * eps)
        return x

    def frechet(self, x) -> float:
        cov = np.cov(x.T)
        cross = np.sqrt(np.linalg.eigvalsh(self.root @ cov @ self.root).clip(0)).sum()
        return float(((x.mean(0) - self.mean) ** 2).sum() + np.trace(cov) + np.trace(self.cov) - 2 * cross)

    def error(self, x) -> float:
        return float(np.linalg.norm(x - self.truth) / np.linalg.norm(self.truth))

    def evaluate(self, candidate, *, fidelity):
        x = self.samples(candidate.schedule.sigma)
        return Evaluation(candidate=candidate, status="ok", values=(getattr(self, self.measure)(x),), fidelity=fidelity)


def even_timesteps(n_steps) -> tuple[float, ...]:
    """Noise over signal of Stable Diffusion's training schedule at even timesteps, from 999 down, then 0."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept_signal = np.cumprod(1.0 - betas)
    ratio = np.sqrt((1.0 - kept_signal) / kept_signal)
    levels = np.interp(np.linspace(999, 0, n_steps + 1), np.arange(1000), ratio)[:-1]
    return (*levels.tolist(), 0.0)


class TestFourSteps:
    """The paper's headline at closed form: four steps placed, nothing trained, against the model's own four.

    How much there is to gain is a matter of the model: on some mixtures even the best three levels save less than half.
    """

    def best(self, mixture, measure, *, levels, grid):
        """The measure at the uniform schedule, and the best found."""
        space = SearchSpace(
            name="four", model=toy_model_ref(), blocks=(), sigma=grid(40), levels=(), counts=(4, 40), free_sigma=True
        )
        evaluator = ClosedFormEvaluator(mixture=mixture, reference=grid(500), levels=levels, measure=measure)
        study = Study.open("memory:", "four", objectives=evaluator.objectives, settings={}, resume=False)
        searcher = made(space, objectives=evaluator.objectives, steps=(4,))
        assert run(study, searcher, evaluator, space=space, stop=Stop(), fidelity=1) == "finished"
        assert len(study) <= 500
        assert all(e.candidate.schedule.n_steps == 4 for e in study.evaluations())
        floor = getattr(evaluator, measure)(evaluator.truth)  # moments of finitely many samples are not exact
        values = [e.values[0] - floor for e in study.evaluations()]
        assert values[0] == pytest.approx(getattr(evaluator, measure)(evaluator.samples(grid(4))) - floor, rel=0.01)
        return values[0], min(values)

    @pytest.mark.parametrize(("levels", "grid"), [(FLOW, toy_sigmas), (VP, even_timesteps)], ids=["flow", "vp"])
    @pytest.mark.parametrize("measure", ["frechet", "error"])
    def test_halve_distance_and_error_on_one_gaussian(self, levels, grid, measure):
        mixture = GaussianMixture.random(5, n_components=1)
        uniform, found = self.best(mixture, measure, levels=levels, grid=grid)
        assert found <= 0.5 * uniform

    def test_halve_the_distance_on_a_mixture(self):
        uniform, found = self.best(GaussianMixture.random(1000), "frechet", levels=FLOW, grid=toy_sigmas)
        assert found <= 0.5 * uniform

    def test_come_near_the_best_levels_there_are(self):
        from scipy.optimize import minimize

        mixture = GaussianMixture.random(1000)
        _, found = self.best(mixture, "error", levels=VP, grid=even_timesteps)
        evaluator = ClosedFormEvaluator(mixture=mixture, reference=even_timesteps(500), levels=VP, measure="error")
        first, *inner, last = even_timesteps(4)
        known = minimize(
            lambda logs: evaluator.error(evaluator.samples((first, *np.exp(logs), last))), np.log(inner),
            method="Nelder-Mead", options={"maxiter": 300},
        )  # fmt: skip
        assert found <= 1.03 * known.fun


def test_both_stages_improve_on_the_uniform_schedule_of_the_toy_model():
    space = space_of((("block", "CS"),), free_sigma=True)
    study, ended = searched(made(space, steps=(5,), max_skip=0.2), space, trials=800)
    assert ended == "finished"
    within = [e for e in study.evaluations() if e.status == "ok"]
    assert min(e.values[0] for e in within) < 0.75 * within[0].values[0]
    assert max(kept(e.candidate.schedule, space) for e in within) <= 5 * len(space.blocks)
    assert toy_evaluator(space).objectives[0] == ERROR
