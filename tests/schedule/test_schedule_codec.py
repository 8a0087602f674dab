"""Reading, writing, ids and versions."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import ScheduleError, ScheduleFormatError, UnsupportedVersionError
from schedsearch.schedule import (
    ESTIMATES,
    SCALES,
    Measurement,
    ModelRef,
    PrecisionRule,
    Provenance,
    Schedule,
    ScheduleVersionWarning,
    Solver,
    Tables,
    TableTensor,
    canonical_bytes,
    dumps,
    loads,
    read_schedule,
    write_schedule,
)
from schedsearch.schedule._codec import open_document
from schedsearch.schedule._migrate import STEPS, migrate

MODEL = ModelRef(pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=64, width=64)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=20)
NAME = st.from_regex(r"[a-z_]{1,6}(\.[a-z0-9]{1,3}){0,3}", fullmatch=True).filter(lambda name: name != "model")
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def schedules(draw) -> Schedule:
    """Legal schedules of 1 to 12 steps that use any of the parts."""
    levels = draw(st.lists(st.floats(0, 100), min_size=2, max_size=13, unique=True))
    n = len(levels) - 1
    free = st.builds(
        Solver,
        family=st.sampled_from(["dpm", "unipc"]),
        estimate=st.sampled_from(ESTIMATES),
        order=st.integers(1, 4),
        prediction=st.sampled_from(["velocity", "noise", "data"]),
        corrector=st.sampled_from(["none", "pseudo", "implicit"]),
    )
    free |= st.builds(Solver, family=st.sampled_from(["adams", "plms", "table"]), order=st.integers(1, 4))
    row = st.builds(str.__add__, st.sampled_from("CS"), st.text("CR123S", min_size=n - 1, max_size=n - 1))
    rows = draw(st.dictionaries(NAME, row, max_size=6))
    if draw(st.booleans()):
        rows["model"] = "C" + draw(st.text("CR123", min_size=n - 1, max_size=n - 1))
    measured = st.builds(
        Measurement, metric=TEXT.filter(bool), unit=TEXT, better=st.sampled_from(["min", "max"]), value=NUMBER,
        low=st.floats(-5, 0), high=st.floats(0, 5), n=st.integers(1, 99), device=TEXT,
    )  # fmt: skip
    rules = st.builds(
        PrecisionRule,
        pattern=st.sampled_from(["*", "a.*", "[ab]?"]),
        weight=st.sampled_from(["int8", "int4", "bf16"]),
        activation=st.sampled_from(["bf16", "int8"]),
        scales=st.sampled_from(SCALES),
        rank=st.integers(0, 2),
    )
    return Schedule(
        sigma=tuple(sorted(levels, reverse=True)),
        solver=tuple(draw(st.lists(st.just(Solver()) | free, min_size=n, max_size=n))),
        model=replace(MODEL, adapters=tuple(draw(st.sets(TEXT.filter(bool), max_size=2)))),
        ops=tuple(rows.items()),
        guidance=draw(st.none() | st.lists(st.none() | NUMBER, min_size=n, max_size=n).map(tuple)),
        precision=tuple(draw(st.lists(rules, max_size=3))),
        pruned=tuple(draw(st.sets(st.integers(0, 30).map("gone.{}".format), max_size=3))) if "gone" not in rows else (),
        measured=tuple(draw(st.lists(measured, max_size=2))),
        provenance=draw(st.builds(Provenance, study=TEXT, seed=st.integers(1 - 2**63, 2**63 - 1), note=TEXT)),
    )


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(schedules())
    def test_what_is_written_is_read(self, schedule):
        text = dumps(schedule)
        assert loads(text) == schedule
        assert loads(text.encode()) == schedule
        assert dumps(loads(text)) == text

    def test_every_part_and_a_file(self, full, tmp_path):
        path = tmp_path / "flux-4x.json"
        write_schedule(full, path)
        assert read_schedule(path) == full
        assert read_schedule(str(path)).id == full.id
        assert sorted(p.name for p in tmp_path.iterdir()) == ["flux-4x.json", "flux-4x.safetensors"]

    def test_rows_and_levels_stand_on_one_line_each(self, full):
        lines = dumps(full).splitlines()
        assert '    "sigma": [1.0, 0.75, 0.5, 0.25, 0.0],' in lines
        assert '    "solver": "abba"' in lines
        assert '    "blocks.10.attn": "SCRS"' in lines
        assert '  "guidance": [3.5, 1.0, "-", "-"],' in lines

    def test_parts_that_say_nothing_are_left_out(self, plain):
        assert list(json.loads(dumps(plain))) == ["format", "version", "id", "model", "steps"]


class TestId:
    """R6: "equal content has an equal id, whatever was measured and whoever found it"."""

    def test_it_is_the_hash_of_the_canonical_bytes(self, full):
        assert full.id == "sha256:" + hashlib.sha256(canonical_bytes(full)).hexdigest()
        keys = json.loads(canonical_bytes(full))
        assert not {"version", "id", "measured", "provenance"} & set(keys)

    def test_it_never_changes(self, plain, full):
        """Ids stand in files and studies all over; a release that changes one must be a new major version."""
        assert plain.id == "sha256:f2c1d9a99f1778335eeedb44b8266a44cdb173156d1d41f9fe977e603e8b4b21"
        assert full.id == "sha256:b07a5da988b835e7c825e6db475082007362e960d788914be2884ce1ef28e163"

    def test_results_and_origin_are_outside(self, full):
        assert replace(full, measured=(), provenance=Provenance()).id == full.id

    @pytest.mark.parametrize(
        "changes",
        [
            {"sigma": (1.0, 0.75, 0.5, 0.25, 1e-9)},
            {"solver": (Solver(),) * 4},
            {"model": MODEL},
            {"ops": ()},
            {"guidance": None},
            {"precision": ()},
            {"pruned": ()},
            {"tables": None},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_everything_else_is_inside(self, full, changes):
        assert replace(full, **changes).id != full.id

    @settings(max_examples=60, deadline=None)
    @given(schedules(), st.randoms(use_true_random=False))
    def test_order_of_statement_does_not_matter(self, schedule, rng: random.Random):
        def shuffled(value: object) -> object:
            if isinstance(value, dict):
                keys = sorted(value)
                rng.shuffle(keys)
                return {key: shuffled(value[key]) for key in keys}
            return value

        assert loads(json.dumps(shuffled(json.loads(dumps(schedule))))) == schedule

    def test_other_solver_letters_are_the_same_content(self, full):
        document = json.loads(dumps(full))
        first, second = document["steps"]["solvers"].values()
        document["steps"].update(solvers={"q": second, "B": first}, solver="BqqB")
        assert loads(json.dumps(document)) == full

    def test_a_changed_file_is_refused_and_the_way_out_named(self, plain):
        text = dumps(plain).replace("0.25", "0.26")
        with pytest.raises(ScheduleFormatError, match=r"^id: found sha256:.*remove its id line\. \(FORMAT.md R6\)"):
            loads(text)
        document = json.loads(text)
        del document["id"]
        assert loads(json.dumps(document)).sigma[3] == 0.26

    def test_it_is_the_same_in_another_process(self, full, tmp_path):
        write_schedule(full, tmp_path / "a.json")
        code = "import sys; from schedsearch.schedule import read_schedule; print(read_schedule(sys.argv[1]).id)"
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], capture_output=True, text=True)
        assert done.stdout.strip() == full.id


class TestVersion:
    """R3."""

    @staticmethod
    def at(schedule: Schedule, version: object, **more: object) -> str:
        return json.dumps({**json.loads(dumps(schedule)), "version": version, **more})

    def test_a_newer_major_version_is_refused(self, plain):
        with pytest.raises(UnsupportedVersionError, match=r"^version: found 2\.0, expected 1\.x\. .*newer release"):
            loads(self.at(plain, "2.0"))

    def test_an_older_major_version_without_a_step_is_refused(self, plain):
        with pytest.raises(UnsupportedVersionError, match=r"found 0\.9, expected 1\.x\. No step leads"):
            loads(self.at(plain, "0.9"))

    def test_a_newer_minor_version_is_read_with_a_warning(self, full):
        document = json.loads(self.at(full, "1.7", hint={"a": [1]}))
        document["model"]["nickname"] = "x"
        document["measured"][0]["watts"] = 3
        with pytest.warns(ScheduleVersionWarning, match=r"of version 1\.7 and this release knows 1\.0"):
            assert loads(json.dumps(document)) == full

    def test_a_newer_minor_version_keeps_the_rules_it_shares(self, plain):
        with pytest.warns(ScheduleVersionWarning), pytest.raises(ScheduleFormatError, match=r"FORMAT\.md R6"):
            loads(self.at(plain, "1.7", ops={"a": "CCRC"}))

    @pytest.mark.parametrize("version", [1.0, 1, "1", "1.0.0", "v1.0", "1.x", "", None, "99999.0", "1.0\n"])
    def test_other_spellings_are_refused(self, plain, version):
        with pytest.raises(ScheduleFormatError, match=r"^version: .*FORMAT.md R3"):
            loads(self.at(plain, version))

    def test_a_foreign_format_is_named(self, plain):
        with pytest.raises(ScheduleFormatError, match=r"^format: found 'x', expected 'schedsearch.schedule'"):
            loads(self.at(plain, "1.0", format="x"))


class TestMigration:
    """R3: "migration steps (`_migrate.py`), each of which leads one version on and drops the `id`"."""

    def test_nothing_older_was_released(self):
        assert dict(STEPS) == {}

    def test_steps_are_chained_up_to_this_version(self, plain):
        def rename(document: dict[str, object]) -> dict[str, object]:
            document["ops"] = document.pop("cache")
            return document

        def nest(document: dict[str, object]) -> dict[str, object]:
            steps = document["steps"]
            assert isinstance(steps, dict)
            steps["solvers"] = {"a": {}}
            steps["solver"] = "a" * (len(steps["sigma"]) - 1)
            return document

        steps = {(0, 8): ((0, 9), rename), (0, 9): ((1, 0), nest)}
        old = json.loads(dumps(plain))
        old.update(version="0.8", cache={"blocks.1": "CRRC"}, id="sha256:" + "0" * 64)
        old["steps"] = {"sigma": old["steps"]["sigma"]}
        before = json.dumps(old)
        new, tolerant = open_document(old, "schedsearch.schedule", lambda doc, at: migrate(doc, at, steps))
        assert (new["version"], "id" in new, tolerant) == ("1.0", False, False)
        assert loads(json.dumps(new)) == replace(plain, ops=(("blocks.1", "CRRC"),))
        assert json.dumps(old["version"]) == '"0.8"'
        assert '"cache"' in before

    def test_a_step_that_leads_nowhere_is_a_programming_error(self):
        with pytest.raises(ValueError, match="must lead to a later version"):
            migrate({}, (0, 9), {(0, 9): ((0, 9), dict)})


class TestWriting:
    """R19: "A writer MUST replace a file as a whole"."""

    @pytest.mark.parametrize("broken", ["fsync", "replace"])
    def test_a_failure_leaves_the_old_file_and_nothing_else(self, plain, full, tmp_path, monkeypatch, broken):
        path = tmp_path / "a.json"
        write_schedule(plain, path)

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        if broken == "fsync":
            monkeypatch.setattr("os.fsync", fail)
        else:
            monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(
            ScheduleError, match=r"^a\.safetensors: cannot be written \(No space left on device\)\. Nothing"
        ):
            write_schedule(full, path)
        monkeypatch.undo()
        assert read_schedule(path) == plain
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def test_a_missing_folder_is_named(self, plain, tmp_path):
        with pytest.raises(ScheduleError, match=r"^a\.json: cannot be written \(No such file or directory\)"):
            write_schedule(plain, tmp_path / "none" / "a.json")

    def test_nothing_is_written_that_could_not_be_read(self, tmp_path):
        n = 1000
        rows = tuple((f"blocks.{i}." + "x" * 240, "C" + "R" * (n - 1)) for i in range(2999))
        sigma = tuple(float(i) for i in range(n, -1, -1))
        big = Schedule(sigma=sigma, solver=(Solver(),) * n, model=MODEL, ops=rows)
        notes = tuple(
            Measurement(metric="m", unit="", better="max", value=0.0, low=0.0, high=0.0, n=1, device="é" * 2000)
            for _ in range(400)
        )
        with pytest.raises(ScheduleFormatError, match=r"found \d+ bytes, expected at most 4194304. Use rows of"):
            write_schedule(replace(big, measured=notes), tmp_path / "a.json")
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_written_that_has_more_items_than_a_reader_takes(self, plain, tmp_path):
        tensors = tuple(TableTensor(name=f"t{i}", shape=(1,) * 8, dtype="F32", role="r") for i in range(10_000))
        many = replace(plain, tables=Tables(sha256="c" * 64, tensors=tensors))
        with pytest.raises(ScheduleFormatError, match=r"found about \d+ items, expected at most 100000"):
            write_schedule(many, tmp_path / "a.json")
        assert list(tmp_path.iterdir()) == []

    def test_a_writer_that_was_killed_leaves_nothing_after_the_next_one(self, plain, tmp_path):
        path = tmp_path / "a.json"
        write_schedule(plain, path)
        code = (
            "import os, signal, sys; from schedsearch.schedule import read_schedule, write_schedule; "
            "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); "
            "write_schedule(read_schedule(sys.argv[1]), sys.argv[1])"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (-9, "")
        assert len(list(tmp_path.iterdir())) == 2
        write_schedule(plain, path)
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_format_needs_no_array_library():
    code = (
        "import sys, schedsearch.schedule; heavy = {'torch', 'numpy', 'diffusers', 'jsonschema'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
