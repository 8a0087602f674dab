"""From what a search wrote to `ReportData`: the one place that puts a report's parts together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from schedsearch import __version__
from schedsearch.errors import UsageError
from schedsearch.schedule import Measurement, Schedule
from schedsearch.study import MeasuredRun, Study, measured_runs, read_comparison
from schedsearch_reports._data import Metric, ReportData, Run, ScheduleView, Search, Table
from schedsearch_reports._gallery import read_gallery
from schedsearch_reports._metrics import CALLS, FEWER, FULL, OURS, PREDICTED, metric_of, metrics_of, shown
from schedsearch_reports._peers import Peers, peers_of
from schedsearch_reports._runs import (
    Written,
    candidate_metrics,
    candidate_runs,
    finished_runs,
    written_schedules,
)
from schedsearch_reports._schedules import schedule_view
from schedsearch_reports._search import Scale, scale_of, search_of
from schedsearch_reports._tables import sensitivity_tables

STUDY_FILE = "study.db"


def report_data(
    folder: Path,
    *,
    study: Study | None = None,
    storage: str | None = None,
    name: str = "",
    comparison: Path | None = None,
    sensitivity: Path | None = None,
) -> ReportData:
    """Return everything a report of the run in ``folder`` says; finished or not.

    Args:
        folder: what `schedsearch optimize` writes into, or the study's file in it.
        study: the open study, where there is one at hand; it is read and left open.
        storage: URL of the storage, where the study is not in the folder.
        name: of the study, where the storage holds several.
        comparison: what `schedsearch compare` wrote.
        sensitivity: what `schedsearch sensitivity` wrote.

    Raises:
        UsageError: there is no study, or a file named here cannot be read.
        StudyError: the study cannot be opened.
        ScheduleFormatError: a file of the frontier breaks a rule.
    """
    if folder.is_file():
        folder, storage = folder.parent, storage or str(folder)
    with nullcontext(study) if study is not None else _open(folder, storage, name) as found:
        return _Builder(folder, found).data(comparison, sensitivity)


def _open(folder: Path, storage: str | None, name: str) -> Study:
    if storage is not None:
        return Study.load(storage if "://" in storage else Path(storage), name)
    if not (folder / STUDY_FILE).is_file():
        raise UsageError(
            f"{folder}: found no {STUDY_FILE}, expected the output folder of `schedsearch optimize`. Where the study "
            "is elsewhere, name its --storage."
        )
    return Study.load(folder / STUDY_FILE, name)


class _Builder:
    """Reads one study; each method is one part of the report."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder = folder
        self.study = study
        self.scale: Scale = scale_of(study)
        self.measured: tuple[MeasuredRun, ...] = measured_runs(study)
        self.made: Mapping[str, Any] = dict(_mapping(study.notes.get("made")))
        self.written: dict[str, Written] = written_schedules(folder) if self.measured else {}
        probe = json.loads(str(study.notes["probe"])) if "probe" in study.notes else {}
        self.blocks = [block["name"] for block in probe.get("blocks", ())]
        self.plain_sigma = tuple(float(level) for level in probe.get("sigma", ()))

    def data(self, comparison: Path | None, sensitivity: Path | None) -> ReportData:
        peers = Peers() if comparison is None else peers_of(read_comparison(comparison))
        runs, metrics, views = self._finished() if self.measured else self._so_far()
        search = search_of(self.study, self.scale, [w.schedule.provenance.ask for w in self.written.values()])
        chosen = _chosen(runs, self.scale)
        words = _Words(runs, metrics, self.study, search, chosen, is_finished=bool(self.measured))
        families = [f for f in (OURS, FEWER, FULL) if any(run.family == f.name for run in runs)]
        named = {metric.name for metric in metrics}
        return ReportData(
            title=self._title(),
            model=str(self.made.get("model", "")),
            budget=search.budget,
            metric=self.study.objectives[:2][-1].name,
            is_finished=bool(self.measured),
            headline=words.headline(),
            summary=tuple(words.summary()),
            conditions=self._conditions(),
            chosen="" if chosen is None else chosen.key,
            metrics=(*metrics, *(metric for metric in peers.metrics if metric.name not in named)),
            families=(*families, *peers.families),
            runs=(*runs, *peers.runs),
            schedules=views,
            gallery=read_gallery(self.folder / "pictures") if self.measured else None,
            search=search,
            plain_sigma=self.plain_sigma,
            tables=(*peers.tables, *self._tables(sensitivity)),
            facts=(*self._facts(search), *peers.facts),
        )

    def _finished(self) -> tuple[tuple[Run, ...], tuple[Metric, ...], tuple[ScheduleView, ...]]:
        runs = finished_runs(self.measured, self.written)
        records = [*(r for run in self.measured for r in run.measured), _CALLS]
        files = {written.schedule.id: written for written in self.written.values()}
        views = [
            schedule_view(
                files[run.schedule].schedule,
                file=files[run.schedule].file,
                path=files[run.schedule].path,
                blocks=self.blocks,
                origin=self._origin(files[run.schedule].schedule),
            )
            for run in runs
            if run.schedule
        ]
        return runs, metrics_of(records), tuple(views)

    def _so_far(self) -> tuple[tuple[Run, ...], tuple[Metric, ...], tuple[ScheduleView, ...]]:
        runs, schedules = candidate_runs(self.study, self.scale.cost)
        views = tuple(
            schedule_view(schedule, file=f"{schedule.id[7:15]}.json", path="", blocks=self.blocks, origin=())
            for schedule in schedules.values()
        )
        return runs, candidate_metrics(runs, self.study), views

    def _title(self) -> str:
        named = [written.schedule.provenance.study for written in self.written.values()]
        return str(self.made.get("name") or next(filter(None, named), "") or self.folder.resolve().name)

    def _origin(self, schedule: Schedule) -> Iterator[tuple[str, str]]:
        origin = schedule.provenance
        yield "Found by", f"{origin.searcher or 'hand'}, seed {origin.seed}"
        yield "Measurement", f"number {origin.ask + 1} of {len(self.study)}"
        record = self.study.lookup(origin.ask)
        first = self.study.evaluations() if record is None else [
            e for e in self.study.evaluations() if e.candidate.schedule.id == record.candidate.schedule.id
        ]  # fmt: skip
        candidate = first[0].candidate if record is not None and first else None
        if candidate is None:
            return
        if candidate.origin:
            yield "How", candidate.origin
        yield "Generations back to a seed", str(self._generation(candidate.schedule.id))

    def _generation(self, schedule_id: str) -> int:
        """Longest line of parents behind a schedule, as far as the study knows them."""
        parents: dict[str, tuple[str, ...]] = {}
        for evaluation in self.study.evaluations():
            parents.setdefault(evaluation.candidate.schedule.id, evaluation.candidate.parents)
        depth: dict[str, int] = {}
        for child, its in parents.items():  # in the order of asking, so parents come first
            depth[child] = max((depth[p] + 1 for p in its if p in depth), default=0)
        return depth.get(schedule_id, 0)

    def _conditions(self) -> str:
        if not self.measured:
            device = self.study.settings.get("device", "")
            return (
                f"Predicted from the cost model of {device}; qualities on the prompts of the search, not held-out ones"
            )
        first = next(r for r in self.measured[0].measured if r.metric not in ("speedup", "latency_ms"))
        quality = next((r for r in self.measured[0].measured if r.metric == self.study.objectives[:2][-1].name), first)
        prompts = f"{quality.n} held-out pictures ({quality.prompts.split(' sha256')[0]})"
        batch = f"batch {quality.batch}"
        return " · ".join(part for part in (prompts, quality.device, quality.dtype, batch) if part)

    def _tables(self, sensitivity: Path | None) -> tuple[Table, ...]:
        beside = self.folder / "sensitivity.json"
        path = sensitivity or (beside if beside.is_file() else None)
        return () if path is None else sensitivity_tables(path)

    def _facts(self, search: Search) -> Iterator[tuple[str, str]]:
        settings, made = self.study.settings, self.made
        model = _mapping(settings.get("model"))
        if command := made.get("command"):
            yield "Command", str(command)
        if date := made.get("date"):
            yield "Begun", str(date)
        yield "Device", str(settings.get("device", ""))
        yield "Number type", str(settings.get("dtype", ""))
        if model:
            yield "Model", f"{model.get('pipeline')}, {model.get('width')}×{model.get('height')} pixels"
            yield "Configuration", _hash(model.get("config"))
        yield "Weights", _hash(settings.get("weights"))
        yield "Calibration prompts", _hash(settings.get("prompts"))
        yield "Held-out prompts", _hash(settings.get("held_out"))
        yield "Search", f"{settings.get('search', '')}, seed {settings.get('seed', '')}"
        yield "Quality", f"{settings.get('metric', '')} against the {settings.get('reference', '')} reference"
        yield "Spent", f"{search.evals:,} denoiser evaluations, {search.seconds / 60:.0f} minutes"
        for name, version in _mapping(made.get("versions")).items():
            yield name, str(version)
        yield "Report made by", f"schedsearch {__version__}"


_CALLS = Measurement(metric=CALLS, unit="1", better="min", value=0.0, low=0.0, high=0.0, n=1)


def _hash(value: object) -> str:
    """The first digits of a hash, as many as the project shows elsewhere."""
    return f"sha256:{str(value)[:16]}" if value else "not noted"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _chosen(runs: Sequence[Run], scale: Scale) -> Run | None:
    """The run for the budget; else the slowest that is predicted to keep it; else the first that can be selected."""
    found = [run for run in runs if run.schedule]
    speed = scale.cost / scale.bound if scale.bound else 0.0
    keeping = [run for run in found if run.kind == "candidate" and run.value(PREDICTED) >= speed]
    return next((run for run in (*(r for r in found if r.is_chosen), *keeping, *found)), None)


class _Words:
    """The answer in words."""

    def __init__(
        self, runs: Sequence[Run], metrics: Sequence[Metric], study: Study, search: Search, chosen: Run | None, *,
        is_finished: bool,
    ) -> None:  # fmt: skip
        self.runs = runs
        self.search = search
        self.chosen = chosen
        self.is_finished = is_finished
        objective = study.objectives[:2][-1]
        self.metric = next(
            (m for m in metrics if m.name == objective.name),
            metric_of(objective.name, objective.unit, objective.better),
        )
        self.speed = next((m for m in metrics if m.name in ("speedup", PREDICTED)), metric_of("speedup", "x", "max"))

    def headline(self) -> str:
        if not self.is_finished:
            return f"Searching: {self.search.measured} schedules measured"
        run = self.chosen
        if run is None:
            return "No schedule was found"
        said = f"{shown(self.speed, run.value('speedup'))} faster, {_brief(self.metric, run.value(self.metric.name))}"
        return said if run.is_chosen else f"Nothing keeps {self.search.budget}; the first found: {said}"

    def summary(self) -> Iterator[str]:
        run = self.chosen
        if not self.is_finished:
            best = self.search.progress[-1].best if self.search.progress else None
            if best is not None:
                yield f"Best within {self.search.budget} so far: {_brief(self.metric, best)}, as predicted."
            return
        full = next((r for r in self.runs if r.kind == "full"), None)
        if run is None or full is None or run.calls is None or full.calls is None:
            return
        times = [f"{r.value('latency_ms'):,.0f} ms" for r in (run, full)]
        yield (
            f"{run.calls:g} denoiser {'call' if run.calls == 1 else 'calls'} in place of {full.calls:g}; "
            f"{times[0]} per picture in place of {times[1]}."
        )
        plain = self._as_fast(run)
        if plain is not None:
            speeds = shown(self.speed, plain.value("speedup"))
            quality = _brief(self.metric, plain.value(self.metric.name))
            yield f"The plain pipeline at about that speed ({plain.name}, {speeds}) reaches {quality}."

    def _as_fast(self, run: Run) -> Run | None:
        """The plain run of fewer steps whose speed-up is nearest."""
        plain = [r for r in self.runs if r.kind == "fewer steps"]
        return min(plain, key=lambda r: abs(r.value("speedup") - run.value("speedup")), default=None)


def _brief(metric: Metric, value: float) -> str:
    """A quality in few digits, with its name."""
    digits = 1 if metric.unit == "dB" else metric.digits - 1
    number = f"{value * metric.scale:.{max(0, digits)}f}"
    return f"{number} {metric.unit} {metric.short}" if metric.unit else f"{metric.short} {number}"
