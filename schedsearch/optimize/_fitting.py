"""The first of the last stages: the fitted steps of the finalists get their numbers, and few calls better places.

A schedule of many calls is fitted step by step, as it was in the search, on more prompts, and then as a whole. With a
handful of calls only the final latents count, noise levels and scalars act on them together, and which optimum is
reached depends on where one begins. So there all steps become fitted ones, and the schedule is polished from its own
levels and from spaced ones: all starts on a few prompts, the most promising one on more. S4S-Alt (Frankel 2025, arXiv
2502.17423) alternates between both kinds of numbers; here they move together.

What the space does not open stays as it is. Knows nothing of how the schedules were found or are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from schedsearch.errors import EvaluationError
from schedsearch.evaluate import polishing_calls
from schedsearch.optimize._bench import Bench
from schedsearch.optimize._forecast import Forecast
from schedsearch.schedule import Schedule
from schedsearch.search import FEW_ORDER, respaced
from schedsearch.space import SearchSpace, calls_of, fused
from schedsearch.study import Candidate

FIT = 16
"""Calibration prompts on which the scalars of many calls are fitted step by step; on flux-mini 32 are no better."""

POLISH = 8
"""Of these, prompts on which all numbers are then fitted together; on flux-mini 16 are no better."""

POLISH_CALLS = 75
"""Denoiser calls per prompt that a round of this may take: seven calls have so many numbers that these prompts do not
decide them (on flux-mini the error falls on them and rises on others)."""

FEW = 6
"""Most denoiser calls of a schedule that is polished from several starts."""

SKETCH = 2
"""Prompts on which every start is polished first; the best one on the others is polished on all of them."""


def fitted(
    bench: Bench, prompts: tuple[str, ...], plans: Mapping[str, Schedule], told: Forecast, *, later: float
) -> tuple[dict[str, Schedule], int]:
    """Returns the finished schedules by name, and the denoiser evaluations spent.

    What needs no numbers and has many calls comes back as it is. What cannot be fitted is left out, with a line, and
    so is what has become the same as an earlier one.

    Args:
        bench: the model.
        prompts: to fit on.
        plans: what is to be finished.
        told: what can be said about the time.
        later: seconds of the stages after this one.
    """
    finished = {name: plan for name, plan in plans.items() if not fitting_evals(bench.space, plan)}
    waiting = {name: plan for name, plan in plans.items() if name not in finished}
    if not waiting:
        return finished, 0
    units = told.fitting(waiting.values())
    with bench.display.stage("fitting the best", len(units), plan=units) as advance:
        fitting = _Fitting(bench, prompts)
        advance(1, later=later)
        for i, (name, plan) in enumerate(waiting.items(), start=2):
            try:
                finished[name] = fitting.finished(plan)
            except (EvaluationError, FloatingPointError) as error:
                bench.display.line(f"Left out {name}: {error}")
            advance(i, later=later)
    first: dict[str, str] = {}
    for name in plans:
        if name in finished:
            first.setdefault(finished[name].id, name)
    return {name: finished[name] for name in first.values()}, fitting.evals


def fitting_evals(space: SearchSpace, plan: Schedule) -> int:
    """Returns about how many denoiser evaluations it takes to find a schedule's numbers; 0 if it needs none."""
    known = starts(space, plan)
    calls, rounds = len(calls_of(plan)), [_round_calls(space, start) for start in known]
    if len(known) > 1:
        return len(known) * POLISH * calls + SKETCH * sum(rounds) + POLISH * max(rounds)
    if not plan.unfitted:
        return 0
    return FIT * calls + (POLISH * rounds[0] if rounds[0] <= POLISH_CALLS else 0)


def _round_calls(space: SearchSpace, schedule: Schedule) -> int:
    """Denoiser calls per prompt of polishing once."""
    return polishing_calls(schedule, levels=space.free_sigma)


def starts(space: SearchSpace, plan: Schedule) -> tuple[Schedule, ...]:
    """Returns what a schedule may be polished from: itself and, if it has few calls, these calls alone, as fitted
    steps, on its own levels and on spaced ones. None makes more calls or computes more in one.
    """
    own = fused(plan, space, order=FEW_ORDER)
    if own is None or own.n_steps > FEW:
        return (plan,)
    return tuple(dict.fromkeys([plan, own, *respaced(own, space)]))


class _Fitting:
    """Finishes schedules with one evaluator, and counts the denoiser evaluations it takes: `evals`.

    Args:
        bench: the model.
        prompts: to fit on.
    """

    def __init__(self, bench: Bench, prompts: tuple[str, ...]) -> None:
        self._space = bench.space
        self._searcher = bench.settings.search
        self._evaluator = bench.evaluator(prompts, bench.settings.seed, both=False)
        self._sign = 1.0 if self._evaluator.objectives[1].better == "max" else -1.0
        self.evals = self._evaluator.prepare(len(prompts))

    def finished(self, plan: Schedule) -> Schedule:
        """Returns a schedule with its numbers.

        Raises:
            EvaluationError: it strays too far from the reference.
            FloatingPointError: the denoiser gave values that are no numbers.
        """
        known = starts(self._space, plan)
        if len(known) == 1:
            whole = self._fit(plan, FIT)
            return self._polish(whole, POLISH) if _round_calls(self._space, whole) <= POLISH_CALLS else whole
        return self._polish(max(self._sketches(known), key=self._score), POLISH)

    def _sketches(self, known: Sequence[Schedule]) -> list[Schedule]:
        """All starts, polished on a few prompts, without those that cannot be; if none can, the last error goes on."""
        found: list[Schedule] = []
        for start in known:
            try:
                found.append(self._polish(self._fit(start, SKETCH), SKETCH))
            except (EvaluationError, FloatingPointError):
                if start is known[-1] and not found:
                    raise
        return found

    def _fit(self, plan: Schedule, n_prompts: int) -> Schedule:
        with self._counted():
            return self._evaluator.fit(plan, n_prompts)

    def _polish(self, schedule: Schedule, n_prompts: int) -> Schedule:
        with self._counted():
            return self._evaluator.polish(schedule, n_prompts, rounds=1, levels=self._space.free_sigma)

    def _score(self, schedule: Schedule) -> float:
        """The first quality on the prompts that are polished on, higher is better."""
        with self._counted():
            candidate = Candidate(schedule=schedule, searcher=self._searcher, ask=0)
            evaluation = self._evaluator.evaluate(candidate, fidelity=POLISH)
        return self._sign * evaluation.values[1] if evaluation.status == "ok" else float("-inf")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.evals += self._evaluator.spent
