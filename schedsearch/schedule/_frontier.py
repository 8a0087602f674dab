"""A frontier as a folder: ``frontier.json`` and one file per schedule.

The index repeats the measurements, so that a budget can be answered without opening every file; the schedule that is
picked is checked against the id in the index. This module does not know how a frontier is found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from schedsearch.errors import ScheduleError, ScheduleFormatError, UsageError
from schedsearch.schedule import _json, _validate
from schedsearch.schedule._budget import Budget, parse_budget
from schedsearch.schedule._canonical import record_document
from schedsearch.schedule._checks import bare_file, distinct, quote, spelled, text
from schedsearch.schedule._codec import (
    file_contents,
    naming,
    open_document,
    pretty,
    read_schedule,
    record,
    write_files,
)
from schedsearch.schedule._files import label, read_bounded, side_file, write_atomically
from schedsearch.schedule._model import Schedule
from schedsearch.schedule._parts import Measurement
from schedsearch.schedule._vocabulary import ID_PATTERN, MAX_NAME, MAX_SCHEDULES, VERSION

FRONTIER_FORMAT = "schedsearch.frontier"
INDEX = "frontier.json"

_ID = re.compile(ID_PATTERN)
_SCHEDULE = r"schedule-\d{3,}-[0-9a-f]{8}\.(json|safetensors)"
_MADE = re.compile(rf"{_SCHEDULE}|\.({_SCHEDULE}|frontier\.json)\.[0-9a-f]{{12}}\.tmp")
"""Names that `write_frontier` gives, drafts of a write that was cut off included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierEntry:
    """One schedule of a frontier.

    Attributes:
        file: bare name of its file in the folder.
        id: id of the schedule in it.
        label: what it is called, such as ``4x``; may be empty.
        measured: its measurements.
    """

    file: str
    id: str
    label: str = ""
    measured: tuple[Measurement, ...] = ()

    def value(self, metric: str) -> float | None:
        """The measured value of ``metric``, ``None`` if it was not measured."""
        return next((record.value for record in self.measured if record.metric == metric), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierIndex:
    """The index of a frontier folder.

    Attributes:
        folder: where it lies.
        quality: name of the metric that says which of two schedules within a budget is better.
        entries: the schedules, in the order of the file.
    """

    folder: Path
    quality: str
    entries: tuple[FrontierEntry, ...]

    def pick(self, budget: Budget | str) -> FrontierEntry:
        """The entry with the best quality among those that keep ``budget``.

        Raises:
            UsageError: if no entry keeps it (the text names the nearest), or the budget cannot be read.
        """
        limit = parse_budget(budget) if isinstance(budget, str) else budget
        costs = [(cost, entry) for entry in self.entries if (cost := entry.value(limit.kind)) is not None]
        within = [entry for cost, entry in costs if limit.met_by(cost)]
        if within:
            return max(within, key=self._merit)
        if not costs:
            known = sorted({record.metric for entry in self.entries for record in entry.measured})
            raise UsageError(
                f"budget: found {limit}, expected a kind that was measured in {label(self.folder)} "
                f"({', '.join(known) or 'nothing was'}). Name a budget of another kind."
            )
        nearest = max(costs, key=lambda pair: pair[0] if limit.kind == "speedup" else -pair[0])[0]
        reached = Budget(kind=limit.kind, value=nearest)
        raise UsageError(
            f"budget: found {limit}, expected one that a schedule in {label(self.folder)} keeps; the nearest reaches "
            f"{reached}. Ask for that, or search with this budget."
        )

    def load(self, which: FrontierEntry | Budget | str) -> Schedule:
        """The schedule of an entry, or of the entry that a budget picks.

        Raises:
            UsageError: if no entry keeps the budget.
            ScheduleFormatError: if the file breaks a rule or is not the one the index speaks of.
        """
        entry = which if isinstance(which, FrontierEntry) else self.pick(which)
        schedule = read_schedule(self.folder / entry.file)
        if schedule.id != entry.id:
            raise ScheduleFormatError(
                "id", found=schedule.id, expected=f"{entry.id}, as {INDEX} says", rule="R21", file=entry.file,
                fix="The folder was put together from two; write the frontier again.",
            )  # fmt: skip
        return schedule

    def _repr_html_(self) -> str:
        """The table of the schedules, as notebooks show it."""
        from schedsearch.schedule._html import frontier_html

        return frontier_html(self)

    def _merit(self, entry: FrontierEntry) -> tuple[bool, float, float]:
        """Better is larger: measured quality first, then speed; entries without quality come last."""
        judged = next((record for record in entry.measured if record.metric == self.quality), None)
        speed = entry.value("speedup")
        ease = speed if speed is not None else -(entry.value("latency_ms") or entry.value("macs_fraction") or 0.0)
        if judged is None:
            return False, 0.0, ease
        return True, judged.value if judged.better == "max" else -judged.value, ease


def _entry(path: str, value: object, *, tolerant: bool) -> FrontierEntry:
    entry = record(FrontierEntry, path, value, tolerant=tolerant)
    name = bare_file(f"{path}.file", entry.file, ".json", "R20")
    if name == INDEX:
        raise ScheduleFormatError(f"{path}.file", found=quote(name), expected="the file of a schedule", rule="R20")
    spelled(f"{path}.id", entry.id, _ID, "sha256: and 64 hexadecimal digits", "R20")
    text(f"{path}.label", entry.label, "R20", limit=MAX_NAME)
    listed: object = list(entry.measured) if isinstance(entry.measured, tuple) else entry.measured
    results = tuple(
        record(Measurement, f"{path}.measured[{i}]", item, tolerant=tolerant)
        for i, item in enumerate(_json.items(f"{path}.measured", listed, "R17"))
    )
    return FrontierEntry(
        file=name, id=entry.id, label=entry.label, measured=_validate.measured(f"{path}.measured", results)
    )


def _check_entries(entries: Sequence[FrontierEntry]) -> None:
    if not 1 <= len(entries) <= MAX_SCHEDULES:
        found, wanted = f"{len(entries)} schedules", f"1 to {MAX_SCHEDULES}"
        raise ScheduleFormatError("entries", found=found, expected=wanted, rule="R20")
    distinct("entries", [entry.file.lower() for entry in entries], "R20")
    distinct("entries", [entry.id for entry in entries], "R20")


def read_frontier(folder: str | os.PathLike[str]) -> FrontierIndex:
    """The index of the frontier in ``folder``; the schedules are read when they are asked for.

    Raises:
        ScheduleFormatError: if ``frontier.json`` is missing or breaks a rule.
        UnsupportedVersionError: if its version cannot be read.
    """
    place = Path(folder)
    return naming(place / INDEX, lambda: _index(place, read_bounded(place / INDEX)))


def _index(folder: Path, data: bytes) -> FrontierIndex:
    document, tolerant = open_document(_json.parse(data), FRONTIER_FORMAT)
    keys = ("format", "version", "quality", "entries")
    parts = _json.members("", document, known=keys, required=keys, tolerant=tolerant)
    quality = text("quality", parts["quality"], "R20", limit=MAX_NAME, empty=False)
    listed = _json.items("entries", parts["entries"], "R20")
    entries = tuple(_entry(f"entries[{i}]", value, tolerant=tolerant) for i, value in enumerate(listed))
    _check_entries(entries)
    return FrontierIndex(folder=folder, quality=quality, entries=entries)


def write_frontier(
    folder: str | os.PathLike[str], schedules: Sequence[Schedule], *, quality: str, labels: Sequence[str] = ()
) -> FrontierIndex:
    """Write ``schedules`` and their index into ``folder``, made if it is missing.

    The schedule files come first, the index last; then the files that an earlier frontier left there are removed. A
    folder that is read at any moment holds an index whose files are all there or, for a moment, one that is new.
    Nothing is written or removed before all of it is known to be readable (FORMAT.md R19).

    Args:
        folder: where to write.
        schedules: at least one, no two with the same id; their ``measured`` go into the index.
        quality: name of the metric by which `FrontierIndex.pick` prefers one schedule over another.
        labels: one name per schedule, or none at all.

    Raises:
        ScheduleFormatError: if the schedules or labels break a rule, or a file would be larger than a reader accepts.
        ScheduleError: if the folder cannot be written.
    """
    place = Path(folder)
    if labels and len(labels) != len(schedules):
        raise UsageError(f"labels: found {len(labels)}, expected {len(schedules)}, one per schedule, or none.")
    text("quality", quality, "R20", limit=MAX_NAME, empty=False)
    entries = tuple(
        FrontierEntry(
            file=f"schedule-{i:03d}-{schedule.id[7:15]}.json",
            id=schedule.id,
            label=text(f"labels[{i}]", labels[i], "R20", limit=MAX_NAME) if labels else "",
            measured=schedule.measured,
        )
        for i, schedule in enumerate(schedules)
    )
    _check_entries(entries)
    files = {
        entry.file: naming(entry.file, partial(file_contents, schedule))
        for entry, schedule in zip(entries, schedules, strict=True)
    }
    index = _index_bytes(quality, entries)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScheduleError(f"{label(place)}: cannot be made a folder ({error.strerror}). Name another one.") from error
    for file, contents in files.items():
        write_files(place / file, *contents)
    write_atomically(place / INDEX, index)
    _remove_leftovers(place, {*files, *(side_file(file).name for file, (_, beside) in files.items() if beside)})
    return FrontierIndex(folder=place, quality=quality, entries=entries)


def _index_bytes(quality: str, entries: Sequence[FrontierEntry]) -> bytes:
    """The content of ``frontier.json``, within the limits of R1."""
    document = {
        "format": FRONTIER_FORMAT,
        "version": f"{VERSION[0]}.{VERSION[1]}",
        "quality": quality,
        "entries": [_entry_document(entry) for entry in entries],
    }
    data = f"{pretty(document)}\n".encode()
    naming(INDEX, lambda: _json.refuse_limits(data, fix="Write fewer schedules, or fewer measurements of each."))
    return data


def _entry_document(entry: FrontierEntry) -> dict[str, object]:
    document = record_document(entry)
    if entry.measured:
        document["measured"] = [record_document(result) for result in entry.measured]
    return document


def _remove_leftovers(folder: Path, kept: set[str]) -> None:
    """Remove schedule files that an earlier frontier wrote here: only names of its making."""
    for old in sorted(folder.iterdir()):
        if _MADE.fullmatch(old.name) and old.name not in kept:
            old.unlink(missing_ok=True)
