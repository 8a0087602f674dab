"""The benchmark of the kernels: its table and its order of events, with clocks and calls of our own."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import replace

import pytest
import torch

from schedsearch_kernels.bench import _cases, _peers
from schedsearch_kernels.bench.__main__ import main, run_case
from schedsearch_kernels.bench._cases import LINEARS, OPERATIONS, SMALL_LINEARS, Case, Setting, cases
from schedsearch_kernels.bench._table import COLUMNS, Row, Stamp, Work, append, commit_of, printed, rows_of
from schedsearch_kernels.bench._timing import medians_ms

STAMP = Stamp(device="gpu", torch="2", triton="3", date="2026-01-01T00:00:00Z", commit="abc", command="bench")
MATRIX = Work(op="linear", shape="4096x3072->3072", dtype="int8", amount=2.0 * 4096 * 3072 * 3072, unit="TFLOP/s")
COPY = Work(op="keep", shape="4096x3072", dtype="bf16", amount=3e9, unit="GB/s")


def test_rates_are_work_over_time():
    assert MATRIX.rate(0.1) == pytest.approx(773.09, abs=0.01)
    assert COPY.rate(1.0) == pytest.approx(3000.0)


def test_the_share_is_that_of_the_fastest_peer_and_orientation_does_not_count():
    medians = {"triton": 0.10, "a": 0.20, "b": 0.08, "bf16": 0.01}
    rows = rows_of(MATRIX, medians, ["a", "b", "absent"], STAMP)
    assert [(row.implementation, row.share) for row in rows] == [("triton", 0.8), ("a", 0.4), ("b", 1.0), ("bf16", 8.0)]
    assert all((row.op, row.device, row.command) == ("linear", "gpu", "bench") for row in rows)
    assert rows[0].rate == pytest.approx(773.094)


def test_without_peers_there_is_no_share():
    (row,) = rows_of(MATRIX, {"triton": 0.1}, [], STAMP)
    assert row.share is None
    assert "peer" not in printed(row)
    assert "0.1000 ms" in printed(row)


def test_rows_are_appended_below_one_heading(tmp_path):
    path = tmp_path / "results" / "gpu.csv"
    rows = rows_of(COPY, {"triton": 1.5, "copy": 1.2}, ["copy"], STAMP)
    append(path, rows[:1])
    append(path, rows[1:])
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert [(row["implementation"], row["ms"], row["share"]) for row in found] == [
        ("triton", "1.5", "0.8"),
        ("copy", "1.2", "1.0"),
    ]


def test_a_file_of_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="found columns a, b, expected op, shape, dtype"):
        append(path, rows_of(COPY, {"triton": 1.0}, [], STAMP))
    assert path.read_text(encoding="utf-8") == "a,b\n1,2\n"


class Watch:
    """A stopwatch whose readings are given, and known only once everything has finished."""

    def __init__(self, readings):
        self.readings, self.log, self.finished = iter(readings), [], False

    def time(self, call):
        self.finished = False
        self.log.append(call())
        ms = next(self.readings)

        def reading():
            assert self.finished
            return ms

        return reading

    def finish(self):
        self.finished = True


def test_calls_are_warmed_up_and_take_turns_in_going_first():
    warm: list[str] = []
    calls = {name: (lambda name=name: warm.append(name) or name) for name in "abc"}
    watch = Watch([1.0, 10.0, 100.0, 20.0, 200.0, 2.0, 900.0, 9.0, 30.0])
    medians = medians_ms(calls, watch, rounds=3, warmup=2)
    assert warm[:6] == list("abcabc")
    assert watch.log == list("abc" + "bca" + "cab")
    assert medians == {"a": 2.0, "b": 20.0, "c": 200.0}


def case(**changes) -> Case:
    plain = Case(
        work=COPY,
        timed=lambda: None,
        ours=lambda: (torch.ones(3),),
        twin=lambda: (torch.ones(3),),
        tolerance=0.01,
        peers={"copy": lambda: None},
        bound=0.8,
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        (torch.ones(3), 0.0),
        (torch.tensor([1.0, 1.0, 1.25]), 0.25),
        (torch.tensor([1.0, 1.0, math.nan]), math.inf),
        (torch.ones(4), math.inf),
    ],
)
def test_the_gate_measures_against_the_twin(found, difference):
    assert case(ours=lambda: (found,)).difference() == difference


def test_what_fails_its_gate_is_not_timed():
    wrong = case(ours=lambda: (torch.full((3,), 1.1),))
    rows, remarks = run_case(wrong, Watch([]), STAMP, implementation="triton", rounds=3)
    assert rows == ()
    assert remarks == ["keep bf16 4096x3072: gate failed: found a difference of 0.1, expected at most 0.01"]


def test_a_peer_that_cannot_run_is_named_with_its_reason_and_a_missed_bound_is_said():
    def fails() -> None:
        raise RuntimeError("no int8\nhere")

    peers = {"copy": lambda: None, "other": fails}
    watch = Watch(itertools.cycle([2.0, 1.0]))
    rows, remarks = run_case(case(peers=peers), watch, STAMP, implementation="triton", rounds=1)
    assert [row.implementation for row in rows] == ["triton", "copy"]
    assert remarks == [
        "keep bf16 4096x3072: other left out: no int8 here",
        "keep bf16 4096x3072: 50.0% of the best peer, wanted 80%",
    ]
    # no bound is on the twin
    assert run_case(case(), watch, STAMP, implementation="reference", rounds=1)[1] == []


def test_the_shapes_are_those_of_flux():
    assert LINEARS["single proj_out"] == (4608, 3072 + 4 * 3072, 3072)
    assert {m for m, _, _ in LINEARS.values()} == {1, 512, 4096, 4096 + 512}
    assert LINEARS["adaLN"][2] == 6 * 3072


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_case_passes_its_gate_when_the_kernel_is_the_twin(operation, monkeypatch):
    monkeypatch.setattr(_peers, "find_spec", lambda _name: None)
    setting = Setting(device=torch.device("cpu"), implementation="reference", linears=SMALL_LINEARS)
    made = list(cases(operation, setting))
    assert made
    for one in made:
        assert one.difference() == 0.0
        assert one.work.op == operation
        one.timed()


def test_the_bytes_of_a_forecast_are_what_it_has_to_read_and_write():
    setting = Setting(device=torch.device("cpu"), implementation="reference", linears=SMALL_LINEARS)
    tensor = 33 * 192 * 2
    # levels and stream in, sum out; value and older levels in, all levels out
    assert [one.work.amount / tensor for one in cases("forecast", setting)] == [3, 4, 5, 6]
    assert [one.work.amount / tensor for one in cases("keep", setting)] == [2, 4, 6, 8]
    assert _cases.COPY_BOUND == 0.8


def test_the_whole_program_runs_on_the_twins(tmp_path, capsys):
    path = tmp_path / "cpu.csv"
    where = ["--small", "--device", "cpu", "--implementation", "reference"]
    assert main([*where, "--rounds", "2", "--ops", "w8a8_linear", "keep", "--csv", str(path)]) == 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = [Row(**row) for row in csv.DictReader(file)]
    assert {row.op for row in rows} == {"w8a8_linear", "keep"}
    assert {row.implementation for row in rows} >= {"reference", "torch._int_mm", "copy of as many bytes"}
    assert all(float(row.ms) > 0 for row in rows)
    assert rows[0].command.startswith("python -m schedsearch_kernels.bench --small --device cpu")
    out = capsys.readouterr().out
    assert "0 gates or bounds missed" in out
    assert f"Wrote {path}" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_the_program_says_what_it_needs(capsys):
    assert main(["--small"]) == 2
    assert "expected a machine that runs the kernels" in capsys.readouterr().err


def test_the_commit_is_empty_outside_a_repository(tmp_path):
    assert commit_of(tmp_path) == ""
