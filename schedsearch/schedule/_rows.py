"""What the rows of a schedule come to: equal blocks folded into one line, and how often each really runs.

Does not know how a row is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from schedsearch.schedule._model import Schedule
from schedsearch.schedule._vocabulary import COMPUTE, MODEL_ROW

_INDEX = re.compile(r"\.(\d+)(?=\.|$)")


class RowGroup(NamedTuple):
    """Rows that do the same: a label such as ``transformer_blocks.0-3.attn``, how many they are, and what each does.

    Attributes:
        label: the rows' common name, with the block numbers as ranges.
        n_rows: how many rows the label stands for.
        row: one character per step.
        computes: steps at which one of them really runs, coarser rows taken into account.
    """

    label: str
    n_rows: int
    row: str
    computes: int


def row_groups(schedule: Schedule) -> tuple[RowGroup, ...]:
    """Return the schedule's rows in order, those of equal blocks folded into one line each.

    Rows fold if they differ in nothing but the block's number, and if as many of their steps really run.
    """
    folded: dict[tuple[str, str, str, int], list[int]] = {}
    for name, row in schedule.ops:
        prefix, number, suffix = _split(name)
        folded.setdefault((prefix, suffix, row, computes(schedule, name)), []).append(number)
    return tuple(
        RowGroup(f"{prefix}{ranges(numbers)}{suffix}", len(numbers), row, count)
        for (prefix, suffix, row, count), numbers in folded.items()
    )


def computes(schedule: Schedule, name: str) -> int:
    """Return at how many steps the module ``name`` runs: its own row and all coarser ones say compute."""
    parts = name.split(".")
    above = [MODEL_ROW, *(".".join(parts[:n]) for n in range(1, len(parts) + 1))]
    rows = [schedule.row(one) for one in dict.fromkeys(above)]
    return sum(all(op == COMPUTE for op in step) for step in zip(*rows, strict=True))


def _split(name: str) -> tuple[str, int, str]:
    found = _INDEX.search(name)
    if found is None:
        return name, -1, ""
    return name[: found.start(1)], int(found[1]), name[found.end(1) :]


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted block numbers in short; nothing for a name without one.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for number in sorted(n for n in numbers if n >= 0):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
