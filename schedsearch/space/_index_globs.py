"""Sets of block numbers as few globs: ``[3-7]``, ``1[0-8]``.

A precision rule names layers by a glob, so a run of blocks is one or two rules and not one per block. This module does
not know what is numbered.
"""

from __future__ import annotations

from collections.abc import Iterable

_DIGITS = "0123456789"


def index_globs(names: Iterable[str]) -> tuple[str, ...]:
    """Globs that match exactly ``names`` among all strings of digits; other names stand for themselves.

    Sorted: shorter numbers first, then by what they begin with.

    >>> index_globs(["3", "4", "5", "7"])
    ('[3-57]',)
    >>> index_globs(map(str, range(8, 19)))
    ('[89]', '1[0-8]')
    >>> index_globs(["20", "21", "30", "31", "mid"])
    ('[23][01]', 'mid')
    """
    wanted = sorted(set(names))
    numbers = [name for name in wanted if name and all(char in _DIGITS for char in name)]
    found: list[str] = []
    for length in sorted({len(name) for name in numbers}):
        found += _of_length(frozenset(name for name in numbers if len(name) == length), length)
    return (*found, *(name for name in wanted if name not in numbers))


def _of_length(names: frozenset[str], length: int) -> list[str]:
    """Globs for numbers of equally many digits: leading digits with the same endings share one."""
    if length == 1:
        return [_class(sorted(names))]
    endings = {
        digit: frozenset(name[1:] for name in names if name[0] == digit)
        for digit in sorted({name[0] for name in names})
    }
    return [
        f"{_class([digit for digit, ends in endings.items() if ends == tail])}{rest}"
        for tail in dict.fromkeys(endings.values())
        for rest in _of_length(tail, length - 1)
    ]


def _class(digits: list[str]) -> str:
    """The glob of one digit: itself, or a class in which three or more in a row are a range."""
    if len(digits) == 1:
        return digits[0]
    runs: list[str] = []
    for digit in digits:
        if runs and int(digit) == int(runs[-1][-1]) + 1:
            runs[-1] += digit
        else:
            runs.append(digit)
    return "[" + "".join(run if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs) + "]"
