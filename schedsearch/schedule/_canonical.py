"""A schedule as a plain JSON document, its canonical bytes and the id made from them.

The id covers everything that changes the images and nothing else. This module does not know how a file is laid out for
reading, nor how one is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

from schedsearch.schedule._vocabulary import ESTIMATES, FORMAT, NO_GUIDANCE, SCALES, SOLVER_LETTERS

if TYPE_CHECKING:
    from schedsearch.schedule._model import Schedule
    from schedsearch.schedule._parts import PrecisionRule, Solver


def record_document(record: object) -> dict[str, object]:
    """The fields of a flat record by name; optional ones are left out where they hold empty text or an empty tuple.

    A field that is not compared is no content and not in a file.
    """
    fields: dict[str, object] = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if not field.compare or (value in ("", ()) and field.default is not dataclasses.MISSING):
            continue
        fields[field.name] = list(value) if isinstance(value, tuple) else value
    return fields


def steps_document(sigma: tuple[float, ...], solver: tuple[Solver, ...]) -> dict[str, object]:
    """``steps``: the noise levels, the distinct solvers lettered by first appearance, and one letter per step."""
    letters: dict[Solver, str] = {}
    for record in solver:
        if record not in letters:
            letters[record] = SOLVER_LETTERS[len(letters)]
    return {
        "sigma": list(sigma),
        "solvers": {letter: _solver_document(record) for record, letter in letters.items()},
        "solver": "".join(letters[record] for record in solver),
    }


def _solver_document(record: Solver) -> dict[str, object]:
    """The fields of a solver; ``estimate`` only where it is chosen, as most families have no choice."""
    document = record_document(record)
    if record.estimate == ESTIMATES[0]:
        del document["estimate"]
    return document


def _rule_document(rule: PrecisionRule) -> dict[str, object]:
    """The fields of a precision rule; granularity and rank only where they are chosen."""
    document = record_document(rule)
    if rule.scales == SCALES[0]:
        del document["scales"]
    if not rule.rank:
        del document["rank"]
    return document


def content_document(schedule: Schedule) -> dict[str, object]:
    """Everything that changes the images, in the shape of the file; optional parts only where they say something."""
    document: dict[str, object] = {
        "format": FORMAT,
        "model": record_document(schedule.model),
        "steps": steps_document(schedule.sigma, schedule.solver),
    }
    if schedule.ops:
        document["ops"] = dict(schedule.ops)
    if schedule.guidance is not None:
        document["guidance"] = [NO_GUIDANCE if scale is None else scale for scale in schedule.guidance]
    if schedule.precision:
        document["precision"] = [_rule_document(rule) for rule in schedule.precision]
    if schedule.pruned:
        document["pruned"] = list(schedule.pruned)
    if schedule.tables is not None:
        tables = record_document(schedule.tables)
        tables["tensors"] = [record_document(tensor) for tensor in schedule.tables.tensors]
        document["tables"] = tables
    return document


def canonical_bytes(schedule: Schedule) -> bytes:
    """The bytes the id is made from: sorted keys, no spaces, ASCII, floats in their shortest exact form.

    ``version``, ``id``, ``measured`` and ``provenance`` are not in them.
    """
    document = content_document(schedule)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def content_id(schedule: Schedule) -> str:
    """``sha256:`` and the hash of the canonical bytes, 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(canonical_bytes(schedule)).hexdigest()}"
