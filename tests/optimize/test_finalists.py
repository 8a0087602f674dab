"""Which schedules of a search's frontier are measured: around the budget and at every rung of the ladder."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from schedsearch.optimize._bench import Bench
from schedsearch.optimize._finals import awaited, finalists
from schedsearch.schedule import parse_budget
from schedsearch.study import Candidate, Evaluation, Frontier, Objective

OBJECTIVES = (Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"))
FULL_MS = 400.0


def front(schedule, *speedups):
    """A frontier with these predicted speed-ups; slower is better."""
    records = []
    for ask, speedup in enumerate(speedups):
        # another last level per record, so that no two are the same schedule
        plan = dataclasses.replace(schedule, sigma=(*schedule.sigma[:-1], 1e-4 * (ask + 1)))
        values = (FULL_MS / speedup, 60.0 - speedup)
        records.append(
            Evaluation(candidate=Candidate(schedule=plan, searcher="s", ask=ask), status="ok", values=values)
        )
    return Frontier.of(OBJECTIVES, records)


def bench(budget):
    found = SimpleNamespace(
        budget=parse_budget(budget),
        cost=SimpleNamespace(full_ms=FULL_MS),
        cost_name="latency_ms",
        reference_point=(FULL_MS, 10.0),
    )
    found.ahead = lambda margin: Bench.ahead(found, margin)
    return found


def speedups(found):
    return [round(FULL_MS / e.values[0], 3) for e in found]


@pytest.mark.parametrize("budget", ["4x", "100ms"])
def test_the_clock_decides_among_those_near_the_budget(schedule, budget):
    found = finalists(bench(budget), front(schedule, 3.9, 3.97, 4.005, 4.015, 4.05, 4.3, 4.6))
    # 3.9 serves the rung at 3; 3.97 may be measured to keep the budget; 4.015 is between two head starts
    assert speedups(found) == [3.9, 3.97, 4.005, 4.05, 4.3, 4.6]


def test_rungs_keep_their_margin_and_the_fastest_is_always_there(schedule):
    found = finalists(bench("4x"), front(schedule, 0.9, 1.0, 2.05, 2.07, 3.2, 20.0))
    assert speedups(found) == [2.05, 2.07, 3.2, 20.0]  # 2.05 for the rung at 1.5, and too little ahead for the one at 2


def test_a_rung_has_a_second_one_in_case_the_first_misses(schedule):
    found = finalists(bench("2x"), front(schedule, 3.1, 3.3, 3.4, 6.2, 6.6, 6.75, 8.3, 9.5, 20.0))
    assert speedups(found) == [3.1, 3.4, 6.2, 6.75, 8.3, 9.5, 20.0]  # 3.3 and 6.6 are nobody's best


def test_nothing_cheaper_than_the_plain_run_is_nothing_to_measure(schedule):
    assert finalists(bench("4x"), front(schedule, 0.8, 1.0)) == []


def test_early_in_a_search_more_finalists_are_expected_than_there_are():
    assert awaited([]) == []
    assert awaited(list("abc"))[:6] == list("abcabc")
    assert len(awaited(list("abc"))) == len(awaited(list("abcdefg"))) > 7
    everyone = [str(i) for i in range(40)]
    assert awaited(everyone) == everyone
