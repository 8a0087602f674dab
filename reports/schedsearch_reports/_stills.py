"""The report's first plot as a picture file, drawn by matplotlib: for places that show no page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schedsearch_reports._data import Family, Metric, ReportData, Run
from schedsearch_reports._metrics import PREDICTED
from schedsearch_reports.contest import COLOURS, MARKERS, STYLES
from schedsearch_reports.figures import OURS, PLAIN, Series, tradeoff_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, str]


def still(data: ReportData) -> Figure:
    """Return the quality that was searched for against the speed-up: the best of every family of runs."""
    quality = data.metric_named(data.metric)
    speed = next(m for m in data.metrics if m.name in ("speedup", PREDICTED))
    families = [family for family in data.families if family.name != "full"]
    series = [_series(family, _front(data.runs, family, speed, quality), i) for i, family in enumerate(families)]
    unit = f" ({quality.unit})" if quality.unit else ""
    return tradeoff_figure(
        series,
        title=f"{data.title}: {data.conditions}",
        x_label=f"{speed.label} ({speed.unit})",
        y_label=f"{quality.label}{unit}",
        legend="labels: denoiser calls",
    )


def write_stills(data: ReportData, page: Path) -> tuple[Path, ...]:
    """Write the plot beside ``page``, as PNG and as SVG; return both."""
    figure = still(data)
    paths = page.with_suffix(".png"), page.with_suffix(".svg")
    for path in paths:
        figure.savefig(path, dpi=130)
    return paths


def _series(family: Family, points: Sequence[Point], place: int) -> Series:
    if family.colour == 0:
        label, style, colour = OURS
    elif family.name == "fewer steps":
        label, style, colour = PLAIN
    else:
        label, colour = family.label, COLOURS[1 + place % (len(COLOURS) - 1)]
        style = MARKERS[place % len(MARKERS)] + STYLES[place % len(STYLES)]
    return Series(label=label, style=style, colour=colour, points=points)


def _front(runs: Sequence[Run], family: Family, speed: Metric, quality: Metric) -> list[Point]:
    """The family's runs that no other of it beats in both, slowest first."""
    sign = 1.0 if quality.better == "max" else -1.0
    found = [
        (run.value(speed.name), run.value(quality.name), "" if run.calls is None else f"{run.calls:g}")
        for run in runs
        if run.family == family.name and run.measured(speed.name) and run.measured(quality.name)
    ]
    kept: list[Point] = []
    for point in sorted(found, key=lambda p: (-p[0], -sign * p[1])):
        if not kept or sign * point[1] > sign * kept[-1][1]:
            kept.append(point)
    return [(x * speed.scale, y * quality.scale, text) for x, y, text in kept[::-1]]
