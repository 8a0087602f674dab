"""Who is best at a given speed: our schedules against fewer steps, hand-made masks and the other searchers.

Every family is swept over its settings on calibration prompts, with speeds as the cost model predicts them. For each
speed its best settings go on to the held-out prompts, where everything is measured in one run, interleaved. A schedule
counts for a speed only if it was measured to reach it. This module does not know how our schedules were found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from schedsearch.bench._contest import open_bench
from schedsearch.bench._families import FAMILIES, Family, found_by
from schedsearch.bench._speeds_table import OURS, SPEEDS, SpeedRow, comparison, note_of, write_csv
from schedsearch.bench._tables import markdown, write_rows
from schedsearch.errors import SchedSearchError, UsageError
from schedsearch.evaluate import HeldOutRow, PipelineEvaluator, device_name, evaluate_held_out
from schedsearch.optimize import HELD_OUT_SEED, Bench, Display
from schedsearch.schedule import Schedule, read_frontier, write_atomically
from schedsearch.study import Candidate, Study

LEEWAYS = (1.0, 1.04)
"""Predictions miss by a few per cent, so the best beyond a speed, and beyond a little more, are both measured."""

FIT_PROMPTS = 32
"""Calibration prompts the coefficients of other searchers' table steps are fitted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSettings:
    """What the comparison is asked for.

    Attributes:
        model: as in `OptimizeSettings`.
        frontier: our frontier folder.
        out: folder of scores and results.
        studies: folder of `bench search`; without one the searchers have no rows.
        families: names in `FAMILIES`.
        prompts: calibration prompts settings are swept on.
        into: Markdown file whose ``speeds`` markers get the table.
        device: as in `OptimizeSettings`.
        dtype: as in `OptimizeSettings`.
    """

    model: str
    frontier: Path
    out: Path
    studies: Path | None = None
    families: tuple[str, ...] = tuple(FAMILIES)
    prompts: int = 8
    into: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise UsageError(f"--only: found {name!r}, expected some of {', '.join(FAMILIES)}.")
        if self.prompts < 1:
            raise UsageError(f"--prompts: found {self.prompts}, expected 1 or more.")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One setting of one family.

    Attributes:
        family: its name.
        setting: in words.
        schedule: what it makes.
        speedup: predicted.
        score: PSNR in dB on calibration prompts; ``None`` before it is measured.
    """

    family: str
    setting: str
    schedule: Schedule
    speedup: float
    score: float | None = None


def run_speeds(settings: SpeedSettings, display: Display | None = None) -> tuple[SpeedRow, ...]:
    """Measures what is missing in ``settings.out`` and writes ``speeds.csv``, ``speeds-table.csv``, ``speeds-table.md``
    and ``speeds.png``; returns what was measured on held-out prompts.

    Raises:
        UsageError: an option cannot be used as given.
        ScheduleError: ``settings.frontier`` is no frontier folder.
    """
    display = display or Display()
    index = read_frontier(settings.frontier)
    ours = [(entry.label or entry.file, index.load(entry)) for entry in index.entries]
    settings.out.mkdir(parents=True, exist_ok=True)
    bench = open_bench(settings.model, settings.out, device=settings.device, dtype=settings.dtype, display=display)
    with _sweep_study(bench, settings) as study:
        evaluator = bench.evaluator(bench.prompts.prompts[: max(settings.prompts, FIT_PROMPTS)], 0)
        swept = _swept(bench, evaluator, study, _entries(bench, settings), settings.prompts)
        mine = [Entry(family=OURS, setting=label, schedule=s, speedup=bench.ratio(s)) for label, s in ours]
        finalists = _fitted(bench, evaluator, (*mine, *chosen(swept)))
        rows = _measured(bench, study, finalists)
    _write(bench, settings, rows)
    return rows


# ---- the sweep


def _entries(bench: Bench, settings: SpeedSettings) -> list[Entry]:
    """All settings that may reach a speed of the table."""
    found = []
    for name in settings.families:
        for setting, schedule in _settings(bench, name, FAMILIES[name], settings.studies):
            speedup = bench.ratio(schedule)
            if speedup >= min(SPEEDS):
                found.append(Entry(family=name, setting=setting, schedule=schedule, speedup=speedup))
    return found


def _settings(bench: Bench, name: str, family: Family, studies: Path | None) -> Iterable[tuple[str, Schedule]]:
    if family.make is not None:
        return family.make(bench.space)
    found = () if studies is None else tuple(found_by(family.search, studies))
    if not found:
        where = "without --studies" if studies is None else f"in {studies}"
        bench.display.line(f"Left out {name}: found no study of it {where}; `schedsearch bench search` makes them")
    return found


def _sweep_study(bench: Bench, settings: SpeedSettings) -> Study:
    """Where scores are kept, so that a sweep that was stopped goes on."""
    return Study.open(
        settings.out / "sweep.db",
        "sweep",
        objectives=bench.evaluator(bench.prompts.prompts[:1], 0).objectives,
        settings={
            "bench": "speeds",
            "model": asdict(bench.plain.model),
            "weights": bench.weights,
            "prompts": bench.prompts.sha256,
            "fidelity": settings.prompts,
            "dtype": settings.dtype,
        },
        resume=True,
    )


def _swept(
    bench: Bench, evaluator: PipelineEvaluator, study: Study, entries: Sequence[Entry], fidelity: int
) -> list[Entry]:
    """The entries with their scores; those that fail are left out."""
    scored = []
    with bench.display.stage("sweeping on calibration prompts", len(entries)) as advance:
        for done, entry in enumerate(entries):
            found = study.find(entry.schedule.id)
            if found is None:
                candidate = Candidate(schedule=entry.schedule, searcher=entry.family, ask=len(study))
                found = evaluator.evaluate(candidate, fidelity=fidelity)
                study.append(found)
            if found.status == "ok":
                scored.append(replace(entry, score=found.values[1]))
            advance(done + 1, len(entries), f"{FAMILIES[entry.family].title}: {entry.setting}")
    bench.display.line(
        f"Swept {len(entries)} settings, {len(entries) - len(scored)} of them hopeless: "
        f"{study.spent.denoiser_evals} denoiser evaluations"
    )
    return scored


def chosen(
    entries: Iterable[Entry], *, speeds: Sequence[float] = SPEEDS, leeways: Sequence[float] = LEEWAYS
) -> tuple[Entry, ...]:
    """Per family, the best scored entry for each speed with each leeway, every schedule once."""
    families: dict[str, list[Entry]] = {}
    for entry in entries:
        families.setdefault(entry.family, []).append(entry)
    kept: dict[tuple[str, str], Entry] = {}
    for family, members in families.items():
        for bound in (speed * leeway for speed in speeds for leeway in leeways):
            fast = [e for e in members if e.speedup >= bound and e.score is not None]
            if fast:
                best = max(fast, key=lambda e: (e.score or 0.0, e.speedup))
                kept.setdefault((family, best.schedule.id), best)
    return tuple(kept.values())


# ---- the measurement


def _fitted(bench: Bench, evaluator: PipelineEvaluator, entries: Iterable[Entry]) -> list[Entry]:
    """The entries as a runtime can follow them; one that cannot be fitted is left out."""
    found = []
    for entry in entries:
        try:
            found.append(replace(entry, schedule=evaluator.fit(entry.schedule, FIT_PROMPTS)))
        except (SchedSearchError, FloatingPointError) as error:
            bench.display.line(f"Left out {entry.family}, {entry.setting}: {error}")
    return found


def _measured(bench: Bench, study: Study, entries: Sequence[Entry]) -> tuple[SpeedRow, ...]:
    """One row per entry, measured on held-out prompts, unless the study remembers the same set."""
    schedules = {entry.schedule.id: entry.schedule for entry in entries}
    told = "\n".join([bench.held_out.sha256, device_name(bench.settings.device), *sorted(schedules)])
    key = f"held-out {hashlib.sha256(told.encode()).hexdigest()[:16]}"
    if key not in study.notes:
        with bench.display.stage("measuring on held-out prompts") as advance:
            found = evaluate_held_out(
                bench.pipe,
                bench.card,
                schedules,
                bench.held_out.prompts,
                mac_table=bench.macs,
                seeds=(HELD_OUT_SEED,),
                device=bench.settings.device,
                batch=bench.batch,
                on_progress=advance,
            )
        numbers = {row.name: _numbers(row) for row in found}
        sound = {name: values for name, values in numbers.items() if all(map(isfinite, values.values()))}
        study.notes.set(key, sound)
    note: Any = study.notes[key]
    for entry in entries:
        if entry.schedule.id not in note:
            bench.display.line(
                f"Left out {entry.family}, {entry.setting}: its pictures hold values that are no numbers"
            )
    return tuple(
        SpeedRow(family=e.family, setting=e.setting, id=e.schedule.id, **note[e.schedule.id])
        for e in entries
        if e.schedule.id in note
    )


def _numbers(row: HeldOutRow) -> Mapping[str, float]:
    """What a `SpeedRow` holds of a measurement."""
    return {
        "calls": row.denoiser_calls,
        "speedup": row.speedup.median,
        "low": row.speedup.low,
        "high": row.speedup.high,
        "latency_ms": row.latency.median_ms,
        **{name: row.mean(name) for name in ("psnr", "ssim", "latent_error", "converged_psnr")},
    }


# ---- what is written


def _write(bench: Bench, settings: SpeedSettings, rows: Sequence[SpeedRow]) -> None:
    from schedsearch_reports.contest import draw_speeds
    from schedsearch_reports.figures import put_table

    titles = {name: FAMILIES[name].title for name in settings.families}
    found = comparison(rows, titles)
    origin = (
        f"{len(bench.held_out.prompts)} held-out prompts ({bench.held_out.name} sha256:{bench.held_out.sha256[:16]}), "
        f"{device_name(settings.device)}, {settings.dtype}, batch 1"
    )
    out = settings.out
    write_csv(out / "speeds.csv", rows, {OURS: OURS, **titles})
    write_rows(out / "speeds-table.csv", found.header, found.rows)
    text = f"{markdown(found.header, found.rows)}\n\n{note_of(found)} Measured on {origin}."
    write_atomically(out / "speeds-table.md", f"{text}\n".encode())
    draw_speeds(out / "speeds.csv", out / "speeds.png", f"{settings.model}: {origin}", ours=OURS)
    bench.display.table(f"{settings.model}: PSNR in dB at measured speed-ups", found.header, found.rows, emphasis=0)
    bench.display.line(note_of(found))
    for name in ("speeds.csv", "speeds-table.csv", "speeds-table.md", "speeds.png"):
        bench.display.line(f"Wrote {out / name}")
    if settings.into is not None:
        put_table(settings.into, text, name="speeds")
        bench.display.line(f"Wrote the table into {settings.into}")
