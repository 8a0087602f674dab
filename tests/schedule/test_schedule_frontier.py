"""Budgets and frontier folders."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import ScheduleError, ScheduleFormatError, UnsupportedVersionError, UsageError
from schedsearch.schedule import (
    Budget,
    Measurement,
    Schedule,
    Tables,
    TableTensor,
    parse_budget,
    read_frontier,
    read_schedule,
    write_frontier,
    write_schedule,
)


@pytest.mark.parametrize(
    ("text", "kind", "value", "shown"),
    [
        ("4x", "speedup", 4.0, "4x"),
        (" 2.5 X ", "speedup", 2.5, "2.5x"),
        ("1×", "speedup", 1.0, "1x"),
        ("800ms", "latency_ms", 800.0, "800ms"),
        ("1.5s", "latency_ms", 1500.0, "1500ms"),
        ("60%macs", "macs_fraction", 0.6, "60%macs"),
        ("12.5 % MACs", "macs_fraction", 0.125, "12.5%macs"),
    ],
)
def test_budgets_as_people_write_them(text, kind, value, shown):
    budget = parse_budget(text)
    assert budget == Budget(kind=kind, value=value)
    assert str(budget) == shown
    assert parse_budget(shown) == budget


@given(
    st.builds(Budget, kind=st.just("speedup"), value=st.floats(1.0, 1e12))
    | st.builds(Budget, kind=st.just("latency_ms"), value=st.floats(1e-9, 1e12))
    | st.builds(Budget, kind=st.just("macs_fraction"), value=st.floats(1e-9, 1.0))
)
def test_the_text_of_a_budget_is_exact(budget):
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    "text", ["1234567ms", "4.0000001x", "33.3333333%macs", "7%macs", "0.1ms", "123456789.123456789x"]
)
def test_no_digit_of_a_budget_is_lost(text):
    assert str(parse_budget(text)) == text.replace("456789.123456789", "456789.12345679")  # a double has 17 digits


@pytest.mark.parametrize(
    "text", ["", "4", "x", "four x", "-4x", "4xx", "nanx", "1e3x", "60%", "macs", "9" * 400 + "x", None, 4, "4x\n4x"]
)
def test_a_budget_that_is_none_of_the_forms(text):
    with pytest.raises(
        UsageError, match=r"^budget: found .*, expected a number with its unit, such as 4x \(four times"
    ) as e:
        parse_budget(text)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0.5x", "1x or more"), ("0ms", "more than 0"), ("0%macs", "above 0"), ("120%macs", "up to 100%macs")],
)
def test_a_budget_out_of_range(text, wanted):
    with pytest.raises(UsageError, match=wanted):
        parse_budget(text)


def measured(**values: float) -> tuple[Measurement, ...]:
    units = {"speedup": ("x", "max"), "latency_ms": ("ms", "min"), "macs_fraction": ("1", "min"), "psnr": ("dB", "max"),
             "lpips": ("1", "min")}  # fmt: skip
    return tuple(
        Measurement(metric=m, unit=units[m][0], better=units[m][1], value=v, low=v, high=v, n=5)
        for m, v in values.items()
    )


@pytest.fixture
def points(plain: Schedule) -> list[Schedule]:
    rows = ("CCCR", "CRCR", "CRRR", "CRRC")
    costs = ((2.0, 500.0, 0.8, 40.0), (3.0, 350.0, 0.6, 30.0), (4.5, 240.0, 0.3, 20.0), (4.2, 250.0, 0.3, 24.0))
    return [
        replace(
            plain, ops=(("model", row),), measured=measured(speedup=s, latency_ms=ms, macs_fraction=macs, psnr=quality)
        )
        for row, (s, ms, macs, quality) in zip(rows, costs, strict=True)
    ]


def distinct_points(point: Schedule, n: int) -> list[Schedule]:
    """``n`` schedules that differ in one noise level."""
    return [replace(point, sigma=(1.0 + i, *point.sigma[1:])) for i in range(n)]


TRICKS = ["../x.json", "..\\x.json", "/etc/x.json", "C:\\x.json", "C:x.json",
     "a/b.json", "x.json\x00", "x.json/..", "..", ".", "", ".json", ".x.json",
     "x..json", "con.json", "COM1.json", "x.json\n", "\u202ex.json",
     "ｘ.json", "x.pt", "~/x.json", "file:x.json", "%2e%2e.json", "$HOME.json",
     "x" * 300 + ".json", " x.json"]  # fmt: skip


class TestFolder:
    """R20."""

    def test_what_is_written_is_read(self, points, tmp_path):
        folder = tmp_path / "new" / "frontier"
        written = write_frontier(folder, points, quality="psnr", labels=["a", "b", "c", ""])
        index = read_frontier(folder)
        assert index == written
        assert [index.load(entry) for entry in index.entries] == points
        assert [entry.label for entry in index.entries] == ["a", "b", "c", ""]
        assert sorted(path.name for path in folder.iterdir()) == ["frontier.json", *(e.file for e in index.entries)]

    def test_writing_again_leaves_only_the_new_ones(self, points, tmp_path):
        write_frontier(tmp_path, points, quality="psnr")
        (tmp_path / "mine.json").write_text("{}")
        (tmp_path / ".frontier.json.0123456789ab.tmp").write_text("cut off")
        index = write_frontier(tmp_path, points[1:2], quality="psnr")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["frontier.json", "mine.json", index.entries[0].file]

    def test_a_writer_that_was_killed_leaves_nothing_after_the_next_one(self, points, tmp_path):
        source = tmp_path / "source.json"
        write_schedule(points[0], source)
        folder = tmp_path / "frontier"
        code = (
            "import os, signal, sys; from schedsearch.schedule import read_schedule, write_frontier; "
            "calls = []; sync = os.fsync\n"
            "def fsync(fd):\n"
            "    calls.append(fd)\n"
            "    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == int(sys.argv[3]) else sync(fd)\n"
            "os.fsync = fsync\n"
            "write_frontier(sys.argv[2], [read_schedule(sys.argv[1])], quality='psnr')"
        )
        for at_call in (1, 2):  # while the schedule is written, while the index is
            done = subprocess.run(
                [sys.executable, "-c", code, source, folder, str(at_call)], capture_output=True, text=True
            )
            assert (done.returncode, done.stderr) == (-9, "")
            assert [path.name for path in folder.iterdir() if path.suffix == ".tmp"]
            index = write_frontier(folder, points[1:2], quality="psnr")
            assert sorted(path.name for path in folder.iterdir()) == ["frontier.json", index.entries[0].file]

    def test_nothing_is_written_or_removed_if_a_part_could_not_be_read(self, points, tmp_path):
        """R19: "MUST refuse to write what R1 would refuse to read"."""
        write_frontier(tmp_path, points, quality="psnr")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        tensors = tuple(TableTensor(name=f"t{i}", shape=(1,) * 8, dtype="F32", role="r") for i in range(10_000))
        large = replace(points[0], tables=Tables(sha256="c" * 64, tensors=tensors))
        with pytest.raises(ScheduleFormatError, match=r"^schedule-001-[0-9a-f]{8}\.json: found about \d+ items"):
            write_frontier(tmp_path, [points[1], large], quality="psnr")
        notes = [measured(psnr=1.0)[0]] * 1000
        heavy = [replace(point, measured=tuple(notes)) for point in distinct_points(points[0], 12)]
        with pytest.raises(
            ScheduleFormatError, match=r"^frontier\.json: found about \d+ items.* Write fewer schedules"
        ):
            write_frontier(tmp_path, heavy, quality="psnr")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_the_same_schedules_give_the_same_bytes(self, points, tmp_path):
        for name in ("a", "b"):
            write_frontier(tmp_path / name, points, quality="psnr")
        assert (tmp_path / "a/frontier.json").read_bytes() == (tmp_path / "b/frontier.json").read_bytes()

    def test_no_schedule_twice(self, points, tmp_path):
        with pytest.raises(ScheduleFormatError, match=r"^entries\[1\]: found 'sha256:.* a second time"):
            write_frontier(tmp_path, [points[0], replace(points[0], measured=())], quality="psnr")
        with pytest.raises(ScheduleFormatError, match=r"^entries: found 0 schedules"):
            write_frontier(tmp_path, [], quality="psnr")
        with pytest.raises(UsageError, match="labels: found 1, expected 4"):
            write_frontier(tmp_path, points, quality="psnr", labels=["a"])

    def test_a_file_in_the_way(self, points, tmp_path):
        (tmp_path / "frontier").write_text("x")
        with pytest.raises(ScheduleError, match="frontier: cannot be made a folder"):
            write_frontier(tmp_path / "frontier", points, quality="psnr")

    def test_a_folder_without_index(self, tmp_path):
        with pytest.raises(ScheduleFormatError, match=r"^frontier\.json: found no such file"):
            read_frontier(tmp_path)

    @pytest.mark.parametrize(
        ("change", "path"),
        [
            (lambda d: d["entries"][0].update(file="../a.json"), "entries[0].file"),
            (lambda d: d["entries"][0].update(file="frontier.json"), "entries[0].file"),
            (lambda d: d["entries"][0].update(file=3), "entries[0].file"),
            (
                lambda d: d["entries"][1].update(file=d["entries"][0]["file"].upper().replace("JSON", "json")),
                "entries[1]",
            ),
            (lambda d: d["entries"][1].update(id="x"), "entries[1].id"),
            (lambda d: d["entries"][1].update(id=d["entries"][0]["id"]), "entries[1]"),
            (lambda d: d["entries"][1].update(label=None), "entries[1].label"),
            (lambda d: d["entries"][1].update(extra=1), "entries[1].extra"),
            (lambda d: d["entries"][1].pop("file"), "entries[1].file"),
            (lambda d: d["entries"][1].update(measured={}), "entries[1].measured"),
            (lambda d: d["entries"][1]["measured"][0].update(value="x"), "entries[1].measured[0].value"),
            (lambda d: d["entries"][1]["measured"][0].update(extra="x"), "entries[1].measured[0].extra"),
            (lambda d: d.update(entries=[]), "entries"),
            (lambda d: d.update(entries={}), "entries"),
            (lambda d: d.update(quality=""), "quality"),
            (lambda d: d.update(id="x"), "id"),
            (lambda d: d.pop("quality"), "quality"),
            (lambda d: d.update(format="schedsearch.schedule"), "format"),
            (lambda d: d.update(version="one"), "version"),
        ],
    )
    def test_a_damaged_index(self, points, tmp_path, change, path):
        write_frontier(tmp_path, points, quality="psnr")
        document = json.loads((tmp_path / "frontier.json").read_text())
        change(document)
        (tmp_path / "frontier.json").write_text(json.dumps(document))
        with pytest.raises(ScheduleFormatError) as caught:
            read_frontier(tmp_path)
        assert caught.value.path == path
        assert str(caught.value).startswith(f"frontier.json: {path}: found ")

    @pytest.mark.parametrize("name", TRICKS, ids=ascii)
    def test_path_tricks_in_the_name_of_a_file(self, points, tmp_path, name):
        """R20: "`file` MUST be a bare name of letters"."""
        write_frontier(tmp_path, points, quality="psnr")
        document = json.loads((tmp_path / "frontier.json").read_text())
        document["entries"][0]["file"] = name
        (tmp_path / "frontier.json").write_text(json.dumps(document))
        with pytest.raises(ScheduleFormatError, match=r"a bare file name ending in \.json") as caught:
            read_frontier(tmp_path)
        assert caught.value.path == "entries[0].file"

    def test_a_newer_major_version(self, points, tmp_path):
        write_frontier(tmp_path, points, quality="psnr")
        path = tmp_path / "frontier.json"
        path.write_text(path.read_text().replace('"version": "1.0"', '"version": "2.0"'))
        with pytest.raises(UnsupportedVersionError, match=r"^frontier\.json: version: found 2\.0"):
            read_frontier(tmp_path)


class TestPick:
    """R21: "Among the entries that keep the budget, the one with the best `quality` is picked"."""

    @pytest.mark.parametrize(
        ("budget", "row"),
        [("1.5x", "CCCR"), ("2.5x", "CRCR"), ("4x", "CRRC"), ("4.4x", "CRRR"), ("400ms", "CRCR"), ("60%macs", "CRCR"),
         ("30%macs", "CRRC")],
    )  # fmt: skip
    def test_the_best_within_the_budget(self, points, tmp_path, budget, row):
        index = write_frontier(tmp_path, points, quality="psnr")
        assert index.load(budget).row("model") == row
        assert index.load(parse_budget(budget)) == read_schedule(tmp_path / index.pick(budget).file)

    def test_lower_is_better_where_the_metric_says_so(self, plain, tmp_path):
        two = [
            replace(plain, ops=(("model", row),), measured=measured(speedup=4.0, lpips=value))
            for row, value in (("CRRR", 0.3), ("CRRC", 0.1))
        ]
        assert write_frontier(tmp_path, two, quality="lpips").load("4x").row("model") == "CRRC"

    def test_among_equals_the_faster(self, plain, tmp_path):
        two = [
            replace(plain, ops=(("model", row),), measured=measured(speedup=speed, psnr=30.0))
            for row, speed in (("CRRR", 5.0), ("CRRC", 4.0))
        ]
        assert write_frontier(tmp_path, two, quality="psnr").load("4x").row("model") == "CRRR"

    def test_what_cannot_be_kept_names_the_nearest(self, points, tmp_path):
        index = write_frontier(tmp_path, points, quality="psnr")
        with pytest.raises(UsageError, match=r"found 9x, expected one that a schedule in .* the nearest reaches 4\.5x"):
            index.pick("9x")
        with pytest.raises(UsageError, match=r"the nearest reaches 240ms"):
            index.pick("100ms")

    def test_a_kind_that_was_not_measured(self, plain, tmp_path):
        index = write_frontier(tmp_path, [replace(plain, measured=measured(psnr=3.0))], quality="psnr")
        with pytest.raises(UsageError, match=r"expected a kind that was measured in .* \(psnr\)"):
            index.pick("4x")

    def test_a_swapped_file_is_refused(self, points, tmp_path):
        index = write_frontier(tmp_path, points, quality="psnr")
        first, second = (tmp_path / entry.file for entry in index.entries[:2])
        first.write_bytes(second.read_bytes())
        with pytest.raises(ScheduleFormatError, match=r"as frontier\.json says.*FORMAT.md R21"):
            index.load(index.entries[0])
