"""Which layers, kinds of layers and blocks matter most, per byte and millisecond they would save.

Qua2SeDiMo (arXiv 2412.14628) ranks operations and blocks from a learned predictor; here every number is measured, and a
kind or block is the sum of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from schedsearch.sensitivity._records import REMOVED, Cell, Sensitivities
from schedsearch.sensitivity._rules import block_of, operation_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A layer, kind of layer, or block under one change.

    Attributes:
        name: of the layer, kind or block.
        n: layers.
        effect: sum of their effects.
        saved_bytes: what a checkpoint loses.
        saved_ms: what a denoiser call loses; ``None`` unless all of it was timed.
    """

    name: str
    n: int
    effect: float
    saved_bytes: int
    saved_ms: float | None

    @property
    def per_megabyte(self) -> float:
        """Effect per million bytes saved; infinity where none are."""
        return self.effect / self.saved_bytes * 1e6 if self.saved_bytes > 0 else float("inf")

    @property
    def per_ms(self) -> float | None:
        """Effect per millisecond saved; infinity where none is, ``None`` where that is not known."""
        if self.saved_ms is None:
            return None
        return self.effect / self.saved_ms if self.saved_ms > 0 else float("inf")


def ranked_layers(found: Sensitivities, word: str) -> tuple[Ranked, ...]:
    """Return every layer under one format, the worst per byte first."""
    return _ranked((cell for cell in found.cells if cell.word == word), lambda cell: cell.module)


def ranked_operations(found: Sensitivities, word: str) -> tuple[Ranked, ...]:
    """Return every kind of layer under one format, the worst per byte first."""
    return _ranked((cell for cell in found.cells if cell.word == word), lambda cell: operation_of(cell.module))


def ranked_blocks(found: Sensitivities, word: str) -> tuple[Ranked, ...]:
    """Return every block with all its layers under one format, the worst per byte first."""
    return _ranked((cell for cell in found.cells if cell.word == word), lambda cell: block_of(cell.module))


def ranked_removals(found: Sensitivities) -> tuple[Ranked, ...]:
    """Return every removed block, the worst per byte first."""
    return _ranked((cell for cell in found.cells if cell.word == REMOVED), lambda cell: cell.module)


def _ranked(cells: Iterable[Cell], name_of: Callable[[Cell], str]) -> tuple[Ranked, ...]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(name_of(cell), []).append(cell)
    rows = [
        Ranked(
            name=name,
            n=len(group),
            effect=sum(cell.effect for cell in group),
            saved_bytes=sum(cell.saved_bytes for cell in group),
            saved_ms=_summed([cell.saved_ms for cell in group]),
        )
        for name, group in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: row.per_megabyte, reverse=True))


def _summed(times: list[float | None]) -> float | None:
    known = [ms for ms in times if ms is not None]
    return sum(known) if len(known) == len(times) else None
