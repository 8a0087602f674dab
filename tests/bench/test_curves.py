"""Hypervolume against cost, and who got where with how much: hand-made runs with volumes worked out by hand."""

from __future__ import annotations

import csv
import dataclasses
from math import inf, isnan

import pytest

from schedsearch.bench._curves import COLUMNS, Curve, covered, curves_of, rows_of, summary_of, write_curves
from schedsearch.errors import UsageError
from schedsearch.study import Candidate, Evaluation, Frontier, Objective, Spent, Study

OBJECTIVES = (Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"))
CORNER = (100.0, 10.0)


def record(schedule, ask, values, *, evals=10, share=1.0, status="ok"):
    # another last level per record, so that no two are the same schedule
    plan = dataclasses.replace(schedule, sigma=(*schedule.sigma[:-1], 1e-4 * (ask + 1)))
    return Evaluation(
        candidate=Candidate(schedule=plan, searcher="s", ask=ask, share=share),
        status=status,
        values=values if status == "ok" else (),
        seconds=2.0,
        denoiser_evals=evals,
    )


def run_file(folder, stem, records, *, ended="finished", noted=True):
    path = folder / f"{stem}.db"
    with Study.open(path, stem, objectives=OBJECTIVES, settings={}, resume=False) as study:
        for each in records:
            study.append(each)
        if noted:
            study.notes.set("contest", {"ended": ended, "evals": 100, "reference_point": list(CORNER)})
    return path


def front(schedule, *points):
    return Frontier.of(OBJECTIVES, [record(schedule, ask, point) for ask, point in enumerate(points)])


def curve(schedule, searcher, seed, evals, volume, *points):
    return Curve(
        searcher=searcher,
        seed=seed,
        evals=evals,
        seconds=tuple(float(e) for e in evals),
        volume=volume,
        front=front(schedule, *points),
    )


def test_volumes_are_shares_of_the_best_frontier_of_all_runs(schedule, tmp_path):
    """(50 ms, 30 dB) spans 50 x 20 = 1000 and (80, 50) adds 20 x 20 = 400; (60, 40) alone spans 40 x 30 = 1200. All
    together: 20 x 40 up to 80, 20 x 30 up to 60, 10 x 20 up to 50 = 800 + 600 + 200 = 1600.
    """
    files = [
        run_file(
            tmp_path,
            "one-0",
            [
                record(schedule, 0, (50.0, 30.0)),
                record(schedule, 1, (60.0, 20.0)),
                record(schedule, 2, (80.0, 50.0)),
                record(schedule, 3, (), status="failed"),
            ],
        ),
        run_file(tmp_path, "two-words-1", [record(schedule, 0, (60.0, 40.0), evals=7)]),
    ]
    one, two = curves_of(files)

    assert (one.searcher, one.seed, two.searcher, two.seed) == ("one", 0, "two-words", 1)
    assert one.evals == (10, 30, 40)
    assert one.seconds == (2.0, 6.0, 8.0)
    assert one.volume == pytest.approx((1000 / 1600, 1400 / 1600, 1400 / 1600))
    assert two.evals == (7, 7)
    assert two.volume == pytest.approx((1200 / 1600, 1200 / 1600))


def test_what_was_spent_before_the_first_candidate_is_charged(schedule, tmp_path):
    file = run_file(tmp_path, "auto-0", [record(schedule, 0, (50.0, 30.0))])
    (found,) = curves_of([file], {"auto": Spent(seconds=4.0, denoiser_evals=100), "ecad": Spent(denoiser_evals=7)})
    assert found.evals == (110, 110)
    assert found.seconds == (6.0, 6.0)


def test_first_looks_cost_but_do_not_count(schedule, tmp_path):
    looks = [record(schedule, 0, (10.0, 90.0), share=0.25), record(schedule, 1, (50.0, 30.0))]
    (found,) = curves_of([run_file(tmp_path, "auto-0", looks)])
    assert found.evals == (20, 20)
    assert found.volume == (1.0, 1.0)


def test_a_run_that_found_nothing_has_no_volume(schedule, tmp_path):
    (found,) = curves_of([run_file(tmp_path, "random-0", [record(schedule, 0, (), status="failed")])])
    assert (found.evals, found.volume, len(found.front)) == ((10,), (0.0,), 0)


def test_unfinished_runs_are_left_out(schedule, tmp_path):
    file = run_file(tmp_path, "auto-0", [record(schedule, 0, (50.0, 30.0))], noted=False)
    with pytest.raises(UsageError, match="found no finished run"):
        curves_of([file])


def test_a_curve_is_read_as_a_staircase(schedule):
    found = curve(schedule, "auto", 0, (10, 30, 40), (0.5, 0.8, 0.8))
    assert [found.volume_at(e) for e in (9, 10, 29, 30, 99)] == [0.0, 0.5, 0.5, 0.8, 0.8]
    assert [found.evals_to(v) for v in (0.0, 0.5, 0.6, 0.9)] == [10.0, 10.0, 30.0, inf]


def test_coverage_counts_what_is_equalled_or_dominated(schedule):
    mine = front(schedule, (50.0, 30.0), (60.0, 40.0), (80.0, 50.0), (90.0, 60.0))
    theirs = front(schedule, (50.0, 30.0), (55.0, 45.0))
    # (50, 30) is equalled, (60, 40) dominated; nothing of theirs reaches 50 or 60 dB
    assert covered(mine, theirs) == 0.5
    assert covered(theirs, mine) == 0.5
    assert covered(mine, theirs, strictly=True) == 0.25
    assert covered(front(schedule), theirs) == 1.0
    assert covered(mine, front(schedule)) == 0.0


def test_a_standing_is_made_of_medians(schedule):
    curves = [
        curve(schedule, "ecad", 0, (100, 200), (0.3, 0.6), (50.0, 30.0)),
        curve(schedule, "ecad", 1, (100, 300), (0.3, 0.5), (50.0, 50.0)),
        curve(schedule, "ecad", 2, (100, 400), (0.3, 0.7), (50.0, 30.0)),
        curve(schedule, "auto", 0, (5, 50), (0.6, 1.0), (50.0, 40.0)),
        curve(schedule, "auto", 1, (20, 60), (0.55, 0.59), (50.0, 40.0)),
        curve(schedule, "auto", 2, (30, 70), (0.61, 0.9), (50.0, 30.0)),
    ]
    auto, ecad = summary_of(curves)

    assert (auto.searcher, auto.volume, auto.low, auto.high) == ("auto", 0.9, 0.59, 1.0)
    assert (ecad.seeds, ecad.volume, ecad.low, ecad.high) == (3, 0.6, 0.5, 0.7)
    assert (ecad.evals, ecad.seconds) == (300, 300.0)
    # to 0.6: 5 with seed 0, never with seed 1, 30 with seed 2
    assert ecad.rival_evals == 30.0
    # of the same seeds: dominated, not dominated, equalled
    assert ecad.behind == 1.0
    assert auto.behind == 1.0
    # equalled is not ahead: 50 dB beats 40 dB with seed 1 only, and one seed is enough to count
    assert ecad.ahead == 1.0
    assert auto.ahead == 0.0


def test_without_the_rival_nobody_is_compared(schedule):
    (alone,) = summary_of([curve(schedule, "ecad", 0, (100,), (1.0,), (50.0, 30.0))])
    assert alone.rival_evals == inf
    assert isnan(alone.behind)
    assert rows_of([alone], {"ecad": "components"}) == [
        ["ecad", "components", "1", "1.0000", "1.0000", "1.0000", "100", "100", "never", "", ""]
    ]
    assert len(COLUMNS) == 11


def test_curves_are_written_row_by_row(schedule, tmp_path):
    write_curves(tmp_path / "c.csv", [curve(schedule, "auto", 3, (5, 50), (0.25, 1.0))])
    assert list(csv.reader((tmp_path / "c.csv").read_text().splitlines())) == [
        ["searcher", "seed", "evals", "seconds", "volume"],
        ["auto", "3", "5", "5.00", "0.250000"],
        ["auto", "3", "50", "50.00", "1.000000"],
    ]
