"""Fitted steps: the teacher's own solver comes back, dependent columns stay tame, and fitting pays on fresh prompts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from schedsearch.evaluate._fit import adams_weights, solved
from schedsearch.evaluate._reference import Reference
from schedsearch.evaluate._rollout import Runner
from schedsearch.evaluate._trajectory import Trajectory, squared_sums
from schedsearch.evaluate._tree import PrefixTree
from schedsearch.runtime import apply, identity_schedule
from schedsearch.runtime._solver import program
from schedsearch.schedule import Solver, with_solver_table


def table_of(schedule, order):
    """``schedule`` with steps to be fitted, their orders rising to ``order``."""
    n = schedule.n_steps
    return dataclasses.replace(
        schedule, solver=tuple(Solver(family="table", order=min(i + 1, order)) for i in range(n))
    )


@pytest.fixture(scope="module")
def full(tiny):
    return identity_schedule(tiny, 6, height=8, width=8)


def rolled(runs, teacher, schedule, tree_bytes=0):
    runner = Runner(runs, teacher, tree=PrefixTree(tree_bytes), stray=float("inf"), on_images=lambda n: None)
    return runner.roll(schedule, len(runs))


class AdamsTeacher(Reference):
    """A reference that is an Adams run on its own grid."""

    def __init__(self, runs, schedule):
        super().__init__(runs)
        self._schedule, self.sigma = schedule, schedule.sigma


@pytest.mark.parametrize("batch", [1, 3])
def test_a_teacher_that_is_an_adams_run_gives_adams_back(tiny_runs, full, batch):
    runs = tiny_runs(n=3, batch=batch)
    adams = dataclasses.replace(
        full, solver=(Solver(),) + (Solver(family="adams", order=2),) + (Solver(family="adams", order=3),) * 4
    )
    teacher = AdamsTeacher(runs, adams)
    teacher.prepare(3)

    calls = rolled(runs, teacher, table_of(full, 3)).calls

    for call, wanted in zip(calls, adams_weights(table_of(full, 3)), strict=True):
        assert [term.weight for term in call.nxt] == pytest.approx(wanted, abs=2e-4)


def test_the_prior_is_adams(full):
    schedule = dataclasses.replace(table_of(full, 2), ops=(("model", "CCR1CC"),))
    adams = dataclasses.replace(full, solver=(Solver(),) + (Solver(family="adams", order=2),) * 5, ops=schedule.ops)

    for weights, call in zip(adams_weights(schedule), program(adams), strict=True):
        found = {(t.source, t.lag): t.weight for t in call.nxt}
        assert weights == pytest.approx(
            (found["base", 0], *(found.get(("output", k), 0.0) for k in range(len(weights) - 1)))
        )


def test_steps_of_other_families_have_no_prior(full):
    mixed = dataclasses.replace(full, solver=(Solver(),) * 5 + (Solver(family="table", order=2),))

    assert [len(weights) for weights in adams_weights(mixed)] == [0] * 5 + [3]


def test_scalars_are_those_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(4, 50, generator=generator) for _ in range(3)]
    target = torch.randn(4, 50, generator=generator)
    matrix = torch.stack([c.flatten() for c in columns], 1).double().numpy()

    found = solved(squared_sums(columns, target), (1.0, 0.0, 0.0))

    assert found == pytest.approx(np.linalg.lstsq(matrix, target.flatten().double().numpy(), rcond=None)[0], abs=1e-8)


def test_dependent_columns_share_what_the_prior_gave_them():
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 100, generator=generator), torch.randn(2, 100, generator=generator)
    nearly = v + 1e-7 * torch.randn(2, 100, generator=generator)

    for other in (v, nearly):
        c0, c1, c2 = solved(squared_sums([x, v, other], x - 0.5 * v), (1.0, -0.3, 0.1))
        assert c0 == pytest.approx(1.0, abs=1e-4)
        assert c1 + c2 == pytest.approx(-0.5, abs=1e-4)
        assert max(abs(c1), abs(c2)) < 1.0
        assert c1 - c2 == pytest.approx(-0.4, abs=1e-2)  # nothing tells them apart, so their difference stays


def test_a_column_of_zeros_is_left_alone():
    x = torch.ones(1, 10)

    assert solved(squared_sums([x, torch.zeros(1, 10)], 2.0 * x), (1.0, -0.5)) == pytest.approx((2.0, -0.5), abs=1e-8)


def test_fitting_is_repeatable_to_the_bit(tiny_runs, full):
    runs = tiny_runs(n=3, batch=2)
    teacher = Reference(runs)
    teacher.prepare(3)
    schedule = dataclasses.replace(table_of(full, 3), ops=(("model", "CCR1CC"), ("transformer_blocks.0", "CCCCRC")))

    assert rolled(runs, teacher, schedule).calls == rolled(runs, teacher, schedule, tree_bytes=2**20).calls


def test_a_fitted_step_ends_nearer_to_the_teacher_than_adams(tiny_runs, full):
    """On the prompts it was fitted on, and from the same samples, least squares cannot do worse: the first step."""
    runs = tiny_runs(n=3, batch=2)
    teacher = Reference(runs)
    teacher.prepare(3)
    coarse = dataclasses.replace(full, sigma=(full.sigma[0], 0.5, 0.0), solver=(Solver(),) * 2)
    calls = rolled(runs, teacher, table_of(coarse, 1)).calls
    ready = with_solver_table(table_of(coarse, 1), [[t.weight for t in call.nxt] for call in calls])

    def error(schedule):
        states = []
        with apply(runs.pipe, schedule):
            for batch in runs.batches(3):
                states += runs.recorded(*batch, steps=2, kept=(1,))
        goals = [teacher.trajectory(*batch).at(0.5) for batch in runs.batches(3)]
        return float((torch.cat(states) - torch.cat(goals)).square().sum())

    assert error(ready) <= error(coarse)


def test_nan_in_what_is_fitted_is_named(tiny_runs, full, monkeypatch):
    runs = tiny_runs(n=1, batch=1)
    teacher = Reference(runs)
    teacher.prepare(1)
    teacher._along[0] = Trajectory(
        sigma=teacher.sigma, states=tuple(s * float("nan") for s in teacher._along[0].states)
    )

    with pytest.raises(FloatingPointError, match=r"steps.solver\[0\]: latents or outputs to fit to hold NaN"):
        rolled(runs, teacher, table_of(full, 2))


@pytest.mark.slow
def test_fitting_pays_on_fresh_prompts(mini, mini_card):
    """Five placed steps on prompts and noise it has not seen: at least 1 dB above Adams of order 2."""
    from schedsearch.evaluate import METRICS, Workload
    from schedsearch.evaluate._reference import PairedRuns
    from schedsearch.space import warp
    from schedsearch_calibration import prompt_set

    workload, n = Workload.from_card(mini_card), 10
    sigma = warp("shift", 5, first=1.0, last=0.0, shift=1.5)
    plain = dataclasses.replace(identity_schedule(mini, 5, height=64, width=64), sigma=sigma)
    fresh = PairedRuns(mini, workload, prompt_set(mini_card.held_out).prompts[:n], seed=1_000_003, batch=n)
    known = PairedRuns(mini, workload, prompt_set(mini_card.calibration).prompts[:n], seed=0, batch=n)
    references = [Reference(fresh), Reference(known)]
    for reference in references:
        reference.prepare(n)
    schedule = table_of(plain, 3)
    calls = rolled(known, references[1], schedule).calls
    ready = with_solver_table(schedule, [[t.weight for t in call.nxt] for call in calls])

    def psnr(candidate):
        with apply(mini, candidate):
            pictures = fresh.run(0, n, steps=5)
        return sum(METRICS["psnr"](pictures.images, references[0].pictures(0, n).images)) / n

    adams = dataclasses.replace(plain, solver=(Solver(family="adams", order=2),) * 5)
    assert psnr(ready) >= psnr(adams) + 1.0
