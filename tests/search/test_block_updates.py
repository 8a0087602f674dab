"""Per-block budgets, the bubbling union, and intervals of blocks that do nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schedsearch.search._blocks import (
    FEED_FORWARD,
    block_updates,
    bubbled,
    bubbling_union,
    change_distances,
    flagged_blocks,
    near_identity,
    shared_budget,
)
from schedsearch.testing import toy_space

SPACE = toy_space((("model", "CR1"), ("block", "CR1S"), ("component", "CRS")), n_steps=6)
CHANGES = arrays(np.float64, (10, 3), elements=st.floats(0.0, 2.0))


class TestBudgets:
    @given(CHANGES, st.integers(1, 4))
    @settings(max_examples=20)
    def test_each_blocks_updates_are_the_best_of_all(self, change, updates):
        """Ten steps, at most four updates, the first of which is step 0."""
        distance = change_distances(change)

        def loss(starts):
            ends = (*starts[1:], 10)
            return sum(distance[t, i] for i, end in zip(starts, ends, strict=True) for t in range(i, end))

        best = min(loss((0, *later)) for later in itertools.combinations(range(1, 10), updates - 1))
        path = block_updates(change)[updates]
        assert path.cost == pytest.approx(best)
        assert loss(path.nodes[:-1]) == pytest.approx(best)

    def test_changes_are_chained_beyond_three_steps(self):
        change = np.array([[1.0, 2.0, 3.0]] * 4 + [[1.0, 2.0, np.nan], [1.0, np.nan, np.nan], [np.nan] * 3])
        distance = change_distances(change)
        assert [distance[t, 0] for t in range(7)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    @given(arrays(np.float64, (3, 4), elements=st.integers(0, 9).map(float)), st.integers(0, 14), st.booleans())
    def test_a_shared_budget_is_spent_best(self, losses, total, weighted):
        weights = (1, 2, 1) if weighted else (1, 1, 1)
        plans = [
            plan
            for plan in itertools.product(range(1, 5), repeat=3)
            if sum(w * p for w, p in zip(weights, plan, strict=True)) <= total
        ]
        found = shared_budget(losses, total, weights=weights)
        if not plans:
            assert found == ()
        else:
            cost = {plan: sum(losses[b, p - 1] for b, p in enumerate(plan)) for plan in plans}
            assert found in plans
            assert cost[found] == min(cost.values())


class TestBubblingUnion:
    @given(arrays(bool, (6, 8)), arrays(bool, 6), arrays(bool, 6))
    def test_wherever_a_downstream_row_refreshes_the_flagged_ones_before_it_do(self, refresh, downstream, flagged):
        out = bubbling_union(refresh, downstream=downstream, flagged=flagged)
        for row, step in zip(*np.nonzero(out), strict=True):
            if downstream[row]:
                assert out[:row][flagged[:row], step].all()
        assert not (refresh & ~out).any()  # nothing is taken away
        assert (out[~flagged] == refresh[~flagged]).all()
        again = bubbling_union(out, downstream=downstream, flagged=flagged)
        assert (again == out).all()

    @given(arrays(bool, (5, 6)), arrays(bool, 5), arrays(bool, 5))
    def test_it_adds_no_more_than_needed(self, refresh, downstream, flagged):
        out = bubbling_union(refresh, downstream=downstream, flagged=flagged)
        for row, step in zip(*np.nonzero(out & ~refresh), strict=True):
            assert (refresh[row + 1 :, step] & downstream[row + 1 :]).any()

    @given(st.integers(0, 10_000), st.sets(st.integers(0, 3)))
    def test_as_a_repair_of_schedules(self, seed, chosen):
        flagged = {SPACE.blocks[i].name for i in chosen}
        before = SPACE.sample(np.random.default_rng(seed))
        after = bubbled(before, SPACE, flagged)
        assert SPACE.check(after) is None
        assert bubbled(after, SPACE, flagged) == after
        for step in range(SPACE.n_steps):
            waiting = []
            for block in SPACE.blocks:
                fed = [p for p in block.components if p in FEED_FORWARD]
                if block.name not in after.pruned and any(computes(after, block.name, p, step) for p in fed):
                    assert all(computes(after, name, part, step) for name, part in waiting)
                if block.name in flagged and block.name not in after.pruned:
                    waiting += [(block.name, part) for part in block.components]

    def test_no_flag_changes_nothing(self):
        schedule = SPACE.sample(np.random.default_rng(3))
        assert bubbled(schedule, SPACE, ()) == schedule

    def test_an_example(self):
        rows = [(block.name, "CRRRRR") for block in SPACE.blocks]
        rows[2] = (SPACE.blocks[2].name, "CRRCRR")
        after = bubbled(replace(SPACE.base, ops=tuple(rows)), SPACE, {SPACE.blocks[0].name})
        assert [after.row(block.name) for block in SPACE.blocks] == ["CRRCRR", "CRRRRR", "CRRCRR", "CRRRRR"]


def computes(schedule, block, part, step):
    return all(schedule.row(name)[step] == "C" for name in ("model", block, f"{block}.{part}"))


class TestSensitivity:
    def test_planted_intervals_are_returned_exactly(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            sizes = rng.uniform(0.2, 0.8, size=20)
            first = int(rng.integers(0, 8))
            second = int(rng.integers(first + 3, 18))
            planted = ((first, first + 2), (second, second + 2))
            for start, stop in planted:
                sizes[start:stop] = rng.uniform(0.0, 0.01, size=stop - start)
            assert near_identity(sizes) == planted

    def test_no_quiet_block_no_interval(self):
        assert near_identity([0.5, 0.4, 0.3]) == ()
        assert near_identity([]) == ()
        assert near_identity([0.5, 0.5, 0.5, 0.001]) == ((3, 4),)

    def test_flags_are_the_blocks_that_change_most(self):
        changes = [(name, np.full((5, 3), size)) for name, size in zip("abcd", (0.1, 0.9, 0.2, 0.5), strict=True)]
        assert flagged_blocks(changes) == ("b",)
        assert flagged_blocks(changes, 0.5) == ("b", "d")
