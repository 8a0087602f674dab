"""Which schedule is made cheaper to keep a cost: one that is barely too costly, if one is good."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from schedsearch.search._archive import Archive
from schedsearch.study import Candidate, Evaluation, Objective
from schedsearch.testing import toy_space

OBJECTIVES = (Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"))
WANTED = 25.0


def archive(*points):
    """One of evaluations at these costs and qualities, the plain run first."""
    found = Archive(OBJECTIVES, (WANTED,))
    base = toy_space("model").base
    for ask, (cost, quality) in enumerate(points):
        plan = dataclasses.replace(base, sigma=(*base.sigma[:-1], 1e-4 * (ask + 1)))
        found.add(
            Evaluation(
                candidate=Candidate(schedule=plan, searcher="s", ask=ask),
                status="ok",
                values=(cost, quality),
                samples=(("psnr", (quality, quality)),),
                fidelity=2,
            )
        )
    found.settle()
    return found


def drawn(found, n=300):
    rng = np.random.default_rng(0)
    draws = [found.costlier(rng, focused=True) for _ in range(n)]
    costs = {s.id: e.values[0] for s, e in ((e.candidate.schedule, e) for e in found._found.values())}
    return Counter(costs[schedule.id] for schedule, _ in draws), {costs[s.id]: share for s, share in draws}


def test_the_one_barely_too_costly_comes_first_and_says_how_much_must_go():
    """28.5 ms is 3.5 dB better than 25.5 ms, and loses more than that on the way to 25."""
    others = [(26.0 + 0.2 * i, 30.0 - i) for i in range(8)]  # so that the draw has some to choose from
    points = [(100.0, 100.0), (70.0, 58.0), (28.5, 43.5), (25.5, 40.0), (24.0, 38.0), (12.0, 23.0), *others]
    counts, shares = drawn(archive(*points))
    assert [cost for cost, _ in counts.most_common(2)] == [25.5, 28.5]
    assert not {100.0, 70.0, 24.0, 12.0} & set(counts)  # these keep the cost, or cost too much to be trimmed to it
    assert shares[25.5] == pytest.approx(1 - 25 / 25.5)


def test_where_nothing_is_a_little_too_costly_nothing_is_trimmed():
    found = archive((100.0, 100.0), (60.0, 58.0), (24.0, 38.0))
    assert found.costlier(np.random.default_rng(0), focused=True) is None


def test_a_distance_that_may_be_negative_is_not_taken_in_logarithms():
    """An estimate a hair below 0 is as good as one a hair above, not better than everything else by far."""
    objectives = (*OBJECTIVES, Objective(name="kid[net]", unit="1", better="min"))
    found = Archive(objectives)
    base = toy_space("model").base
    for ask, values in enumerate([(100.0, 60.0, 0.0), (50.0, 40.0, -1e-4), (25.0, 30.0, 2e-4), (20.0, 20.0, 0.02)]):
        plan = dataclasses.replace(base, sigma=(*base.sigma[:-1], 1e-4 * (ask + 1)))
        samples = (("psnr", (values[1],) * 2),)
        candidate = Candidate(schedule=plan, searcher="s", ask=ask)
        found.add(Evaluation(candidate=candidate, status="ok", values=values, samples=samples, fidelity=2))
    _, losses = found.known()

    assert losses[:, 0] == pytest.approx(np.log([100.0, 50.0, 25.0, 20.0]))  # the cost comes first
    assert sorted(losses[:, 1].tolist()) == [-1e-4, 0.0, 2e-4, 0.02]
    found.settle()
    _, scaled, _ = found.lessons()
    assert scaled[1, 1] == pytest.approx(scaled[2, 1], abs=0.02)
    assert found.volume() > 0.0
    assert len(found.best(3)) == 3


def test_what_was_polished_counts_for_the_frontier_and_teaches_nothing_about_others():
    found = archive((100.0, 100.0), (50.0, 40.0), (25.0, 30.0))
    plain = found._found[list(found._found)[-1]]
    found.add(
        dataclasses.replace(
            plain,
            candidate=dataclasses.replace(plain.candidate, ask=9, polish="levels"),
            values=(25.0, 39.0),
            samples=(("psnr", (39.0, 39.0)),),
        )
    )

    schedules, losses = found.known()
    taught, scaled, costs = found.lessons()

    assert [s.id for s in schedules] == [*(s.id for s in taught), plain.candidate.schedule.id]
    assert losses[-2:, 1].tolist() == [-30.0, -39.0]
    assert costs.tolist() == [100.0, 50.0, 25.0]
    assert len(scaled) == 3
    assert [s.id for s in found.front()] == [plain.candidate.schedule.id, taught[1].id]
