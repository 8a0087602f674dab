"""The picture of a comparison: the front of every family, quality against measured speed-up, with intervals.

Reads the records of `schedsearch compare` only; measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from schedsearch.study import OURS, Comparison, Measure, Row, rows_on_front
from schedsearch_reports.contest import COLOURS, MARKERS, STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = ("schedules", "peer")
"""Families other than ours, one panel each: by whom they are run."""

TITLES = {"schedules": "fewer steps and hand-made masks", "peer": "other libraries, by themselves"}


def comparison_figure(comparison: Comparison, metric: str) -> Figure:
    """Returns two panels with our front in both: against hand-made schedules, and against other libraries.

    Args:
        comparison: what was measured.
        metric: name of the metric on the vertical axes.

    Raises:
        StudyError: the metric was not measured.
    """
    from matplotlib.figure import Figure

    measure = comparison.measure(metric)
    figure = Figure(figsize=(12.0, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, group in zip(panels, GROUPS, strict=True):
        others = [family for family in comparison.families if family.source == group]
        for place, family in enumerate(others):
            rows = rows_on_front(comparison.rows_of(family.name), measure)
            if rows:
                # The first colour is ours; markers tell families apart where colours come again.
                colour = COLOURS[1 + place % (len(COLOURS) - 1)]
                marks = f"{MARKERS[place % len(MARKERS)]}{STYLES[place % len(STYLES)]}"
                _draw(axes, rows, measure, family.title, fmt=marks, color=colour, markersize=4, linewidth=1)
        ours = rows_on_front(comparison.rows_of(OURS), measure)
        if ours:
            _draw(axes, ours, measure, OURS, fmt="o-", color=COLOURS[0], markersize=6, linewidth=2.5, zorder=3)
        axes.set_title(TITLES[group], fontsize=10)
        axes.set_xlabel("speed-up of the whole call, measured (x)")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="best")
    unit = f" ({measure.unit})" if measure.unit != "1" else ""
    better = "more" if measure.better == "max" else "less"
    panels[0].set_ylabel(f"{metric.replace('_', ' ')}{unit}, {better} is better")
    at = comparison.conditions
    figure.suptitle(
        f"{at.model}: {at.n_prompts} held-out prompts, {at.device}, {at.dtype}, batch {at.batch}", fontsize=10
    )
    return figure


def _draw(axes: Axes, rows: tuple[Row, ...], measure: Measure, name: str, **style: Any) -> None:
    """One front: a line with a bar for every interval."""
    means = [row.score(measure.name).mean for row in rows]
    bars = [[m.value - m.low for m in means], [m.high - m.value for m in means]]
    xs, ys = [row.speedup.value for row in rows], [mean.value for mean in means]
    axes.errorbar(xs, ys, yerr=bars, label=name, elinewidth=0.7, **style)


def draw(comparison: Comparison, picture: Path, metric: str | None = None) -> None:
    """Draws ``comparison`` into the image file ``picture``, by default in the metric that settings were chosen by."""
    figure = comparison_figure(comparison, metric or comparison.metrics[0].name)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
