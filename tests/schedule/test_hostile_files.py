"""Damaged and hostile files: every one is refused in one paragraph, quickly, and without much memory.

The files are made here, from one valid file that uses every part of the format.
"""

from __future__ import annotations

import copy
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schedsearch.errors import ScheduleError, ScheduleFormatError
from schedsearch.schedule import Schedule, dumps, loads, read_schedule

SECONDS = 5.0
BYTES = 120 * 2**20


def refused(data: bytes, folder: Path) -> ScheduleFormatError:
    """The error that a file of ``data`` gives, after checking what every such error must be."""
    path = folder / "hostile.json"
    path.write_bytes(data)
    began = time.monotonic()
    with pytest.raises(ScheduleError) as caught:
        read_schedule(path)
    assert time.monotonic() - began < SECONDS
    text = str(caught.value)
    assert text.startswith("hostile.json: ")
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 1000
    if isinstance(caught.value, ScheduleFormatError):
        assert f"(FORMAT.md {caught.value.rule})" in text
        assert f"{caught.value.path}: found " in text or not caught.value.path
        return caught.value
    return ScheduleFormatError("version", found="", expected="")


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The keys that lead to every value of a document, objects and lists included."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from leaves(member, (*path, key))


def changed(document: dict, path: tuple[str | int, ...], change: Callable[[object, str | int], None]) -> bytes:
    """``document`` without its id, after ``change(container, key)`` at ``path``."""
    document = copy.deepcopy(document)
    document.pop("id", None)
    place = document
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return json.dumps(document).encode()


def dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


@pytest.fixture
def document(full: Schedule) -> dict:
    return json.loads(dumps(full))


def test_the_undamaged_file_is_read(full, document):
    assert loads(json.dumps(document)) == full
    del document["id"]
    assert loads(json.dumps(document)) == full


def test_cut_off_at_every_seventh_byte(full, tmp_path):
    data = dumps(full).encode()
    cuts = range(0, len(data) - 2, 7)
    assert len(cuts) > 200
    for cut in cuts:
        error = refused(data[:cut], tmp_path)
        assert error.path == ""
        assert error.rule == "R1"
        assert "cut off" in str(error)


def may_stand(path: tuple[str | int, ...], wrong: object) -> bool:
    """Whether the rules allow ``wrong`` at ``path``: an empty part, a record of defaults, or any finite number."""
    if wrong == []:
        return path in {(part,) for part in ("precision", "pruned", "measured")} or path[-1] in {
            "adapters",
            "parents",
            "shape",
        }
    if wrong == {}:
        return path in {("ops",), ("provenance",)} or (path[:2] == ("steps", "solvers") and len(path) == 3)
    if isinstance(wrong, bool) or not isinstance(wrong, (int, float)):
        return False
    whole = isinstance(wrong, int)
    return (
        (path[0] == "guidance" and len(path) == 2)
        or (whole and path[:2] == ("steps", "sigma") and path[-1] == 0)
        or (whole and path[-1] in {"seed", "ask", "n"})
        or path[-1] in ({"high"} if whole else {"low"})
        or path[-1] == "value"
    )


@pytest.mark.parametrize(
    "wrong",
    [None, True, -1.5e300, "\u2028", "x" * 3000, [], [[]], {}, {"a": 1}, 10**15, [None] * 40],
    ids=lambda value: repr(value)[:20],
)
def test_a_wrong_value_at_every_place(document, tmp_path, wrong):
    n_refused = 0
    for path in leaves(document):
        if path == ("id",) or (path[0] == "guidance" and len(path) == 1 and wrong == []):
            continue
        data = changed(document, path, lambda place, key: place.__setitem__(key, wrong))
        if may_stand(path, wrong):
            loads(data)
            continue
        error = refused(data, tmp_path)
        assert error.path, path
        # the value named is the wrong one or, where that is legal by itself, the one that it clashes with
        assert error.path.split(".")[0].split("[")[0] in {path[0], "steps", "guidance", "ops", "tables"}, (
            path,
            error.path,
        )
        n_refused += 1
    assert n_refused > 50


def test_an_unknown_key_in_every_object(document, tmp_path):
    places = [path for path in leaves(document) if isinstance(at(document, path), dict)]
    assert len(places) > 8
    for path in [(), *places]:
        document_copy = copy.deepcopy(document)
        at(document_copy, path)["famly"] = 1
        error = refused(json.dumps(document_copy).encode(), tmp_path)
        assert error.path == dotted((*path, "famly")), path
    assert "Did you mean 'family'?" in str(
        refused(
            changed(document, ("steps", "solvers", "a", "famly"), lambda place, key: place.__setitem__(key, 1)),
            tmp_path,
        )
    )


def at(document: dict, path: tuple[str | int, ...]) -> dict:
    place = document
    for key in path:
        place = place[key]
    return place


def test_a_missing_key_in_every_object(document, tmp_path):
    for path in leaves(document):
        if not isinstance(path[-1], str) or path[0] in {"ops", "id"}:
            continue
        data = changed(document, path, lambda place, key: place.__delitem__(key))
        try:
            loads(data)
        except ScheduleError:
            assert refused(data, tmp_path).path
    for key in ("format", "version", "model", "steps"):
        assert refused(changed(document, (key,), lambda place, key: place.__delitem__(key)), tmp_path).path == key
    assert "model.height: found no such key" in str(
        refused(changed(document, ("model", "height"), lambda place, key: place.__delitem__(key)), tmp_path)
    )


@pytest.mark.parametrize(
    "literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 21, "9" * 5000, "1" * 100000]
)
@pytest.mark.parametrize(
    "path",
    [("steps", "sigma", 1), ("guidance", 0), ("measured", 0, "value"), ("model", "height"), ("provenance", "seed"),
     ("tables", "tensors", 1, "shape", 0), ("steps", "solvers", "a", "order")],
    ids=dotted,
)  # fmt: skip
def test_numbers_without_end(document, tmp_path, literal, path):
    data = changed(document, path, lambda place, key: place.__setitem__(key, "HERE"))
    error = refused(data.replace(b'"HERE"', literal.encode()), tmp_path)
    assert (error.path, error.rule) == (dotted(path), "R2")


def test_a_key_twice_at_every_level(document, tmp_path):
    for path in leaves(document):
        if isinstance(path[-1], str) and path != ("id",):
            data = changed(document, path, lambda place, key: place.__setitem__("TWICE", place[key])).decode()
            error = refused(data.replace('"TWICE"', json.dumps(path[-1])).encode(), tmp_path)
            assert (error.path, error.rule) == (dotted(path), "R2")


HUGE = {
    "deep lists": b'{"format": ' + b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep and closed": b"[" * 99_000 + b"]" * 99_000,
    "just too deep": b'{"a": ' + b"[" * 17 + b"]" * 17 + b"}",
    "deep after strings": b'{"a\\"[": "\\\\", "b": ' + b"[" * 50 + b"]" * 50 + b"}",
    "many numbers": b'{"steps": {"sigma": [' + b"0," * 1_000_000 + b"0]}}",
    "many objects": b'{"measured": [' + b"{}," * 1_000_000 + b"{}]}",
    "many keys": b"{" + b",".join(b'"k%d":0' % i for i in range(200_000)) + b"}",
    "one long string": b'{"format": "' + b"x" * 4_000_000 + b'"}',
    "one long key": b'{"' + b"x" * 4_000_000 + b'": 1}',
    "open quotes": b'"\\' * 2_000_000,
    "quotes only": b'"' * 4_000_000,
    "too large": b" " * 4_194_305,
    "blanks": b" " * 4_000_000,
    "zeros": b"\x00" * 4_000_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_and_deep_files_cost_little(tmp_path, name):
    tracemalloc.start()
    try:
        path = tmp_path / "hostile.json"
        path.write_bytes(HUGE[name])
        with pytest.raises(ScheduleError):
            read_schedule(path)
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
    refused(HUGE[name], tmp_path)


BYTES_OF_ANOTHER_KIND = {
    "empty": b"",
    "blank": b" \n\t ",
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "number": b"1",
    "html": b"<!doctype html><title>404</title>",
    "byte order mark": b'\xef\xbb\xbf{"format": 1}',
    "utf-16": '{"format": 1}'.encode("utf-16"),
    "latin-1": b'{"format": "\xe9"}',
    "lone continuation": b'{"format": "\x80"}',
    "overlong": b'{"format": "\xc0\xaf"}',
    "encoded surrogate": b'{"format": "\xed\xa0\x80"}',
    "two objects": b"{}{}",
    "comment": b"{} // x",
    "single quotes": b"{'format': 1}",
    "trailing comma": b'{"format": 1,}',
    "raw line break in text": b'{"format": "a\nb"}',
    "pickle": b"\x80\x04\x95.",
    "safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{}              ",
    "hex number": b'{"format": 0x10}',
    "leading zero": b'{"format": 010}',
}


@pytest.mark.parametrize("name", BYTES_OF_ANOTHER_KIND)
def test_files_of_another_kind(tmp_path, name):
    error = refused(BYTES_OF_ANOTHER_KIND[name], tmp_path)
    assert error.path in {"", "format"}


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31mb", "\ud800", "\u202e", "a\x00", "\r", "\u0085"], ids=ascii)
def test_text_that_could_disturb_a_terminal(document, tmp_path, text):
    for path in (("provenance", "note"), ("measured", 0, "device"), ("model", "pipeline"), ("model", "adapters", 0)):
        error = refused(changed(document, path, lambda place, key: place.__setitem__(key, text)), tmp_path)
        assert error.path == dotted(path)
    refused(json.dumps({**document, text: 1}).encode(), tmp_path)
    refused(changed(document, ("ops", "model"), lambda place, key: place.__setitem__(text, "CCRC")), tmp_path)


@pytest.mark.parametrize(
    ("letters", "solvers", "path"),
    [
        ("aac", None, "steps.solver[2]"),
        ("aaa", None, "steps.solvers.b"),
        ("abb", None, "steps.solver"),
        ("", None, "steps.solvers.a"),
        (["a", "b"], None, "steps.solver"),
        ("a" * 2000, None, "steps.solver"),
        ("abba", {"aa": {}}, "steps.solvers.aa"),
        ("abba", {"": {}}, "steps.solvers.''"),
        ("abba", {"é": {}}, "steps.solvers.'\\xe9'"),
        ("abba", [], "steps.solvers"),
        ("abba", {"a": "euler"}, "steps.solvers.a"),
    ],
)
def test_letters_and_solvers_that_do_not_match(document, tmp_path, letters, solvers, path):
    document["steps"].update(solver=letters, **({"solvers": solvers} if solvers is not None else {}))
    error = refused(json.dumps(document).encode(), tmp_path)
    assert (error.path, error.rule) == (path, "R4" if isinstance(solvers, dict) and "a" in solvers else "R8")


@pytest.mark.parametrize("flip", range(0, 1200, 13))
def test_one_flipped_byte_is_never_read_as_the_same_schedule(full, tmp_path, flip):
    """Damage inside `measured` or `provenance` may pass, as they are outside the id; nothing else may."""
    data = bytearray(dumps(full).encode())
    data[flip] ^= 0x01
    try:
        schedule = loads(bytes(data))
    except ScheduleError:
        refused(bytes(data), tmp_path)
    else:
        assert schedule.id == full.id


class TestPlaces:
    """R1: "Empty and cut-off files, folders, pipes and devices are refused"."""

    def test_a_missing_file_is_named_with_its_folder(self, tmp_path):
        with pytest.raises(ScheduleFormatError, match=r"^none\.json: found no such file.*Looked for '.*none\.json'"):
            read_schedule(tmp_path / "none.json")

    def test_a_folder(self, tmp_path):
        with pytest.raises(ScheduleFormatError, match=r"found (a folder|a pipe or a device)"):
            read_schedule(tmp_path)

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files on this system")
    def test_a_folder_that_is_refused_is_closed_again(self, tmp_path):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            with pytest.raises(ScheduleFormatError):
                read_schedule(tmp_path)
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 20

    def test_a_name_that_no_file_can_have(self):
        with pytest.raises(ScheduleFormatError, match="null byte"):
            read_schedule("a\x00b")
        with pytest.raises(ScheduleFormatError, match="name too long"):
            read_schedule("a" * 5000)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
    def test_a_pipe_that_nobody_writes_to_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.json")
        outcome: list[str] = []

        def read() -> None:
            try:
                read_schedule(tmp_path / "pipe.json")
            except ScheduleError as error:
                outcome.append(str(error))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(timeout=5)
        assert outcome == ["pipe.json: found a pipe or a device, expected a regular file. (FORMAT.md R1)"]

    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no device files on this system")
    def test_an_endless_device(self):
        with pytest.raises(ScheduleFormatError, match="found a pipe or a device"):
            read_schedule("/dev/zero")


def test_the_largest_legal_schedule_is_read(plain, tmp_path):
    """R7, R9: the limits themselves are legal."""
    n = 1000
    big = replace(
        plain,
        sigma=tuple(float(i) for i in range(n, -1, -1)),
        solver=plain.solver[:1] * n,
        ops=tuple((f"blocks.{i}", "C" + "R" * (n - 1)) for i in range(3000)),
    )
    assert loads(dumps(big)) == big
    many = replace(plain, ops=tuple((f"blocks.{i}", "CCRC") for i in range(20_000)))
    assert loads(dumps(many)) == many
