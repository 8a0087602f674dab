"""Other ways to be faster, as a comparison measured them: points for the plot, and the verdicts as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schedsearch.study import OURS, PLAIN, Comparison, Interval, Row, Verdict
from schedsearch_reports._data import Family, Metric, Run, Table, Value
from schedsearch_reports._metrics import metric_of, peer_family, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """What a comparison adds to a report."""

    families: tuple[Family, ...] = ()
    runs: tuple[Run, ...] = ()
    metrics: tuple[Metric, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


def peers_of(comparison: Comparison) -> Peers:
    """Return every family but ours and the plain run, which the study has itself, and what was said of ours."""
    others = [f for f in comparison.families if f.name not in (OURS, PLAIN) and comparison.rows_of(f.name)]
    metrics = tuple(metric_of(m.name, m.unit, m.better) for m in comparison.metrics)
    runs = [
        _run(family.name, number, row)
        for family in others
        for number, row in enumerate(sorted(comparison.rows_of(family.name), key=lambda row: row.speedup.value))
    ]
    at = comparison.conditions
    return Peers(
        families=tuple(peer_family(family.name, family.title, place) for place, family in enumerate(others)),
        runs=tuple(runs),
        metrics=metrics,
        tables=tuple(_tables(comparison, metrics)),
        facts=(
            ("Compared by", comparison.command),
            ("Compared on", f"{at.n_prompts} prompts of {at.prompts}, {at.device}, {at.dtype}, batch {at.batch}"),
            *((version.name, version.version) for version in at.versions),
        ),
    )


def _run(family: str, number: int, row: Row) -> Run:
    latency = row.latency_ms
    values = [
        _value("speedup", row.speedup, len(row.ratios)),
        Value(metric="latency_ms", value=latency, low=latency, high=latency, n=len(row.ratios)),
        Value(metric="macs_fraction", value=row.work, low=row.work, high=row.work, n=1),
        *(_value(score.metric, score.mean, len(score.values)) for score in row.scores),
    ]
    return Run(
        key=f"{family}/{number}",
        name=row.setting or family,
        family=family,
        kind="peer",
        steps=0,
        calls=None,
        values=tuple(values),
        note=row.note,
    )


def _value(metric: str, interval: Interval, n: int) -> Value:
    return Value(metric=metric, value=interval.value, low=interval.low, high=interval.high, n=n)


def _tables(comparison: Comparison, metrics: Sequence[Metric]) -> Iterator[Table]:
    titles = {family.name: family.title for family in comparison.families}
    for metric in metrics:
        found = [verdict for verdict in comparison.verdicts if verdict.metric == metric.name]
        if found:
            yield Table(
                title=f"Against the best other way: {metric.label}",
                about="At each speed, our best schedule against the best setting of any other family, all measured in "
                "one interleaved run. The difference is positive where ours are better; its interval (95 %, bootstrap) "
                "is over prompts.",
                head=("speed", "ours are", "our schedule", "best other", "its setting", "difference"),
                rows=tuple(_verdict(verdict, metric, titles) for verdict in found),
            )
    if comparison.absent:
        yield Table(
            title="What was not compared, and why",
            about="Ways to be faster that have no point in the plot.",
            head=("family", "setting", "why", "reason"),
            rows=tuple(
                (titles.get(a.family, a.family), a.setting or "all", a.cause, a.reason) for a in comparison.absent
            ),
        )


def _verdict(verdict: Verdict, metric: Metric, titles: dict[str, str]) -> tuple[str, ...]:
    lead = verdict.lead
    difference = (
        "" if lead is None else f"{shown(metric, lead.value)} ({shown(metric, lead.low)} to {shown(metric, lead.high)})"
    )
    return (
        f"{verdict.budget:g}×",
        verdict.outcome,
        verdict.ours,
        titles.get(verdict.rival, verdict.rival),
        verdict.setting,
        difference,
    )
