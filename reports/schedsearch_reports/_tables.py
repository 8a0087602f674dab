"""Tables of sensitivities, as a report shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from schedsearch.sensitivity import REMOVED, Cell, Sensitivities, read_sensitivities
from schedsearch_reports._data import Table

MOST_ROWS = 12


def sensitivity_tables(path: Path) -> tuple[Table, ...]:
    """Return what the file says: what removing a block does, what each format does, and which layers mind most.

    Raises:
        EvaluationError: the file cannot be read.
    """
    found = read_sensitivities(path)
    header = found.header
    on = f"Relative error of the final latents on {header.n_prompts} prompts, root of the mean square"
    removed = [cell for cell in found.cells if cell.word == REMOVED]
    formatted = [cell for cell in found.cells if cell.word != REMOVED]
    tables = [_removals(removed, on)] if removed else []
    if formatted:
        tables += [_formats(found, formatted, on), _layers(formatted, on)]
    return tuple(tables)


def _percent(effect: float) -> str:
    return f"{100 * sqrt(effect):.2f} %"


def _ms(cell: Cell) -> str:
    return "" if cell.saved_ms is None else f"{cell.saved_ms:.3f}"


def _removals(cells: Sequence[Cell], on: str) -> Table:
    ordered = sorted(cells, key=lambda cell: -cell.effect)
    return Table(
        title="Leaving a block out",
        about=f"{on}, with one block removed. The {min(len(ordered), MOST_ROWS)} that matter most.",
        head=("block", "error", "ms saved per call"),
        rows=tuple((cell.module, _percent(cell.effect), _ms(cell)) for cell in ordered[:MOST_ROWS]),
    )


def _formats(found: Sensitivities, cells: Sequence[Cell], on: str) -> Table:
    rows = []
    for choice in found.choices:
        effects = sorted((cell.effect, cell.module) for cell in cells if cell.word == choice.word)
        if effects:
            middle = statistics.median(effect for effect, _ in effects)
            worst, layer = effects[-1]
            rows.append((choice.word, str(len(effects)), _percent(middle), _percent(worst), layer))
    return Table(
        title="Number formats",
        about=f"{on}, with one layer in that format.",
        head=("format", "layers", "median error", "largest", "in"),
        rows=tuple(rows),
    )


def _layers(cells: Sequence[Cell], on: str) -> Table:
    ordered = sorted(cells, key=lambda cell: -cell.effect)[:MOST_ROWS]
    return Table(
        title="Layers that mind most",
        about=f"{on}, with that layer in that format.",
        head=("layer", "format", "error", "bits", "ms saved per call"),
        rows=tuple((c.module, c.word, _percent(c.effect), f"{c.bits:.2f}", _ms(c)) for c in ordered),
    )
