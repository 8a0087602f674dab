"""The whole job on the bundled model: what it writes, what it refuses, and that killing it changes nothing."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schedsearch.errors import EvaluationError, SpaceError, StudyError, StudyMismatchError, UsageError
from schedsearch.optimize import Optimized, OptimizeSettings
from schedsearch.schedule import read_frontier, read_schedule
from schedsearch.search import SEARCHERS
from schedsearch.study import Study

SCRIPT = Path(__file__).parent / "small_job.py"
TIMED = ("speedup", "low", "high", "latency ms")
"""Columns a clock decides; so are the names of schedules, which are their measured speed-ups."""


def _load_script() -> Any:
    spec = importlib.util.spec_from_file_location("small_job", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small_job() -> Any:
    module = _load_script()
    from schedsearch.optimize import _bench, _finals, _run

    kept = {
        (m, name): getattr(m, name)
        for m in (_bench, _finals, _run)
        for name in (
            "FIDELITY",
            "LADDER",
            "FRESH",
            "AROUND",
            "prompt_set",
            "measure_cost",
            "with_linear_prices",
            "evaluate_held_out",
            "load_pipeline",
        )
        if hasattr(m, name)
    }
    module.shrink()
    yield module
    for (m, name), value in kept.items():
        setattr(m, name, value)


@pytest.fixture(scope="module")
def model(six_steps: Path) -> Path:
    return six_steps


@pytest.fixture(scope="module")
def done(small_job: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Optimized, Path]:
    from schedsearch.evaluate import CostModel, find_card, load_pipeline
    from schedsearch.optimize import _run

    out = tmp_path_factory.mktemp("runs") / "first"
    optimized = small_job.job(model, out, resume=False)
    with Study.load(out / "study.db") as study:
        cost = str(study.notes["cost"])
    # Done once for real; the jobs after this one need not load the model and measure its cost again.
    pipe = load_pipeline(find_card(str(model)))
    _run.load_pipeline = lambda *_, **__: pipe
    _run.measure_cost = lambda *_, **__: CostModel.from_json(cost)
    return optimized, out


def records(out: Path) -> list[Any]:
    """Everything the study knows, but for what measuring took.

    Candidates share the beginnings of their runs, and a process that was killed takes those it kept with it: the same
    numbers are had again with more denoiser calls.
    """
    with Study.load(out / "study.db") as study:
        return [replace(e, seconds=0.0, denoiser_evals=0) for e in study.evaluations()]


def untimed(out: Path) -> dict[str, Any]:
    """Every file the job writes, without what a clock decides.

    The page has times on every other line, but it is made of the study and the pictures alone, which are compared.
    """
    from schedsearch_reports import render, report_data

    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith("study.db")):
        if path.suffix in {".safetensors", ".webp"}:
            found[path.name] = path.read_bytes()
        elif path.suffix == ".html":
            found[path.name] = ""
            assert path.read_text(encoding="utf-8") == render(report_data(out))
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
            clock = {row["run"]: (*TIMED, "run") if row["kind"] == "schedule" else TIMED for row in rows}
            found[path.name] = [{k: v for k, v in row.items() if k not in clock[row["run"]]} for row in rows]
        else:
            found[path.name] = _without_times(json.loads(path.read_text()))
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict) and value.get("metric") in ("speedup", "latency_ms"):
        return {k: v for k, v in value.items() if k not in ("value", "low", "high")}
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k != "label"}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_it_writes_the_schedule_the_frontier_and_the_table(done: tuple[Optimized, Path]) -> None:
    optimized, out = done
    schedule = read_schedule(out / "mini-60pctmacs.json")
    assert any(solver.family == "table" for solver in schedule.solver)  # so that side files are tested here, too
    side_file = "mini-60pctmacs.safetensors"
    expected = ["frontier", "mini-60pctmacs.json", side_file, "pictures", "report.html", "results.csv", "study.db"]
    assert sorted(p.name for p in out.iterdir()) == expected
    measured = {m.metric: m for m in schedule.measured}
    assert measured["macs_fraction"].value <= 0.6
    assert measured["psnr"].n == 2
    assert measured["speedup"].n == 2
    assert measured["psnr"].prompts.startswith("flux-mini-held-out sha256:")
    assert schedule.provenance.searcher == "auto"
    assert optimized.chosen is not None
    assert optimized.chosen.schedule is not None
    assert optimized.chosen.schedule.id == schedule.id
    index = read_frontier(out / "frontier")
    assert index.load("60%macs").id in {r.schedule.id for r in optimized.results if r.schedule}
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert {row["kind"] for row in rows} == {"full", "schedule", "fewer steps"}
    assert all(float(row["converged PSNR dB"]) > 0.0 for row in rows)
    for file in (out / side_file, *(out / "frontier").glob("*.safetensors")):
        assert read_schedule(file.with_suffix(".json")).tables.data == file.read_bytes()


def test_the_report_says_the_same_and_shows_the_pictures(done: tuple[Optimized, Path]) -> None:
    from schedsearch_reports import render, report_data
    from schedsearch_reports.sample import data_of_page

    optimized, out = done
    data = data_of_page((out / "report.html").read_text(encoding="utf-8"))
    assert data.is_finished
    for run, result in zip(data.runs, optimized.results, strict=True):
        assert (run.name, run.calls) == (result.name, result.denoiser_calls)
        assert all(run.value(m.metric) == m.value for m in result.measured)
    assert data.gallery is not None
    assert {entry.run for entry in data.gallery.runs} >= {run.key for run in data.runs if run.schedule} | {"full"}
    psnr = {entry.run: entry.scores for entry in data.gallery.runs}
    assert sum(psnr[data.chosen]) / 2 == pytest.approx(data.run(data.chosen).value("psnr"))  # both prompts are shown
    assert dict(data.facts)["Command"].startswith("schedsearch optimize --model ")
    assert {origin.name.split()[0] for origin in data.search.origins} >= {"seed"}
    assert render(report_data(out)) == (out / "report.html").read_text(encoding="utf-8")


def test_what_is_written_draws_pictures(done: tuple[Optimized, Path]) -> None:
    """A fitted schedule and its side file are all that a replay needs."""
    import torch

    from schedsearch import apply
    from schedsearch.evaluate import find_card, load_pipeline

    pipe = load_pipeline(find_card("flux-mini"))
    call = {"height": 64, "width": 64, "guidance_scale": 1.0, "max_sequence_length": 16, "output_type": "pt"}
    with apply(pipe, done[1] / "mini-60pctmacs.json") as handle:
        steps = handle.schedule.n_steps
        images = pipe("red apple", num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **call)[0]
    assert images.isfinite().all()


def test_resuming_a_finished_job_changes_no_byte(small_job: Any, model: Path, done: tuple[Optimized, Path]) -> None:
    _, out = done
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".db"}
    small_job.job(model, out, resume=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".db"} == before


@pytest.mark.slow
def test_a_job_killed_at_any_moment_and_resumed_ends_the_same(
    model: Path, done: tuple[Optimized, Path], tmp_path: Path
) -> None:
    _, out = done
    with Study.load(out / "study.db") as study:
        (tmp_path / "cost.json").write_text(str(study.notes["cost"]))
    again = tmp_path / "again"
    command = [sys.executable, str(SCRIPT), str(model), str(again), str(tmp_path / "cost.json")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.split()[-1]) >= 3  # it was killed a few times on the way
    assert records(again) == records(out)
    assert untimed(again) == untimed(out)


def test_a_second_job_in_the_same_folder_is_refused(small_job: Any, model: Path, done: tuple[Optimized, Path]) -> None:
    with pytest.raises(StudyError, match="Pass --resume to go on with it, or another --out"):
        small_job.job(model, done[1], resume=False)


def test_resuming_with_other_settings_is_refused(small_job: Any, model: Path, done: tuple[Optimized, Path]) -> None:
    with pytest.raises(StudyMismatchError, match=r"metric \(found \"psnr\", expected \"ssim\"\)"):
        small_job.job(model, done[1], resume=True, metric="ssim")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"budget": "fast"}, UsageError, "budget: found 'fast'"),
        (
            {"search": "oracle"},
            UsageError,
            (
                "--search: found 'oracle', expected one of "
                "anneal, auto, autodiffusion, bayes, cachequant, ecad, random, s3."
            ),
        ),
        ({"metric": "beauty"}, UsageError, "metric: found 'beauty'"),
        ({"space": "nowhere.yaml"}, SpaceError, "nowhere.yaml: found no such space, expected one of flux"),
        ({"metric": "psnr,fid"}, UsageError, "--metric fid[flux-mini-clip]: found 4 calibration prompts in"),
        ({"metric": "fid"}, UsageError, "expected 256 or more, because it compares sets of pictures. Search by kid,"),
        ({"metric": "clip[/nowhere]"}, UsageError, "feature network: found '/nowhere', expected one of flux-mini-clip"),
        ({"reference": "best"}, UsageError, "reference: found 'best', expected one of default, converged."),
        ({"budget": "1%macs"}, EvaluationError, "--budget: found 1%macs, expected one that one denoiser call can keep"),
    ],
)
@pytest.mark.usefixtures("done")
def test_what_cannot_be_done_is_said(  # noqa: PLR0917 - fixtures and cases
    small_job: Any, model: Path, tmp_path: Path, options: dict[str, str], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        small_job.job(model, tmp_path / "out", resume=False, **options)
    assert words in str(caught.value)
    assert not (tmp_path / "out" / "frontier").exists()


def test_held_out_prompts_may_not_be_searched_on(small_job: Any, model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("coral, yellow background\nmy own, red background\n")
    with pytest.raises(UsageError, match="found 1 prompts that are also in the held-out set flux-mini-held-out"):
        small_job.job(model, tmp_path / "out", resume=False, prompts=prompts)


@pytest.mark.slow
@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("search", sorted(set(SEARCHERS) - {"auto"}))
def test_the_other_searchers_run_the_same_job(
    small_job: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    """Up to where the best are measured, which is the same for all; one goes on to the end."""
    from schedsearch.optimize import _run

    settings = {"search": search, "trials": 26 if search == "ecad" else 8, "budget": "95%macs"}
    if search == "s3":
        small_job.job(model, tmp_path / "out", resume=False, **settings)
        assert read_schedule(tmp_path / "out" / "mini-95pctmacs.json").provenance.searcher == search
    else:
        monkeypatch.setattr(_run, "finals", _enough)
        with pytest.raises(SearchedEnoughError):
            small_job.job(model, tmp_path / "out", resume=False, **settings)
    with Study.load(tmp_path / "out" / "study.db") as study:
        found = study.evaluations()
    assert 0 < len(found) <= settings["trials"]
    assert {e.candidate.searcher for e in found} == {search}
    assert sum(e.status == "ok" for e in found) > len(found) / 2


class SearchedEnoughError(Exception):
    """Raised where the last stages would begin."""


def _enough(*_: object) -> None:
    raise SearchedEnoughError


MODEL_ROW_ONLY = "format: schedsearch.space\nversion: 1\nname: mine\nlevels: {model: CR}\n"


@pytest.mark.slow
@pytest.mark.usefixtures("done")
def test_a_space_file_of_ones_own_is_what_is_searched(
    small_job: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from schedsearch.optimize import _run

    monkeypatch.setattr(_run, "finals", _enough)
    space = tmp_path / "space.yaml"
    space.write_text(MODEL_ROW_ONLY)
    settings = {"space": str(space), "search": "random", "trials": 6, "budget": "95%macs"}
    with pytest.raises(SearchedEnoughError):
        small_job.job(model, tmp_path / "out", resume=False, **settings)
    with Study.load(tmp_path / "out") as study:
        found = [e.candidate.schedule for e in study.evaluations()]
        assert study.settings["space"]["name"] == "space.yaml"
    assert {name for schedule in found for name, _ in schedule.ops} == {"model"}
    assert {schedule.n_steps for schedule in found} == {6}
    space.write_text(MODEL_ROW_ONLY.replace("CR", "CR1"))
    with pytest.raises(StudyMismatchError, match="space \\(found"):
        small_job.job(model, tmp_path / "out", resume=True, **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("small_job", "done")
def test_the_live_view_serves_the_report_of_the_study_as_it_stands(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    from urllib.request import urlopen

    from rich.console import Console

    from schedsearch.optimize import Display, _run, optimize
    from schedsearch_reports import render, report_data

    served = []
    told = io.StringIO()

    def look(*_: object) -> None:
        url = told.getvalue().split("Live view: ")[1].split()[0]
        with urlopen(f"{url}status.json") as status, urlopen(f"{url}report") as page:  # noqa: S310 - our own
            served.extend([json.load(status), page.read().decode(), render(report_data(tmp_path / "out"))])
        raise SearchedEnoughError

    monkeypatch.setattr(_run, "finals", look)
    settings = OptimizeSettings(
        model=str(model), budget="60%macs", trials=6, search="random", out=tmp_path / "out", watch=0
    )
    with pytest.raises(SearchedEnoughError):
        optimize(settings, Display(Console(file=told, highlight=False)))
    status, page, report = served
    assert status["stage"] == ""
    assert page == report
    assert "<html" in page


@pytest.mark.slow
@pytest.mark.usefixtures("done")
def test_quality_may_be_measured_against_a_converged_run(small_job: Any, model: Path, tmp_path: Path) -> None:
    optimized = small_job.job(model, tmp_path / "out", resume=False, reference="converged", trials=8)
    with Study.load(tmp_path / "out" / "study.db") as study:
        assert [objective.name for objective in study.objectives] == ["macs", "converged_psnr"]
        plain = study.evaluations()[0]
    assert plain.values[1] < 60.0  # the full run differs from the converged one, as any schedule does
    index = json.loads((tmp_path / "out" / "frontier" / "frontier.json").read_text())
    assert index["quality"] == "converged_psnr"
    measured = {m.metric: m for m in optimized.chosen.measured}
    assert measured["converged_psnr"].value > 10.0
    assert measured["converged_psnr"].value != measured["psnr"].value


@pytest.mark.slow
@pytest.mark.usefixtures("done")
def test_several_qualities_are_searched_for_at_once(
    small_job: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric of pairs, one of prompts and one of sets; the first decides, all are on record."""
    from schedsearch.evaluate import METRICS
    from schedsearch.optimize import _bench

    monkeypatch.setattr(_bench, "FIDELITY", 3)
    kid = replace(METRICS["kid"], fewest=4)  # the small job has four prompts
    monkeypatch.setattr("schedsearch.evaluate._quality.METRICS", {**METRICS, "kid": kid})
    optimized = small_job.job(model, tmp_path / "out", resume=False, metric="clip,psnr,kid", trials=10)
    names = ["clip[flux-mini-clip]", "psnr", "kid[flux-mini-clip]"]
    with Study.load(tmp_path / "out" / "study.db") as study:
        assert [objective.name for objective in study.objectives] == ["macs", *names]
        found = [e for e in study.evaluations() if e.status == "ok"]
    assert {e.fidelity for e in found} == {4}  # no first look at fewer pictures than a set needs
    assert {len(e.values) for e in found} == {4}
    samples = dict(found[-1].samples)
    assert len(samples[names[0]]) == len(samples["psnr"]) == 4
    assert names[2] not in samples
    assert dict(found[-1].metrics)[names[2]] == found[-1].values[3]
    assert json.loads((tmp_path / "out" / "frontier" / "frontier.json").read_text())["quality"] == names[0]
    measured = {m.metric: m for m in optimized.chosen.measured}
    assert {*names, "fid[flux-mini-clip]", "ssim", "converged_psnr"} <= set(measured)
    assert "converged_kid[flux-mini-clip]" not in measured
    assert measured[names[2]].n == 2
    (row, *_) = csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())
    assert row["run"] == "full"
    assert float(row[names[2]]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("model", "budget", "name"),
    [
        ("flux", "4x", "flux-4x"),
        ("org/My Model", "800ms", "My-Model-800ms"),
        ("/some/folder/", "60%macs", "folder-60pctmacs"),
    ],
)
def test_names_of_files_come_from_model_and_budget(model: str, budget: str, name: str) -> None:
    settings = OptimizeSettings(model=model, budget=budget)
    assert settings.name == name
    assert settings.folder == Path("runs") / name
