"""Op rows as small integers, and the canonical form of one row.

A schedule's rows as an array are int8 `(n_rows, n_steps)` whose codes are positions in ``CR123S``: 0 compute, 1 reuse,
2..4 forecast of order 1..3, 5 skip. Code ``c`` of 1..4 needs exactly ``c`` earlier computes of its row. Canonical forms
are made row by row on text and remembered, because a search meets the same rows again and again. This module does not
know where symbols come from, nor what a schedule is besides its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import COMPUTE, OPS, SKIP

Codes = npt.NDArray[np.int8]

PRUNED_CODE = -1
"""Fills the rows of a block that is removed for the whole run."""

_MAX_HISTORY = 4
_LETTERS = np.frombuffer(OPS.encode(), dtype=np.uint8)
_CODE_OF = np.zeros(256, dtype=np.int8)
_CODE_OF[_LETTERS] = np.arange(len(OPS), dtype=np.int8)


def codes_of(rows: Sequence[str]) -> Codes:
    """Codes `(n_rows, n_steps)` of rows of equal length.

    >>> codes_of(["CR1", "CCS"]).tolist()
    [[0, 1, 2], [0, 0, 5]]
    """
    joined = np.frombuffer("".join(rows).encode(), dtype=np.uint8)
    return _CODE_OF[joined].reshape(len(rows), -1 if rows else 0)


def rows_of(codes: Codes) -> list[str]:
    """Rows of characters of ``codes`` `(n_rows, n_steps)`.

    >>> rows_of(np.array([[0, 1, 2], [0, 0, 5]], dtype=np.int8))
    ['CR1', 'CCS']
    """
    width = codes.shape[1]
    text = _LETTERS[codes].tobytes().decode()
    return [text[i : i + width] for i in range(0, len(text), width)]


def needed(symbol: str) -> int:
    """Earlier computes of its row that ``symbol`` needs.

    >>> [needed(symbol) for symbol in "CR123S"]
    [0, 1, 2, 3, 4, 0]
    """
    return 0 if symbol == SKIP else OPS.index(symbol)


@lru_cache(maxsize=16384)
def canonical_row(row: str, above: str, symbols: str) -> str:
    """The canonical form of ``row``; its own canonical form is itself.

    Args:
        row: one character of ``CR123S`` per step.
        above: one character per step, ``C`` where everything coarser computes; the first one must be ``C``.
        symbols: what the row may hold.

    Step 0 computes. Where something coarser does not compute, the row says compute. A forecast lands on the highest
    legal order its history carries, then on reuse, then on compute; a skip that is not legal computes. A cell that
    lands on compute is history for the cells after it.

    >>> canonical_row("CR3C3", "CCCCC", "CR123")
    'CRRC1'
    >>> canonical_row("CRRRR", "CRCCC", "CR")
    'CCRRR'
    """
    landing = _landing(symbols)
    out, history = [COMPUTE], 1
    for wish, coarser in zip(row[1:], above[1:], strict=True):
        if coarser != COMPUTE:
            out.append(COMPUTE)
            continue
        landed = landing[history][wish]
        if landed == COMPUTE and history < _MAX_HISTORY:
            history += 1
        out.append(landed)
    return "".join(out)


@lru_cache(maxsize=256)
def _landing(symbols: str) -> tuple[Mapping[str, str], ...]:
    """By earlier computes (4 = four or more): where each wished symbol lands."""
    tables = []
    for history in range(_MAX_HISTORY + 1):
        table, best = {COMPUTE: COMPUTE}, COMPUTE
        for symbol in OPS[1:-1]:
            if symbol in symbols and needed(symbol) <= history:
                best = symbol
            table[symbol] = best
        table[SKIP] = SKIP if SKIP in symbols else COMPUTE
        tables.append(table)
    return tuple(tables)


@lru_cache(maxsize=4096)
def both(first: str, second: str) -> str:
    """``C`` where both rows compute, ``R`` elsewhere.

    >>> both("CCRR", "CSCR")
    'CRRR'
    """
    return "".join("C" if a == b == COMPUTE else "R" for a, b in zip(first, second, strict=True))


def resampled_row(row: str, n_steps: int) -> str:
    """``row`` read off at ``n_steps`` even places.

    >>> resampled_row("CCRRCCRR", 4)
    'CRCR'
    """
    return "".join(row[i * len(row) // n_steps] for i in range(n_steps))
