"""What a comparison comes to: fronts, bootstrap intervals over prompts, and a verdict per budget.

Pure functions on numbers and on the records of a comparison. All intervals are percentile bootstrap intervals (Efron
1979) of fixed seed, so that the same numbers give the same intervals. Whose rows are whose is the only thing known of a
family: a verdict for us is found by the same lines as one against us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from schedsearch.study._comparison import OURS, PLAIN, Interval, Measure, Outcome, Row, Verdict
from schedsearch.types import Better

DRAWS = 4000
"""Resamples of the prompts."""

COVERAGE = 0.95
"""Share of them that an interval holds."""

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def front(speedups: Sequence[float], qualities: Sequence[float], better: Better) -> tuple[int, ...]:
    """Returns the places of the points that no other one beats in both speed and quality, slowest first.

    >>> front([1.0, 2.0, 3.0], [40.0, 30.0, 35.0], "max")
    (0, 2)

    Args:
        speedups: `(n,)`, more is better.
        qualities: `(n,)`.
        better: direction in which quality improves.
    """
    sign = 1.0 if better == "max" else -1.0
    order = sorted(range(len(speedups)), key=lambda i: (-speedups[i], -sign * qualities[i]))
    kept: list[int] = []
    for i in order:
        if not kept or sign * qualities[i] > sign * qualities[kept[-1]]:
            kept.append(i)
    return tuple(reversed(kept))


def rows_on_front(rows: Sequence[Row], measure: Measure) -> tuple[Row, ...]:
    """Returns the rows on the front of measured speedup against ``measure``, slowest first."""
    places = front(
        [row.speedup.value for row in rows], [row.score(measure.name).mean.value for row in rows], measure.better
    )
    return tuple(rows[i] for i in places)


def resampled(values: Sequence[float], statistic: Statistic) -> Interval:
    """Returns the statistic of ``values`` and its interval over resamples of them.

    Args:
        values: `(n,)`, one per prompt.
        statistic: `(draws, n)` to `(draws,)`, such as the mean over the last axis.
    """
    numbers = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(0, numbers.size, (DRAWS, numbers.size))
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(statistic(numbers[draws]), [tail, 1.0 - tail])
    return Interval(value=float(statistic(numbers[None, :])[0]), low=float(low), high=float(high))


def mean_of(values: Sequence[float]) -> Interval:
    """Returns the mean of ``values`` with its interval.

    >>> mean_of([2.0, 2.0])
    Interval(value=2.0, low=2.0, high=2.0)
    """
    return resampled(values, lambda draws: draws.mean(axis=-1))


def median_of(values: Sequence[float]) -> Interval:
    """Returns the median of ``values`` with its interval."""
    return resampled(values, lambda draws: np.asarray(np.median(draws, axis=-1)))


def best_within(rows: Sequence[Row], measure: Measure, budget: float) -> Row | None:
    """Returns the best of the rows whose measured speedup reaches ``budget``; of equal ones the faster."""
    sign = 1.0 if measure.better == "max" else -1.0
    reached = [row for row in rows if row.speedup.value >= budget]
    return max(reached, key=lambda r: (sign * r.score(measure.name).mean.value, r.speedup.value), default=None)


def lead_of(ours: Row, rival: Row, measure: Measure) -> Interval:
    """Returns by how much ``ours`` is better than ``rival``: paired, as both had the same prompts and noise."""
    sign = 1.0 if measure.better == "max" else -1.0
    pairs = zip(ours.score(measure.name).values, rival.score(measure.name).values, strict=True)
    return mean_of([sign * (a - b) for a, b in pairs])


def verdict(rows: Sequence[Row], measure: Measure, budget: float) -> Verdict:
    """Returns how ours stand at ``budget``: our best row that reaches it against the best of all others that do."""
    mine = best_within([row for row in rows if row.family == OURS], measure, budget)
    rival = best_within([row for row in rows if row.family not in (OURS, PLAIN)], measure, budget)
    lead = None if mine is None or rival is None else lead_of(mine, rival, measure)
    outcome: Outcome
    if lead is not None:
        outcome = "ahead" if lead.low > 0.0 else "behind" if lead.high < 0.0 else "level"
    elif mine is not None:
        outcome = "alone"
    else:
        outcome = "nobody" if rival is None else "out of reach"
    return Verdict(
        budget=budget,
        metric=measure.name,
        outcome=outcome,
        ours="" if mine is None else mine.setting,
        rival="" if rival is None else rival.family,
        setting="" if rival is None else rival.setting,
        lead=lead,
    )


def verdicts(rows: Sequence[Row], measures: Sequence[Measure], budgets: Sequence[float]) -> tuple[Verdict, ...]:
    """Returns a verdict per metric and budget; none where there are no rows of ours."""
    if not any(row.family == OURS for row in rows):
        return ()
    return tuple(verdict(rows, measure, budget) for measure in measures for budget in budgets)
