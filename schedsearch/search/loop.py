"""The only loop: ask, measure what is new, record, tell.

Resuming is replaying: a searcher is asked from the start, and whatever the study already holds is told again without
measuring. A candidate whose schedule was measured before, on as many prompts, is told the earlier values and costs
nothing; it leaves no record, so the number of records is the number of measurements, which ``Stop.trials`` counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import isnan

from schedsearch.errors import StudyMismatchError, UsageError
from schedsearch.protocols import Evaluator, Searcher
from schedsearch.search._stop import Ended, Stop
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Study

MAX_IDLE_ASKS = 1000
"""Asks in a row without anything new to measure after which a searcher has stalled."""


def run(
    study: Study,
    searcher: Searcher,
    evaluator: Evaluator,
    *,
    space: SearchSpace,
    stop: Stop,
    fidelity: int,
    fewest: int = 1,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> Ended:
    """Search until ``stop``, on ``fewest`` prompts or more; ``on_evaluation`` gets everything newly measured.

    Raises:
        UsageError: if the searcher numbers its candidates wrongly or proposes one outside ``space`` (a bug in it).
        StudyMismatchError: if the study's records are not those of this searcher.
    """
    before, started = study.spent.seconds, time.monotonic()

    def limit_met() -> Ended | None:
        seconds = before + time.monotonic() - started
        return stop.met(trials=len(study), seconds=seconds, evals=study.spent.denoiser_evals)

    asked = idle = 0
    while idle < MAX_IDLE_ASKS:
        if ended := limit_met():
            return ended
        candidates = searcher.ask(1)
        if not candidates:
            return "finished"
        told, known = [], len(study)
        for candidate, wanted in (asked_for.sized(fidelity, fewest=fewest) for asked_for in candidates):
            evaluation = _recall(study, candidate, wanted)
            if evaluation is None:
                if ended := limit_met():
                    return ended
                _require_legal(candidate, asked, searcher, space)
                evaluation = _sound(evaluator.evaluate(candidate, fidelity=wanted))
                study.append(evaluation)
                if on_evaluation is not None:
                    on_evaluation(evaluation)
            told.append(evaluation)
            asked += 1
        searcher.tell(told)
        is_idle = len(study) == known and all(study.lookup(candidate.ask) is None for candidate in candidates)
        idle = idle + 1 if is_idle else 0
    return "stalled"


def _recall(study: Study, candidate: Candidate, fidelity: int) -> Evaluation | None:
    """What the study knows of ``candidate``: its own record, or an earlier one of the same schedule at no cost."""
    own = study.lookup(candidate.ask)
    if own is not None and own.candidate.key != candidate.key:
        raise StudyMismatchError(
            f"ask {candidate.ask}: found schedule {own.candidate.schedule.id[:19]} in study {study.name!r}, expected "
            f"{candidate.schedule.id[:19]}. It was made by another release or searcher; start a new study."
        )
    earlier = own or study.find(candidate.key)
    if earlier is None or (earlier.status == "ok" and earlier.fidelity < fidelity):
        return None
    return own or replace(earlier, candidate=candidate, seconds=0.0, denoiser_evals=0)


def _require_legal(candidate: Candidate, asked: int, searcher: Searcher, space: SearchSpace) -> None:
    if candidate.ask != asked:
        raise UsageError(f"search {searcher.name}: found ask number {candidate.ask}, expected {asked}.")
    if reason := space.check(candidate.schedule):
        raise UsageError(f"search {searcher.name}, ask {asked}: found an illegal schedule, {reason}. This is a bug.")


def _sound(evaluation: Evaluation) -> Evaluation:
    """``evaluation``, or a failure in its place if a value is not a number."""
    if any(isnan(value) for value in evaluation.values):
        return replace(evaluation, status="failed", reason=f"values {evaluation.values}: not a number", values=())
    return evaluation
