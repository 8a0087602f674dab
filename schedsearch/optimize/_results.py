"""What a search hands over: the chosen schedule, the frontier folder and the results table, each written atomically.

Knows nothing of how the numbers were measured.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schedsearch import __version__
from schedsearch.schedule import Budget, Measurement, Schedule, write_atomically, write_frontier, write_schedule

QUALITY = ("psnr", "ssim", "latent_error", "converged_psnr")
"""Quality metrics in the table, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the results table.

    Attributes:
        name: label of the schedule, ``full``, or such as ``7 steps``.
        kind: ``full``, ``schedule`` or ``fewer steps``.
        steps: denoising steps.
        denoiser_calls: per image, counted.
        measured: what was measured on held-out prompts.
        schedule: what was run; ``None`` for plain runs.
    """

    name: str
    kind: str
    steps: int
    denoiser_calls: float
    measured: tuple[Measurement, ...]
    schedule: Schedule | None = None

    def measurement(self, metric: str) -> Measurement:
        """The measurement of ``metric``.

        Raises:
            KeyError: if it was not measured.
        """
        for measured in self.measured:
            if measured.metric == metric:
                return measured
        raise KeyError(metric)

    def value(self, metric: str) -> float:
        """The measured value of ``metric``."""
        return self.measurement(metric).value

    @property
    def stamped(self) -> Schedule:
        """The schedule with its measurements.

        Raises:
            ValueError: a plain run has no schedule.
        """
        if self.schedule is None:
            raise ValueError(f"{self.name} is a plain run, without a schedule")
        return replace(self.schedule, measured=self.measured)


HEADER = ("run", "kind", "steps", "denoiser calls", "speedup", "low", "high", "latency ms", "macs %", "PSNR dB",
          "SSIM", "latent error", "converged PSNR dB", "checkpoint MB", "peak MB")  # fmt: skip

SHOWN = ("run", "denoiser calls", "speedup", "latency ms", "macs %", "PSNR dB", "SSIM", "latent error")
"""Columns that fit a terminal; the file has all, and one per further metric."""

_COLUMNS = (*QUALITY, "speedup", "latency_ms", "macs_fraction", "checkpoint_bytes", "peak_bytes")
"""What the columns of `HEADER` are made of."""


def further(results: Sequence[Result]) -> tuple[str, ...]:
    """Returns the names of the metrics that have no column in `HEADER`, such as ``clip[flux-mini-clip]``."""
    return tuple(dict.fromkeys(m.metric for r in results for m in r.measured if m.metric not in _COLUMNS))


def rows(results: Sequence[Result], columns: Sequence[str] = HEADER) -> list[list[str]]:
    """Returns the results as text, one list per row, with the named columns of `HEADER` or `further`."""
    return [[cells.get(column, "") for column in columns] for cells in map(_cells, results)]


def _cells(result: Result) -> dict[str, str]:
    speedup = result.measurement("speedup")
    cells = (
        result.name,
        result.kind,
        str(result.steps),
        f"{result.denoiser_calls:g}",
        f"{speedup.value:.2f}",
        f"{speedup.low:.2f}",
        f"{speedup.high:.2f}",
        f"{result.value('latency_ms'):.1f}",
        f"{100 * result.value('macs_fraction'):.1f}",
        f"{result.value('psnr'):.2f}",
        f"{result.value('ssim'):.4f}",
        f"{result.value('latent_error'):.4f}",
        f"{result.value('converged_psnr'):.2f}",
        *(_megabytes(result, metric) for metric in ("checkpoint_bytes", "peak_bytes")),
    )
    named = dict(zip(HEADER, cells, strict=True))
    return named | {name: f"{result.value(name):.5g}" for name in further([result])}


def _megabytes(result: Result, metric: str) -> str:
    """Bytes in units of a million; nothing where they were not predicted, as in studies of earlier releases."""
    return next((f"{m.value / 1e6:.2f}" for m in result.measured if m.metric == metric), "")


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Writes the results as CSV, with what they were measured on in every row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (*HEADER, *further(results))
    writer.writerow([*columns, "id", "prompts", "device", "dtype", "batch", "created_by"])
    for result, row in zip(results, rows(results, columns), strict=True):
        first = result.measurement("psnr")
        origin = [first.prompts, first.device, first.dtype, str(first.batch), first.created_by]
        writer.writerow([*row, "" if result.schedule is None else result.schedule.id, *origin])
    write_atomically(path, text.getvalue().encode())


Scores = Mapping[str, Sequence[float]]
"""Per name of a result one number per quality searched for, the first named first; higher is better."""


def undominated(results: Sequence[Result], budget: Budget, scores: Scores) -> list[Result]:
    """Returns the schedules that no other beats both in what the budget limits, as measured, and in its scores.

    What looked good on the prompts of the search alone is not among them: a lucky draw never ships.
    """
    sign = 1.0 if budget.kind == "speedup" else -1.0
    found = [r for r in results if r.schedule is not None]
    merits = {r.name: (sign * r.value(budget.kind), *scores[r.name]) for r in found}

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(m != mine and all(a >= b for a, b in zip(m, mine, strict=True)) for m in merits.values())

    return [r for r in found if not beaten(merits[r.name])]


def write_results(
    out: Path, name: str, results: Sequence[Result], frontier: Sequence[Result], chosen: Result | None, *, metric: str
) -> list[Path]:
    """Writes the frontier folder, the table and the chosen schedule; returns what was written.

    Args:
        out: output folder.
        name: of the chosen schedule's file, without ending.
        results: all results, for the table.
        frontier: those that make the frontier folder.
        chosen: the schedule for the budget, if one keeps it.
        metric: quality by which a frontier's schedules are preferred.
    """
    written = [out / "frontier", out / "results.csv"]
    write_frontier(
        out / "frontier", [r.stamped for r in frontier], quality=metric, labels=tuple(r.name for r in frontier)
    )
    write_table(out / "results.csv", results)
    target = out / f"{name}.json"
    if chosen is not None:
        write_schedule(chosen.stamped, target)
        written.append(target)
    else:
        target.unlink(missing_ok=True)
    return written


def choose(results: Sequence[Result], budget: Budget, scores: Scores) -> Result | None:
    """Returns the schedule with the best score among those measured to keep ``budget``; ``None`` if none does.

    Args:
        results: measured on held-out prompts.
        budget: the limit.
        scores: of several qualities the first decides. Not taken from the held-out prompts, so that the number reported
            for the choice is not the one it was chosen by.
    """
    within = [r for r in results if r.schedule is not None and budget.met_by(r.value(budget.kind))]
    return max(within, key=lambda r: tuple(scores[r.name]), default=None)


CREATED_BY = f"schedsearch {__version__}"
