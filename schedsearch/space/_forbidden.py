"""Exceptions to the axes of a space: symbols a row may not hold, and solvers a step may not take beside a symbol.

This module does not know spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from schedsearch.errors import SpaceError
from schedsearch.schedule import MODEL_ROW, SKIP, Solver

SolverPattern = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forbidden:
    """Symbols that rows matching a glob may not hold, and why.

    Attributes:
        rows: glob on names of rows.
        symbols: the symbols.
        reason: shown to whoever breaks the rule.
        solver: if not empty, the rule forbids something else: at steps where the ``model`` row holds one of
            ``symbols``, solvers whose fields have these values, pairs ``(field, value)``. ``rows`` is ``model`` then.
    """

    rows: str
    symbols: str
    reason: str
    solver: SolverPattern = ()

    def __post_init__(self) -> None:
        if self.solver and self.rows != MODEL_ROW:
            raise SpaceError(
                f"forbidden.rows: found {self.rows!r} beside a solver, expected {MODEL_ROW!r}. A solver sees what "
                "the whole denoiser put out, so only that row can be at odds with it."
            )

    def matches(self, solver: Solver) -> bool:
        """Whether ``solver`` has all the values this rule names."""
        return all(getattr(solver, field) == value for field, value in self.solver)


def banned(rules: Sequence[Forbidden], row: str) -> str:
    """Symbols that ``row`` may not hold."""
    return "".join(rule.symbols for rule in rules if not rule.solver and fnmatchcase(row, rule.rows))


def why_banned(rules: Sequence[Forbidden], row: str, symbol: str) -> str:
    """Why ``row`` may not hold ``symbol``; empty if no rule says so."""
    return next(
        (r.reason for r in rules if not r.solver and symbol in r.symbols and fnmatchcase(row, r.rows)),
        "",
    )


def must_stay(rules: Sequence[Forbidden], block: str) -> str:
    """Why ``block`` may not be skipped, and so not be removed either; empty if it may."""
    return why_banned(rules, block, SKIP)
