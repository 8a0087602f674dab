"""Everything a user might take instead, beside our schedules, in one interleaved run on held-out prompts.

Hand-made settings are swept on calibration prompts with predicted speeds, other libraries with measured ones. For each
speed the best settings of every family go on to the held-out prompts, where all of them are run prompt by prompt at
batch 1: time and quality of the same calls. Everything measured lies in ``compare.jsonl`` and ``sweep.db``, so a run
that was stopped goes on. This module does not know how our schedules were found, nor what a peer does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from schedsearch import __version__
from schedsearch.bench._compare_settings import (
    BUDGETS,
    DRAWN,
    FEWEST,
    LIBRARIES,
    MASK_PROMPTS,
    MASK_SHARE,
    PEER_PROMPTS,
    REACH,
    SWEEP_SHARE,
    Clock,
    CompareSettings,
    families,
)
from schedsearch.bench._compare_table import write_all
from schedsearch.bench._contest import PARTS
from schedsearch.bench._families import FAMILIES
from schedsearch.bench._log import Log
from schedsearch.bench._peer_sweep import PeerEntry, PeerSweep, PeerTrials, contender
from schedsearch.bench._peers import Host, Peer, fresh, muted, peers
from schedsearch.bench._sweep import FIT_PROMPTS, Entry, chosen, entries_of, fitted, in_turns, sweep_study, swept
from schedsearch.evaluate import (
    REFERENCES,
    Contender,
    PairedRuns,
    SideBySide,
    Workload,
    device_name,
    metrics_at_hand,
)
from schedsearch.optimize import HELD_OUT_SEED, Bench, Display, OptimizeSettings, load_bench, measure_parts
from schedsearch.runtime import apply, denoiser_of
from schedsearch.schedule import Schedule, read_frontier, read_schedule
from schedsearch.study import (
    OURS,
    PLAIN,
    Absent,
    Comparison,
    Conditions,
    Family,
    Measure,
    Objective,
    Row,
    Score,
    Study,
    Version,
    mean_of,
    median_of,
    verdicts,
)
from schedsearch.study._comparison import FORMAT, VERSION


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """What runs on held-out prompts.

    Attributes:
        family: its name.
        setting: in words.
        runner: how it is run.
        schedule: its id, empty for what is none.
    """

    family: str
    setting: str
    runner: Contender
    schedule: str = ""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One comparison at work.

    Attributes:
        settings: what was asked for.
        bench: the loaded model.
        host: what peers may know of it.
        known: all peers by name; some keep pipelines from one stage to the next.
        log: what is measured already.
        clock: time since the beginning.
    """

    settings: CompareSettings
    bench: Bench
    host: Host
    known: Mapping[str, Peer]
    log: Log
    clock: Clock

    @property
    def display(self) -> Display:
        """Where progress goes."""
        return self.bench.display


def run_compare(settings: CompareSettings, display: Display | None = None) -> Comparison:
    """Measures what is missing in ``settings.out``, writes ``compare.json`` and the tables and the picture made of it.

    Raises:
        UsageError: an option cannot be used as given, or ``settings.out`` holds another run.
        ScheduleError: a schedule or frontier cannot be read.
    """
    clock = Clock(settings.minutes)
    ours = _ours(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    bench = load_bench(_wanted(settings), display or Display())
    session = Session(
        settings=settings,
        bench=bench,
        host=_host(bench),
        known=peers(),
        log=Log(settings.out / "compare.jsonl", _header(bench, settings)),
        clock=clock,
    )
    masks, counted = _masks(session, ours)
    tried = _tried(session)
    finalists, absent = _finalists(session, masks, tried)
    rows, failed = _rows(session, finalists)
    comparison = _comparison(session, rows, (*absent, *failed), {**counted, **tried.swept})
    write_all(comparison, settings.out, settings.into, session.display)
    return comparison


# ---- what takes part


def _wanted(settings: CompareSettings) -> OptimizeSettings:
    return OptimizeSettings(model=settings.model, budget="4x", device=settings.device, dtype=settings.dtype)


def _ours(settings: CompareSettings) -> list[tuple[str, Schedule]]:
    """Our schedules, by label."""
    found = [(path.stem, read_schedule(path)) for path in settings.schedules]
    if settings.frontier is not None:
        index = read_frontier(settings.frontier)
        found += [(entry.label or entry.file, index.load(entry)) for entry in index.entries]
    return found


def _header(bench: Bench, settings: CompareSettings) -> dict[str, Any]:
    """What numbers of another run must agree in to be used again."""
    return {
        "comparison": VERSION,
        "model": asdict(bench.plain.model),
        "weights": bench.weights,
        "dtype": settings.dtype,
        "device": device_name(settings.device),
        "versions": {each.name: each.version for each in _versions()},
        "calibration": bench.prompts.sha256,
        "held out": bench.held_out.sha256,
        "metrics": [measure.name for measure in _measures(bench)],
    }


def _versions() -> tuple[Version, ...]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(Version(name=name, version=importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _measures(bench: Bench) -> tuple[Measure, ...]:
    """Every metric of single pictures that is at hand; what has no reference run stands there once."""
    metrics = metrics_at_hand(bench.card.metric_weights, device=bench.settings.device, of_sets=False)
    found = [metric.against(name) for name in REFERENCES for metric in metrics]
    measures = {m.name: Measure(name=m.name, unit=m.unit, better=m.better) for m in found}
    return tuple(measures.values())


def _host(bench: Bench) -> Host:
    """What peers may know: the model, and a few calibration prompts."""
    workload = Workload.from_card(bench.card)

    def draw(pipe: Any) -> object:
        runs = PairedRuns(pipe, workload, bench.prompts.prompts[:DRAWN], seed=0, batch=bench.batch)
        return [runs.latents(start, stop) for start, stop in runs.batches(len(runs))]

    return Host(
        steps=workload.steps,
        branches=workload.branches,
        dtype=next(denoiser_of(bench.pipe).parameters()).dtype,
        fresh=partial(fresh, bench.pipe),
        draw=draw,
    )


# ---- the sweeps


def _masks(session: Session, ours: Sequence[tuple[str, Schedule]]) -> tuple[list[Entry], dict[str, int]]:
    """Our schedules and the best hand-made ones per speed, and how many were tried per family."""
    bench, settings = session.bench, session.settings
    names = [name for name in settings.names if name in FAMILIES]
    mine = [Entry(family=OURS, setting=label, schedule=schedule, speedup=1.0) for label, schedule in ours]
    if not names:
        return mine, {}
    objectives = (Objective(name="latency_ms", unit="ms", better="min"),)
    header: dict[str, Any] = {"model": asdict(bench.plain.model), "weights": bench.weights, "dtype": settings.dtype}
    with Study.open(settings.out / PARTS, "parts", objectives=objectives, settings=header, resume=True) as parts:
        measure_parts(bench, parts)
    with sweep_study(bench, settings.out, MASK_PROMPTS) as study:
        evaluator = bench.evaluator(bench.prompts.prompts[: max(MASK_PROMPTS, FIT_PROMPTS)], 0)
        wanted = entries_of(bench, names, None, slowest=min(BUDGETS), reach=max(BUDGETS) * REACH)
        entries = [e for e in wanted if any(budget <= e.speedup <= REACH * budget for budget in BUDGETS)]
        scored = swept(
            bench, evaluator, study, in_turns(entries), MASK_PROMPTS, is_over=lambda: session.clock.is_past(MASK_SHARE)
        )
        found = fitted(bench, evaluator, (*mine, *chosen(scored, speeds=BUDGETS)))
    session.display.line(f"Chose {len(found) - len(mine)} of {len(entries)} hand-made settings")
    return found, {name: sum(entry.family == name for entry in entries) for name in names}


def _tried(session: Session) -> PeerSweep:
    """What came of trying the other libraries."""
    bench = session.bench
    prompts = bench.prompts.prompts[:PEER_PROMPTS]
    trials = PeerTrials(
        host=session.host,
        runs=SideBySide(bench.pipe, bench.card, prompts, seed=0, references=("default",), device=bench.settings.device),
        log=session.log,
        prompts=len(prompts),
        display=session.display,
        is_over=lambda: session.clock.is_past(SWEEP_SHARE),
    )
    return trials.sweep({name: session.known[name] for name in session.settings.names if name in session.known})


def _finalists(session: Session, masks: Sequence[Entry], tried: PeerSweep) -> tuple[list[Finalist], tuple[Absent, ...]]:
    """What goes on to the held-out prompts, and what does not because it is too slow."""
    pipe, names = session.bench.pipe, session.settings.names
    found = [Finalist(family=PLAIN, setting="eager", runner=_plain(pipe, session.host.steps))]
    for entry in masks:
        runner = Contender(
            name=f"{entry.family}: {entry.setting} {entry.key}",
            steps=entry.schedule.n_steps,
            prepare=partial(_scheduled, pipe, entry.schedule),
        )
        found.append(Finalist(family=entry.family, setting=entry.setting, runner=runner, schedule=entry.key))
    for one in picked(tried.entries, session.known):
        runner = contender(one.family, session.known[one.family], one.setting, session.host)
        found.append(Finalist(family=one.family, setting=one.setting.words, runner=runner))
    told_of = {finalist.family for finalist in found} | {each.family for each in tried.absent}
    slow = tuple(
        Absent(family=name, setting="", cause="too slow", reason=f"no setting that was tried reaches {BUDGETS[0]:g}x")
        for name in names
        if name not in told_of
    )
    return found, (*tried.absent, *slow)


def picked(entries: Sequence[PeerEntry], known: Mapping[str, Peer]) -> tuple[PeerEntry, ...]:
    """Returns the best settings per speed; of a family that reaches none, and of compiled runs, the fastest one."""
    kept = list(chosen(entries, speeds=BUDGETS))
    for name in dict.fromkeys(entry.family for entry in entries):
        members = [entry for entry in entries if entry.family == name and entry.score is not None]
        if members and not any(entry.family == name for entry in kept):
            kept += members if known[name].is_kept else [max(members, key=lambda entry: entry.speedup)]
    return tuple(kept)


def _plain(pipe: Any, steps: int) -> Contender:
    return Contender(name=f"{PLAIN}: eager", steps=steps, prepare=partial(_given, pipe))


@contextmanager
def _given(pipe: Any) -> Iterator[Any]:
    yield pipe


@contextmanager
def _scheduled(pipe: Any, schedule: Schedule) -> Iterator[Any]:
    with apply(pipe, schedule):
        yield pipe


# ---- the held-out prompts


def _rows(session: Session, finalists: Sequence[Finalist]) -> tuple[list[Row], tuple[Absent, ...]]:
    """One row per finalist that ran on every prompt, and why others did not."""
    bench = session.bench
    prompts = bench.held_out.prompts[: session.settings.prompts]
    runs = SideBySide(bench.pipe, bench.card, prompts, seed=HELD_OUT_SEED, device=bench.settings.device)
    runners = {finalist.runner.name: finalist.runner for finalist in finalists}
    looks = _looks(session, runs, runners)
    rounds = _rounds(session, runs, [r for name, r in runners.items() if not looks[name]["error"]], len(prompts))
    rows: list[Row] = []
    absent: list[Absent] = []
    for finalist in finalists:
        name = finalist.runner.name
        turns = [turned[name] for turned in rounds if name in turned]
        wrong = looks[name]["error"] or next((turn["error"] for turn in turns if turn["error"]), "")
        if wrong:
            absent.append(Absent(family=finalist.family, setting=finalist.setting, cause="failed", reason=wrong))
        else:
            rows.append(_row(finalist, looks[name]["work"], turns))
    return rows, tuple(absent)


def _digest(names: Iterable[str]) -> str:
    """Tells sets of runs apart: what ran together is not mixed with what ran in other company."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _looks(session: Session, runs: SideBySide, runners: Mapping[str, Contender]) -> Mapping[str, Any]:
    """What every finalist does on the first prompt; this warms all of them up, so it is done in every process."""
    key = f"looks {_digest(runners)}"
    found: dict[str, Any] = {}
    with session.display.stage("warming up", len(runners)) as advance, muted():
        for done, (name, runner) in enumerate(runners.items()):
            found[name] = asdict(runs.look(0, runner))
            advance(done + 1, len(runners), name.partition(":")[0])
    if key not in session.log:
        session.log.put(key, found)
    remembered: Any = session.log[key]
    return dict(remembered)


def _rounds(session: Session, runs: SideBySide, runners: Sequence[Contender], n: int) -> list[Mapping[str, Any]]:
    """What every runner did on each prompt."""
    log, display = session.log, session.display
    digest = _digest(runner.name for runner in runners)
    found: list[Mapping[str, Any]] = []
    with display.stage("running everything on held-out prompts", n) as advance:
        for index in range(n):
            key = f"round {digest} {index}"
            if key not in log:
                if index >= FEWEST and session.clock.is_past(1.0):
                    display.line(f"Time is up: {index} of {n} held-out prompts are run")
                    break
                start = time.monotonic()
                with muted():
                    turns = runs.round(index, runners)
                log.put(key, {name: asdict(turn) for name, turn in turns.items()})
                if index == 0:
                    seconds = time.monotonic() - start
                    left = (n - 1) * seconds / 60.0
                    display.line(
                        f"{len(runners)} ways to run take {seconds:.0f} s per prompt: {left:.1f} minutes to go"
                    )
            record: Any = log[key]
            found.append(record)
            advance(index + 1, n)
    return found


def _row(finalist: Finalist, work: float, turns: Sequence[Any]) -> Row:
    ratios = tuple(float(turn["ratio"]) for turn in turns)
    scores = []
    for name in turns[0]["scores"]:
        values = tuple(float(turn["scores"][name]) for turn in turns)
        scores.append(Score(metric=name, mean=mean_of(values), values=values))
    speedup = median_of(ratios)
    is_idle = finalist.family == "compiled" and speedup.low <= 1.0
    return Row(
        family=finalist.family,
        setting=finalist.setting,
        schedule=finalist.schedule,
        speedup=speedup,
        latency_ms=statistics.median(float(turn["ms"]) for turn in turns),
        work=work,
        scores=tuple(scores),
        ratios=ratios,
        note="gains nothing that could be told from noise" if is_idle else "",
    )


# ---- the record


def _comparison(
    session: Session, rows: Sequence[Row], absent: Sequence[Absent], counted: Mapping[str, int]
) -> Comparison:
    known, measures = families(), _measures(session.bench)
    before: Any = session.log.get("seconds", 0.0)
    spent = before + session.clock.elapsed
    session.log.put("seconds", spent)
    ours = Family(name=OURS, title=OURS, source="ours", library="", swept=0)
    plain = Family(name=PLAIN, title="full run", source="plain", library="", swept=0)
    others = (replace(known[name], swept=counted.get(name, 0)) for name in session.settings.names)
    return Comparison(
        format=FORMAT,
        version=VERSION,
        created_by=f"schedsearch {__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=session.settings.command,
        seconds=spent,
        conditions=_conditions(session, len(rows[0].ratios) if rows else 0),
        metrics=measures,
        budgets=BUDGETS,
        families=(*([ours] if any(row.family == OURS for row in rows) else []), plain, *others),
        rows=tuple(rows),
        absent=tuple(absent),
        verdicts=verdicts(rows, measures, BUDGETS),
    )


def _conditions(session: Session, n_prompts: int) -> Conditions:
    bench, settings = session.bench, session.settings
    return Conditions(
        model=bench.card.name,
        weights=bench.weights,
        width=bench.card.width,
        height=bench.card.height,
        steps=bench.card.steps,
        batch=1,
        dtype=settings.dtype,
        device=device_name(settings.device),
        prompts=bench.held_out.name,
        prompts_sha256=bench.held_out.sha256,
        n_prompts=n_prompts,
        seed=HELD_OUT_SEED,
        versions=_versions(),
    )
