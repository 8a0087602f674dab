"""A schedule and a frontier folder as HTML for notebooks: small, self-contained, readable on light and dark pages.

Every text is escaped. Colours are told apart without them, too: each cell of the map holds its character. Knows nothing
of files, nor of who shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from schedsearch.schedule._rows import computes, row_groups
from schedsearch.schedule._vocabulary import COMPUTE, FORECASTS, MODEL_ROW, REUSE, SKIP

if TYPE_CHECKING:
    from schedsearch.schedule._frontier import FrontierIndex
    from schedsearch.schedule._model import Schedule

MAX_ROWS = 40
"""Rows of the map that are drawn; of more, how many were left out is said."""

_CELL, _LINE = 14, 18
# Colours that differ to colour-blind eyes, dark enough for white letters on them (Okabe and Ito, darkened).
_COLOURS = {COMPUTE: "#00664b", REUSE: "#00518a", SKIP: "#7d3c00", **dict.fromkeys(FORECASTS, "#6b4e9b")}
_WORDS = {COMPUTE: "compute", REUSE: "reuse", SKIP: "skip", **{o: f"forecast of order {o}" for o in FORECASTS}}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are numbers."""
    heads = "".join(
        f'<th scope="col" style="text-align:{_side(i)}">{escape(name)}</th>' for i, name in enumerate(header)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:{_side(i)}">{escape(cell)}</td>' for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _side(column: int) -> str:
    return "right" if column else "left"


def schedule_html(schedule: Schedule) -> str:
    """Return a schedule: what it is for, its map of operations, and what was measured."""
    model = schedule.model
    computed = computes(schedule, MODEL_ROW)
    size = f"{model.width}x{model.height} px"
    adapters = f" with {', '.join(model.adapters)}" if model.adapters else ""
    title = f"{model.pipeline}{adapters}, {size}: {schedule.n_steps} steps, {computed} of them run the denoiser"
    facts = [
        f"<strong>{escape(title)}</strong>",
        f"<code>{escape(schedule.id[:19])}</code>, sigma {schedule.sigma[0]:.3g} to {schedule.sigma[-1]:.3g}",
    ]
    if schedule.precision:
        rules = "; ".join(f"{rule.pattern} {rule.weight}/{rule.activation}" for rule in schedule.precision)
        facts.append(f"number formats: {escape(rules)}")
    if schedule.pruned:
        facts.append(f"removed: {escape(', '.join(schedule.pruned))}")
    measured = [
        (m.metric, f"{m.value:.4g} {m.unit}".strip(), f"{m.low:.4g} to {m.high:.4g}", str(m.n))
        for m in schedule.measured
    ]
    results = table(("measured", "value", "spread", "n"), measured) if measured else ""
    return f"<div><p>{'<br>'.join(facts)}</p>{_op_map(schedule)}{results}</div>"


def _op_map(schedule: Schedule) -> str:
    """The rows as an inline SVG: one square with its character per step."""
    groups = [(group.label, group.row) for group in row_groups(schedule)]
    if MODEL_ROW not in dict(schedule.ops):
        groups.append(("every other row" if schedule.ops else "every row", COMPUTE * schedule.n_steps))
    drawn, left_out = groups[:MAX_ROWS], len(groups) - MAX_ROWS
    label_width = 8 * max(len(label) for label, _ in drawn) + 8
    width, height = label_width + _CELL * schedule.n_steps, _LINE * len(drawn)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="max-width:100%;height:auto" font-family="monospace" font-size="12">'
    )
    parts = [opening, f"<title>{escape(_in_words(drawn))}</title>"]
    for line, (label, row) in enumerate(drawn):
        y = _LINE * line
        # The page's own colour of text, so that it can be read on light and on dark.
        parts.append(f'<text x="0" y="{y + 12}" fill="currentColor">{escape(label)}</text>')
        for step, op in enumerate(row):
            x = label_width + _CELL * step
            parts.append(
                f'<g><title>step {step}: {_WORDS[op]}</title><rect x="{x}" y="{y}" width="{_CELL - 1}" '
                f'height="{_LINE - 2}" fill="{_COLOURS[op]}"/><text x="{x + (_CELL - 1) / 2}" y="{y + 12}" '
                f'text-anchor="middle" fill="#fff">{op}</text></g>'
            )
    more = f"<p>and {left_out} more rows</p>" if left_out > 0 else ""
    return "".join(parts) + "</svg>" + more


def _in_words(groups: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{label}: {row}" for label, row in groups)


def frontier_html(index: FrontierIndex) -> str:
    """Return the table of a frontier folder: one line per schedule, with its measurements."""
    metrics = {m.metric: m.unit for entry in index.entries for m in entry.measured}
    header = ["schedule", *(f"{metric} {unit}".strip() if unit != "1" else metric for metric, unit in metrics.items())]
    rows = []
    for entry in index.entries:
        values = {m.metric: f"{m.value:.4g}" for m in entry.measured}
        rows.append([entry.label or entry.file, *(values.get(metric, "") for metric in metrics)])
    place = f"{len(index.entries)} schedules in <code>{escape(str(index.folder))}</code>"
    return f"<div><p>{place}</p>{table(header, rows)}</div>"
