"""Fusing: the calls of a schedule stay, and each becomes one fitted step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from schedsearch.schedule import MODEL_ROW, Solver
from schedsearch.space import calls_of, fused
from schedsearch.testing import toy_joint_space


@pytest.fixture(scope="module")
def space():
    return toy_joint_space()


def masked(space, row, ops=()):
    return space.repair(dataclasses.replace(space.base, ops=((MODEL_ROW, row), *ops)))


def test_the_calls_of_a_mask_become_fitted_steps_at_their_levels(space) -> None:
    one = masked(space, "CC1RC12CR1CC")
    made = fused(one, space)
    assert calls_of(one) == (0, 1, 4, 7, 10, 11)
    assert made.sigma == pytest.approx([*(one.sigma[i] for i in calls_of(one)), one.sigma[-1]], abs=1e-3)
    assert [(solver.family, solver.order) for solver in made.solver] == [("table", k) for k in (1, 2, 3, 4, 4, 4)]
    assert made.row(MODEL_ROW) == "C" * 6
    assert made.unfitted
    assert space.check(made) is None


def test_an_order_can_be_asked_for(space) -> None:
    made = fused(masked(space, "CCCCCCRRRRRR"), space, order=2)
    assert [solver.order for solver in made.solver] == [1, 2, 2, 2, 2, 2]


def test_what_is_left_out_in_a_call_and_what_is_removed_stays(space) -> None:
    block, part = "transformer_blocks.1", "single_transformer_blocks.0.attn"
    one = masked(space, "CCRCCCCRCCCC", [(block, "CCCRCCCCCCC1"), (part, "CCCCCCSCCCCC")])
    pruned = space.repair(dataclasses.replace(one, pruned=("single_transformer_blocks.1",)))
    for each in (one, pruned):
        made = fused(each, space)
        assert made.pruned == each.pruned
        assert {name: made.row(name) for name, _ in made.ops} == {
            name: "".join(row[i] for i in calls_of(each)) for name, row in each.ops if name != MODEL_ROW
        }


def test_fusing_again_changes_nothing_and_what_was_drawn_becomes_legal(space) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        one = space.sample(rng)
        made = fused(one, space)
        if made is None:  # there are fewer calls than a run may have steps
            assert len(calls_of(one)) not in space.counts
            continue
        assert space.check(made) is None
        assert calls_of(made) == tuple(range(len(calls_of(one))))
        assert fused(made, space).id == made.id


def test_where_it_came_from_goes_with_it(space) -> None:
    provenance = dataclasses.replace(space.base.provenance, searcher="auto", ask=7)
    assert fused(dataclasses.replace(space.base, provenance=provenance), space).provenance == provenance


@pytest.mark.parametrize(
    "narrow",
    [{"solvers": (Solver(), Solver(family="adams", order=2))}, {"counts": (12,)}, {"free_sigma": False}],
    ids=["no fitted steps", "no other number of steps", "no other noise levels"],
)
def test_what_the_space_does_not_open_is_not_fused(space, narrow) -> None:
    assert fused(masked(space, "CCRRRRRRRRRC"), space.restrict(**narrow)) is None


def test_a_run_without_gaps_is_fused_where_levels_are_fixed_too(space) -> None:
    made = fused(space.base, space.restrict(free_sigma=False))
    assert made.sigma == space.base.sigma
    assert {solver.family for solver in made.solver} == {"table"}
