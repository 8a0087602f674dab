"""How long the stages after the search will take, from what measuring took so far and what the cost model says.

Knows what `_finals.py` does with how many prompts, and nothing of how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from schedsearch.evaluate import HELD_OUT_ROUNDS, REFINEMENT
from schedsearch.optimize._bench import Bench
from schedsearch.optimize._eta import Rate, Unit, fitted_rate
from schedsearch.schedule import Schedule
from schedsearch.study import Study


class Forecast:
    """What the last stages take, unit by unit.

    Args:
        bench: the model and its cost model.
        study: what was measured so far.
        prompts: how many the finalists are fitted on, scored on, and measured on.
        fitting_evals: denoiser evaluations of fitting the steps of a finalist; 0 if there is nothing to fit.
    """

    def __init__(
        self,
        bench: Bench,
        study: Study,
        prompts: tuple[int, int, int],
        *,
        fitting_evals: Callable[[Schedule], int],
    ) -> None:
        self._bench = bench
        self._fit, self._fresh, self._held_out = prompts
        self._fitting_evals = fitting_evals
        self.rate = rate_of(bench, study)

    def fitting(self, plans: Iterable[Schedule]) -> list[Unit]:
        """The reference runs, then one unit per schedule that is to be fitted; nothing if there is none."""
        evals = [n for n in map(self._fitting_evals, plans) if n]
        units = [Unit("fit", self.rate.seconds(evals=n, images=0)) for n in evals]
        return [self._reference("fit", self._fit, 1), *units] if units else []

    def scoring(self, plans: Iterable[Schedule]) -> list[Unit]:
        """The reference runs, then one unit per schedule."""
        units = [Unit("score", self._images(self._fresh, self._calls(plan))) for plan in plans]
        return [self._reference("score", self._fresh, 1), *units]

    def measuring(self, plans: Iterable[Schedule], fewer_steps: Iterable[int]) -> list[Unit]:
        """One unit per run for its pictures, the plain run and the other reference in one, then one per timed round."""
        full = float(self._bench.card.steps)
        calls = [full, *map(self._calls, plans), *map(float, fewer_steps)]
        references = self._reference("score", self._held_out, 1 + REFINEMENT)
        units = [references, *(Unit("score", self._images(self._held_out, n)) for n in calls[1:])]
        per_round = self._bench.cost.full_ms / 1e3 * sum(calls) / full
        return [*units, *[Unit("time", per_round)] * HELD_OUT_ROUNDS]

    def finals(self, plans: Sequence[Schedule], fewer_steps: Iterable[int]) -> float:
        """Seconds of all last stages for these finalists."""
        return sum(unit.seconds for unit in self.fitting(plans)) + self.after_fitting(plans, fewer_steps)

    def after_fitting(self, plans: Sequence[Schedule], fewer_steps: Iterable[int]) -> float:
        """Seconds of those behind the first."""
        return sum(unit.seconds for unit in (*self.scoring(plans), *self.measuring(plans, fewer_steps)))

    def _reference(self, kind: str, images: int, runs: int) -> Unit:
        return Unit(kind, self._images(images, float(runs * self._bench.card.steps)))

    def _images(self, images: int, calls: float) -> float:
        return self.rate.seconds(evals=images * calls, images=images)

    def _calls(self, plan: Schedule) -> float:
        """Full denoiser calls that take as long as this schedule."""
        return self._bench.card.steps * self._bench.cost.predict_ms(plan) / self._bench.cost.full_ms


def rate_of(bench: Bench, study: Study) -> Rate:
    """Returns what measuring took per denoiser evaluation and per picture; before that, what the plain run took."""
    records = ((e.seconds, e.denoiser_evals, e.fidelity) for e in study.evaluations() if e.status == "ok")
    return fitted_rate(records, fallback=bench.cost.full_ms / 1e3 / bench.card.steps)
