"""Sensitivities as a file: JSON of format ``schedsearch.sensitivities``, version 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from os import PathLike

from schedsearch import _records as rec
from schedsearch.schedule import NUMBER_FORMATS, SCALES
from schedsearch.sensitivity._records import SUBSET_KINDS, Cell, Choice, Header, Layer, Sensitivities, Subset

_FILE = rec.RecordFile(
    format="schedsearch.sensitivities", version=1, what="sensitivities", made_by="schedsearch sensitivity"
)


def write_sensitivities(found: Sensitivities, path: str | PathLike[str]) -> None:
    """Write them; at any moment the file is the old one or the new one as a whole.

    Raises:
        ScheduleError: if it cannot be written.
    """
    _FILE.write(path, sensitivities_text(found))


def sensitivities_text(found: Sensitivities) -> str:
    """Return the JSON text, one record per line."""
    lists: dict[str, Sequence[object]] = {
        "blocks": found.blocks,
        "layers": [asdict(layer) for layer in found.layers],
        "choices": [asdict(choice) for choice in found.choices],
        "cells": [asdict(cell) for cell in found.cells],
        "subsets": [asdict(subset) for subset in found.subsets],
    }
    return _FILE.text(asdict(found.header), lists)


def read_sensitivities(path: str | PathLike[str]) -> Sensitivities:
    """Return what is in a file.

    Raises:
        EvaluationError: it cannot be read, or breaks a rule of the format; the text says where.
    """
    return parse_sensitivities(_FILE.read(path), where=str(path))


def parse_sensitivities(text: str, *, where: str = "sensitivities") -> Sensitivities:
    """Return what `sensitivities_text` wrote.

    Raises:
        EvaluationError: ``text`` breaks a rule of the format; the text says where.
    """
    got = _FILE.parse(text, {**_HEADER, **_LISTS}, where=where)
    found = Sensitivities(header=Header(**{key: got[key] for key in _HEADER}), **{key: got[key] for key in _LISTS})
    _require_whole(where, found)
    return found


def _require_whole(where: str, found: Sensitivities) -> None:
    """Refuses records that do not fit each other."""
    rec.refuse_repeats(f"{where}: layers", [layer.name for layer in found.layers])
    rec.refuse_repeats(f"{where}: blocks", found.blocks)
    rec.refuse_repeats(f"{where}: choices", [choice.word for choice in found.choices])
    rec.refuse_repeats(f"{where}: cells", [cell.key for cell in found.cells])
    layers, blocks = {layer.name for layer in found.layers}, set(found.blocks)
    for i, cell in enumerate(found.cells):
        if cell.module not in (layers if cell.word else blocks):
            raise rec.wrong(
                f"{where}: cells[{i}].module", cell.module, "one of the layers, or of the blocks if removed"
            )
        if cell.word and cell.word not in found.by_word:
            raise rec.wrong(f"{where}: cells[{i}].word", cell.word, "one of the choices")
    for i, subset in enumerate(found.subsets):
        for pick in subset.picks:
            if pick not in found.by_key:
                raise rec.wrong(f"{where}: subsets[{i}].picks", pick, "changes that have a cell")
    for name in ("cells", "subsets"):
        for i, record in enumerate(getattr(found, name)):
            if len(record.errors) != found.header.n_prompts:
                expected = f"{found.header.n_prompts} numbers, one per prompt"
                raise rec.wrong(f"{where}: {name}[{i}].errors", len(record.errors), expected)


_ERRORS = rec.list_of(rec.not_negative)

_LAYER = rec.record(Layer, {"name": rec.text, "weights": rec.at_least(1), "bits": rec.not_negative})
_CHOICE = rec.record(
    Choice,
    {
        "word": rec.text,
        "weight": rec.one_of(NUMBER_FORMATS),
        "activation": rec.one_of(NUMBER_FORMATS),
        "scales": rec.one_of(SCALES),
        "rank": rec.at_least(0),
    },
)
_CELL = rec.record(
    Cell,
    {
        "module": rec.text,
        "word": rec.text,
        "errors": _ERRORS,
        "bits": rec.not_negative,
        "saved_bytes": rec.integer,
        "saved_ms": rec.or_nothing(rec.number),
    },
)
_PICK = rec.row_of("[module, word]", rec.text, rec.text)
_SUBSET = rec.record(Subset, {"kind": rec.one_of(SUBSET_KINDS), "picks": rec.list_of(_PICK), "errors": _ERRORS})

_HEADER: Mapping[str, rec.Check] = {field.name: rec.text for field in fields(Header)} | {
    "steps": rec.at_least(1),
    "n_prompts": rec.at_least(1),
    "seed": rec.at_least(0),
    "dtype": rec.one_of(NUMBER_FORMATS[:3]),
}
_LISTS: Mapping[str, rec.Check] = {
    "blocks": rec.list_of(rec.text),
    "layers": rec.list_of(_LAYER),
    "choices": rec.list_of(_CHOICE),
    "cells": rec.list_of(_CELL),
    "subsets": rec.list_of(_SUBSET),
}
