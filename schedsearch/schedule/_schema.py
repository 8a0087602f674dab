"""The JSON schema of a schedule file, generated from the records and the limits.

``python -m schedsearch.schedule._schema`` writes ``schema-v1.json``; a test checks that it is current. It serves
editors and other programs, and says less than FORMAT.md: a schema cannot compare lengths, order or hashes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from schedsearch.schedule import _vocabulary as words
from schedsearch.schedule._codec import OPTIONAL, REQUIRED, STEPS_KEYS
from schedsearch.schedule._parts import Measurement, ModelRef, PrecisionRule, Provenance, Solver, Tables, TableTensor

Node: TypeAlias = dict[str, object]

SCHEMA_FILE = Path(__file__).with_name(f"schema-v{words.VERSION[0]}.json")


def _text(pattern: str = "", limit: int = words.MAX_TEXT, least: int = 0) -> Node:
    node: Node = {"type": "string", "maxLength": limit}
    if least:
        node["minLength"] = least
    if pattern:
        node["pattern"] = f"^({pattern})$"
    return node


def _whole(low: int, high: int) -> Node:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Node, high: int, low: int = 0, **more: object) -> Node:
    node: Node = {"type": "array", "items": items, "maxItems": high, **more}
    if low:
        node["minItems"] = low
    return node


def _words(choices: tuple[str, ...]) -> Node:
    return {"enum": list(choices)}


def _record(kind: type, nodes: Mapping[str, Node]) -> Node:
    """The object of a flat record: the fields without a default are required, every field has its node."""
    fields = [field for field in dataclasses.fields(kind) if field.compare]
    missing = {field.name for field in fields} ^ set(nodes)
    if missing:
        raise KeyError(f"{kind.__name__}: these fields and nodes do not match: {sorted(missing)}")
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [field.name for field in fields if field.default is dataclasses.MISSING],
        "properties": {field.name: nodes[field.name] for field in fields},
    }


_NAME = _text(words.NAME_PATTERN, words.MAX_NAME)
_HASH = _text(words.HASH_PATTERN, 64)
_ID = _text(words.ID_PATTERN, 71)
_NUMBER: Node = {"type": "number"}
_SHORT = _text(limit=words.MAX_NAME)


def _steps() -> Node:
    solver = _record(
        Solver,
        {
            "family": _words(words.FAMILIES),
            "order": _whole(1, words.MAX_ORDER),
            "prediction": _words(words.PREDICTIONS),
            "corrector": _words(words.CORRECTORS),
            "estimate": _words(words.ESTIMATES),
        },
    )
    letters = {"type": "object", "additionalProperties": False, "patternProperties": {"^[a-zA-Z]$": solver}}
    levels = _list({"type": "number", "minimum": 0}, words.MAX_STEPS + 1, 2)
    row = _text("[a-zA-Z]+", words.MAX_STEPS)
    properties = dict(zip(STEPS_KEYS, (levels, letters, row), strict=True))
    return {"type": "object", "additionalProperties": False, "required": list(STEPS_KEYS), "properties": properties}


def _ops() -> Node:
    rest = words.OPS.replace(words.SKIP, "")
    return {
        "type": "object",
        "maxProperties": words.MAX_ROWS,
        "additionalProperties": False,
        "properties": {words.MODEL_ROW: _text(f"{words.COMPUTE}[{rest}]*", words.MAX_STEPS)},
        "patternProperties": {
            # any dotted name but the bare word of the model row, which has the stricter node above
            f"^(?!{words.MODEL_ROW}$)({words.NAME_PATTERN})$": _text(
                f"[{words.COMPUTE}{words.SKIP}][{words.OPS}]*", words.MAX_STEPS
            )
        },
    }


def _model() -> Node:
    pixels = _whole(1, words.MAX_PIXELS)
    return _record(
        ModelRef,
        {
            "pipeline": _text(words.CLASS_PATTERN, words.MAX_NAME),
            "config": _HASH,
            "blocks": _HASH,
            "height": pixels,
            "width": pixels,
            "batch": _whole(1, words.MAX_BATCH),
            "adapters": _list(_text(limit=words.MAX_NAME, least=1), words.MAX_ADAPTERS, uniqueItems=True),
        },
    )


def _tables() -> Node:
    tensor = _record(
        TableTensor,
        {
            "name": _NAME,
            "shape": _list(_whole(0, words.MAX_DIMENSION), words.MAX_RANK),
            "dtype": _words(words.TENSOR_DTYPES),
            "role": _SHORT,
        },
    )
    return _record(Tables, {"sha256": _HASH, "tensors": _list(tensor, words.MAX_TENSORS, 1)})


def _measurement() -> Node:
    return _record(
        Measurement,
        {
            "metric": _text(limit=words.MAX_NAME, least=1),
            "unit": _SHORT,
            "better": _words(words.DIRECTIONS),
            "value": _NUMBER,
            "low": _NUMBER,
            "high": _NUMBER,
            "n": _whole(1, words.MAX_COUNT),
            "prompts": _text(),
            "device": _text(),
            "dtype": _text(),
            "batch": _whole(1, words.MAX_BATCH),
            "created_by": _text(),
            "date": _text(f"({words.DATE_PATTERN})?", 10),
        },
    )


def _provenance() -> Node:
    return _record(
        Provenance,
        {
            "study": _text(),
            "searcher": _text(),
            "seed": _whole(-words.MAX_COUNT, words.MAX_COUNT),
            "ask": _whole(0, words.MAX_COUNT),
            "parents": _list(_ID, words.MAX_PARENTS),
            "created_by": _text(),
            "note": _text(),
        },
    )


def schema() -> Node:
    """The JSON schema (draft 2020-12) of a schedule file of this major version."""
    formats = _words(words.NUMBER_FORMATS)
    rule = _record(
        PrecisionRule,
        {
            "pattern": _text(words.GLOB_PATTERN, words.MAX_NAME),
            "weight": formats,
            "activation": formats,
            "scales": _words(words.SCALES),
            "rank": _whole(0, words.MAX_LOW_RANK),
        },
    )
    scale: Node = {"anyOf": [_NUMBER, {"const": words.NO_GUIDANCE}]}
    parts: dict[str, Node] = {
        "format": {"const": words.FORMAT},
        "version": _text(rf"{words.VERSION[0]}\.[0-9]{{1,4}}", 9),
        "model": _model(),
        "steps": _steps(),
        "id": _ID,
        "ops": _ops(),
        "guidance": _list(scale, words.MAX_STEPS, 1),
        "precision": _list(rule, words.MAX_RULES),
        "pruned": _list(_NAME, words.MAX_PRUNED, uniqueItems=True),
        "tables": _tables(),
        "measured": _list(_measurement(), words.MAX_MEASURED),
        "provenance": _provenance(),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{words.FORMAT} version {words.VERSION[0]}.{words.VERSION[1]}",
        "description": "A plan for running a diffusion pipeline cheaper. FORMAT.md is the specification.",
        "type": "object",
        "additionalProperties": False,
        "required": list(REQUIRED),
        "properties": {key: parts[key] for key in REQUIRED + OPTIONAL},
    }


def schema_text() -> str:
    """The text of the schema's file."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    sys.stdout.write(f"Wrote {SCHEMA_FILE}\n")
