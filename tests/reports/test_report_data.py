"""What a report says, number by number, of a study whose numbers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schedsearch.errors import UsageError
from schedsearch.schedule import loads, read_frontier
from schedsearch.study import Study, measured_runs
from schedsearch_reports import ReportData, report_data
from schedsearch_reports._data import Progress
from schedsearch_reports._schedules import block_formats


@pytest.fixture(scope="module")
def data(run_folder_made: Path) -> ReportData:
    return report_data(run_folder_made)


def test_the_answer_comes_first(data: ReportData):
    assert data.headline == "4.25× faster, 27.2 dB PSNR"
    assert data.summary == (
        "2 denoiser calls in place of 4; 94 ms per picture in place of 400 ms.",
        "The plain pipeline at about that speed (1 steps, 4.00×) reaches 15.0 dB PSNR.",
    )
    assert data.conditions == "64 held-out pictures (toy-held-out) · 2 cores <b> · float32 · batch 1"
    assert (data.model, data.budget, data.is_finished) == ("toy", "4x", True)


def test_every_run_has_the_studys_numbers(data: ReportData, run_folder_made: Path):
    with Study.load(run_folder_made / "study.db") as study:
        measured = measured_runs(study)
    assert [run.name for run in data.runs] == ["full", "2.00x", "4.25x", "4.25x-2", "2 steps", "1 steps"]
    assert [run.name for run in measured] == [run.name for run in data.runs]
    for mine, theirs in zip(data.runs, measured, strict=True):
        assert mine.calls == theirs.denoiser_calls
        for record in theirs.measured:
            value = mine.measured(record.metric)
            assert value is not None
            assert (value.value, value.low, value.high, value.n) == (record.value, record.low, record.high, record.n)


def test_the_schedule_for_the_budget_is_the_one_written_for_it(data: ReportData, run_folder_made: Path):
    chosen = data.run(data.chosen)
    assert (chosen.name, chosen.is_chosen) == ("4.25x", True)
    assert [run.name for run in data.runs if run.schedule] == ["2.00x", "4.25x"]  # the third was not handed over
    (view,) = [view for view in data.schedules if view.id == chosen.schedule]
    assert (view.file, view.path) == ("toy-4x.json", "toy-4x.json")
    assert view.text == (run_folder_made / "toy-4x.json").read_text()
    assert 'schedsearch.apply(pipe, "toy-4x.json")' in view.code


def test_what_the_page_hands_out_is_the_frontier(data: ReportData, run_folder_made: Path):
    index = read_frontier(run_folder_made / "frontier")
    assert {loads(view.text).id for view in data.schedules} == {entry.id for entry in index.entries}


def test_metrics_come_in_the_order_of_the_axes(data: ReportData):
    assert [(m.name, m.axis) for m in data.metrics] == [
        ("speedup", "speed"), ("latency_ms", "speed"), ("denoiser_calls", "speed"), ("macs_fraction", "speed"),
        ("psnr", "quality"), ("ssim", "quality"), ("converged_psnr", "quality"),
    ]  # fmt: skip
    relative = {m.name for m in data.metrics if m.is_relative}
    assert relative == {"psnr", "ssim"}  # the full run's own number says something against the converged reference
    assert data.metric_named("converged_psnr").label == "PSNR against a run of many more steps"


def test_the_search_goes_up_as_worked_out_by_hand(data: ReportData):
    # Against (400 ms, 10 dB): 200 * 22 / 400; then + 100 * 14 / 400; then 200 * 22 + 110 * 18 without the third.
    assert data.search.progress == (
        Progress(ask=1, evals=28, seconds=1.5, volume=0.0, best=None),
        Progress(ask=3, evals=108, seconds=4.5, volume=11.0, best=None),
        Progress(ask=5, evals=158, seconds=7.5, volume=14.5, best=24.0),
        Progress(ask=6, evals=198, seconds=9.0, volume=15.95, best=28.0),
        Progress(ask=7, evals=200, seconds=9.0, volume=15.95, best=28.0),
    )
    assert (data.search.evals, data.search.seconds) == (300, 19.0)  # with what was booked outside the search
    assert data.search.statuses == (("failed", 1),)


def test_who_found_what(data: ReportData):
    rows = {o.name: (o.tried, o.full, o.best, o.handed_over, o.evals) for o in data.search.origins}
    assert rows == {
        "crossed": (1, 1, 1, 1, 40),
        "seed fora": (1, 1, 1, 1, 80),  # the look in full counts for what was found in the first look
        "mutated": (2, 1, 0, 0, 52),
        "seed plain": (1, 1, 1, 0, 28),
    }
    assert [t.ask for t in data.search.tried] == [0, 2, 4, 5]
    assert [(t.speed, t.is_best) for t in data.search.tried][2:] == [(4.0, False), (400.0 / 90.0, True)]


def test_a_schedule_tells_where_it_came_from(data: ReportData):
    origin = dict(data.schedules[1].origin)
    assert origin["Measurement"] == "number 6 of 7"
    assert origin["How"] == "crossed"
    assert origin["Generations back to a seed"] == "2"


def test_the_op_map_says_what_runs(data: ReportData):
    rows = {row.label: row for row in data.schedules[1].rows}
    assert list(rows) == [
        "whole denoiser", "transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2",
        "transformer_blocks.2.attn", "transformer_blocks.3",
    ]  # fmt: skip
    assert (rows["whole denoiser"].ops, rows["whole denoiser"].computed) == ("CCRC", 3)
    # Step 3 is the model row's everywhere; the block forecasts there, but a coarser row wins.
    assert (rows["transformer_blocks.2"].ops, rows["transformer_blocks.2"].own) == ("CCRC", "1101")
    assert (rows["transformer_blocks.2.attn"].ops, rows["transformer_blocks.2.attn"].own) == ("CRRS", "1101")
    assert (rows["transformer_blocks.0"].ops, rows["transformer_blocks.0"].computed) == ("CRRC", 2)
    assert rows["transformer_blocks.0"].formats == "attn int8"
    assert rows["transformer_blocks.3"].is_pruned
    folded = [(row.label, row.count) for row in data.schedules[1].folded]
    assert folded[1] == ("transformer_blocks.0–1", 2)
    assert len(folded) == 5
    assert data.schedules[1].solvers == ("E1", "A2", "D2′", "E1")
    assert data.schedules[1].guidance == ("3.5", "3.5", "", "1")


@pytest.mark.parametrize(
    ("pattern", "block", "said"),
    [
        ("transformer_blocks.*", "transformer_blocks.7", "int8"),
        ("transformer_blocks.[0-3].ff.*", "transformer_blocks.2", "ff int8"),
        ("transformer_blocks.[0-3].ff.*", "transformer_blocks.4", ""),
        ("single_transformer_blocks.*", "transformer_blocks.4", ""),
        ("*", "transformer_blocks.4", ""),  # said once, in the whole denoiser's row
    ],
)
def test_formats_are_told_per_block(pattern: str, block: str, said: str):
    from schedsearch.schedule import PrecisionRule

    assert block_formats([PrecisionRule(pattern=pattern, weight="int8", activation="int8")], block) == said


def test_pictures_belong_to_runs(data: ReportData):
    assert data.gallery is not None
    assert {entry.run for entry in data.gallery.runs} <= {run.key for run in data.runs}
    assert data.gallery.prompts[0] == "a red apple"
    assert [entry.scores[0] for entry in data.gallery.runs] == [30.0, 31.0, 32.0, 33.0]
    assert data.gallery.shown == 16
    assert all(image.startswith("data:image/png;base64,") for entry in data.gallery.runs for image in entry.images)


def test_an_unfinished_search_has_a_report_too(run_without_end: Path):
    data = report_data(run_without_end)
    assert not data.is_finished
    assert data.headline == "Searching: 7 schedules measured"
    assert data.summary == ("Best within 4x so far: 28.0 dB PSNR, as predicted.",)
    assert [(run.name, run.value("predicted_speedup"), run.value("psnr")) for run in data.runs] == [
        ("2.00x", 2.0, 32.0),
        ("4.44x", 400.0 / 90.0, 28.0),
    ]
    assert data.run(data.chosen).name == "4.44x"  # the slowest that is predicted to keep the budget


def test_an_empty_study_has_a_report_too(tmp_path: Path, run_folder_made: Path):
    with Study.load(run_folder_made / "study.db") as full:
        study = Study.open(
            tmp_path / "study.db", "s", objectives=full.objectives, settings=dict(full.settings), resume=False
        )
    with study:
        data = report_data(tmp_path, study=study)
    assert (data.runs, data.chosen, data.search.measured) == ((), "", 0)


def test_a_frontier_of_another_search_is_not_taken_for_this_one(run_folder_made: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(run_folder_made, folder)
    index = json.loads((folder / "frontier" / "frontier.json").read_text())
    first = folder / "frontier" / index["entries"][0]["file"]
    text = first.read_text().replace('"value": 2.0,', '"value": 2.0625,')
    assert text != first.read_text()
    first.write_text(text)
    data = report_data(folder)
    assert [run.name for run in data.runs if run.schedule] == ["4.25x"]


def test_a_folder_without_a_study_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"found no study.db, expected the output folder of `schedsearch optimize`"):
        report_data(tmp_path)


@pytest.mark.parametrize(
    "broken", ["{", '{"format": "x", "version": 1}', '{"format": "schedsearch.pictures", "version": 1}']
)
def test_pictures_that_cannot_be_read_are_told(run_folder_made: Path, tmp_path: Path, broken: str):
    folder = tmp_path / "copy"
    shutil.copytree(run_folder_made, folder)
    (folder / "pictures" / "pictures.json").write_text(broken)
    with pytest.raises(UsageError, match=r"pictures.json: found pictures that cannot be read"):
        report_data(folder)


def test_no_picture_is_read_from_elsewhere(run_folder_made: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(run_folder_made, folder)
    index = folder / "pictures" / "pictures.json"
    index.write_text(index.read_text().replace("000-00.png", "../study.db"))
    with pytest.raises(UsageError, match=r"'../study.db' is not a bare file name"):
        report_data(folder)
