"""Measured samples as the records a schedule file carries: the median of times, the mean of scores, and their spread.

Knows nothing of what was measured, nor where the records go.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from schedsearch.evaluate import LatencySamples, QualityMetric, Ratio
from schedsearch.schedule import Measurement


def timings(stamp: Measurement, speedup: Ratio, latency: LatencySamples) -> list[Measurement]:
    """The speed-up and the wall time, with their 10 % and 90 % quantiles.

    Args:
        stamp: what is the same for all records: prompts, device and the like.
        speedup: plain wall time over this one's.
        latency: wall times in ms.
    """
    return [
        replace(
            stamp, metric="speedup", unit="x", better="max",
            value=speedup.median, low=speedup.low, high=speedup.high, n=speedup.n,
        ),
        replace(
            stamp, metric="latency_ms", unit="ms",
            value=latency.median_ms, low=latency.quantile(0.1), high=latency.quantile(0.9), n=len(latency.ms),
        ),
    ]  # fmt: skip


def set_score(stamp: Measurement, metric: QualityMetric, value: float, n: int) -> Measurement:
    """The number of a whole set of ``n`` pictures, which has no spread over them."""
    return replace(
        stamp, metric=metric.name, unit=metric.unit, better=metric.better, value=value, low=value, high=value, n=n
    )


def score(stamp: Measurement, metric: QualityMetric, values: Sequence[float]) -> Measurement:
    """The mean of a metric's numbers, one per image, with the values that a tenth of them lie below and above."""
    ordered, tenth = sorted(values), len(values) // 10
    return replace(
        stamp, metric=metric.name, unit=metric.unit, better=metric.better,
        value=statistics.fmean(values), low=ordered[tenth], high=ordered[-1 - tenth], n=len(values),
    )  # fmt: skip
