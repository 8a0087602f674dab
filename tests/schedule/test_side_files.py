"""The tensors beside a schedule: written with it, checked when read, and refused when damaged or hostile."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import ScheduleError, ScheduleFormatError
from schedsearch.schedule import (
    ModelRef,
    Schedule,
    Solver,
    Tables,
    TableTensor,
    dumps,
    loads,
    read_frontier,
    read_schedule,
    solver_table,
    with_solver_table,
    write_frontier,
    write_schedule,
)
from schedsearch.schedule._side import Tensor, pack, unpack
from schedsearch.schedule._vocabulary import MAX_SIDE_BYTES

TABLE = Solver(family="table", order=2)
ROWS = ((), (1.0, 0.5, -0.25), (1.0 / 3.0, 2.0, 0.0), (1e-300, -1e300, 5e-324))
FILLED = ((0.0, 0.0, 0.0), *ROWS[1:])


@pytest.fixture
def plan(plain: Schedule) -> Schedule:
    """An unfitted schedule: one Euler step, three table steps."""
    return replace(plain, solver=(Solver(), TABLE, TABLE, TABLE))


@pytest.fixture
def fitted(plan: Schedule) -> Schedule:
    return with_solver_table(plan, ROWS)


def built(header: object, tensors: bytes = b"", length: int | None = None) -> bytes:
    """A side file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


class TestCoefficients:
    """R15: "Tensor `solver` holds the coefficients of `table` steps"."""

    def test_a_plan_without_them_is_a_schedule_with_an_id(self, plan, plain):
        assert plan.unfitted
        assert not plain.unfitted
        assert solver_table(plan) is None
        assert solver_table(plain) is None
        assert loads(dumps(plan)) == plan
        assert plan.id not in {plain.id, replace(plan, sigma=(1.0, 0.7, 0.5, 0.25, 0.0)).id}

    def test_they_come_back_exactly_and_filled_with_zeros(self, fitted, plan):
        assert not fitted.unfitted
        assert solver_table(fitted) == FILLED
        assert fitted.id != plan.id
        assert replace(fitted, tables=None) == plan
        assert with_solver_table(fitted, ROWS) == fitted
        assert with_solver_table(plan, FILLED).id == fitted.id
        assert with_solver_table(plan, [*ROWS[:3], (0.0,)]).id != fitted.id

    def test_the_bytes_are_neither_compared_nor_in_the_id_nor_in_the_text(self, fitted):
        bare = loads(dumps(fitted))
        assert bare.tables.data is None
        assert (bare, bare.id, hash(bare), dumps(bare)) == (fitted, fitted.id, hash(fitted), dumps(fitted))
        assert "data" not in repr(fitted)
        assert not bare.unfitted
        assert solver_table(bare) is None

    def test_other_tensors_stay(self, full):
        dpm = full.solver[1]
        fitted = with_solver_table(replace(full, solver=(Solver(), TABLE, dpm, TABLE)), ((), (1, 2, 3), (), (4, 5)))
        assert [tensor.name for tensor in fitted.tables.tensors] == ["gain", "shift", "solver"]
        assert solver_table(fitted) == ((0, 0, 0), (1, 2, 3), (0, 0, 0), (4, 5, 0))
        assert with_solver_table(fitted, ((), (1, 2, 3), (), (4, 5))) == fitted
        with pytest.raises(ScheduleFormatError, match=r"^tables\.data: found nothing, expected the bytes of the other"):
            with_solver_table(loads(dumps(fitted)), ROWS)

    @pytest.mark.parametrize(
        ("rows", "path", "text"),
        [
            (ROWS[:3], "tables.tensors[0].shape", "found [3, 3], expected [4, 3]: one row per step"),
            ((*ROWS[:3], (1.0,) * 4), "tables.tensors", "found rows of 4 coefficients, expected at most 3 in each"),
            ((*ROWS[:3], (1.0, float("nan"))), "tables.tensors[0][3][1]", "found nan, expected a finite number"),
            ((*ROWS[:3], (float("inf"),)), "tables.tensors[0][3][0]", "found inf, expected a finite number"),
            (((1.0,), *ROWS[1:]), "tables.tensors[0][0][0]", "found 1.0, expected 0, as the step does not use it"),
        ],
    )
    def test_rows_that_do_not_fit_the_steps(self, plan, rows, path, text):
        with pytest.raises(ScheduleFormatError) as caught:
            with_solver_table(plan, rows)
        assert (caught.value.path, caught.value.rule) == (path, "R15")
        assert text in str(caught.value)

    def test_zero_beyond_a_steps_own_order(self, plan):
        first = replace(plan, solver=(Solver(), Solver(family="table"), TABLE, TABLE))
        assert solver_table(with_solver_table(first, ((), (1, 2), (1, 2, 3), (1, 2, 3))))[1] == (1, 2, 0)
        with pytest.raises(ScheduleFormatError, match=r"^tables\.tensors\[0\]\[1\]\[2\]: found 3\.0, expected 0"):
            with_solver_table(first, ((), (1, 2, 3), (), ()))

    def test_coefficients_of_other_steps_are_noticed(self, fitted, plain):
        shorter = {"sigma": fitted.sigma[1:], "solver": fitted.solver[1:]}
        with pytest.raises(ScheduleFormatError, match=r"found \[4, 3\], expected \[3, 3\].*fit them again"):
            replace(fitted, **shorter)
        with pytest.raises(ScheduleFormatError, match=r"expected no such tensor, as no step is of family table"):
            replace(fitted, solver=plain.solver)
        wrong = TableTensor(name="solver", shape=(4, 3), dtype="F32", role="")
        with pytest.raises(ScheduleFormatError, match=r"^tables\.tensors\[0\]\.dtype: found 'F32', expected F64"):
            replace(fitted, tables=Tables(sha256="c" * 64, tensors=(wrong,)))

    @given(st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3), min_size=4, max_size=4))
    def test_any_finite_numbers(self, rows):
        model = ModelRef(pipeline="P", config="a" * 64, blocks="b" * 64, height=64, width=64)
        plan = Schedule(sigma=(4.0, 3.0, 2.0, 1.0, 0.0), solver=(TABLE,) * 4, model=model)
        filled = tuple((*row, *(0.0,) * (3 - len(row))) for row in rows)
        assert solver_table(with_solver_table(plan, rows)) == filled


class TestFiles:
    """R15: "The tensors lie in the *side file*"."""

    @pytest.mark.parametrize(
        ("name", "beside"),
        [("a.json", "a.safetensors"), ("flux-4.5x.json", "flux-4.5x.safetensors"), ("a", "a.safetensors"),
         ("a.txt", "a.txt.safetensors"), ("a.safetensors", "a.safetensors.safetensors")],
    )  # fmt: skip
    def test_written_and_read_together(self, fitted, tmp_path, name, beside):
        write_schedule(fitted, tmp_path / name)
        assert {path.name for path in tmp_path.iterdir()} == {name, beside}
        read = read_schedule(tmp_path / name)
        assert read == fitted
        assert read.tables.data == fitted.tables.data
        assert solver_table(read) == FILLED
        (tmp_path / name).rename(tmp_path / "b.json")
        (tmp_path / beside).rename(tmp_path / "b.safetensors")
        assert read_schedule(tmp_path / "b.json").id == fitted.id

    def test_the_layout_is_that_of_safetensors(self, fitted, tmp_path):
        numpy = pytest.importorskip("safetensors.numpy")
        write_schedule(fitted, tmp_path / "a.json")
        loaded = numpy.load_file(tmp_path / "a.safetensors")
        assert [(name, array.dtype.str, array.tolist()) for name, array in loaded.items()] == [
            ("solver", "<f8", [list(row) for row in FILLED])
        ]
        theirs = numpy.save(loaded, metadata={"by": "x"})
        assert unpack(theirs)["solver"] == unpack(fitted.tables.data)["solver"]
        tables = replace(fitted.tables, data=theirs, sha256=hashlib.sha256(theirs).hexdigest())
        assert solver_table(replace(fitted, tables=tables)) == FILLED

    def test_a_schedule_is_read_without_it_but_not_written(self, fitted, tmp_path):
        write_schedule(fitted, tmp_path / "a.json")
        (tmp_path / "a.safetensors").unlink()
        read = read_schedule(tmp_path / "a.json")
        assert read == fitted
        assert solver_table(read) is None
        with pytest.raises(
            ScheduleFormatError, match=r"^tables\.data: found nothing, expected the bytes with the hash"
        ):
            write_schedule(read, tmp_path / "b.json")
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    def test_schedules_without_tables_look_at_no_side_file(self, plan, tmp_path):
        write_schedule(plan, tmp_path / "a.json")
        (tmp_path / "a.safetensors").write_bytes(b"of another program")
        assert read_schedule(tmp_path / "a.json") == plan

    def test_a_failure_between_the_two_leaves_the_old_pair(self, fitted, plan, tmp_path, monkeypatch):
        """R19: "The side file comes first"."""
        write_schedule(fitted, tmp_path / "a.json")
        other = with_solver_table(plan, ((), (1, 2), (), ()))
        synced: list[int] = []

        def full_disk(fd: int) -> None:
            synced.append(fd)
            if len(synced) == 2:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full_disk)
        with pytest.raises(ScheduleError, match=r"^a\.json: cannot be written"):
            write_schedule(other, tmp_path / "a.json")
        monkeypatch.undo()
        assert solver_table(read_schedule(tmp_path / "a.json")) == FILLED
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_frontier_has_them_too(self, fitted, plan, plain, tmp_path):
        index = write_frontier(tmp_path, [plain, fitted], quality="psnr")
        entry = index.entries[1]
        side = Path(entry.file).with_suffix(".safetensors").name
        assert {path.name for path in tmp_path.iterdir()} == {"frontier.json", index.entries[0].file, entry.file, side}
        assert solver_table(read_frontier(tmp_path).load(entry)) == FILLED
        write_frontier(tmp_path, [plain, plan], quality="psnr")
        assert not list(tmp_path.glob("*.safetensors"))
        with pytest.raises(ScheduleFormatError, match=r"^schedule-000-.*\.json: tables\.data: found nothing"):
            write_frontier(tmp_path, [loads(dumps(fitted))], quality="psnr")
        assert len(list(tmp_path.iterdir())) == 3


def entry(**changes: object) -> dict:
    return {"solver": {"dtype": "F64", "shape": [4, 3], "data_offsets": [0, 96], **changes}}


NUMBERS = struct.pack("<12d", *(value for row in FILLED for value in row))
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "tables", "0 bytes with a header of 0"),
    "four bytes": (b"\x01\0\0\0", "tables", "4 bytes with a header of 0"),
    "no header": (bytes(8), "tables", "a header of 0"),
    "huge header length": (built(b"", length=2**64 - 1), "tables", "a header of 18446744073709551615"),
    "header beyond the file": (built(entry(), length=10**6), "tables", "a header of 1000000"),
    "no JSON": (built(b"pickle"), "tables.header", "broken JSON"),
    "no object": (built([]), "tables.header", "a list of 0"),
    "deep": (built(b"[" * 20_000), "tables.header", "nested more than 16 deep"),
    "many": (built(b'{"a":[' + b"0," * 10**6 + b"0]}"), "tables.header", "at most 100000"),
    "long number": (built(b'{"a":' + b"1" * 5000 + b"}"), "tables.header.a", "5000 digits"),
    "key twice": (built(b'{"a":1,"a":2}'), "tables.header.a", "a second time"),
    "no record": (built({"solver": 3}), "tables.header.solver", "found 3"),
    "no offsets": (
        built({"solver": {"dtype": "F64", "shape": []}}),
        "tables.header.solver.data_offsets",
        "no such key",
    ),
    "unknown key": (built(entry(path="/etc")), "tables.header.solver.path", "an unknown key"),
    "unknown dtype": (built(entry(dtype="F65")), "tables.header.solver.dtype", "one of F64"),
    "object dtype": (built(entry(dtype=["F64"])), "tables.header.solver.dtype", "a list of 1"),
    "negative shape": (built(entry(shape=[-4, -3])), "tables.header.solver.shape", "at most 8 whole numbers"),
    "boolean shape": (built(entry(shape=[True, 12])), "tables.header.solver.shape", "at most 8 whole numbers"),
    "vast shape": (built(entry(shape=[2**31, 2**31])), "tables.header.solver.shape", "in 0..2147483647"),
    "nine dimensions": (built(entry(shape=[1] * 9)), "tables.header.solver.shape", "a list of 9"),
    "vast tensor": (built(entry(shape=[2**30] * 8)), "tables.header.solver.data_offsets", "bytes apart"),
    "offsets reversed": (built(entry(data_offsets=[96, 0])), "tables.header.solver.data_offsets", "96 bytes apart"),
    "offsets beyond": (built(entry(data_offsets=[8, 104]), NUMBERS), "tables.header.solver.data_offsets", "begin at 0"),
    "one offset": (built(entry(data_offsets=[0])), "tables.header.solver.data_offsets", "96 bytes apart"),
    "overlap": (
        built({**entry(), "b": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, NUMBERS),
        "tables.header.solver.data_offsets",
        "begin at 8",
    ),
    "truncated tensors": (built(entry(), NUMBERS[:-1]), "tables", "95 bytes of tensors, expected 96"),
    "something behind": (built(entry(), NUMBERS + b"x"), "tables", "97 bytes of tensors, expected 96"),
    "another name": (built({"gain": entry()["solver"]}, NUMBERS), "tables.tensors", "the tensors 'gain'"),
    "another dtype": (built(entry(dtype="I64"), NUMBERS), "tables.tensors[0].dtype", "expected 'I64', as in the"),
    "another shape": (built(entry(shape=[3, 4]), NUMBERS), "tables.tensors[0].shape", "expected [3, 4], as in the"),
    "one more": (
        built({**entry(), "b": {"dtype": "U8", "shape": [0], "data_offsets": [96, 96]}}, NUMBERS),
        "tables.tensors",
        "the tensors 'b, solver'",
    ),
    "not finite": (built(entry(), NUMBERS[:-8] + struct.pack("<d", float("nan"))), "tables.tensors[0][3][2]", "nan"),
}


def read_beside(fitted: Schedule, data: bytes, folder: Path, *, agree: bool = True) -> ScheduleFormatError:
    """The error of a schedule read beside ``data``, with the hash of that if they ``agree``."""
    document = json.loads(dumps(fitted))
    del document["id"]
    if agree:
        document["tables"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "a.json").write_text(json.dumps(document))
    (folder / "a.safetensors").write_bytes(data)
    with pytest.raises(ScheduleFormatError) as caught:
        read_schedule(folder / "a.json")
    text = str(caught.value)
    assert text.startswith(f"a.safetensors: {caught.value.path}: found ")
    assert text.endswith("(FORMAT.md R15)")
    assert text.isprintable()
    assert len(text) < 600
    return caught.value


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_side_files(fitted, tmp_path, name):
    """The hash is the attacker's own, so that the rest is looked at."""
    data, path, text = HOSTILE[name]
    tracemalloc.start()
    try:
        error = read_beside(fitted, data, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()
    assert error.path == path
    assert text in str(error)


def test_any_damage_is_found_by_the_hash(fitted, tmp_path):
    data = fitted.tables.data
    damaged: list[Callable[[], bytes]] = [lambda: data[:-1], lambda: data + b"\0", lambda: b""]
    damaged += [lambda at=at: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 5)]
    for make in damaged:
        error = read_beside(fitted, make(), tmp_path, agree=False)
        assert error.path == "tables.sha256"
        assert "The two files do not belong together, or one is damaged" in str(error)


def test_a_side_file_that_is_too_large_is_not_read(fitted, tmp_path):
    write_schedule(fitted, tmp_path / "a.json")
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(ScheduleFormatError, match=rf"^a\.safetensors: tables: found {2**40} bytes, expected at most"):
        read_schedule(tmp_path / "a.json")
    with pytest.raises(ScheduleFormatError, match=rf"^tables: found {MAX_SIDE_BYTES + 1} bytes, expected at most"):
        replace(fitted, tables=replace(fitted.tables, data=bytes(MAX_SIDE_BYTES + 1)))


def test_a_side_file_that_is_no_file(fitted, tmp_path):
    write_schedule(fitted, tmp_path / "a.json")
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(ScheduleFormatError, match=r"^a\.safetensors: found (a folder|a pipe or a device)"):
        read_schedule(tmp_path / "a.json")


def test_packing_does_not_depend_on_the_order():
    one, two = Tensor("F32", (), b"1234"), Tensor("U8", (3,), b"abc")
    assert pack({"a": one, "b": two}) == pack({"b": two, "a": one})
    assert unpack(pack({"b": two, "a": one})) == {"a": one, "b": two}
