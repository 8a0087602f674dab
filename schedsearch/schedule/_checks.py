"""Checks of single values: what kind they are, how long, how they are spelled; and how an error quotes them.

Each check returns the value in its one stored form or raises `ScheduleFormatError` with the dotted path. They accept
nothing by conversion (FORMAT.md R5): ``True`` is not 1, ``"3"`` is not 3. This module does not know the schedule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule._vocabulary import FILE_PATTERN, MAX_COUNT, MAX_NAME, MAX_TEXT, NAME_PATTERN

_KIND = {dict: "an object", list: "a list", tuple: "a tuple", str: "text", bool: "a truth value", type(None): "nothing"}
_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,80}")
_NAME = re.compile(NAME_PATTERN)
_FILE = re.compile(FILE_PATTERN)
_DEVICE = re.compile("con|prn|aux|nul|com[0-9]|lpt[0-9]", re.IGNORECASE)  # reserved on Windows, whatever follows


def quote(value: object, limit: int = 60) -> str:
    """``value`` in words for an error: its kind and, if short enough, itself; always one line of ASCII."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (dict, list, tuple)):
        return f"{_KIND[next(kind for kind in _KIND if isinstance(value, kind))]} of {len(value)}"
    if isinstance(value, str):
        shown = ascii(value[:limit])
        return shown if len(value) <= limit else f"{shown}... ({len(value)} characters)"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "an integer of over 30 digits"
    if isinstance(value, float):
        return repr(float(value))
    return ascii(str(value))[1:-1][:limit] if type(value).__module__.startswith("schedsearch") else type(value).__name__


def join(path: str, key: str) -> str:
    """Dotted path of member ``key`` under ``path``; a key with odd characters is quoted and shortened."""
    shown = key if _SIMPLE_KEY.fullmatch(key) else quote(key, 40)
    return f"{path}.{shown}" if path else shown


def integer(path: str, value: object, low: int, high: int, rule: str) -> int:
    """An ``int`` (never a ``bool``) in ``low..high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        wanted = f"a whole number in {low}..{high}" if high < MAX_COUNT else f"a whole number of {low} or more"
        raise ScheduleFormatError(path, found=quote(value), expected=wanted, rule=rule)
    return int(value)


def number(path: str, value: object, rule: str) -> float:
    """A finite ``int`` or ``float`` (never a ``bool``), as a float; minus zero becomes zero."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 2**1000:
            raise ScheduleFormatError(path, found=quote(value), expected="a finite number", rule=rule)
        value = float(value)
    if not math.isfinite(value):
        raise ScheduleFormatError(path, found=quote(value), expected="a finite number", rule=rule)
    return value + 0.0


def text(path: str, value: object, rule: str, *, limit: int = MAX_TEXT, empty: bool = True) -> str:
    """Text of at most ``limit`` characters that can be printed on one line."""
    if not isinstance(value, str) or len(value) > limit or not (value or empty):
        least = "" if empty else "1 to "
        wanted = f"text of {least}{limit} characters" if least else f"text of at most {limit} characters"
        raise ScheduleFormatError(path, found=quote(value), expected=wanted, rule=rule)
    if not value.isprintable():
        raise ScheduleFormatError(path, found=quote(value), expected="text without control characters", rule=rule)
    return value


def spelled(path: str, value: object, pattern: re.Pattern[str], wanted: str, rule: str) -> str:
    """Text of at most `MAX_NAME` characters that matches ``pattern`` as a whole."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not pattern.fullmatch(value):
        raise ScheduleFormatError(path, found=quote(value), expected=wanted, rule=rule)
    return value


def module_name(path: str, value: object, rule: str) -> str:
    """The dotted name of a module."""
    return spelled(path, value, _NAME, f"a dotted module name of at most {MAX_NAME} letters, digits and '_'", rule)


def bare_file(path: str, value: object, ending: str, rule: str) -> str:
    """The name of a file in the same folder: plain characters, no folder, no ``..``, no drive, no device."""
    wanted = f"a bare file name ending in {ending}: no folder, no '..', no drive"
    name = spelled(path, value, _FILE, wanted, rule)
    if not name.endswith(ending) or ".." in name or _DEVICE.fullmatch(name.split(".")[0]):
        raise ScheduleFormatError(path, found=quote(name), expected=wanted, rule=rule)
    return name


def one_of(path: str, value: object, choices: Sequence[str], rule: str) -> str:
    """One entry of a closed list."""
    if not isinstance(value, str) or value not in choices:
        raise ScheduleFormatError(path, found=quote(value), expected=f"one of {', '.join(choices)}", rule=rule)
    return value


def sequence(path: str, value: object, high: int, rule: str, *, low: int = 0) -> tuple[object, ...]:
    """A tuple of ``low..high`` items."""
    if not isinstance(value, tuple):
        raise ScheduleFormatError(path, found=quote(value), expected="a list (in Python, a tuple)", rule=rule)
    if not low <= len(value) <= high:
        raise ScheduleFormatError(path, found=f"{len(value)} items", expected=f"{low} to {high} items", rule=rule)
    return value


def distinct(path: str, values: Iterable[Hashable], rule: str, label: Callable[[object], str] = quote) -> None:
    """No value twice."""
    seen: set[Hashable] = set()
    for i, value in enumerate(values):
        if value in seen:
            raise ScheduleFormatError(
                f"{path}[{i}]", found=f"{label(value)} a second time", expected="every entry once", rule=rule
            )
        seen.add(value)
