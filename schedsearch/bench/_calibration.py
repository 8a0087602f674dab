"""`schedsearch calibrate`: a schedule with tables for its low-bit layers, and the shipped policies side by side.

Knows nothing of how a table is fitted.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from schedsearch.bench._tables import markdown, write_rows
from schedsearch.errors import UsageError
from schedsearch.evaluate import (
    POLICIES,
    Calibrated,
    CalibrationPolicy,
    LatentErrors,
    PairedRuns,
    Scales,
    Workload,
    base_word,
    calibrate,
    choices_of,
    find_card,
    find_policy,
    load_pipeline,
)
from schedsearch.optimize import HELD_OUT_SEED, Display
from schedsearch.runtime import denoiser_of, identity_schedule
from schedsearch.runtime._precision import linears_of
from schedsearch.schedule import PrecisionRule, Schedule, read_schedule, with_layer_tables, write_schedule
from schedsearch.sensitivity import Choice, compact_rules, protected_layers
from schedsearch_calibration import prompt_set

ALL = "all"
COLUMNS = (
    "policy", "smooth", "rounding", "bias", "layers' error", "calibration error", "held-out error", "side file KB",
)  # fmt: skip
"""The layers' error is the median over layers of the output error with tables as a share of that without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateSettings:
    """What is to be calibrated.

    Attributes:
        model: the model.
        schedule: a file with precision rules, or without where ``precision`` is given; ``None`` is the full run.
        precision: format word for all layers, see `choices_of`, in place of the schedule's rules.
        protect: keep time embedding, modulations, first and last layers as they are under ``precision``.
        policy: name of a shipped policy, or ``all``.
        prompts: calibration prompts in place of the policy's own number.
        rows: rows per layer in place of the policy's own number.
        scales: of low-bit inputs: ``dynamic``, ``static`` or ``per-step``.
        held_out: held-out prompts.
        seed: of noise and samples.
        batch: images per call.
        device: where to run.
        dtype: number format of the weights.
        out: the schedule's file; under ``all`` the policy's name is added to its stem.
        into: Markdown file that gets the table.
    """

    model: str
    schedule: Path | None = None
    precision: str = ""
    protect: bool = False
    policy: str = "all-steps"
    prompts: int | None = None
    rows: int | None = None
    scales: str = "dynamic"
    held_out: int = 16
    seed: int = 0
    batch: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    out: Path | None = None
    into: Path | None = None


def run_calibrate(settings: CalibrateSettings, display: Display | None = None) -> tuple[Path, ...]:
    """Fits tables under each policy asked for, compares held-out latent errors, writes and returns the schedules.

    Raises:
        UsageError: an option cannot be used, or the schedule has no low-bit layer.
        ScheduleError: the schedule cannot be read.
        ModelNotFoundError: the weights are not at hand.
        ApplyError: the schedule was made for another model.
    """
    display = display or Display()
    policies = [_adjusted(policy, settings) for policy in _policies(settings.policy)]
    card = find_card(settings.model)
    target = settings.out or Path("runs") / f"calibrated-{card.name}.json"
    with display.stage(f"loading {card.name}"):
        pipe = load_pipeline(card, device=settings.device, dtype=settings.dtype)
    workload = Workload.from_card(card)
    full = identity_schedule(pipe, card.steps, height=card.height, width=card.width)
    schedule = full if settings.schedule is None else read_schedule(settings.schedule)
    if settings.precision:
        schedule = with_precision(schedule, pipe, settings.precision, protect=settings.protect)
    elif settings.protect:
        raise UsageError("--protect: found it without --precision, expected both; a schedule's own rules stay.")
    held_out = prompt_set(card.held_out).prompts[: settings.held_out]
    runs = PairedRuns(pipe, workload, held_out, seed=HELD_OUT_SEED, batch=settings.batch)
    errors = LatentErrors(runs, base=full)
    calibration = prompt_set(card.calibration).prompts
    bare = replace(with_layer_tables(schedule, {}, role=""), measured=())
    made: dict[str, Calibrated] = {}
    for policy in policies:
        with display.stage(f"calibrating, {policy.name}") as advance:
            made[policy.name] = calibrate(
                pipe,
                workload,
                schedule,
                calibration,
                policy,
                seed=settings.seed,
                batch=settings.batch,
                on_progress=advance,
            )
    rows = [_bare_cells(errors.of(bare))]
    rows += [_cells(name, one, errors.of(one.schedule)) for name, one in made.items()]
    _show(settings, display, rows)
    return tuple(_written(one, target, name if settings.policy == ALL else "", display) for name, one in made.items())


def _policies(name: str) -> list[CalibrationPolicy]:
    return list(POLICIES.values()) if name == ALL else [find_policy(name)]


def _adjusted(policy: CalibrationPolicy, settings: CalibrateSettings) -> CalibrationPolicy:
    prompts = policy.prompts if settings.prompts is None else settings.prompts
    rows = policy.rows if settings.rows is None else settings.rows
    scales = cast("Scales", settings.scales)  # checked by the policy
    return replace(policy, prompts=prompts, rows=rows, scales=scales)


def with_precision(schedule: Schedule, pipe: object, word: str, *, protect: bool) -> Schedule:
    """Return a schedule with one format for all linear layers, in place of the rules and tables of layers it had.

    Args:
        schedule: any.
        pipe: whose layers.
        word: as `choices_of` reads it.
        protect: keep the layers of the protection preset as they are.

    Raises:
        UsageError: the word is none, or saves nothing.
    """
    denoiser = denoiser_of(pipe)
    base = base_word(denoiser)
    choices = choices_of([word], base=base)
    if not choices:
        raise UsageError(f"--precision: found {word!r}, expected a format of fewer bits than the model's own {base}.")
    names = tuple(linears_of(denoiser))
    kept = set(protected_layers(names)) if protect else set()
    own = Choice(word=base, weight=base, activation=base)
    rules: tuple[PrecisionRule, ...] = compact_rules(
        [(name, base if name in kept else choices[0].word) for name in names], {base: own, choices[0].word: choices[0]}
    )
    return replace(with_layer_tables(schedule, {}, role=""), precision=rules, measured=())


def _written(made: Calibrated, target: Path, name: str, display: Display) -> Path:
    path = target.with_name(f"{target.stem}-{name}.json") if name else target
    path.parent.mkdir(parents=True, exist_ok=True)
    write_schedule(made.schedule, path)
    display.line(f"Wrote {path} ({made.policy.text})")
    if made.left_out:
        display.line(
            f"without tables, as no step of {made.policy.name} showed their inputs: {len(made.left_out)} layers"
        )
    return path


def _show(settings: CalibrateSettings, display: Display, rows: Sequence[Sequence[str]]) -> None:
    from schedsearch_reports.figures import put_table

    title = f"tables per kind, and latent error on {settings.held_out} held-out prompts against the full run"
    display.table(title, COLUMNS, rows)
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        path = settings.out.with_name(f"{settings.out.stem}-policies.csv")
        write_rows(path, COLUMNS, rows)
        display.line(f"Wrote {path}")
    if settings.into is not None:
        put_table(settings.into, markdown(COLUMNS, rows), name="calibration")
        display.line(f"Wrote the table into {settings.into}")


def _bare_cells(errors: Sequence[float]) -> list[str]:
    return ["no tables", "0", "0", "0", "1", "-", f"{statistics.fmean(errors):.4g}", "0"]


def _cells(name: str, made: Calibrated, errors: Sequence[float]) -> list[str]:
    ratios = [layer[-1][1] / layer[0][1] for layer in made.layers.values() if layer[0][1] > 0]
    tables = made.schedule.tables
    n_bytes = 0 if tables is None or tables.data is None else len(tables.data)
    calibration = "-"
    if made.errors:
        calibration = f"{made.errors[0]:.4g} to {min(made.errors):.4g}"
    return [
        name, str(made.count("smooth")), str(made.count("rounding")), str(made.count("bias")),
        f"{statistics.median(ratios):.3f}" if ratios else "-", calibration, f"{statistics.fmean(errors):.4g}",
        f"{n_bytes / 1e3:.0f}",
    ]  # fmt: skip
