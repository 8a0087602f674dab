"""JSON read under suspicion: bounded before it is parsed, and free of what JSON leaves to chance.

Everything that reads a file of ours or of others goes through `parse`. Objects come back as `dict`, and by then no key
occurs twice, no number is infinite or absurdly long and nothing is nested deeply. This module does not know schedules.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule._checks import join, quote
from schedsearch.schedule._vocabulary import MAX_FILE_BYTES, MAX_INT_DIGITS, MAX_ITEMS, MAX_NESTING

# A string, closed or not, or one bracket. The possessive repeat and the optional closing quote keep this linear.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)

_MAX_LISTED = 20
"""Most legal keys that an error lists; a big ECAD file has thousands."""


class _Object(dict[str, object]):
    """A JSON object that remembers the first key it was given twice."""

    twice: str | None = None


class _Digits:
    """An integer too long to be converted."""

    def __init__(self, literal: str) -> None:
        self.literal = literal


def _object(pairs: list[tuple[str, object]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                made.twice = key
                break
            seen.add(key)
    return made


def _integer(literal: str) -> object:
    return int(literal) if len(literal) <= MAX_INT_DIGITS else _Digits(literal)


def refuse_limits(data: bytes, *, fix: str) -> None:
    """Refuse what is beyond the limits of R1, without parsing it; ``fix`` says how to make it smaller.

    Raises:
        ScheduleFormatError: if ``data`` has too many bytes, too many items or too many levels, or is empty.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ScheduleFormatError(
            "", found=f"{len(data)} bytes", expected=f"at most {MAX_FILE_BYTES}", rule="R1", fix=fix
        )
    if not data.strip():
        raise ScheduleFormatError(
            "", found="an empty file", expected="a JSON object", rule="R1",
            fix="It was probably cut off while being copied; copy it again.",
        )  # fmt: skip
    items = max(data.count(b",") + data.count(b"[") + data.count(b"{"), data.count(b'"') // 4)
    if items > MAX_ITEMS:
        raise ScheduleFormatError("", found=f"about {items} items", expected=f"at most {MAX_ITEMS}", rule="R1", fix=fix)
    _refuse_nesting(data)


def _refuse_nesting(data: bytes) -> None:
    depth = 0
    for token in _TOKEN.finditer(data):
        first = token.group()[:1]
        if first in (b"[", b"{"):
            depth += 1
            if depth > MAX_NESTING:
                found = f"brackets nested more than {MAX_NESTING} deep at byte {token.start()}"
                raise ScheduleFormatError("", found=found, expected=f"at most {MAX_NESTING} levels", rule="R1")
        elif first in (b"]", b"}"):
            depth -= 1


def _walk(path: str, value: object) -> Iterator[tuple[str, object]]:
    yield path, value
    if isinstance(value, dict):
        for key, member in value.items():
            if isinstance(member, (dict, list, float, _Digits)):
                yield from _walk(join(path, key), member)
    elif isinstance(value, list):
        for i, member in enumerate(value):
            if isinstance(member, (dict, list, float, _Digits)):
                yield from _walk(f"{path}[{i}]", member)


def _refuse_content(document: dict[str, object]) -> None:
    for path, value in _walk("", document):
        if isinstance(value, _Object) and value.twice is not None:
            raise ScheduleFormatError(
                join(path, value.twice), found="this key a second time", expected="every key once", rule="R2",
                fix="Remove one of the two.",
            )  # fmt: skip
        if isinstance(value, float) and not math.isfinite(value):
            found = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))
            raise ScheduleFormatError(path, found=found, expected="a finite number", rule="R2")
        if isinstance(value, _Digits):
            found = f"an integer of {len(value.literal.lstrip('-'))} digits"
            raise ScheduleFormatError(path, found=found, expected=f"at most {MAX_INT_DIGITS} characters", rule="R2")


def parse(data: bytes) -> dict[str, object]:
    """The one JSON object in ``data``.

    Raises:
        ScheduleFormatError: for anything but a strict UTF-8 JSON object within the limits of FORMAT.md R1 and R2.
    """
    refuse_limits(data, fix="Large tensors belong into the .safetensors file beside it.")
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte 0x{data[error.start]:02x} at position {error.start}"
        raise ScheduleFormatError("", found=found, expected="UTF-8 text", rule="R1") from None
    try:
        document: object = json.loads(content, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ScheduleFormatError(
            "", found=f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg})",
            expected="one JSON object", fix="If the file was cut off, copy it again.", rule="R1",
        ) from None  # fmt: skip
    if not isinstance(document, dict):
        raise ScheduleFormatError("", found=quote(document), expected="one JSON object", rule="R1")
    _refuse_content(document)
    return document


def members(
    path: str,
    value: object,
    *,
    known: Collection[str],
    required: Collection[str] = (),
    tolerant: bool = False,
    rule: str = "R4",
) -> dict[str, object]:
    """``value`` as an object that has every ``required`` key and, unless ``tolerant``, only ``known`` ones."""
    if not isinstance(value, dict):
        raise ScheduleFormatError(path, found=quote(value), expected="an object {...}", rule=rule)
    legal = frozenset(known)
    for key in value:
        if key not in legal and not tolerant:
            close = difflib.get_close_matches(key[:80], legal, n=1)
            listed = ", ".join(sorted(legal)[:_MAX_LISTED]) + (
                f", ... ({len(legal)} names)" * (len(legal) > _MAX_LISTED)
            )
            raise ScheduleFormatError(
                join(path, key), found="an unknown key", expected=f"one of {listed}", rule=rule,
                fix=f"Did you mean {close[0]!r}?" if close else "Remove it.",
            )  # fmt: skip
    for key in required:
        if key not in value:
            raise ScheduleFormatError(join(path, key), found="no such key", expected="it to be there", rule=rule)
    return {key: value[key] for key in known if key in value}


def items(path: str, value: object, rule: str) -> list[object]:
    """``value`` as a JSON list."""
    if not isinstance(value, list):
        raise ScheduleFormatError(path, found=quote(value), expected="a list [...]", rule=rule)
    return value
