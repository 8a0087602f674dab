"""What a study remembers of its last stage, and how its schedules are called."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from schedsearch.schedule import Measurement, ModelRef, Schedule, Solver
from schedsearch.study import Candidate, Evaluation, Objective, Study, measured_runs, speed_labels

OBJECTIVES = (Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"))
MODEL = ModelRef(pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=64, width=64)
PLAN = Schedule(sigma=(1.0, 0.5, 0.0), solver=(Solver(),) * 2, model=MODEL)


@pytest.fixture
def study(tmp_path: Path):
    with Study.open(tmp_path / "study.db", "s", objectives=OBJECTIVES, settings={}, resume=False) as opened:
        yield opened


def row(name: str, kind: str, speedup: float) -> dict[str, object]:
    measured = Measurement(metric="speedup", unit="x", better="max", value=speedup, low=1.0, high=9.0, n=10)
    return {"name": name, "kind": kind, "steps": 4, "denoiser_calls": 2.0, "measured": [dataclasses.asdict(measured)]}


def test_a_study_without_a_last_stage_has_no_runs(study: Study):
    assert measured_runs(study) == ()


def test_the_latest_stage_counts_and_schedules_are_called_after_their_speed(study: Study):
    study.notes.set("finals 9", {"rows": [row("full", "full", 1.0), row("schedule 0", "schedule", 9.0)]})
    rows = [
        row("full", "full", 1.0), row("schedule 0", "schedule", 2.0), row("schedule 1", "schedule", 2.004),
        row("7 steps", "fewer steps", 3.0),
    ]  # fmt: skip
    study.notes.set("finals 10", {"rows": rows})  # after ten measurements: later than nine, though it sorts before
    runs = measured_runs(study)
    assert [(run.name, run.kind) for run in runs] == [
        ("full", "full"), ("2.00x", "schedule"), ("2.00x-2", "schedule"), ("7 steps", "fewer steps"),
    ]  # fmt: skip
    assert runs[3].measured[0].value == 3.0


def test_equal_speeds_are_told_apart():
    assert speed_labels([4.0, 4.001, 4.002, 2.0]) == ("4.00x", "4.00x-2", "4.00x-3", "2.00x")


def test_how_a_candidate_came_about_is_kept_and_not_compared(study: Study, tmp_path: Path):
    candidate = Candidate(schedule=PLAN, searcher="auto", ask=0, origin="seed fora/n3")
    study.append(Evaluation(candidate=candidate, status="ok", values=(1.0, 2.0)))
    with Study.load(tmp_path / "study.db") as again:
        found = again.evaluations()[0].candidate
    assert found.origin == "seed fora/n3"
    assert found == dataclasses.replace(candidate, origin="")  # a resumed search proposes it again without being asked
