"""Whose turn it is: numbers a searcher's candidates and guards the order of ask and tell.

This module does not know what is proposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schedsearch.errors import UsageError
from schedsearch.schedule import Schedule
from schedsearch.study import Candidate, Evaluation
from schedsearch.types import Polish


class Turn:
    """One per searcher. `asked` before handing candidates out, `told` before taking evaluations in."""

    def __init__(self, searcher: str) -> None:
        self._searcher = searcher
        self._next = 0
        self._open: tuple[Candidate, ...] = ()

    @property
    def next_ask(self) -> int:
        """The number the next candidate will get."""
        return self._next

    def asked(
        self,
        proposals: Iterable[tuple[Schedule, tuple[str, ...]]],
        *,
        share: float = 1.0,
        polish: Polish = "",
        origin: str = "",
    ) -> tuple[Candidate, ...]:
        """Candidates for pairs (schedule, ids of its parents), numbered on, to be measured on a share of the prompts.

        All of them are polished as ``polish`` says, and came about as ``origin`` says.

        Raises:
            UsageError: if the last candidates have not been told yet.
        """
        if self._open:
            raise UsageError(
                f"{self._searcher}.ask: found {len(self._open)} candidates without evaluations, expected a tell first."
            )
        self._open = tuple(
            Candidate(
                schedule=schedule,
                searcher=self._searcher,
                ask=self._next + i,
                parents=parents,
                share=share,
                polish=polish,
                origin=origin,
            )
            for i, (schedule, parents) in enumerate(proposals)
        )
        self._next += len(self._open)
        return self._open

    def told(self, evaluations: Sequence[Evaluation]) -> None:
        """Take note that ``evaluations`` answer the last ask.

        Raises:
            UsageError: if they are not those of the candidates last asked for, one each and in order.
        """
        expected = [candidate.ask for candidate in self._open]
        found = [evaluation.candidate.ask for evaluation in evaluations]
        if not expected or found != expected:
            raise UsageError(
                f"{self._searcher}.tell: found evaluations of the asks {found}, expected {expected}, "
                "the candidates last asked for, in their order."
            )
        self._open = ()
