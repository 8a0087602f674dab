"""The points of the plot: measured runs of a finished study, or the frontier so far of one that is still searching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from schedsearch.errors import SchedSearchError
from schedsearch.schedule import FrontierIndex, Schedule, read_frontier, read_schedule
from schedsearch.study import Evaluation, MeasuredRun, Study
from schedsearch_reports._data import Metric, Run, Value
from schedsearch_reports._metrics import CALLS, FEWER, FULL, OURS, PREDICTED, metric_of, value_of

MOST_CANDIDATES = 40
"""Points of an unfinished search that are shown and can be selected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A schedule that a search wrote.

    Attributes:
        schedule: with its tables' data.
        file: its name.
        path: where it lies, relative to the run folder.
        is_chosen: whether it is the one for the budget.
    """

    schedule: Schedule
    file: str
    path: str
    is_chosen: bool = False


def written_schedules(folder: Path) -> dict[str, Written]:
    """Return what a run folder hands over, by the name of the run: the frontier, and the schedule for the budget."""
    index = _frontier(folder)
    if index is None:
        return {}
    chosen = _chosen(folder)
    found: dict[str, Written] = {}
    for entry in index.entries:
        is_chosen = chosen is not None and chosen[1].id == entry.id
        file = chosen[0] if is_chosen and chosen is not None else entry.file
        found[entry.label] = Written(
            schedule=index.load(entry),
            file=file,
            path=file if is_chosen else f"{index.folder.name}/{entry.file}",
            is_chosen=is_chosen,
        )
    return found


def _frontier(folder: Path) -> FrontierIndex | None:
    place = folder / "frontier"
    return read_frontier(place) if (place / "frontier.json").is_file() else None


def _chosen(folder: Path) -> tuple[str, Schedule] | None:
    """The schedule file in the run folder itself."""
    for path in sorted(folder.glob("*.json")):
        try:
            return path.name, read_schedule(path)
        except SchedSearchError:
            continue  # another tool's file, such as sensitivities
    return None


def finished_runs(measured: Sequence[MeasuredRun], written: Mapping[str, Written]) -> tuple[Run, ...]:
    """Return the measured runs, each schedule with the file that was written of it."""
    return tuple(_finished(run, written.get(run.name)) for run in measured)


def _finished(run: MeasuredRun, file: Written | None) -> Run:
    speedups = {record.value for record in run.measured if record.metric == "speedup"}
    if file is not None and speedups.isdisjoint(r.value for r in file.schedule.measured if r.metric == "speedup"):
        file = None  # the folder was written by another run of the search
    family = {"full": FULL, "schedule": OURS}.get(run.kind, FEWER)
    kinds: Mapping[str, str] = {"full": "full", "schedule": "schedule"}
    calls = Value(metric=CALLS, value=run.denoiser_calls, low=run.denoiser_calls, high=run.denoiser_calls, n=1)
    values = tuple(value_of(record) for record in run.measured if isfinite(record.value))
    return Run(
        key=file.schedule.id if file is not None else run.name,
        name=run.name,
        family=family.name,
        kind="full" if run.kind == "full" else "schedule" if kinds.get(run.kind) == "schedule" else "fewer steps",
        steps=run.steps,
        calls=run.denoiser_calls,
        values=(*values, calls),
        schedule="" if file is None else file.schedule.id,
        is_chosen=file is not None and file.is_chosen,
    )


def candidate_runs(study: Study, plain_cost: float) -> tuple[tuple[Run, ...], dict[str, Schedule]]:
    """Return the frontier so far as runs with predicted speed-ups, slowest first, and their schedules by id."""
    found = [e for e in study.frontier() if plain_cost and e.values[0] < plain_cost and all(map(isfinite, e.values))]
    found.sort(key=lambda e: -e.values[0])
    step = max(1, -(-len(found) // MOST_CANDIDATES))
    kept = found[::step]
    runs = tuple(_candidate(e, study, plain_cost) for e in kept)
    return runs, {e.candidate.schedule.id: e.candidate.schedule for e in kept}


def _candidate(evaluation: Evaluation, study: Study, plain_cost: float) -> Run:
    schedule, speed = evaluation.candidate.schedule, plain_cost / evaluation.values[0]
    metrics = dict(evaluation.metrics)
    calls = metrics.get(CALLS)
    samples = dict(evaluation.samples)
    values = [Value(metric=PREDICTED, value=speed, low=speed, high=speed, n=1)]
    objectives = zip(study.objectives[1:], evaluation.values[1:], strict=True)
    named = {o.name: value for o, value in objectives} | {n: v for n, v in metrics.items() if n in samples}
    for name, value in named.items():
        of = samples.get(name, (value,))
        values.append(Value(metric=name, value=value, low=min(of), high=max(of), n=len(of)))
    if calls is not None:
        values.append(Value(metric=CALLS, value=calls, low=calls, high=calls, n=1))
    return Run(
        key=schedule.id,
        name=f"{speed:.2f}x",
        family=OURS.name,
        kind="candidate",
        steps=schedule.n_steps,
        calls=calls,
        values=tuple(values),
        schedule=schedule.id,
    )


def candidate_metrics(runs: Sequence[Run], study: Study) -> tuple[Metric, ...]:
    """Return the metrics of `candidate_runs`."""
    directions = {objective.name: (objective.unit, objective.better) for objective in study.objectives}
    names = dict.fromkeys(value.metric for run in runs for value in run.values)
    return tuple(metric_of(name, *directions.get(name, ("1", "max"))) for name in names)
