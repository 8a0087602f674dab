"""Who is best at a given speed: our schedules against fewer steps, hand-made masks and the other searchers.

Every family is swept over its settings on calibration prompts, with speeds as the cost model predicts them. For each
speed its best settings go on to the held-out prompts, where everything is measured in one run, interleaved. A schedule
counts for a speed only if it was measured to reach it. This module does not know how our schedules were found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from schedsearch.bench._contest import open_bench
from schedsearch.bench._families import FAMILIES
from schedsearch.bench._speeds_table import OURS, SPEEDS, SpeedRow, comparison, note_of, write_csv
from schedsearch.bench._sweep import FIT_PROMPTS, Entry, chosen, entries_of, fitted, sweep_study, swept
from schedsearch.bench._tables import markdown, write_rows
from schedsearch.errors import UsageError
from schedsearch.evaluate import HeldOutRow, device_name, evaluate_held_out
from schedsearch.optimize import HELD_OUT_SEED, Bench, Display
from schedsearch.schedule import read_frontier, write_atomically
from schedsearch.study import Study


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
    with sweep_study(bench, settings.out, settings.prompts) as study:
        evaluator = bench.evaluator(bench.prompts.prompts[: max(settings.prompts, FIT_PROMPTS)], 0)
        entries = entries_of(bench, settings.families, settings.studies, slowest=min(SPEEDS))
        scored = swept(bench, evaluator, study, entries, settings.prompts)
        mine = [Entry(family=OURS, setting=label, schedule=s, speedup=bench.ratio(s)) for label, s in ours]
        finalists = fitted(bench, evaluator, (*mine, *chosen(scored, speeds=SPEEDS)))
        rows = _measured(bench, study, finalists)
    _write(bench, settings, rows)
    return rows


# ---- the measurement


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
