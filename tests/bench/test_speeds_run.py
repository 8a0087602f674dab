"""The comparison at measured speeds, whole, on the bundled model with six steps; and the settings it sweeps."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from schedsearch.bench import FAMILIES, SpeedSettings, run_speeds
from schedsearch.bench._families import found_by
from schedsearch.schedule import Schedule, Solver, write_frontier
from schedsearch.study import Candidate, Evaluation, Objective, Study

OBJECTIVES = (Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"))


def space_of(folder):
    from schedsearch.evaluate import find_card, load_pipeline
    from schedsearch.runtime import blocks_of, default_sigmas, model_ref
    from schedsearch.space import load_space

    card = find_card(str(folder))
    pipe, size = load_pipeline(card), {"height": card.height, "width": card.width}
    return load_space(
        card.family,
        model=model_ref(pipe, **size),
        blocks=blocks_of(pipe),
        sigma=default_sigmas(pipe, card.steps, **size),
    )


@pytest.fixture(scope="module")
def space(six_steps):
    return space_of(six_steps)


@pytest.fixture
def studies(space, tmp_path):
    """Two seeds of a searcher, as `bench search` leaves them: one with a fitted step, one dominated."""
    folder = tmp_path / "studies"
    folder.mkdir()
    table = Solver(family="table", order=2)
    good = dataclasses.replace(space.base, sigma=space.grid(2), solver=(Solver(), table))
    for seed, (schedule, values) in enumerate(((good, (30.0, 40.0)), (space.base, (90.0, 35.0)))):
        with Study.open(
            folder / f"bayes-{seed}.db", "bayes", objectives=OBJECTIVES, settings={}, resume=False
        ) as study:
            candidate = Candidate(schedule=schedule, searcher="bayes", ask=7)
            study.append(Evaluation(candidate=candidate, status="ok", values=values, fidelity=2))
    return folder


@pytest.fixture
def frontier(space, tmp_path):
    """A frontier of ours: three steps of second order."""
    ours = Schedule(sigma=space.grid(3), solver=(Solver(family="adams", order=2),) * 3, model=space.model)
    write_frontier(tmp_path / "frontier", [ours], quality="psnr", labels=("2x",))
    return tmp_path / "frontier"


@pytest.fixture
def settings(six_steps, frontier, studies, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- speeds: begin -->\nold\n<!-- speeds: end -->\n")
    return SpeedSettings(
        model=str(six_steps),
        frontier=frontier,
        out=tmp_path / "speeds",
        studies=studies,
        families=("euler", "fora", "bayes", "ecad"),
        prompts=2,
        into=readme,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("haste")
def test_the_comparison_is_measured_once_and_written(settings, screen, monkeypatch):
    rows = run_speeds(settings, screen)

    assert {row.family for row in rows} == {"ours", "euler", "fora", "bayes"}
    assert "Left out ecad: found no study of it in" in screen.text()
    (fitted,) = [row for row in rows if row.family == "bayes"]
    assert (fitted.setting, fitted.calls) == ("ask 7", 2.0)
    assert all(row.calls <= 4 and row.speedup > 0.0 and 5.0 < row.psnr < 60.0 for row in rows)
    out = settings.out
    files = sorted(p.name for p in out.iterdir() if p.suffix != ".db")
    assert files == ["speeds-table.csv", "speeds-table.md", "speeds.csv", "speeds.png"]
    read = list(csv.DictReader((out / "speeds.csv").read_text().splitlines()))
    assert [(r["family"], r["id"]) for r in read] == [(row.family, row.id) for row in rows]
    text = settings.into.read_text()
    assert "| **ours** |" in text
    assert "Measured on 4 held-out prompts (flux-mini-held-out sha256:" in text
    assert "old" not in text

    def never(*_, **__):
        raise AssertionError("measured again")

    before = {p: p.read_bytes() for p in out.iterdir() if p.suffix in (".csv", ".md")}
    monkeypatch.setattr("schedsearch.evaluate._evaluator.PipelineEvaluator.evaluate", never)
    monkeypatch.setattr("schedsearch.bench._speeds.evaluate_held_out", never)
    assert run_speeds(settings, screen) == rows
    assert {p: p.read_bytes() for p in before} == before


def test_seeds_of_a_searcher_count_together(studies, space):
    ((setting, schedule),) = found_by("bayes", studies)
    assert setting == "ask 7"
    assert schedule.n_steps == 2
    assert list(found_by("ecad", studies)) == []


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.make is not None])
def test_a_family_makes_different_schedules_of_the_model(space, name):
    made = list(FAMILIES[name].make(space))
    settings = [setting for setting, _ in made]
    assert len(set(settings)) == len(settings) >= 4
    assert all(schedule.model == space.model for _, schedule in made)
    assert len({schedule.id for _, schedule in made}) > len(made) / 3


def test_hand_made_masks_are_as_published(space):
    fora = dict(FAMILIES["fora"].make(space))
    assert fora["N=2 E=1"].row("model") == "CRCRCR"
    assert fora["N=3 E=3"].row("model") == "CCCRRC"
    taylor = dict(FAMILIES["taylorseer-2"].make(space))
    assert taylor["N=3 E=1"].row("model") == "CRRC11"
    assert taylor["N=3 E=3"].row("model") == "CCC22C"
    delta = dict(FAMILIES["delta-dit"].make(space))
    blocks = [block.name for block in space.blocks]
    half = max(1, round(len(blocks) / 2))
    plan = delta[f"N=3, {half} of {len(blocks)} blocks, switch 3"]
    assert (plan.row(blocks[-1]), plan.row(blocks[0])) == ("CRRCCC", "CCCCRR")


def test_few_steps_are_placed_by_shift(space):
    made = dict(FAMILIES["adams"].make(space))
    plan = made["4 steps, shift 3"] if "4 steps, shift 3" in made else made["4 steps, own spacing"]
    assert plan.sigma[2] == pytest.approx(0.75)
    assert {solver.family for solver in plan.solver} == {"adams"}
    assert max(schedule.n_steps for schedule in made.values()) == 6
