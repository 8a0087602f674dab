"""The table of speeds: which schedule of a family counts for which speed, and by how much ours are ahead or behind.

This module does not know how the numbers were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isinf, isnan
from pathlib import Path

from schedsearch.bench._tables import write_rows

OURS = "ours"
"""Family of our own schedules."""

SPEEDS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Measured speed-ups of the table."""

NOTHING = "-"
"""Stands where a family reaches a speed with no setting."""

COLUMNS = (
    "family", "title", "setting", "denoiser calls", "speedup", "low", "high", "latency ms", "PSNR dB", "SSIM",
    "latent error", "converged PSNR dB", "id",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """One schedule, measured on held-out prompts.

    Attributes:
        family: whose it is.
        setting: in words.
        id: of the schedule.
        calls: denoiser calls per image.
        speedup: measured; the median over rounds.
        low: its 10 % quantile.
        high: its 90 % quantile.
        latency_ms: of one image.
        psnr: in dB against the plain run.
        ssim: against the plain run.
        latent_error: against the plain run.
        converged_psnr: in dB against the converged run.
    """

    family: str
    setting: str
    id: str
    calls: float
    speedup: float
    low: float
    high: float
    latency_ms: float
    psnr: float
    ssim: float
    latent_error: float
    converged_psnr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The table as text, and what it comes to.

    Attributes:
        header: names of the columns.
        rows: ours, the other families, and the difference.
        leads: per speed: it, ours minus the best other in dB, and the title of that other; the difference is infinite
            where only one of the two has something, and there is no lead where neither has.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    leads: tuple[tuple[float, float, str] | None, ...]


def best_at(rows: Sequence[SpeedRow], family: str, speed: float) -> SpeedRow | None:
    """The row of a family with the highest PSNR among those measured to reach ``speed``."""
    reached = [row for row in rows if row.family == family and row.speedup >= speed]
    return max(reached, key=lambda row: row.psnr, default=None)


def comparison(rows: Sequence[SpeedRow], titles: Mapping[str, str], speeds: Sequence[float] = SPEEDS) -> Comparison:
    """PSNR in dB of every family at every speed.

    Args:
        rows: all that was measured.
        titles: the other families in the order of the table, and what they are called in it.
        speeds: the columns.
    """
    best = {family: [best_at(rows, family, speed) for speed in speeds] for family in (OURS, *titles)}
    shown = [(f"**{OURS}**", *map(_cell, best[OURS]))]
    shown += [(title, *map(_cell, best[family])) for family, title in titles.items() if any(best[family])]
    leads = []
    for place, speed in enumerate(speeds):
        mine = best[OURS][place]
        others = [(row.psnr, titles[family]) for family in titles if (row := best[family][place]) is not None]
        rival = max(others, default=(-inf, ""))
        lead = (-inf if mine is None else mine.psnr) - (rival[0] if others else -inf)
        leads.append(None if isnan(lead) else (speed, lead, rival[1]))
    differences = (NOTHING if lead is None or isinf(lead[1]) else f"{lead[1]:+.2f}" for lead in leads)
    shown.append((f"{OURS} minus the best other", *differences))
    return Comparison(
        header=("PSNR dB at", *(f"{speed:g}x" for speed in speeds)), rows=tuple(shown), leads=tuple(leads)
    )


def _cell(row: SpeedRow | None) -> str:
    return NOTHING if row is None else f"{row.psnr:.2f}"


def note_of(found: Comparison) -> str:
    """Where ours lose and to whom, in a sentence."""
    lost = [lead for lead in found.leads if lead is not None and lead[1] < 0.0]
    told = [
        f"at {speed:g}x to {rival}, with nothing of ours as fast" if isinf(lead) else
        f"at {speed:g}x by {-lead:.2f} dB to {rival}"
        for speed, lead, rival in lost
    ]  # fmt: skip
    first = f"Ours lose {'; '.join(told)}." if told else "Ours lose nowhere."
    nobody = [name for name, lead in zip(found.header[1:], found.leads, strict=True) if lead is None]
    return f"{first} Nobody reaches {', '.join(nobody)}." if nobody else first


def write_csv(path: Path, rows: Sequence[SpeedRow], titles: Mapping[str, str]) -> None:
    """Writes all measured rows with the columns `COLUMNS`."""
    write_rows(
        path,
        COLUMNS,
        [
            [
                r.family, titles[r.family], r.setting, f"{r.calls:g}", f"{r.speedup:.4f}", f"{r.low:.4f}",
                f"{r.high:.4f}", f"{r.latency_ms:.2f}", f"{r.psnr:.4f}", f"{r.ssim:.6f}", f"{r.latent_error:.6f}",
                f"{r.converged_psnr:.4f}", r.id,
            ]
            for r in rows
        ],
    )  # fmt: skip
