"""Trees of frozen dataclasses as JSON, and back: strict, with the dotted path of what is wrong.

Understands text, numbers, booleans, literals, ``None``, tuples of any length, and dataclasses of these. What a record
means is the business of the record.
"""

from __future__ import annotations

import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from schedsearch.errors import StudyError

T = TypeVar("T")

DIGITS = 6
"""Significant digits that measured numbers are written with."""

_SHOWN = 60


def encoded(value: object) -> object:
    """Returns ``value`` as dictionaries, lists, text and numbers; floats rounded to `DIGITS` significant digits.

    >>> encoded((1.23456789, "x", None))
    [1.23457, 'x', None]
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encoded(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [encoded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return value


def decoded(kind: type[T], value: object, path: str = "") -> T:
    """Returns the record of type ``kind`` that `encoded` made ``value`` of.

    Args:
        kind: a dataclass.
        value: what was read.
        path: dotted path of ``value``, for messages.

    Raises:
        StudyError: a key is missing or unknown, or a value is of another kind than the record says.
    """
    return cast("T", _read(kind, value, path))


def _read(kind: Any, value: object, path: str) -> object:
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value, path)
    origin = get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(path, value, "a list")
        return tuple(_read(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (Union, types.UnionType):
        (rest,) = (each for each in get_args(kind) if each is not type(None))
        return None if value is None else _read(rest, value, path)
    if origin is Literal:
        if value not in get_args(kind):
            raise _wrong(path, value, f"one of {', '.join(get_args(kind))}")
        return value
    return _leaf(kind, value, path)


def _leaf(kind: Any, value: object, path: str) -> object:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    words = {float: "a finite number", int: "a whole number", str: "text", bool: "true or false"}
    raise _wrong(path, value, words.get(kind, str(kind)))


def _record(kind: type, value: object, path: str) -> object:
    if not isinstance(value, dict):
        raise _wrong(path, value, "an object")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for key in value:
        if key not in names:
            raise StudyError(f"{_join(path, str(key))}: found an unknown key, expected some of {', '.join(names)}.")
    for name in names:
        if name not in value:
            raise StudyError(f"{_join(path, name)}: found nothing, expected this key.")
    return kind(**{name: _read(hints[name], value[name], _join(path, name)) for name in names})


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _wrong(path: str, value: object, expected: str) -> StudyError:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return StudyError(f"{path or 'the file'}: found {shown}, expected {expected}.")
