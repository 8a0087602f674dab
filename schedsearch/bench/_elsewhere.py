"""Schedule files measured where they were searched and elsewhere, with the result written beside each.

Knows nothing of how the numbers are taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schedsearch import __version__
from schedsearch.errors import UsageError
from schedsearch.evaluate import (
    Condition,
    TransferRow,
    described,
    device_name,
    evaluate_at,
    find_card,
    load_pipeline,
    require_drawable,
)
from schedsearch.optimize import HELD_OUT_SEED, Display, score, set_score, timings
from schedsearch.schedule import Measurement, Schedule, read_frontier, read_schedule, write_atomically
from schedsearch_calibration import PromptSet, digest, prompt_set

FORMAT = "schedsearch.at"

COLUMNS = ("at", "calls", "speedup", "PSNR dB", "SSIM", "latent error")
"""What a terminal shows; the file has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """What is to be measured.

    Attributes:
        source: a schedule file or frontier folder.
        model: the model to run it on.
        at: conditions, as `Condition.altered` reads them, beside the one searched at.
        prompts: how many held-out prompts; ``None`` takes all.
        repeats: timed rounds.
        device: where to run.
        dtype: number format of the weights.
        command: what the user called, for the record.
    """

    source: Path
    model: str
    at: tuple[str, ...] = ()
    prompts: int | None = None
    repeats: int = 10
    device: str = "cpu"
    dtype: str = "float32"
    command: str = ""


def run_transfer(settings: TransferSettings, display: Display | None = None) -> tuple[Path, ...]:
    """Measures and shows every schedule under every condition; writes and returns a file ``STEM.at.json`` beside each.

    What such a file already says about other conditions, devices and number formats stays in it.

    Raises:
        UsageError: a condition cannot be read or drawn, or a file in the way is something else.
        ScheduleError: a schedule cannot be read.
        ModelNotFoundError: the weights are not at hand.
        ApplyError: a schedule was made for another model.
    """
    display = display or Display()
    files = _schedules(settings.source)
    card = find_card(settings.model)
    plans: dict[Condition, dict[Path, Schedule]] = {}
    for path, schedule in files.items():
        base = Condition.of(schedule, card)
        for condition in dict.fromkeys([base, *(base.altered(text) for text in settings.at)]):
            plans.setdefault(condition, {})[path] = schedule
    records = {path: _read(_target(path), schedule) for path, schedule in files.items()}
    with display.stage(f"loading {card.name}"):
        pipe = load_pipeline(card, device=settings.device, dtype=settings.dtype)
    for condition in plans:
        require_drawable(pipe, condition)
    prompts = _held_out(card.held_out, settings.prompts)
    shown: dict[Path, list[list[str]]] = {path: [] for path in files}
    for condition, schedules in plans.items():
        with display.stage(f"measuring at {condition}") as advance:
            rows = evaluate_at(
                pipe,
                card,
                {str(path): schedule for path, schedule in schedules.items()},
                prompts.prompts,
                condition,
                seed=HELD_OUT_SEED,
                device=settings.device,
                repeats=settings.repeats,
                on_progress=advance,
            )
        for path, schedule in schedules.items():
            row = rows[str(path)]
            is_home = condition == Condition.of(schedule, card)
            entry = _entry(settings, condition, row, prompts, is_home=is_home)
            records[path] = _merged(records[path], entry)
            _write(_target(path), schedule, records[path])
            shown[path].append(_cells(condition, row, is_home=is_home))
    for path, rows_of_path in shown.items():
        title = f"{path.stem}: {len(prompts.prompts)} held-out prompts, against the plain run there (* as searched)"
        display.table(title, COLUMNS, rows_of_path)
        display.line(f"Wrote {_target(path)}")
    return tuple(_target(path) for path in files)


def _schedules(source: Path) -> dict[Path, Schedule]:
    if not source.is_dir():
        return {source: read_schedule(source)}
    index = read_frontier(source)
    return {source / entry.file: index.load(entry) for entry in index.entries}


def _target(path: Path) -> Path:
    return path.with_name(f"{path.stem}.at.json")


def _held_out(name: str, first: int | None) -> PromptSet:
    whole = prompt_set(name)
    if first is None or first >= len(whole.prompts):
        return whole
    prompts = whole.prompts[:first]
    return PromptSet(name=f"{whole.name}, first {first}", prompts=prompts, sha256=digest(prompts))


# ---- the record beside a schedule


def _entry(
    settings: TransferSettings, condition: Condition, row: TransferRow, prompts: PromptSet, *, is_home: bool
) -> dict[str, Any]:
    """What one measurement leaves in the file."""
    stamp = Measurement(
        metric="", unit="", better="min", value=0.0, low=0.0, high=0.0, n=1,
        prompts=f"{prompts.name} sha256:{prompts.sha256[:16]}",
        device=device_name(settings.device),
        dtype=settings.dtype,
        batch=condition.batch,
        created_by=f"schedsearch {__version__}",
        date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip
    measured = timings(stamp, row.speedup, row.latency)
    measured += [score(stamp, described(name), values) for name, values in row.samples]
    measured += [set_score(stamp, described(name), value, len(prompts.prompts)) for name, value in row.sets]
    return {
        **asdict(condition),
        "searched": is_home,
        "denoiser_calls": row.denoiser_calls,
        "command": settings.command,
        "measured": [asdict(each) for each in measured],
    }


def _read(path: Path, schedule: Schedule) -> list[dict[str, Any]]:
    """What an earlier run left about the same schedule.

    Raises:
        UsageError: if the file is something else.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or not all(_key(entry) for entry in found["conditions"]):
            raise ValueError(found["format"])
        return list(found["conditions"]) if found["id"] == schedule.id else []
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(
            f"{path}: found something else ({type(error).__name__}), expected nothing or what `schedsearch evaluate` "
            "writes. Move it away."
        ) from error


def _key(entry: Mapping[str, Any]) -> tuple[object, ...]:
    """What tells the measurements in a file apart."""
    stamp = entry["measured"][0]
    return (*(entry[name] for name in ("width", "height", "batch", "steps")), stamp["device"], stamp["dtype"])


def _merged(entries: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries with ``new`` in place of an older measurement of the same."""
    return [*(entry for entry in entries if _key(entry) != _key(new)), new]


def _write(path: Path, schedule: Schedule, entries: Sequence[dict[str, Any]]) -> None:
    content = {"format": FORMAT, "version": 1, "id": schedule.id, "conditions": list(entries)}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _cells(condition: Condition, row: TransferRow, *, is_home: bool) -> list[str]:
    return [
        f"{condition}{' *' if is_home else ''}",
        f"{row.denoiser_calls:g}",
        f"{row.speedup.median:.2f}",
        f"{row.mean('psnr'):.2f}",
        f"{row.mean('ssim'):.4f}",
        f"{row.mean('latent_error'):.4f}",
    ]
