"""Every dynamic program against all paths there are."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from schedsearch.search._paths import (
    fisher,
    group_bounds,
    group_costs,
    minimax,
    partition,
    placed,
    shortest,
    spearman,
    within,
)

INTEGERS = st.integers(0, 20).map(float)


def costs(order=1, low=2, high=5, elements=INTEGERS):
    """Cost arrays for histories of 1 to ``order`` nodes, on one random number of steps."""
    return st.integers(low, high).flatmap(
        lambda n: st.tuples(
            *(arrays(np.float64, (n + 1,) * (used + 1), elements=elements) for used in range(1, order + 1))
        )
    )


def all_paths(n, k):
    return [(0, *inner, n) for inner in itertools.combinations(range(1, n), k - 1)]


def edges_of(nodes, tables):
    """Costs of the edges of a path, each looked up with as much history as there is."""
    found = []
    for s in range(len(nodes) - 1):
        used = min(s + 1, len(tables))
        found.append(float(tables[used - 1][tuple(nodes[s + 1 - used : s + 2])]))
    return found


class TestPlaced:
    @given(costs(order=1, high=8), st.sampled_from([1.0, 0.5, 1.15]))
    def test_a_path_of_least_sum_on_a_matrix(self, tables, gamma):
        n = len(tables[0]) - 1
        for k, path in shortest(tables[0], gamma=gamma).items():
            sums = [sum(gamma**s * c for s, c in enumerate(edges_of(nodes, tables))) for nodes in all_paths(n, k)]
            assert path.cost == pytest.approx(min(sums))
            assert sum(gamma**s * c for s, c in enumerate(edges_of(path.nodes, tables))) == pytest.approx(path.cost)

    @pytest.mark.parametrize("order", [2, 3])
    @pytest.mark.parametrize("rule", ["sum", "max"])
    @settings(max_examples=15)
    @given(data=st.data())
    def test_costs_that_depend_on_the_nodes_before(self, order, rule, data):
        tables = data.draw(costs(order=order))
        n, total = len(tables[0]) - 1, {"sum": sum, "max": max}[rule]
        found = placed(tables, rule=rule)
        assert set(found) == set(range(1, n + 1))
        for k, path in found.items():
            assert path.n_edges == k
            assert path.cost == min(total(edges_of(nodes, tables)) for nodes in all_paths(n, k))
            assert total(edges_of(path.nodes, tables)) == path.cost

    @given(costs(order=1, high=7), st.sampled_from([1.0, 1.2]))
    def test_gits_recurrence(self, tables, gamma):
        """``V[j][k] = min_i (c[j][i] + gamma V[i][k-1])`` as written, from the end."""
        cost, n = tables[0], len(tables[0]) - 1
        values = {(j, 1): cost[j, n] for j in range(n)}
        for k in range(2, n + 1):
            for j in range(n):
                offers = [cost[j, i] + gamma * values.get((i, k - 1), np.inf) for i in range(j + 1, n)]
                values[j, k] = min(offers, default=np.inf)
        assert {k: path.cost for k, path in shortest(cost, gamma=gamma).items()} == pytest.approx(
            {k: values[0, k] for k in range(1, n + 1)}
        )

    def test_forbidden_edges_leave_numbers_out(self):
        cost = within(np.ones((8, 8)), 2, 3)
        assert set(shortest(cost)) == {3}
        assert shortest(cost)[3].cost == 3.0

    def test_is_fast_enough_for_28_steps_and_three_nodes(self):
        rng = np.random.default_rng(0)
        tables = [rng.random((29,) * (used + 1)) for used in (1, 2, 3)]
        started = time.process_time()
        assert len(placed(tables)) == 28
        assert time.process_time() - started < 1.0

    def test_one_step(self):
        assert shortest(np.array([[0.0, 2.0], [0.0, 0.0]]))[1].nodes == (0, 1)


class TestMinimax:
    @given(costs(order=1, high=8))
    def test_is_lexicographically_least(self, tables):
        n = len(tables[0]) - 1
        for k, path in minimax(tables[0]).items():
            best = min(sorted(edges_of(nodes, tables), reverse=True) for nodes in all_paths(n, k))
            assert sorted(edges_of(path.nodes, tables), reverse=True) == best
            assert path.cost == best[0]

    def test_differs_from_the_sum_where_it_should(self):
        cost = np.full((4, 4), 9.0)
        cost[0, 1], cost[1, 3] = 0.0, 5.0  # least sum, worst edge 5
        cost[0, 2], cost[2, 3] = 3.0, 3.0
        assert shortest(cost)[2].nodes == (0, 1, 3)
        assert minimax(cost)[2].nodes == (0, 2, 3)


class TestFisher:
    @given(costs(order=1, low=2, high=12), st.integers(1, 6))
    @settings(max_examples=40)
    def test_is_the_best_of_all_partitions_within_bounds(self, tables, interval):
        n = len(tables[0]) - 1
        n_groups, low, high = -(-n // interval), -(-interval // 2), 2 * interval
        legal = [
            nodes for nodes in all_paths(n, n_groups) if all(low <= b - a <= high for a, b in itertools.pairwise(nodes))
        ]
        path = fisher(tables[0], interval)
        if not legal:
            assert path is None
        else:
            assert path.nodes in legal
            assert path.cost == min(sum(edges_of(nodes, tables)) for nodes in legal)

    @pytest.mark.parametrize("n", [*range(1, 14), 28, 50])
    def test_every_published_interval_has_a_partition(self, n):
        for interval in range(1, n + 1):
            path = fisher(np.ones((n + 1, n + 1)), interval)
            assert path is not None
            spans = np.diff(path.nodes)
            assert len(spans) == -(-n // interval)
            assert spans.min() >= -(-interval // 2)
            assert spans.max() <= 2 * interval

    def test_every_budget_has_a_partition(self):
        for n in (1, 7, 28, 50):
            assert all(partition(np.ones((n + 1, n + 1)), k) is not None for k in range(1, n + 1))

    def test_even_drift_gives_even_groups(self):
        steps = np.arange(12.0)
        cost = group_costs(np.abs(steps[:, None] - steps[None]))
        assert fisher(cost, 3).nodes == (0, 3, 6, 9, 12)
        assert fisher(cost, 3, rule="max").nodes == (0, 3, 6, 9, 12)
        assert fisher(cost, 3).mask() == "CRRCRRCRRCRR"

    @given(st.integers(1, 8).flatmap(lambda n: arrays(np.float64, (n, n), elements=INTEGERS)))
    def test_group_costs_are_the_published_sum(self, distance):
        n, cost = len(distance), group_costs(distance)
        for i, j in itertools.product(range(n + 1), repeat=2):
            assert cost[i, j] == (sum(distance[t, i] for t in range(i, j)) if i < j else np.inf)

    def test_bounds(self):
        assert [group_bounds(50, interval) for interval in (1, 2, 5, 40)] == [(1, 2), (1, 4), (3, 10), (20, 50)]
        assert group_bounds(28, 28 / 5) == (3, 11)


class TestSpearman:
    @given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20))
    def test_is_scipys(self, pairs):
        a, b = zip(*pairs, strict=True)
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
        else:
            assert np.isnan(spearman(a, b))

    def test_one_pair_says_nothing(self):
        assert np.isnan(spearman([1.0], [2.0]))
