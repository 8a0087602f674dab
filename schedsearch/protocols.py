"""The seams: signatures and lifecycles of everything that can be plugged in. No code, no imports of implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from schedsearch.study import Candidate, Evaluation, Objective


@runtime_checkable
class Searcher(Protocol):
    """Proposes schedules.

    Lifecycle: the loop calls `ask`, evaluates every candidate it got, and hands all their evaluations back in the same
    order with one `tell`; then it asks again. An empty answer to `ask` means the searcher is finished. A searcher is a
    pure function of (space, config, seed, evaluations told): two instances that were told the same evaluations ask the
    same next. Resuming is therefore replaying, and a searcher writes nothing down.

    A failed or pruned evaluation is told like any other; the searcher must survive it.
    """

    name: str

    def ask(self, n: int) -> Sequence[Candidate]:
        """Return up to ``n`` candidates (more only where the algorithm works in generations), empty when finished."""
        ...

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the evaluations of the candidates last asked for, in the same order."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Measures candidates. Never raises for a bad candidate: a failure is an `Evaluation` with its reason."""

    objectives: tuple[Objective, ...]

    def evaluate(self, candidate: Candidate, *, fidelity: int) -> Evaluation:
        """Measure ``candidate`` on the first ``fidelity`` calibration prompts."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Scores images against the full run with the same noise."""

    name: str
    unit: str
    better: str

    def __call__(self, outputs: object, reference: object) -> Sequence[float]:
        """Score per image: tensors `(n, c, h, w)` in [0, 1] give `n` numbers."""
        ...
