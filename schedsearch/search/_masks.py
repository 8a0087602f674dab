"""Rows of one character per step, as masks of what computes. This module does not know what the characters cost."""

from __future__ import annotations

from schedsearch.schedule import COMPUTE


def spaced(n_steps: int, budget: int, op: str, *, pinned: int = 1, power: float = 1.0) -> str:
    """A row of ``budget`` computes: the first ``pinned`` steps, then even distances, with ``op`` between them.

    A ``power`` above 1 crowds the computes early, one below 1 late.

    >>> spaced(12, 4, "R")
    'CRRCRRCRRCRR'
    """
    rest, room = budget - pinned, n_steps - pinned
    places: list[int] = []
    for k in range(rest):
        place = pinned - 1 + int((room + 1) * ((k + 1) / (rest + 1)) ** power + 1e-9)
        lowest = places[-1] + 1 if places else pinned
        places.append(min(max(place, lowest), n_steps - rest + k))
    chosen = {*range(pinned), *places}
    return "".join(COMPUTE if step in chosen else op for step in range(n_steps))


def swapped(row: str, a: int, b: int) -> str:
    """``row`` with the characters of steps ``a`` and ``b`` exchanged.

    >>> swapped("CRC1", 2, 3)
    'CR1C'
    """
    chars = list(row)
    chars[a], chars[b] = chars[b], chars[a]
    return "".join(chars)


def gap(row: str, step: int) -> tuple[int, int]:
    """The run of steps around ``step`` that do not compute, as ``[low, high)``.

    >>> gap("CRRRC", 2)
    (1, 4)
    """
    low = row.rfind(COMPUTE, 0, step) + 1
    high = row.find(COMPUTE, step)
    return low, high if high >= 0 else len(row)


def freedom(row: str, step: int) -> int:
    """Distance between the computes before and after ``step``; the end of the row counts as one.

    >>> freedom("CRCRRC", 2)
    5
    """
    after = row.find(COMPUTE, step + 1)
    return (after if after >= 0 else len(row)) - row.rfind(COMPUTE, 0, step)
