"""Pictures of the tables that `schedsearch bench` writes: hypervolume against cost, quality against measured speed-up.

Reads the CSV files only; measures nothing.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schedsearch.errors import UsageError
from schedsearch_reports.figures import Point, front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Sequence[tuple[float, float]]
"""Denoiser evaluations spent, ascending, and the share of the best known volume reached with them."""

# Okabe & Ito 2008: told apart by people who see colours differently; the styles tell them apart in grey.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
STYLES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
MARKERS = "s^vD<>PXph*d"


def read_runs(path: Path) -> dict[str, list[Run]]:
    """The runs of every searcher.

    Raises:
        UsageError: the file is missing, or is not such a table.
    """
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                point = float(row["evals"]), float(row["volume"])
                runs.setdefault((row["searcher"], row["seed"]), []).append(point)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: found no table of curves ({error!r}), expected the one `schedsearch bench search` writes."
        ) from error
    by_name: dict[str, list[Run]] = {}
    for (name, _), run in runs.items():
        by_name.setdefault(name, []).append(run)
    return by_name


def volume_at(run: Run, evals: float) -> float:
    """The volume a run had reached with so many denoiser evaluations; it keeps its last one."""
    return max((volume for spent, volume in run if spent <= evals), default=0.0)


def curves_figure(runs: Mapping[str, Sequence[Run]], title: str) -> Figure:
    """Returns one line per searcher, the median over seeds, with the span of all seeds behind it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(runs, key=lambda name: -statistics.median(run[-1][1] for run in runs[name]))
    for place, name in enumerate(ordered):
        end = statistics.median(run[-1][0] for run in runs[name])
        costs = sorted({spent for run in runs[name] for spent, _ in run if 0 < spent <= end} | {end})
        found = [sorted(volume_at(run, cost) for run in runs[name]) for cost in costs]
        colour, style = COLOURS[place % len(COLOURS)], STYLES[place % len(STYLES)]
        axes.plot(costs, [statistics.median(v) for v in found], style, color=colour, label=name, drawstyle="steps-post")
        axes.fill_between(
            costs, [v[0] for v in found], [v[-1] for v in found], color=colour, alpha=0.15, linewidth=0, step="post"
        )
    axes.set_xscale("log")
    axes.set_xlabel("denoiser evaluations spent (images x calls)")
    axes.set_ylabel("hypervolume, share of the best known")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")
    return figure


def draw(table: Path, picture: Path, title: str) -> None:
    """Draws ``table`` into the image file ``picture``."""
    figure = curves_figure(read_runs(table), title)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def read_speeds(path: Path) -> dict[str, list[Point]]:
    """The schedules of every family, by its title.

    Raises:
        UsageError: the file is missing, or is not such a table.
    """
    families: dict[str, list[Point]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                point = Point(
                    name=row["setting"],
                    kind=row["family"],
                    calls=float(row["denoiser calls"]),
                    speedup=float(row["speedup"]),
                    psnr_db=float(row["PSNR dB"]),
                    latency_ms=float(row["latency ms"]),
                    prompts="",
                    device="",
                )
                families.setdefault(row["title"], []).append(point)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: found no table of speeds ({error!r}), expected the one `schedsearch bench speeds` writes."
        ) from error
    return families


def speeds_figure(families: Mapping[str, Sequence[Point]], title: str, *, ours: str) -> Figure:
    """Returns PSNR against measured speed-up: the front of every family, ``ours`` as the thick line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(name for name in families if name != ours):
        shown = front(families[name])
        axes.plot(
            [p.speedup for p in shown],
            [p.psnr_db for p in shown],
            STYLES[place % len(STYLES)],
            marker=MARKERS[place % len(MARKERS)],
            # The first colour is ours; markers tell families apart where colours come again.
            color=COLOURS[1 + place % (len(COLOURS) - 1)],
            markersize=4,
            linewidth=1,
            label=name,
        )
    shown = front(families.get(ours, ()))
    xs, ys = [p.speedup for p in shown], [p.psnr_db for p in shown]
    axes.plot(xs, ys, "o-", color=COLOURS[0], markersize=6, linewidth=2.5, label=ours, zorder=3)
    axes.set_xlabel("speed-up of the whole call, measured (x)")
    axes.set_ylabel("PSNR against the full run (dB)")
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_speeds(table: Path, picture: Path, title: str, *, ours: str) -> None:
    """Draws the speeds in ``table`` into the image file ``picture``."""
    figure = speeds_figure(read_speeds(table), title, ours=ours)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
