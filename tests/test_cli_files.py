"""The verbs that read schedule files: show and validate."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from schedsearch import _draw
from schedsearch.schedule import computes, ranges, write_frontier, write_schedule


def test_validate_prints_the_id_of_every_good_file(run_cli, schedule_file, schedule):
    done = run_cli("validate", str(schedule_file), str(schedule_file))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [f"ok {schedule.id} {schedule_file}"] * 2


def test_validate_names_the_rule_a_file_breaks_and_goes_on(run_cli, schedule_file, schedule, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(schedule_file.read_text("utf-8").replace('"CCRRC"', '"CCRRX"'), encoding="utf-8")
    done = run_cli("validate", str(bad), str(schedule_file))
    assert done.code == 2
    assert done.out == f"ok {schedule.id} {schedule_file}\n"
    assert done.err.startswith("error: bad.json: ops.model")
    assert "X" in done.err
    assert done.err.count("\n") == 1, "one paragraph"


def test_validate_says_what_is_missing(run_cli, tmp_path):
    done = run_cli("validate", str(tmp_path / "none.json"))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: none.json: found no such file, expected a schedule file.")


def test_validate_reads_every_schedule_of_a_frontier(run_cli, frontier_folder, schedule):
    done = run_cli("validate", str(frontier_folder))
    assert done.code == 0
    assert len(done.out.splitlines()) == 2
    assert any(line.startswith(f"ok {schedule.id} {frontier_folder}") for line in done.out.splitlines())


def test_a_frontier_with_a_file_exchanged_is_refused(run_cli, frontier_folder, schedule):
    files = sorted(frontier_folder.glob("schedule-*.json"))
    files[0].write_bytes(files[1].read_bytes())
    done = run_cli("validate", str(frontier_folder))
    assert (done.code, done.out) == (2, "")
    assert f"error: {files[0].name}: id: found " in done.err


def test_a_frontier_index_is_not_mistaken_for_a_schedule(run_cli, frontier_folder):
    done = run_cli("show", str(frontier_folder / "frontier.json"))
    assert done.code == 2
    assert done.err.startswith("error: frontier.json: ")


def test_show_draws_rows_with_counts_and_folds_equal_blocks(run_cli, schedule_file):
    lines = [line.split() for line in run_cli("show", str(schedule_file)).out.splitlines()]
    # Block rows run only where the model row computes, too.
    assert ["model", "CCRRC", "3/5"] in lines
    assert ["transformer_blocks.0-1,3", "x3", "CRCCR", "1/5"] in lines
    assert ["transformer_blocks.2", "C1C2R", "1/5"] in lines
    assert ["single_transformer_blocks.0-7.attn", "x8", "CSCCR", "1/5"] in lines


def test_show_tells_what_a_schedule_is_and_was_measured_at(run_cli, schedule_file, schedule):
    out = run_cli("show", str(schedule_file)).out
    facts = {line.split("  ")[0]: line.rstrip() for line in out.split("\nrow ")[0].splitlines()}
    assert out.splitlines()[0].rstrip() == str(schedule_file)
    assert schedule.id in facts["id"], "not folded when it is not a terminal"
    assert facts["model"].endswith("FluxPipeline, 64x64 px, batch 1, config aaaaaaaaaaaa, blocks bbbbbbbbbbbb")
    assert facts["steps"].endswith("5, euler of order 1 in velocity")
    assert facts["sigma"].endswith("1 0.8 0.6 0.4 0.2 0")
    assert facts["measured"].endswith("speedup 4.12 x (3.9 to 4.3), n=10, held-out, 2 cores, float32")
    assert facts["from"].endswith("study s, searcher anneal, seed 3, ask 17")
    assert out.rstrip().endswith("C compute   R reuse   1-3 forecast, order 1 to 3   S skip")


def test_show_counts_tensors_where_there_are_many(run_cli, schedule, tmp_path):
    from schedsearch.schedule import SideTensor, with_tensors

    names = ["model.correction", *(f"transformer_blocks.{i}.ff.net.2.affine" for i in range(8))]
    correction = struct.pack("<10f", *(1.0, 0.0) * 5)
    tensors = {n: SideTensor("F32", (5, 1, 2, 1) if "model" in n else (1, 2, 5), correction) for n in names}
    for n, told in ((2, "model.correction [5, 1, 2, 1], transformer_blocks.0.ff.net.2.affine [1, 2, 5]"),
                    (9, "9 tensors: 1 correction, 8 affine")):  # fmt: skip
        some = {name: tensors[name] for name in names[:n]}
        write_schedule(with_tensors(schedule, some, role=""), tmp_path / f"{n}.json")
        assert told in run_cli("show", str(tmp_path / f"{n}.json")).out


def test_show_explains_only_the_characters_that_are_there(run_cli, schedule, tmp_path):
    plain = dataclasses.replace(schedule, ops=())
    write_schedule(plain, tmp_path / "plain.json")
    out = run_cli("show", str(tmp_path / "plain.json")).out
    assert ["every", "row", "CCCCC", "5/5"] in [line.split() for line in out.splitlines()]
    assert "reuse" not in out


def test_show_tables_a_frontier(run_cli, frontier_folder):
    lines = [line.split() for line in run_cli("show", str(frontier_folder)).out.splitlines()]
    assert lines[0] == ["file", "steps", "computed", "speedup", "x"]
    assert sorted(line[1:] for line in lines[1:]) == [["5", "3/5", "4.12"], ["5", "5/5", "1"]]


def test_show_colours_a_terminal_and_nothing_else(run_cli, schedule_file, monkeypatch):
    assert "\x1b[" not in run_cli("show", str(schedule_file)).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run_cli("show", str(schedule_file)).out


@pytest.mark.parametrize(
    ("numbers", "short"), [([], ""), ([-1], ""), ([4], "4"), ([0, 1, 2], "0-2"), ([9, 1, 2, 5], "1-2,5,9")]
)
def test_block_numbers_in_short(numbers, short):
    assert ranges(numbers) == short


def test_a_component_runs_only_where_its_block_and_the_model_do(schedule):
    nested = dataclasses.replace(schedule, ops=(("model", "CCCRC"), ("blocks.0", "CCRCC"), ("blocks.0.attn", "CRCCC")))
    assert [computes(nested, name) for name in ("model", "blocks.0", "blocks.0.attn", "blocks.1")] == [4, 3, 2, 4]


def test_the_drawing_says_everything_a_schedule_can_hold(full_schedule):
    lines = dict(_draw._fact_lines(full_schedule))
    assert lines["guidance"] == "3.5 3.5 - - 1"
    assert lines["precision"] == "transformer_blocks.*: weights int8, activations bf16"
    assert lines["pruned"] == "transformer_blocks.9"
    assert lines["steps"] == "5, 2 x euler of order 1 in velocity, then 3 x adams of order 2 in velocity"
    assert lines["note"] == "by hand"
    assert _draw.model_text(full_schedule.model).endswith(", adapters emoji")


def test_frontier_columns_are_the_union_of_what_was_measured(schedule, full_schedule, tmp_path):
    folder = tmp_path / "two"
    write_frontier(folder, [schedule, full_schedule], quality="psnr")
    table = _draw.frontier_table([("a", schedule), ("b", full_schedule)])
    assert [column.header for column in table.columns] == ["file", "steps", "computed", "speedup x", "psnr dB"]
