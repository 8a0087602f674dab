"""The frontier: non-domination, volume, picks."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.schedule import Schedule, Solver
from schedsearch.study import Candidate, Evaluation, Frontier, Objective
from schedsearch.testing import toy_model_ref

PSNR = Objective(name="psnr", unit="dB", better="max")
LATENCY = Objective(name="latency", unit="ms", better="min")
BOTH = (PSNR, LATENCY)
SCHEDULE = Schedule(sigma=(1.0, 0.0), solver=(Solver(),), model=toy_model_ref())


def made(*values: float, ask: int = 0, status: str = "ok") -> Evaluation:
    return Evaluation(candidate=Candidate(schedule=SCHEDULE, searcher="x", ask=ask), status=status, values=values)


def points(frontier: Frontier) -> list[tuple[float, ...]]:
    return [evaluation.values for evaluation in frontier]


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Written apart from the code under test: psnr up, latency down."""
    return a[0] >= b[0] and a[1] <= b[1] and a != b


GRID = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


class TestFrontier:
    """Brute force, independence of order, monotone volume."""

    @given(GRID)
    @settings(max_examples=80, deadline=None)
    def test_equals_brute_force(self, pairs):
        frontier = Frontier.of(BOTH, [made(*map(float, pair), ask=i) for i, pair in enumerate(pairs)])
        best = {p for p in pairs if not any(dominates(q, p) for q in pairs)}
        assert points(frontier) == sorted(best, reverse=True)

    @given(GRID, st.randoms(use_true_random=False), st.integers(0, 25))
    @settings(max_examples=60, deadline=None)
    def test_order_and_grouping_do_not_matter(self, pairs, rng, cut):
        evaluations = [made(*map(float, pair), ask=i) for i, pair in enumerate(pairs)]
        whole = Frontier.of(BOTH, evaluations)
        shuffled = evaluations[:]
        rng.shuffle(shuffled)
        assert Frontier.of(BOTH, shuffled) == whole
        grown = Frontier(objectives=BOTH)
        for evaluation in shuffled:
            grown = grown.add(evaluation)
        assert grown == whole
        left, right = Frontier.of(BOTH, shuffled[:cut]), Frontier.of(BOTH, shuffled[cut:])
        assert left.merge(right) == right.merge(left) == whole

    @given(GRID, st.tuples(st.integers(0, 6), st.integers(0, 6)))
    @settings(max_examples=60, deadline=None)
    def test_volume_never_shrinks(self, pairs, extra):
        frontier = Frontier.of(BOTH, [made(*map(float, pair), ask=i) for i, pair in enumerate(pairs)])
        assert frontier.add(made(*map(float, extra), ask=99)).hypervolume((0.0, 6.0)) >= frontier.hypervolume(
            (0.0, 6.0)
        )

    def test_volume_by_hand(self):
        frontier = Frontier.of(BOTH, [made(30.0, 4.0), made(20.0, 1.0, ask=1)])
        # against (10 dB, 5 ms): 20 x 1 for the first, 10 x 4 for the second, 10 x 1 shared
        assert frontier.hypervolume((10.0, 5.0)) == pytest.approx(50.0)
        assert frontier.hypervolume((25.0, 5.0)) == pytest.approx(5.0)
        assert frontier.hypervolume((40.0, 5.0)) == 0.0
        assert Frontier(objectives=BOTH).hypervolume((0.0, 0.0)) == 0.0

    def test_volume_in_three_objectives_by_hand(self):
        three = (*BOTH, Objective(name="memory", unit="MiB", better="min"))
        frontier = Frontier.of(three, [made(2.0, 1.0, 1.0), made(1.0, 0.0, 1.0, ask=1)])
        assert frontier.hypervolume((0.0, 2.0, 2.0)) == pytest.approx(2.0 + 2.0 - 1.0)

    def test_an_infinite_value_makes_the_volume_infinite_and_spoils_nothing_else(self):
        frontier = Frontier.of(BOTH, [made(inf, 9.0), made(30.0, 4.0, ask=1), made(20.0, 1.0, ask=2)])
        assert frontier.hypervolume((10.0, 10.0)) == inf
        assert frontier.hypervolume((10.0, 5.0)) == pytest.approx(50.0)
        assert frontier.knee().values == (30.0, 4.0)

    def test_volume_against_random_counting(self):
        rng = np.random.default_rng(0)
        values = rng.random((12, 2))
        frontier = Frontier.of(BOTH, [made(a, b, ask=i) for i, (a, b) in enumerate(values.tolist())])
        probes = rng.random((20_000, 2))
        covered = [any(v[0] >= p[0] and v[1] <= p[1] for v in values) for p in probes]
        assert frontier.hypervolume((0.0, 1.0)) == pytest.approx(np.mean(covered), abs=0.02)

    def test_failures_and_worse_duplicates_do_not_count(self):
        frontier = Frontier.of(BOTH, [made(1.0, 1.0, ask=5), made(1.0, 1.0, ask=2), made(status="failed", ask=3)])
        assert [evaluation.candidate.ask for evaluation in frontier] == [2]

    def test_knee_is_farthest_from_the_chord(self):
        frontier = Frontier.of(BOTH, [made(40.0, 10.0), made(38.0, 4.0, ask=1), made(10.0, 0.0, ask=2)])
        assert frontier.knee().values == (38.0, 4.0)
        assert Frontier(objectives=BOTH).knee() is None
        assert Frontier.of(BOTH, [made(1.0, 1.0)]).knee().values == (1.0, 1.0)

    def test_best_within_a_bound(self):
        frontier = Frontier.of(BOTH, [made(40.0, 10.0), made(38.0, 4.0, ask=1), made(10.0, 0.0, ask=2)])
        assert frontier.best_within("latency", 9.9).values == (38.0, 4.0)
        assert frontier.best_within("latency", 10.0).values == (40.0, 10.0)
        assert frontier.best_within("psnr", 11.0).values == (38.0, 4.0)
        assert frontier.best_within("psnr", 41.0) is None

    def test_values_come_as_an_array(self):
        frontier = Frontier.of(BOTH, [made(1.0, 1.0), made(2.0, 2.0, ask=1)])
        assert frontier.values().tolist() == [[2.0, 2.0], [1.0, 1.0]]
        assert Frontier(objectives=BOTH).values().shape == (0, 2)
        assert len(frontier) == 2

    @pytest.mark.parametrize(
        ("call", "text"),
        [
            (lambda f: f.hypervolume((1.0,)), r"reference_point: found \(1.0,\), expected 2 finite numbers"),
            (lambda f: f.hypervolume((1.0, inf)), "expected 2 finite numbers"),
            (lambda f: f.add(made(1.0)), r"values: found \(1.0,\), expected 2 numbers \(psnr, latency\)"),
            (lambda f: f.add(made(nan, 1.0)), r"values: found \(nan, 1.0\)"),
            (lambda f: f.merge(Frontier(objectives=(PSNR,))), "merge: found objectives"),
            (lambda f: f.best_within("speed", 1.0), "objective: found 'speed', expected one of psnr, latency"),
        ],
    )
    def test_misuse_is_named(self, call, text):
        with pytest.raises(UsageError, match=text):
            call(Frontier.of(BOTH, [made(1.0, 1.0)]))

    def test_three_objectives_need_to_be_told_which_is_best(self):
        three = (*BOTH, replace(LATENCY, name="memory"))
        with pytest.raises(UsageError, match="best: found nothing, expected one of latency, memory"):
            Frontier.of(three, []).best_within("psnr", 1.0)
