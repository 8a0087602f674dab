"""What is tried as fitted steps: everything once, few calls polished and only when it is time."""

from __future__ import annotations

import dataclasses

import pytest

from schedsearch.schedule import MODEL_ROW, Solver
from schedsearch.search._fitted_steps import FEW_ORDER, FEW_SPACINGS, FittedSteps
from schedsearch.space import calls_of, fused
from schedsearch.testing import toy_joint_space

FEW = 4


@pytest.fixture(scope="module")
def space():
    return toy_joint_space()


def masked(space, row):
    return space.repair(dataclasses.replace(space.base, ops=((MODEL_ROW, row),)))


def test_many_calls_are_fused_at_once_and_few_when_polishing_begins(space) -> None:
    many, few = masked(space, "CCRCRCRCRCRC"), masked(space, "CCRRRRCRRRRC")
    steps = FittedSteps(space, FEW)

    assert list(steps.of([many, few], polishing=False)) == [(fused(many, space), (many.id,), "")]
    assert list(steps.of([many, few], polishing=True)) == [(fused(few, space, order=FEW_ORDER), (few.id,), "levels")]
    assert list(steps.of([many, few], polishing=True)) == []


def test_what_is_fitted_already_is_polished_if_it_has_few_calls_and_else_left_alone(space) -> None:
    many, few = fused(masked(space, "CCRCRCRCRCRC"), space), fused(masked(space, "CCRRRRRRRRRC"), space)
    assert list(FittedSteps(space, FEW).of([many, few], polishing=True)) == [(few, (), "levels")]


def test_two_schedules_with_the_same_calls_are_fused_once(space) -> None:
    steps = FittedSteps(space, FEW)
    pair = [masked(space, "CCRCRCRCRCRC"), masked(space, "CC1C1C1C1C1C")]
    assert [plan.parents for plan in steps.of(pair, polishing=True)] == [(pair[0].id,)]


def test_every_small_number_of_calls_is_polished_from_common_spacings(space) -> None:
    steps = FittedSteps(space, FEW)
    plans = list(steps.spaced())
    counts = [n for n in space.counts if n <= FEW]
    assert [plan.schedule.n_steps for plan in plans] == [n for n in counts for _ in FEW_SPACINGS]
    assert {plan.polish for plan in plans} == {"levels"}
    assert all(space.check(plan.schedule) is None and plan.parents == () for plan in plans)
    assert all(solver.family == "table" for plan in plans for solver in plan.schedule.solver)
    assert len({plan.schedule.id for plan in plans}) == len(plans)
    assert list(steps.spaced()) == []


def test_where_noise_levels_are_fixed_only_scalars_are_polished(space) -> None:
    fixed = space.restrict(free_sigma=False)
    steps = FittedSteps(fixed, FEW)
    assert list(steps.spaced()) == []
    (plan,) = steps.of([fixed.build(sigma=fixed.grid(3), solver=(Solver(),) * 3)], polishing=True)
    assert (plan.polish, len(calls_of(plan.schedule))) == ("scalars", 3)


@pytest.mark.parametrize("few", [0, FEW])
def test_without_fitted_steps_there_is_nothing(space, few) -> None:
    euler = space.restrict(solvers=(Solver(),))
    steps = FittedSteps(euler, few)
    assert [*steps.spaced(), *steps.of([euler.base], polishing=True)] == []


def test_nothing_is_polished_where_few_is_none(space) -> None:
    steps = FittedSteps(space, 0)
    assert list(steps.spaced()) == []
    assert [plan.polish for plan in steps.of([masked(space, "CCRRRRCRRRRC")], polishing=True)] == [""]
