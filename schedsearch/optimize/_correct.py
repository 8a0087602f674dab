"""`schedsearch correct`: finishes a schedule with stored corrections of what reuse and rounding do to it.

A half of the correction stays only if it lowers the final error on calibration prompts that it was not fitted on; what
is written is measured on held-out ones. Knows nothing of how corrections are fitted.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from schedsearch import __version__
from schedsearch.errors import UsageError
from schedsearch.evaluate import (
    LAYER_TABLES,
    METRICS,
    Corrected,
    LatentErrors,
    LayerTables,
    PairedRuns,
    Workload,
    correct_layers,
    correct_rows,
    device_name,
    find_card,
    load_pipeline,
    without_corrections,
)
from schedsearch.optimize._bench import BATCH, SMALL
from schedsearch.optimize._display import Display
from schedsearch.optimize._finals import HELD_OUT_SEED
from schedsearch.optimize._numbers import score
from schedsearch.runtime import tokens
from schedsearch.schedule import COMPUTE, SKIP, Measurement, Provenance, Schedule, read_schedule, write_schedule
from schedsearch_calibration import PromptSet, prompt_set

COLUMNS = ("run", "error of the fit", "final error, other prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectSettings:
    """What is to be corrected.

    Attributes:
        source: a schedule file.
        model: the model it is for.
        out: the file to write; ``None`` puts ``-corrected`` behind the name of ``source``.
        prompts: calibration prompts to fit on; half as many more judge, and as many held-out ones measure.
        layers: how low-bit layers are corrected, one of `LAYER_TABLES`.
        on_policy: fit every step from a run with the corrections before it.
        seed: of the noise.
        device: where to run.
        dtype: number format of the weights.
    """

    source: Path
    model: str
    out: Path | None = None
    prompts: int = 32
    layers: LayerTables = "step"
    on_policy: bool = True
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def target(self) -> Path:
        """The file to write."""
        return self.out or self.source.with_name(f"{self.source.stem}-corrected.json")


def run_correct(settings: CorrectSettings, display: Display | None = None) -> Path | None:
    """Fits corrections, keeps those that help, measures and writes; returns the file, ``None`` if nothing helped.

    Raises:
        UsageError: an option cannot be used, or the schedule has nothing that could be corrected.
        ScheduleError: the file cannot be read or written.
        ModelNotFoundError: the weights are not at hand.
        ApplyError: the schedule was made for another model.
        EvaluationError: a run gave values that are no numbers.
    """
    display = display or Display()
    schedule = read_schedule(settings.source)
    _require_work(settings, schedule)
    card = find_card(settings.model)
    calibration, held_out = prompt_set(card.calibration), prompt_set(card.held_out)
    fitting, judging = _split(settings, calibration)
    with display.stage(f"loading {card.name}"):
        pipe = load_pipeline(card, device=settings.device, dtype=settings.dtype)
    ref = schedule.model
    workload = replace(Workload.from_card(card), height=ref.height, width=ref.width)
    batch = BATCH if tokens(pipe, height=ref.height, width=ref.width) <= SMALL else 1

    def runs(prompts: tuple[str, ...], seed: int, first: int = 0) -> PairedRuns:
        places = tuple(range(first, first + len(prompts)))
        return PairedRuns(pipe, workload, prompts, seed=seed, batch=batch, indices=places)

    fit_runs = runs(fitting, settings.seed)
    judge = _Judge(runs(judging, settings.seed, len(fitting)))
    bare = without_corrections(schedule)
    found, table = bare, [_row("as it was", None, judge(bare))]
    best = judge(bare)
    for title, half in (("layers corrected", _layers), ("rows corrected", _rows)):
        with display.stage(title):
            tried = half(settings, fit_runs, found)
            if tried is None:
                continue
            error = judge(tried.schedule)
        helps = error < best
        table.append(_row(f"{title}{'' if helps else ' (left out)'}", tried, error))
        if helps:
            found, best = tried.schedule, error
    display.table(f"{settings.source.name}: relative error of the final latents", COLUMNS, table)
    if found.id == bare.id:
        display.line("Wrote nothing: no correction lowers the error on prompts it was not fitted on")
        return None
    with display.stage("measuring on held-out prompts"):
        some = held_out.prompts[: settings.prompts]
        measured = _measured(settings, runs(some, HELD_OUT_SEED), (bare, found), held_out)
    display.line(
        f"Held out ({len(some)} prompts of {held_out.name}): {measured[0].value:.4f} as it was, "
        f"{measured[1].value:.4f} corrected"
    )
    origin = Provenance(parents=(schedule.id,), created_by=f"schedsearch {__version__}", note="corrected")
    write_schedule(replace(found, measured=(measured[1],), provenance=origin), settings.target)
    display.line(f"Wrote {settings.target}")
    return settings.target


class _Judge:
    """The mean final error of schedules on some prompts, each measured once."""

    def __init__(self, runs: PairedRuns) -> None:
        self._errors = LatentErrors(runs)
        self._known: dict[str, float] = {}

    def __call__(self, schedule: Schedule) -> float:
        if schedule.id not in self._known:
            self._known[schedule.id] = statistics.fmean(self._errors.of(schedule))
        return self._known[schedule.id]


def _layers(settings: CorrectSettings, runs: PairedRuns, schedule: Schedule) -> Corrected | None:
    if not schedule.precision or settings.layers == "none":
        return None
    return correct_layers(runs, schedule, tables=settings.layers)


def _rows(settings: CorrectSettings, runs: PairedRuns, schedule: Schedule) -> Corrected | None:
    if not _has_predictions(schedule):
        return None
    return correct_rows(runs, schedule, on_policy=settings.on_policy)


def _has_predictions(schedule: Schedule) -> bool:
    return any(set(row) - {COMPUTE, SKIP} for _, row in schedule.ops)


def _row(title: str, tried: Corrected | None, error: float) -> list[str]:
    fit = ""
    if tried is not None and tried.errors:
        left = statistics.fmean(e.after / e.before for e in tried.errors if e.before)
        fit = f"{100 * left:.1f} % of what it was"
    return [title, fit, f"{error:.4f}"]


def _require_work(settings: CorrectSettings, schedule: Schedule) -> None:
    if settings.layers not in LAYER_TABLES:
        raise UsageError(f"--layers: found {settings.layers!r}, expected one of {', '.join(LAYER_TABLES)}.")
    if not _has_predictions(schedule) and (not schedule.precision or settings.layers == "none"):
        raise UsageError(
            f"{settings.source}: found no row that reuses or forecasts, and no low-bit layer to correct; expected one "
            "or the other. There is nothing that a correction could make up for."
        )
    if settings.target.resolve() == settings.source.resolve():
        raise UsageError(f"--out: found {settings.target}, the schedule itself; expected another file.")


def _split(settings: CorrectSettings, prompts: PromptSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to fit on, and others to judge by."""
    n = settings.prompts
    judging = prompts.prompts[n : n + max(1, n // 2)]
    if n < 1 or not judging:
        raise UsageError(
            f"--prompts: found {n}, expected 1 to {len(prompts.prompts) - 1}: {prompts.name} has "
            f"{len(prompts.prompts)} prompts, and one at least must be left to judge by."
        )
    return prompts.prompts[:n], judging


def _measured(
    settings: CorrectSettings, runs: PairedRuns, schedules: tuple[Schedule, ...], prompts: PromptSet
) -> list[Measurement]:
    """The final error of each schedule on held-out prompts."""
    stamp = Measurement(
        metric="", unit="", better="min", value=0.0, low=0.0, high=0.0, n=1,
        prompts=f"{prompts.name} sha256:{prompts.sha256[:16]}",
        device=device_name(settings.device),
        dtype=settings.dtype,
        created_by=f"schedsearch {__version__}",
        date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip
    errors = LatentErrors(runs)
    return [score(stamp, METRICS["latent_error"], errors.of(schedule)) for schedule in schedules]
