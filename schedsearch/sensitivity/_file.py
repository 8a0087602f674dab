"""Sensitivities as a file: JSON of format ``schedsearch.sensitivities``, version 1.

The reader is strict: an unknown key, a missing one, a number that cannot be or the same cell twice is an error that
says where. The writer replaces the file as a whole, one record per line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any

from schedsearch.errors import EvaluationError
from schedsearch.schedule import NUMBER_FORMATS, SCALES, write_atomically
from schedsearch.sensitivity._records import SUBSET_KINDS, Cell, Choice, Header, Layer, Sensitivities, Subset

FORMAT = "schedsearch.sensitivities"
VERSION = 1
_MAX_BYTES = 256 * 2**20
_MAX_SHOWN = 60

Check = Callable[[str, Any], Any]


def write_sensitivities(found: Sensitivities, path: str | PathLike[str]) -> None:
    """Write them; at any moment the file is the old one or the new one as a whole.

    Raises:
        ScheduleError: if it cannot be written.
    """
    write_atomically(path, (sensitivities_text(found) + "\n").encode())


def sensitivities_text(found: Sensitivities) -> str:
    """Return the JSON text, one record per line."""
    head = json.dumps({"format": FORMAT, "version": VERSION, **asdict(found.header)}, indent=1)
    lists: dict[str, Sequence[object]] = {
        "blocks": found.blocks,
        "layers": [asdict(layer) for layer in found.layers],
        "choices": [asdict(choice) for choice in found.choices],
        "cells": [asdict(cell) for cell in found.cells],
        "subsets": [asdict(subset) for subset in found.subsets],
    }
    parts = [f' "{name}": [\n{_lines(values)}\n ]' if values else f' "{name}": []' for name, values in lists.items()]
    return head.removesuffix("\n}") + ",\n" + ",\n".join(parts) + "\n}"


def _lines(values: Sequence[object]) -> str:
    return ",\n".join(f"  {json.dumps(value, allow_nan=False)}" for value in values)


def read_sensitivities(path: str | PathLike[str]) -> Sensitivities:
    """Return what is in a file.

    Raises:
        EvaluationError: it cannot be read, or breaks a rule of the format; the text says where.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise EvaluationError(
                f"{file}: found no file, expected sensitivities. `schedsearch sensitivity` writes them."
            )
        with file.open("rb") as source:
            data = source.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise EvaluationError(f"{file}: found more than {_MAX_BYTES // 2**20} MiB, expected sensitivities.")
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: found a file that cannot be read ({error}), expected UTF-8 JSON.") from error
    return parse_sensitivities(text, where=str(file))


def parse_sensitivities(text: str, *, where: str = "sensitivities") -> Sensitivities:
    """Return what `sensitivities_text` wrote.

    Raises:
        EvaluationError: ``text`` breaks a rule of the format; the text says where.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where}: found damaged JSON ({error}), expected sensitivities.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EvaluationError(f"{where}: found something else, expected a file of format {FORMAT!r}.")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise EvaluationError(
            f"{where}: version: found {_shown(content.get('version'))}, expected {VERSION}. Measure it again."
        )
    heading: dict[str, Check] = {field.name: _HEADER.get(field.name, _text) for field in fields(Header)}
    lists: dict[str, Check] = {
        "blocks": _list(_text), "layers": _list(_layer), "choices": _list(_choice), "cells": _list(_cell),
        "subsets": _list(_subset),
    }  # fmt: skip
    got = _members(where, content, {"format": _text, "version": _whole, **heading, **lists})
    found = Sensitivities(header=Header(**{key: got[key] for key in heading}), **{key: got[key] for key in lists})
    _require_whole(where, found)
    return found


def _require_whole(where: str, found: Sensitivities) -> None:
    """Refuses records that do not fit each other."""
    for name, keys in (
        ("layers", [layer.name for layer in found.layers]),
        ("blocks", list(found.blocks)),
        ("choices", [choice.word for choice in found.choices]),
        ("cells", [cell.key for cell in found.cells]),
    ):
        seen: set[object] = set()
        for i, key in enumerate(keys):
            if key in seen:
                raise _wrong(f"{where}: {name}[{i}]", key, "each once")
            seen.add(key)
    layers, blocks = {layer.name for layer in found.layers}, set(found.blocks)
    for i, cell in enumerate(found.cells):
        if cell.module not in (layers if cell.word else blocks):
            raise _wrong(f"{where}: cells[{i}].module", cell.module, "one of the layers, or of the blocks if removed")
        if cell.word and cell.word not in found.by_word:
            raise _wrong(f"{where}: cells[{i}].word", cell.word, "one of the choices")
    for i, subset in enumerate(found.subsets):
        for pick in subset.picks:
            if pick not in found.by_key:
                raise _wrong(f"{where}: subsets[{i}].picks", pick, "changes that have a cell")
    for name in ("cells", "subsets"):
        for i, record in enumerate(getattr(found, name)):
            if len(record.errors) != found.header.n_prompts:
                expected = f"{found.header.n_prompts} numbers, one per prompt"
                raise _wrong(f"{where}: {name}[{i}].errors", len(record.errors), expected)


# ---- checks; each returns the value it was given, in its type


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _wrong(where: str, value: object, expected: str) -> EvaluationError:
    return EvaluationError(f"{where}: found {_shown(value)}, expected {expected}. Measure it again.")


def _members(where: str, value: object, checks: Mapping[str, Check]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    for key in value:
        if key not in checks:
            raise _wrong(where, key, f"only the keys {', '.join(checks)}")
    for key in checks:
        if key not in value:
            raise EvaluationError(f"{where}: found no key {key!r}, expected it. Measure it again.")
    return {key: check(f"{where}.{key}", value[key]) for key, check in checks.items()}


def _list(check: Check) -> Check:
    def read(where: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(check(f"{where}[{i}]", item) for i, item in enumerate(value))

    return read


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(where, value, "text")
    return value


def _one_of(words: Sequence[str]) -> Check:
    def read(where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise _wrong(where, value, f"one of {', '.join(words)}")
        return value

    return read


def _whole(where: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(where, value, f"a whole number of at least {least}")
    return value


def _from_zero(where: str, value: Any) -> int:
    return _whole(where, value, 0)


def _number(where: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _wrong(where, value, "a finite number")
    return float(value)


def _not_negative(where: str, value: Any) -> float:
    if _number(where, value) < 0:
        raise _wrong(where, value, "0 or more")
    return float(value)


def _number_or_nothing(where: str, value: Any) -> float | None:
    return None if value is None else _number(where, value)


_HEADER: Mapping[str, Check] = {
    "steps": _whole,
    "n_prompts": _whole,
    "seed": _from_zero,
    "dtype": _one_of(NUMBER_FORMATS[:3]),
}


def _layer(where: str, value: Any) -> Layer:
    return Layer(**_members(where, value, {"name": _text, "weights": _whole, "bits": _not_negative}))


def _choice(where: str, value: Any) -> Choice:
    formats = _one_of(NUMBER_FORMATS)
    checks: dict[str, Check] = {
        "word": _text,
        "weight": formats,
        "activation": formats,
        "scales": _one_of(SCALES),
        "rank": _from_zero,
    }
    return Choice(**_members(where, value, checks))


def _cell(where: str, value: Any) -> Cell:
    checks: dict[str, Check] = {
        "module": _text, "word": _text, "errors": _list(_not_negative), "bits": _not_negative, "saved_bytes": _integer,
        "saved_ms": _number_or_nothing,
    }  # fmt: skip
    return Cell(**_members(where, value, checks))


def _integer(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(where, value, "a whole number")
    return value


def _subset(where: str, value: Any) -> Subset:
    return Subset(
        **_members(where, value, {"kind": _one_of(SUBSET_KINDS), "picks": _list(_pick), "errors": _list(_not_negative)})
    )


def _pick(where: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong(where, value, "[module, word]")
    return _text(f"{where}[0]", value[0]), _text(f"{where}[1]", value[1])
