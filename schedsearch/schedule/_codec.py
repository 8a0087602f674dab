"""The strict reader and the writer of schedule files.

The reader only turns JSON into records; every rule about their content runs when `Schedule` is built, with the same
dotted paths. This module does not know how a schedule is run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

from schedsearch.errors import ScheduleFormatError, UnsupportedVersionError
from schedsearch.schedule import _json
from schedsearch.schedule._canonical import content_document, record_document
from schedsearch.schedule._checks import join, quote, spelled
from schedsearch.schedule._files import label, read_bounded, side_file, write_together
from schedsearch.schedule._migrate import migrate
from schedsearch.schedule._model import Schedule
from schedsearch.schedule._parts import Measurement, ModelRef, PrecisionRule, Provenance, Solver, Tables, TableTensor
from schedsearch.schedule._validate import solver_record
from schedsearch.schedule._vocabulary import (
    FORMAT,
    ID_PATTERN,
    MAX_SIDE_BYTES,
    MAX_STEPS,
    NO_GUIDANCE,
    SOLVER_LETTERS,
    VERSION,
    VERSION_PATTERN,
)

T = TypeVar("T")

REQUIRED = ("format", "version", "model", "steps")
OPTIONAL = ("id", "ops", "guidance", "precision", "pruned", "tables", "measured", "provenance")
STEPS_KEYS = ("sigma", "solvers", "solver")
_ID = re.compile(ID_PATTERN)
_VERSION = re.compile(VERSION_PATTERN)


class ScheduleVersionWarning(UserWarning):
    """A file is of a newer minor version; what this release does not know in it was left out."""


def _version(document: dict[str, object], what: str) -> tuple[int, int]:
    if document.get("format") != what:
        found = quote(document["format"]) if "format" in document else "no such key"
        raise ScheduleFormatError(
            "format", found=found, expected=repr(what), fix="This is a file of another program.", rule="R3"
        )
    stated = spelled("version", document.get("version"), _VERSION, "text such as '1.0'", "R3")
    major, minor = (int(part) for part in stated.split("."))
    return major, minor


def open_document(
    document: dict[str, object],
    what: str,
    upgrade: Callable[[dict[str, object], tuple[int, int]], dict[str, object]] = migrate,
) -> tuple[dict[str, object], bool]:
    """The document in this release's major version, and whether unknown keys must be tolerated in it.

    Raises:
        UnsupportedVersionError: for a newer major version, or an older one that no migration step reads.
    """
    version = _version(document, what)
    if version[0] > VERSION[0]:
        raise UnsupportedVersionError(
            f"version: found {version[0]}.{version[1]}, expected {VERSION[0]}.x. The file was written by a newer "
            "release of schedsearch; install that one to read it. (FORMAT.md R3)"
        )
    if version[0] < VERSION[0]:
        document = upgrade(document, version)
        version = _version(document, what)
    newer = version > VERSION
    if newer:
        warnings.warn(
            f"the file is of version {version[0]}.{version[1]} and this release knows {VERSION[0]}.{VERSION[1]}: keys "
            "that it does not know are ignored, which changes no image (FORMAT.md R3)",
            ScheduleVersionWarning, stacklevel=4,
        )  # fmt: skip
    return document, newer


def record(kind: type[T], path: str, value: object, *, tolerant: bool) -> T:
    """An object of the file as the flat record ``kind``; lists become tuples, other values stay for the rules."""
    fields = [field for field in dataclasses.fields(kind) if field.compare]  # type: ignore[arg-type]
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    known = _json.members(path, value, known=[field.name for field in fields], required=needed, tolerant=tolerant)
    return kind(**{key: tuple(member) if isinstance(member, list) else member for key, member in known.items()})


def _steps(value: object, *, tolerant: bool) -> tuple[tuple[float, ...], tuple[Solver, ...]]:
    steps = _json.members("steps", value, known=STEPS_KEYS, required=STEPS_KEYS, tolerant=tolerant)
    sigma = tuple(_json.items("steps.sigma", steps["sigma"], "R7"))
    table = steps["solvers"]
    if not isinstance(table, dict):
        raise ScheduleFormatError("steps.solvers", found=quote(table), expected="an object {...}", rule="R8")
    solvers: dict[str, Solver] = {}
    for letter, item in table.items():
        here = join("steps.solvers", letter)
        if len(letter) != 1 or letter not in SOLVER_LETTERS:
            raise ScheduleFormatError(here, found=quote(letter), expected="a key of one letter", rule="R8")
        solvers[letter] = solver_record(here, record(Solver, here, item, tolerant=tolerant))
    letters = steps["solver"]
    if not isinstance(letters, str) or len(letters) > MAX_STEPS:
        raise ScheduleFormatError("steps.solver", found=quote(letters), expected="text, one letter per step", rule="R8")
    for i, letter in enumerate(letters):
        if letter not in solvers:
            wanted = f"a letter of steps.solvers ({', '.join(solvers) or 'none'})"
            raise ScheduleFormatError(f"steps.solver[{i}]", found=quote(letter), expected=wanted, rule="R8")
    for letter in solvers:
        if letter not in letters:
            raise ScheduleFormatError(
                join("steps.solvers", letter), found="a solver that no step uses", expected="only used ones", rule="R8"
            )
    return cast("tuple[float, ...]", sigma), tuple(solvers[letter] for letter in letters)


def _ops(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ScheduleFormatError("ops", found=quote(value), expected="an object {name: row}", rule="R9")
    return tuple(value.items())


def _guidance(value: object) -> tuple[float | None, ...]:
    scales = list(_json.items("guidance", value, "R12"))
    for i, scale in enumerate(scales):
        if scale == NO_GUIDANCE:
            scales[i] = None
        elif scale is None or isinstance(scale, str):
            wanted = "a finite number, or '-' for a step without an unconditional pass"
            raise ScheduleFormatError(f"guidance[{i}]", found=quote(scale), expected=wanted, rule="R12")
    return cast("tuple[float | None, ...]", tuple(scales))


def _records(kind: type[T], path: str, value: object, rule: str, *, tolerant: bool) -> tuple[T, ...]:
    entries = _json.items(path, value, rule)
    return tuple(record(kind, f"{path}[{i}]", entry, tolerant=tolerant) for i, entry in enumerate(entries))


def _tables(value: object, *, tolerant: bool) -> Tables:
    tables = record(Tables, "tables", value, tolerant=tolerant)
    entries: object = list(tables.tensors) if isinstance(tables.tensors, tuple) else tables.tensors
    tensors = _records(TableTensor, "tables.tensors", entries, "R15", tolerant=tolerant)
    return Tables(sha256=tables.sha256, tensors=tensors)


def _check_id(stated: object, schedule: Schedule) -> None:
    spelled("id", stated, _ID, "sha256: and 64 hexadecimal digits", "R6")
    if stated != schedule.id:
        raise ScheduleFormatError(
            "id",
            found=f"{cast('str', stated)[:23]}...",
            expected=f"{schedule.id}, the hash of this content",
            fix="The file was changed or damaged: copy it again, or, if it was edited on purpose, remove its id line.",
            rule="R6",
        )


def from_document(document: dict[str, object]) -> Schedule:
    """The schedule in a JSON document.

    Raises:
        ScheduleFormatError: if any rule of FORMAT.md is broken; ``path`` says where.
        UnsupportedVersionError: if the version cannot be read.
    """
    document, tolerant = open_document(document, FORMAT)
    parts = _json.members("", document, known=REQUIRED + OPTIONAL, required=REQUIRED, tolerant=tolerant)
    sigma, solver = _steps(parts["steps"], tolerant=tolerant)
    model = record(ModelRef, "model", parts["model"], tolerant=tolerant)
    optional: dict[str, object] = {}
    if "ops" in parts:
        optional["ops"] = _ops(parts["ops"])
    if "guidance" in parts:
        optional["guidance"] = _guidance(parts["guidance"])
    if "precision" in parts:
        optional["precision"] = _records(PrecisionRule, "precision", parts["precision"], "R13", tolerant=tolerant)
    if "pruned" in parts:
        optional["pruned"] = tuple(_json.items("pruned", parts["pruned"], "R14"))
    if "tables" in parts:
        optional["tables"] = _tables(parts["tables"], tolerant=tolerant)
    if "measured" in parts:
        optional["measured"] = _records(Measurement, "measured", parts["measured"], "R17", tolerant=tolerant)
    if "provenance" in parts:
        optional["provenance"] = record(Provenance, "provenance", parts["provenance"], tolerant=tolerant)
    schedule = Schedule(sigma=sigma, solver=solver, model=model, **optional)  # type: ignore[arg-type]
    if "id" in parts:
        _check_id(parts["id"], schedule)
    return schedule


def to_document(schedule: Schedule) -> dict[str, object]:
    """The schedule as the JSON document of its file."""
    content = content_document(schedule)
    document: dict[str, object] = {
        "format": content.pop("format"),
        "version": f"{VERSION[0]}.{VERSION[1]}",
        "id": schedule.id,
        **content,
    }
    if schedule.measured:
        document["measured"] = [record_document(measurement) for measurement in schedule.measured]
    if schedule.provenance != Provenance():
        document["provenance"] = record_document(schedule.provenance)
    return document


def pretty(value: object, depth: int = 0) -> str:
    """JSON for reading: one line per member, per row and per record; lists of plain values on one line."""
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    nested = any(isinstance(member, dict) for member in members)
    if not isinstance(value, (dict, list)) or not (nested or (isinstance(value, dict) and depth < 2)) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    margin = "  " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{json.dumps(key, ensure_ascii=False)}: {pretty(member, depth + 1)}" for key, member in value.items()]
        opening, closing = "{", "}"
    else:
        lines = [json.dumps(member, ensure_ascii=False, allow_nan=False) for member in value]
        opening, closing = "[", "]"
    return f"{opening}\n{margin}" + f",\n{margin}".join(lines) + f"\n{'  ' * depth}{closing}"


def dumps(schedule: Schedule) -> str:
    """The text of the schedule's file.

    Raises:
        ScheduleFormatError: if it would be larger than a reader accepts.
    """
    content = pretty(to_document(schedule)) + "\n"
    _json.refuse_limits(content.encode("utf-8"), fix="Use rows of blocks in place of rows of components.")
    return content


def loads(data: bytes | str) -> Schedule:
    """The schedule in the bytes or the text of a file.

    Raises:
        ScheduleFormatError: if any rule of FORMAT.md is broken; ``path`` says where.
        UnsupportedVersionError: if the version cannot be read.
    """
    # A lone surrogate cannot be encoded; passed through, it is refused below like any other byte that is not UTF-8.
    return from_document(_json.parse(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data))


def read_schedule(path: str | os.PathLike[str]) -> Schedule:
    """The schedule in the file at ``path``, with the tensors of the side file if that is there too.

    Raises:
        ScheduleFormatError: if it cannot be read or breaks any rule of FORMAT.md; ``path`` and ``file`` say where.
        UnsupportedVersionError: if the version cannot be read.
    """
    schedule = naming(path, lambda: loads(read_bounded(path)))
    beside = side_file(path)
    if schedule.tables is None or not os.path.lexists(beside):
        return schedule
    return naming(beside, lambda: _with_data(schedule, read_bounded(beside, MAX_SIDE_BYTES)))


def _with_data(schedule: Schedule, data: bytes) -> Schedule:
    tables = dataclasses.replace(cast("Tables", schedule.tables), data=data)
    return dataclasses.replace(schedule, tables=tables)


def naming(path: str | os.PathLike[str], read: Callable[[], T]) -> T:
    """What ``read`` returns; the errors it raises get the name of the file in front."""
    try:
        return read()
    except ScheduleFormatError as error:
        if error.file:
            raise
        raise ScheduleFormatError(
            error.path, found=error.found, expected=error.expected, fix=error.fix, rule=error.rule, file=label(path)
        ) from None
    except UnsupportedVersionError as error:
        raise UnsupportedVersionError(f"{label(path)}: {error}") from None


def write_schedule(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """Write the file at ``path``, as a whole or not at all, and before it the side file, if the schedule has tables.

    Raises:
        ScheduleError: if a file cannot be written.
        ScheduleFormatError: if it would be larger than a reader accepts, or the data of its tables is missing.
    """
    write_files(path, *file_contents(schedule))


def file_contents(schedule: Schedule) -> tuple[bytes, bytes | None]:
    """The bytes of the schedule's file and those of its side file, ``None`` if it has no tables.

    Raises:
        ScheduleFormatError: if it would be larger than a reader accepts, or the data of its tables is missing.
    """
    content = dumps(schedule).encode("utf-8")
    if schedule.tables is None:
        return content, None
    if schedule.tables.data is None:
        raise ScheduleFormatError(
            "tables.data", found="nothing", expected=f"the bytes with the hash {schedule.tables.sha256[:12]}...",
            fix="Read the schedule from a file with its .safetensors beside it.", rule="R15",
        )  # fmt: skip
    return content, schedule.tables.data


def write_files(path: str | os.PathLike[str], content: bytes, beside: bytes | None) -> None:
    """Write what `file_contents` gave: the side file first, so that no schedule is there without its tables."""
    tables = [(side_file(path), beside)] if beside is not None else []
    write_together([*tables, (path, content)])
