"""Op rows as small integers, and their canonical form, for whole schedules at once.

A schedule's rows become one int8 array `(n_rows, n_steps)` whose codes are positions in ``CR123S``: 0 compute, 1 reuse,
2..4 forecast of order 1..3, 5 skip. Two properties make the repair below short: code ``c`` of 1..4 needs exactly ``c``
earlier computes of its row, and lowering a code towards 0 always ends in something legal. This module does not know
where symbols come from, nor what a schedule is besides its rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import OPS

Codes = npt.NDArray[np.int8]

COMPUTE_CODE = 0
PRUNED_CODE = -1
"""Fills the rows of a block that is removed for the whole run."""

_SKIP_CODE = OPS.index("S")
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


def landing_table(symbols: Sequence[str]) -> Codes:
    """Where a code lands: `(n_rows, n_codes, 5)`, indexed by row, wished code and earlier computes (4 = four or more).

    A forecast lands on the highest legal order its history carries, then on reuse, then on compute. A skip that is not
    legal computes.
    """
    table = np.zeros((len(symbols), len(OPS), _MAX_HISTORY + 1), dtype=np.int8)
    for row, legal in enumerate(symbols):
        for history in range(_MAX_HISTORY + 1):
            best = COMPUTE_CODE
            for code in range(1, _SKIP_CODE):
                if OPS[code] in legal and code <= history:
                    best = code
                table[row, code, history] = best
            table[row, _SKIP_CODE, history] = _SKIP_CODE if "S" in legal else COMPUTE_CODE
    return table


def canonical(codes: Codes, *, parents: npt.NDArray[np.intp], has_model_row: bool, landing: Codes) -> Codes:
    """The canonical form of ``codes`` `(n_rows, n_steps)`; its own canonical form is itself.

    Args:
        codes: any values of 0..5; not changed.
        parents: `(n_rows,)` index of the block's row for a component's row, -1 for others.
        has_model_row: row 0 speaks of the whole denoiser.
        landing: from `landing_table`.

    Step 0 computes everywhere. Where a coarser row does not compute, finer rows say compute. A code its row cannot
    take, or its history cannot carry, lands where `landing_table` says. Steps are settled one after the other, because
    a cell that lands on compute is history for the steps after it.
    """
    out: Codes = codes.copy()
    out[:, 0] = COMPUTE_CODE
    children = np.flatnonzero(parents >= 0)
    owners = parents[children]
    rows = np.arange(len(out))
    history = np.zeros(len(out), dtype=np.intp)
    for step in range(out.shape[1]):
        landed: Codes = landing[rows, out[:, step], history]
        computes = landed == COMPUTE_CODE
        if has_model_row and not computes[0]:
            landed[1:] = COMPUTE_CODE
            computes[1:] = False
        else:
            overruled = children[~computes[owners]]
            landed[overruled] = COMPUTE_CODE
            computes[overruled] = False
        history = np.minimum(history + computes, _MAX_HISTORY)
        out[:, step] = landed
    return out
