"""Bayesian search: its parameters, its samplers, and what it is better at than chance."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from schedsearch.errors import UsageError
from schedsearch.runtime._solver import VP, program
from schedsearch.schedule import Schedule, Solver
from schedsearch.search import RandomSearch
from schedsearch.search._bayes import Bayes, BayesConfig, Param, Plans, Proposer
from schedsearch.space import SearchSpace, warp
from schedsearch.study import BlockProbe, Evaluation, Objective, Probe
from schedsearch.testing import (
    TOY_OBJECTIVES,
    GaussianMixture,
    SearcherContract,
    searched,
    toy_blocks,
    toy_evaluator,
    toy_model_ref,
    toy_sigmas,
    toy_space,
)
from schedsearch.testing._gaussian import replayed

SOLVERS = (Solver(), Solver(family="adams", order=2), Solver(family="adams", order=3))
BLOCKS = toy_blocks(2, 2)


def joint_space(n_steps=16, **axes) -> SearchSpace:
    parts = {
        "levels": (("model", "CR123"), ("block", "CRS"), ("component", "CR")), "counts": tuple(range(3, n_steps + 1)),
        "prunable": tuple(block.name for block in BLOCKS[1:]), "max_pruned": 2, "free_sigma": True, "solvers": SOLVERS,
    } | axes  # fmt: skip
    return SearchSpace(name="joint", model=toy_model_ref(), blocks=BLOCKS, sigma=toy_sigmas(n_steps), **parts)


JOINT = joint_space()


def made(space=JOINT, *, seed=0, objectives=TOY_OBJECTIVES, probe=None, **options) -> Bayes:
    return Bayes(space, seed=seed, objectives=objectives, config=BayesConfig(**options), probe=probe)


def trail(searcher, evaluator, asks):
    ids = []
    for _ in range(asks):
        candidates = searcher.ask(1)
        ids += [candidate.schedule.id for candidate in candidates]
        searcher.tell([evaluator.evaluate(candidate, fidelity=1) for candidate in candidates])
    return ids


class TestContractOfTpe(SearcherContract):
    trials = 30
    contest_trials = 70
    contest_seeds = (0, 1)

    def make(self, space, *, seed):
        return made(space, seed=seed, startup=15, ranges=1)


class TestContractOfNsga2(SearcherContract):
    """As a yardstick; it needs more trials than these to beat chance."""

    beats_random = False
    trials = 30

    def space(self):
        return JOINT

    def make(self, space, *, seed):
        return made(space, seed=seed, sampler="nsga2", startup=10)


class TestGaussianProcess:
    def test_is_deterministic_and_survives_failures(self):
        space = toy_space((("model", "CR"),))
        evaluator = toy_evaluator(space, fails=lambda candidate: candidate.ask % 4 == 3)
        first, again, other = (trail(made(space, seed=s, sampler="gp", startup=5), evaluator, 7) for s in (0, 0, 1))
        assert first == again
        assert first != other
        assert len(set(first)) == 7

    def test_learns(self):
        """The minimum of a bowl, in a tenth of the trials that chance would need."""
        losses = bowl(Proposer(BOWL, n_losses=1, sampler="gp", seed=0, startup=5), trials=15)
        assert min(losses) < 0.01


BOWL = (Param(name="x", low=-1.0, high=1.0), Param(name="y", low=-1.0, high=1.0))


def bowl(proposer, trials):
    losses = []
    for _ in range(trials):
        trial, values = proposer.ask()
        losses.append((values["x"] - 0.3) ** 2 + (values["y"] + 0.4) ** 2)
        proposer.tell(trial, losses[-1:])
    return losses


class TestParameters:
    @staticmethod
    def names(**axes):
        frozen = {"levels": (), "counts": (16,), "max_pruned": 0, "free_sigma": False, "solvers": SOLVERS[:1]}
        return {param.name.rstrip("0123456789") for param in Plans(joint_space(**frozen | axes)).params}

    def test_are_those_of_open_axes_only(self):
        assert self.names() == set()
        assert self.names(counts=(4, 8, 16)) == {"steps"}
        assert self.names(free_sigma=True) == {"spacing", "shift", "curvature", "sigma_density"}
        assert self.names(solvers=SOLVERS[:2]) == {"solver", "order", "tail", "tail_order"}
        assert self.names(solvers=SOLVERS[1:]) == {"order", "tail", "tail_order"}
        assert self.names(levels=(("model", "CR"),)) == {"model_share", "model_op", "model_density"}
        assert "blocks_part" not in self.names(levels=(("block", "CR"),))
        assert {"blocks_part", "range1_part"} <= self.names(levels=(("component", "CR"),))
        assert self.names(levels=(("block", "CS"),), max_pruned=2) >= {"pruned", "pruned_from"}

    def test_the_default_values_are_the_plain_run(self):
        for space in (JOINT, joint_space(free_sigma=False), toy_space((("component", "CR"),))):
            plans = Plans(space)
            found = plans.schedule_of(plans.default)
            assert replace(found, sigma=space.base.sigma) == space.base
            assert found.sigma == pytest.approx(space.base.sigma, abs=1e-3)
            assert made(space).ask(1)[0].schedule.id == found.id

    def test_those_of_what_does_not_exist_are_not_asked_for(self):
        proposer = Proposer(Plans(JOINT).params, n_losses=2, sampler="tpe", seed=0, startup=10)
        for _ in range(30):
            _, values = proposer.ask()
            assert ("shift" in values) == (values["spacing"] == "warp")
            assert ("sigma_density0" in values) == (values["spacing"] == "density")
            assert ("range1_first" in values) == (values["range1_op"] != "none")
            assert ("tail_order" in values) == (values.get("tail", 0) > 0)
            assert ("pruned_from" in values) == (values["pruned"] > 0)

    @pytest.mark.parametrize("n_steps", [1, 3, 16])
    def test_any_values_stand_for_a_legal_schedule(self, n_steps):
        space = joint_space(n_steps, counts=tuple(range(1, n_steps + 1)))
        plans, rng = Plans(space), np.random.default_rng(0)
        for _ in range(150):
            values = {}
            for param in plans.params:
                if param.exists(values):
                    values[param.name] = param.drawn(rng)
            assert space.check(plans.schedule_of(values)) is None


class TestMeaning:
    plans = Plans(JOINT)

    def of(self, **values) -> Schedule:
        density = {f"{name}_density{i}": 0.0 for name in ("model", "sigma") for i in range(4)}
        return self.plans.schedule_of({**density, **values})

    def test_steps_are_the_counts_in_order(self):
        assert [self.of(steps=i).n_steps for i in (0, 4, 13)] == [3, 7, 16]

    def test_even_density_is_the_default_spacing(self):
        assert self.of(steps=5, spacing="density").sigma == pytest.approx(JOINT.grid(8), abs=2e-3)

    def test_shift_and_curvature_bend_the_default_spacing(self):
        grid = JOINT.grid(8)
        assert all(np.array(self.of(steps=5, shift=3.0).sigma[1:-1]) < grid[1:-1])  # more steps at low noise
        assert all(np.array(self.of(steps=5, curvature=2.0).sigma[1:-1]) > grid[1:-1])

    def test_density_crowds_steps_where_it_is_high(self):
        late = self.of(steps=5, spacing="density", sigma_density3=2.0, sigma_density2=2.0)
        assert late.sigma[4] < JOINT.grid(8)[4]

    def test_orders_of_the_body_and_of_the_tail(self):
        family = next(param for param in self.plans.params if param.name == "solver").choices[1]
        schedule = self.of(steps=5, solver=family, order=3, tail=2, tail_order=2)
        assert [solver.order for solver in schedule.solver] == [1, 2, 3, 3, 3, 3, 2, 2]

    def test_the_model_row_computes_a_share_of_the_steps(self):
        assert self.of(steps=5, model_share=0.5, model_op="R").row("model") == "CRCRCRCR"
        assert self.of(steps=5, model_share=0.0, model_op="R").row("model") == "CRRRRRRR"
        crowded = self.of(steps=5, model_share=0.5, model_op="R", model_density0=2.0, model_density1=2.0)
        assert crowded.row("model") == "CCCCRRRR"

    def test_blocks_and_ranges(self):
        schedule = self.of(
            steps=5, blocks_op="R", blocks_share=0.5, blocks_part="blocks", range1_op="S", range1_part="blocks",
            range1_first=1, range1_length=2, range1_share=0.0, range1_begin=0.5, range1_end=0.75,
        )  # fmt: skip
        first, second, third, fourth = (schedule.row(block.name) for block in BLOCKS)
        assert (first, fourth) == ("CRCRCRCR", "CRCRCRCR")
        assert (second, third) == ("CRCRSSCR", "CRCRSSCR")

    def test_removed_blocks_are_those_that_do_least(self):
        sizes = (0.5, 0.4, 0.1, 0.3)
        probe = Probe(
            sigma=toy_sigmas(2), gram=np.eye(3), l1=np.zeros((2, 2)),
            blocks=tuple(
                BlockProbe(name=block.name, change=np.zeros((2, 3)), size=size)
                for block, size in zip(BLOCKS, sizes, strict=True)
            ),
        )  # fmt: skip
        values = {"steps": 5, "pruned": 2, "pruned_from": 0}
        assert set(Plans(JOINT, probe=probe).schedule_of(values).pruned) == {BLOCKS[2].name, BLOCKS[3].name}
        assert set(self.plans.schedule_of(values).pruned) == {BLOCKS[1].name, BLOCKS[2].name}


class TestSearch:
    def test_beats_chance_in_the_joint_space(self):
        volumes = {}
        for name, make in (
            ("bayes", lambda s, seed: made(s, seed=seed, startup=15)),
            ("random", lambda s, seed: RandomSearch(s, seed=seed, objectives=())),
        ):
            studies = [searched(make(JOINT, seed=seed), JOINT, trials=60)[0] for seed in (0, 1)]
            volumes[name] = np.mean([study.frontier().hypervolume((0.5, 16.0)) for study in studies])
        assert volumes["bayes"] > volumes["random"]

    def test_does_not_stall_where_many_values_mean_one_schedule(self):
        """All 2^5 schedules of a space are found, and then it is finished."""
        space = toy_space((("model", "CR"),), n_steps=6)
        study, ended = searched(made(space, startup=5, patience=400), space, trials=100)
        assert ended == "finished"
        assert len(study) == space.cardinality() == 32

    def test_hopeless_ones_count_as_the_worst_and_failures_not_at_all(self):
        searcher, evaluator, kinds = made(startup=5), toy_evaluator(JOINT), ("ok", "pruned", "failed")
        for i in range(12):
            (candidate,) = searcher.ask(1)
            evaluation = evaluator.evaluate(candidate, fidelity=1)
            status = kinds[i % 3]
            searcher.tell([evaluation if status == "ok" else replace(evaluation, status=status, values=(), reason="")])
        trials = searcher._proposer._study.get_trials(deepcopy=False)
        states = [trial.state.name for trial in trials if trial.state.is_finished()]
        assert states.count("COMPLETE") == 8
        worst = np.max([trial.values for trial in trials if trial.state.name == "COMPLETE"], axis=0)
        assert list(searcher._losses.values()).count(tuple(worst)) >= 1

    def test_infinite_values_are_bounded(self):
        objectives = (Objective(name="macs", unit="MAC", better="min"), Objective(name="psnr", unit="dB", better="max"))
        searcher = made(objectives=objectives)
        for values in ((1e12, np.inf), (5e11, 30.0), (np.inf, -np.inf)):
            (candidate,) = searcher.ask(1)
            searcher.tell([Evaluation(candidate=candidate, status="ok", values=values)])
        assert list(searcher._losses.values()) == [(1e12, -100.0), (5e11, -30.0), (1e12, 0.0)]

    def test_asks_fast(self):
        """With 150 trials known, in processor time: machines are shared."""
        searcher, evaluator = made(startup=140), toy_evaluator(JOINT)
        trail(searcher, evaluator, 150)
        spent = []
        for _ in range(8):
            started = time.process_time()
            candidates = searcher.ask(1)
            spent.append(time.process_time() - started)
            searcher.tell([evaluator.evaluate(candidate, fidelity=1) for candidate in candidates])
        assert np.median(spent) < 0.2  # a quarter of that on the machine this was written on

    def test_several_at_once_are_different(self):
        ids = [candidate.schedule.id for candidate in made().ask(20)]
        assert len(set(ids)) == 20


def test_three_numbers_of_edm_tuned_are_no_worse_than_the_defaults():
    """Karras 2022 on a closed-form mixture: Heun with 5 steps (9 evaluations), its schedule of three numbers."""
    mixture = GaussianMixture.random(3)
    noise = np.random.default_rng(0).normal(size=(64, 4))
    truth = mixture.truth(VP.std(80.0) * noise, 80.0, 0.0, VP, n_steps=2000)
    params = (
        Param(name="sigma_min", low=0.001, high=0.5, is_log=True),
        Param(name="sigma_max", low=3.0, high=80.0, is_log=True),
        Param(name="rho", low=1.0, high=15.0),
    )

    def error(sigma_min, sigma_max, rho):
        plan = Schedule(
            sigma=warp("karras", 5, first=sigma_max, last=0.0, floor=sigma_min, kind="vp", rho=rho),
            solver=(Solver(family="heun", order=2, prediction="noise"),) * 5,
            model=toy_model_ref(),
        )
        assert sum(call.computes for call in program(plan, levels=VP, output="noise")) == 9
        out = replayed(plan, mixture.network("noise", VP), VP.std(sigma_max) * noise, levels=VP, output="noise")
        return float(np.linalg.norm(out - truth) / np.linalg.norm(truth))

    default = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    proposer = Proposer(params, n_losses=1, sampler="tpe", seed=0, startup=15)
    losses = []
    for i in range(80):
        trial, values = proposer.ask(default if i == 0 else None)
        losses.append(error(**values))
        proposer.tell(trial, losses[-1:])
    assert losses[0] == error(**default)
    assert min(losses) < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "cmaes"}, "sampler: found 'cmaes', expected one of tpe, gp, nsga2"),
        ({"startup": 0}, "startup: found 0, expected 1 or more"),
        ({"knots": 1}, "knots: found 1, expected 2 or more"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        made(**options)
