"""``schedsearch profile``: what it writes, goes on with, and refuses."""

from __future__ import annotations

import dataclasses

import pytest

from schedsearch.errors import ModelMismatchError
from schedsearch.evaluate import LatencyTable, read_table
from schedsearch.evaluate._prices import LinearPrices
from schedsearch.evaluate.profile import predicted_speedup, table_times
from schedsearch.runtime import block_lists_of, identity_schedule
from schedsearch.schedule import PrecisionRule, write_schedule


@pytest.fixture
def profile(run_cli, folder, tmp_path):
    words = ("--model", str(folder), "--random-weights", "--no-compiled", "--repeats", "1", "--rounds", "1")
    return lambda *more: run_cli("profile", *words, "--out", str(tmp_path / "runs" / "t.json"), *more)


def test_the_command_writes_and_continues_a_table(profile, pipe, tmp_path):
    rule = PrecisionRule(pattern="transformer_blocks.*", weight="int8", activation="int8")
    plain = identity_schedule(pipe, 4, height=16, width=24)
    plan = dataclasses.replace(plain, ops=(("model", "CRRC"),), precision=(rule,))
    write_schedule(plan, tmp_path / "plan.json")

    done = profile("--schedule", str(tmp_path / "plan.json"))

    assert (done.code, done.err) == (0, "")
    table = read_table(tmp_path / "runs" / "t.json")
    assert isinstance(table, LatencyTable)
    assert f"Wrote {tmp_path / 'runs' / 't.json'}" in done.out
    assert "transformer_blocks.ff 24x32" in done.out
    times = table_times(table, block_lists_of(pipe))
    (loop,) = table.loops
    assert (loop.name, loop.schedule, loop.steps, loop.n) == ("plan", plan.id, 4, 1)
    assert loop.predicted == predicted_speedup(plan, plain, times, LinearPrices.of(table)) != 2.0
    assert "reached" in done.out
    assert table.header.command.startswith("schedsearch profile --model")
    assert {row.format for row in table.rows} == {"fp32", "int8"}
    before = {row.key: row for row in table.rows}

    again = profile("--formats", "int8,int8/fp32")

    assert again.code == 0
    more = read_table(tmp_path / "runs" / "t.json")
    assert more.loops == table.loops
    assert all(before[row.key] == row for row in more.rows if row.op != "linear")
    assert {row.format for row in more.rows} == {"fp32", "int8", "int8/fp32"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--formats", "int9"), "error: --formats: found 'int9', expected WEIGHT"),
        (("--no-eager",), "error: found --no-eager and --no-compiled, expected at most one of them. Leave one out."),
        (("--compiled", "--no-eager", "--examples"), "error: --no-eager: found it beside schedules"),
        (("--dtype", "int8"), "error: dtype: found 'int8', expected float32"),
        (("--schedule", "nowhere.json"), "error: nowhere.json: found no such file"),
    ],
)
def test_the_command_refuses_what_it_cannot_do_before_it_starts(profile, words, said, monkeypatch):
    monkeypatch.setattr("schedsearch.bench._profile.random_pipeline", lambda *_, **__: pytest.fail("built"))

    done = profile(*words)

    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_the_command_refuses_a_schedule_of_another_model_before_it_times(profile, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("schedsearch.bench._profile.measure_table", lambda *_, **__: pytest.fail("timed"))
    plan = identity_schedule(pipe, 4, height=16, width=24)
    other = dataclasses.replace(plan, model=dataclasses.replace(plan.model, config="0" * 64))
    write_schedule(other, tmp_path / "plan.json")

    done = profile("--schedule", str(tmp_path / "plan.json"))

    assert (done.code, done.err.startswith("error: model.config: found a Flux")) == (2, True)
    assert ModelMismatchError.__doc__


def test_the_command_leaves_a_file_that_is_no_table(profile, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "t.json").write_text("mine")

    done = profile()

    assert done.code == 2
    assert "found damaged JSON" in done.err
    assert (tmp_path / "runs" / "t.json").read_text() == "mine"
