"""Files of measured records: one JSON object with format, version, the members of a header, and lists of records.

The reader is strict: an unknown key, a missing one, a key twice or a value that cannot be is an error that says where.
A check takes where a value stands and the value, and returns it in its type; checks of records are made of others. The
writer replaces the file as a whole, one record per line. Does not know what was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from schedsearch.errors import EvaluationError
from schedsearch.schedule import write_atomically

Check = Callable[[str, Any], Any]

_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFile:
    """One kind of such files.

    Attributes:
        format: what the member ``format`` says.
        version: what ``version`` says; files of others are refused.
        what: what a file holds, for errors.
        made_by: the command that writes one.
        max_bytes: longer files are refused unread.
    """

    format: str
    version: int
    what: str
    made_by: str
    max_bytes: int = 256 * 2**20

    def text(self, header: Mapping[str, object], lists: Mapping[str, Sequence[object]]) -> str:
        """Return the JSON text of these members, one entry of a list per line."""
        head = json.dumps({"format": self.format, "version": self.version, **header}, indent=1)
        parts = [f' "{name}": [{_lines(entries)}]' for name, entries in lists.items()]
        return head.removesuffix("\n}") + ",\n" + ",\n".join(parts) + "\n}"

    def write(self, path: str | PathLike[str], text: str) -> None:
        """Write ``text``; at any moment the file is the old one or the new one as a whole.

        Raises:
            ScheduleError: if it cannot be written.
        """
        write_atomically(path, (text + "\n").encode())

    def read(self, path: str | PathLike[str]) -> str:
        """Return the text in a file.

        Raises:
            EvaluationError: it is not there, too long, or not UTF-8.
        """
        file = Path(path)
        try:
            if not file.is_file():
                raise EvaluationError(f"{file}: found no file, expected {self.what}. `{self.made_by}` makes one.")
            with file.open("rb") as source:
                data = source.read(self.max_bytes + 1)
            if len(data) > self.max_bytes:
                raise EvaluationError(f"{file}: found more than {self.max_bytes // 2**20} MiB, expected {self.what}.")
            return data.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(
                f"{file}: found a file that cannot be read ({error}), expected UTF-8 JSON."
            ) from error

    def parse(self, text: str, checks: Mapping[str, Check], *, where: str) -> dict[str, Any]:
        """Return the members that ``checks`` names, each as its check returned it.

        Raises:
            EvaluationError: ``text`` is damaged, something else, of another version, or has other members than these,
                or a check refused one; the text says where.
        """
        try:
            content = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"{where}: found damaged JSON ({error}), expected {self.what}.") from error
        if not isinstance(content, dict) or content.get("format") != self.format:
            raise EvaluationError(f"{where}: found something else, expected a file of format {self.format!r}.")
        version = content.get("version")
        if type(version) is not int or version != self.version:
            raise wrong(f"{where}: version", version, str(self.version))
        _require_keys(where, content, ("format", "version", *checks))
        return {key: check(f"{where}: {key}", content[key]) for key, check in checks.items()}


def _lines(entries: Sequence[object]) -> str:
    lines = ",\n".join(f"  {json.dumps(entry, allow_nan=False)}" for entry in entries)
    return f"\n{lines}\n " if entries else ""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def wrong(where: str, value: object, expected: str) -> EvaluationError:
    """Return the error for a value that is not as ``expected``."""
    return EvaluationError(f"{where}: found {_shown(value)}, expected {expected}. Measure it again.")


def _shown(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."


def refuse_repeats(where: str, keys: Sequence[object]) -> None:
    """Refuse a list in which a key stands twice.

    Raises:
        EvaluationError: with the place of the second.
    """
    seen: set[object] = set()
    for i, key in enumerate(keys):
        if key in seen:
            raise EvaluationError(f"{where}[{i}]: found {_shown(key)} again, expected each once. Measure it again.")
        seen.add(key)


# ---- checks


def _require_keys(where: str, value: object, keys: Collection[str]) -> None:
    if not isinstance(value, dict):
        raise wrong(where, value, "an object")
    for key in value:
        if key not in keys:
            raise wrong(where, key, f"only the keys {', '.join(keys)}")
    for key in keys:
        if key not in value:
            raise EvaluationError(f"{where}: found no key {key!r}, expected it. Measure it again.")


def record(kind: type, checks: Mapping[str, Check]) -> Check:
    """Return the check of an object with just these keys; it returns a ``kind`` made of what their checks return."""

    def read(where: str, value: Any) -> Any:
        _require_keys(where, value, checks)
        return kind(**{key: check(f"{where}.{key}", value[key]) for key, check in checks.items()})

    return read


def list_of(check: Check) -> Check:
    """Return the check of a list of such values; it returns a `tuple`."""

    def read(where: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise wrong(where, value, "a list")
        return tuple(check(f"{where}[{i}]", item) for i, item in enumerate(value))

    return read


def row_of(expected: str, *checks: Check) -> Check:
    """Return the check of a list with one value per check; it returns a `tuple`. ``expected`` describes it."""

    def read(where: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(checks):
            raise wrong(where, value, expected)
        return tuple(check(f"{where}[{i}]", item) for i, (check, item) in enumerate(zip(checks, value, strict=True)))

    return read


def one_of(words: Collection[str]) -> Check:
    """Return the check of one of ``words``."""

    def read(where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise wrong(where, value, f"one of {', '.join(words)}")
        return value

    return read


def or_nothing(check: Check) -> Check:
    """Return the check that also takes ``null``."""
    return lambda where, value: None if value is None else check(where, value)


def text(where: str, value: Any) -> str:
    """Check text."""
    if not isinstance(value, str):
        raise wrong(where, value, "text")
    return value


def truth(where: str, value: Any) -> bool:
    """Check true or false."""
    if not isinstance(value, bool):
        raise wrong(where, value, "true or false")
    return value


def integer(where: str, value: Any) -> int:
    """Check a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(where, value, "a whole number")
    return value


def at_least(least: int) -> Check:
    """Return the check of a whole number that is not below ``least``."""

    def read(where: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise wrong(where, value, f"a whole number of at least {least}")
        return value

    return read


def number(where: str, value: Any) -> float:
    """Check a finite number."""
    if not _is_finite(value):
        raise wrong(where, value, "a finite number")
    return float(value)


def positive(where: str, value: Any) -> float:
    """Check a finite number above 0."""
    if not _is_finite(value) or value <= 0:
        raise wrong(where, value, "a finite number above 0")
    return float(value)


def not_negative(where: str, value: Any) -> float:
    """Check a finite number that is not below 0."""
    if not _is_finite(value) or value < 0:
        raise wrong(where, value, "0 or more")
    return float(value)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
