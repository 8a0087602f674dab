"""``--json`` and ``--csv``: one document or table on standard output, equal to the objects it was made from."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest

from schedsearch import _terminal
from schedsearch.schedule import MODEL_ROW, computes, loads, read_frontier, row_groups, write_frontier, write_schedule


def asked(run_cli, *words, code=0):
    """The document that a call prints, its envelope checked and taken off."""
    done = run_cli(*words, "--json")
    assert done.code == code, done.err
    document = json.loads(done.out, parse_constant=pytest.fail)
    assert (document.pop("format"), document.pop("version")) == ("schedsearch.cli", 1)
    assert " ".join(words).startswith(document.pop("command"))
    return document


def test_show_tells_a_schedule_whole(run_cli, schedule_file, schedule):
    (file,) = asked(run_cli, "show", str(schedule_file))["files"]
    assert (file["path"], file["kind"], file["quality"]) == (str(schedule_file), "schedule", None)
    (told,) = file["schedules"]
    assert loads(json.dumps(told["schedule"])) == schedule
    assert (told["id"], told["n_steps"], told["computed"]) == (schedule.id, 5, computes(schedule, MODEL_ROW))
    assert told["rows"] == [group._asdict() for group in row_groups(schedule)]


def test_show_tells_a_frontier_in_the_order_of_its_index(run_cli, frontier_folder):
    index = read_frontier(frontier_folder)
    (file,) = asked(run_cli, "show", str(frontier_folder))["files"]
    assert (file["kind"], file["quality"]) == ("frontier", "psnr")
    assert [loads(json.dumps(one["schedule"])) for one in file["schedules"]] == [index.load(e) for e in index.entries]
    assert [one["path"] for one in file["schedules"]] == [str(frontier_folder / e.file) for e in index.entries]


def test_a_folder_that_optimize_wrote_stands_for_its_frontier(run_cli, frontier_folder):
    whole, inner = (asked(run_cli, "show", str(folder)) for folder in (frontier_folder.parent, frontier_folder))
    assert whole == inner


def test_show_as_a_table_has_every_digit(run_cli, schedule, full_schedule, tmp_path):
    write_frontier(tmp_path / "f", [schedule, full_schedule], quality="psnr", labels=('4"x', ""))
    write_schedule(schedule, tmp_path / "plan.json")
    done = run_cli("show", str(tmp_path / "f"), str(tmp_path / "plan.json"), "--csv")
    rows = list(csv.reader(io.StringIO(done.out), delimiter="\t"))
    assert rows[0] == [
        "path", "label", "id", "n_steps", "computed", "speedup", "speedup_low", "speedup_high", "psnr", "psnr_low",
        "psnr_high",
    ]  # fmt: skip
    index = read_frontier(tmp_path / "f")
    assert rows[1] == [
        str(tmp_path / "f" / index.entries[0].file), '4"x', schedule.id, "5", "3", "4.12", "3.9", "4.3", "", "", "",
    ]  # fmt: skip
    assert rows[2][5:] == ["", "", "", "25.0", "25.0", "25.0"]
    assert rows[3][0] == str(tmp_path / "plan.json")
    comma = run_cli("show", str(tmp_path / "f"), str(tmp_path / "plan.json"), "--csv", "--separator", "comma").out
    assert list(csv.reader(io.StringIO(comma))) == rows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--csv", "--json"), "error: found both --csv and --json, expected at most one. Leave one out.\n"),
        (
            ("--csv", "--separator", "|"),
            "error: --separator: found '|', expected one of tab, comma, semicolon.\n",
        ),
    ],
)
def test_show_in_two_ways_at_once_is_refused(run_cli, schedule_file, words, said):
    done = run_cli("show", str(schedule_file), *words)
    assert (done.code, done.out, done.err) == (2, "", said)


def test_validate_tells_what_is_wrong_where(run_cli, schedule_file, schedule, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(schedule_file.read_text("utf-8").replace('"CCRRC"', '"CCRRX"'), encoding="utf-8")
    told = asked(run_cli, "validate", str(schedule_file), str(bad), code=2)
    assert told["valid"] is False
    good, wrong = told["files"]
    assert good == {
        "path": str(schedule_file), "valid": True,
        "schedules": [{"path": str(schedule_file), "id": schedule.id}],
    }  # fmt: skip
    assert wrong["valid"] is False
    assert wrong["error"]["type"] == "ScheduleFormatError"
    assert wrong["error"]["path"].startswith("ops.model")
    assert wrong["error"]["message"].startswith("bad.json: ops.model")
    assert asked(run_cli, "validate", str(schedule_file))["valid"] is True


def test_models_are_the_cards(run_cli):
    from schedsearch.evaluate import cards

    assert asked(run_cli, "models")["models"] == [
        {**dataclasses.asdict(card), "at_hand": at_hand, "where": where} for card, at_hand, where in cards()
    ]


def test_an_error_leaves_standard_output_empty(run_cli, tmp_path):
    done = run_cli("show", str(tmp_path / "none.json"), "--json")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: none.json: ")


# ---- verbs that measure, with the measuring replaced


def test_what_is_said_on_the_way_goes_to_standard_error(run_cli, monkeypatch):
    from schedsearch import bench
    from schedsearch.optimize import Display

    def measured(settings, display=None):
        display = display or Display()
        display.line("a remark")
        display.table("t", ("name", "n"), [("a", "1.5")])
        return ()

    monkeypatch.setattr(bench, "run_calibrate", measured)
    done = run_cli("calibrate", "--model", "m", "--json")
    assert "a remark" in done.err
    assert json.loads(done.out)["tables"] == [{"title": "t", "columns": ["name", "n"], "rows": [["a", 1.5]]}]
    assert "a remark" in run_cli("calibrate", "--model", "m").out, "and back again without --json"


def test_optimize_tells_its_results(run_cli, monkeypatch, schedule, tmp_path):
    from schedsearch.optimize import Optimized, Result

    result = Result(
        name="4x", kind="schedule", steps=5, denoiser_calls=3.0, measured=schedule.measured, schedule=schedule
    )
    plain = dataclasses.replace(result, name="full", kind="full", schedule=None)
    optimized = Optimized(chosen=result, results=(plain, result), written=(tmp_path / "a.json",))
    monkeypatch.setattr("schedsearch.optimize.optimize", lambda _: optimized)
    told = asked(run_cli, "optimize", "--model", "m", "--budget", "4x")
    assert told["chosen"] == "4x"
    assert told["written"] == [str(tmp_path / "a.json")]
    assert [one["id"] for one in told["results"]] == [None, schedule.id]
    assert told["results"][1]["measured"] == [dataclasses.asdict(m) for m in schedule.measured]


def test_bench_tables_are_the_rows(run_cli, monkeypatch, tmp_path):
    from schedsearch import bench
    from schedsearch.bench._curves import Standing

    row = bench.SpeedRow(
        family="ours", setting="4x", id="sha256:ab", calls=5.0, speedup=4.25, low=4.0, high=4.5, latency_ms=100.5,
        psnr=30.125, ssim=0.5, latent_error=0.25, converged_psnr=float("inf"),
    )  # fmt: skip
    standing = Standing(**{
        field.name: "auto" if field.name == "searcher" else 1.5 for field in dataclasses.fields(Standing)
    })  # fmt: skip
    cell = bench.CacheQuantRow(format="W8A8", computed=7, plan="even steps", mask="CR", cost=0.5, errors=(0.1, 0.2))
    monkeypatch.setattr(bench, "run_speeds", lambda *_: (row,))
    monkeypatch.setattr(bench, "run_contest", lambda *_, **__: (standing,))
    monkeypatch.setattr(bench, "run_cachequant", lambda *_: (cell,))
    told = asked(run_cli, "bench", "speeds", "--frontier", str(tmp_path))["rows"]
    assert told == [{**dataclasses.asdict(row), "converged_psnr": None}], "what is not finite is null"
    told = asked(run_cli, "bench", "search")
    assert told == {"rival": "auto", "rows": [dataclasses.asdict(standing)]}
    assert asked(run_cli, "bench", "ablation")["rival"] == "joint"
    assert asked(run_cli, "bench", "cachequant")["rows"] == [{**dataclasses.asdict(cell), "errors": [0.1, 0.2]}]


def test_compare_tells_the_whole_record(run_cli, monkeypatch, comparison):
    from schedsearch.study import Comparison
    from schedsearch.study._tree import decoded, encoded

    monkeypatch.setattr("schedsearch.bench.run_compare", lambda *_: comparison)
    told = asked(run_cli, "compare")["comparison"]
    assert decoded(Comparison, told) == comparison
    assert encoded(comparison).keys() == told.keys()


def test_a_file_that_was_written_is_named_and_told(run_cli, monkeypatch, tmp_path):
    target = tmp_path / "t.json"
    target.write_text('{"format": "x", "rows": [1]}')
    for verb, told in (("profile", {"table": {"format": "x", "rows": [1]}}), ("sensitivity", {"tables": []})):
        monkeypatch.setattr(f"schedsearch.bench.run_{verb}", lambda *_: target)
        assert asked(run_cli, verb, "--model", "m") == {"path": str(target), **told}


def test_evaluate_tells_what_it_wrote_beside_each_file(run_cli, monkeypatch, tmp_path):
    target = tmp_path / "plan.at.json"
    target.write_text('{"format": "schedsearch.at", "version": 1, "id": "sha256:ab", "conditions": []}')
    monkeypatch.setattr("schedsearch.bench.run_transfer", lambda *_: (target,))
    (told,) = asked(run_cli, "evaluate", "plan.json", "--model", "m")["files"]
    assert told == {
        "path": str(target), "format": "schedsearch.at", "version": 1, "id": "sha256:ab", "conditions": [],
    }  # fmt: skip


def test_plain_refuses_nothing_a_record_may_hold(schedule):
    told = _terminal.plain({"schedule": schedule.measured[0], "set": {1}, "nan": float("nan"), "path": io})
    assert told["nan"] is None
    assert told["set"] == [1]
    assert told["schedule"] == dataclasses.asdict(schedule.measured[0])
