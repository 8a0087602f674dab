"""Draws a schedule, a frontier and the list of models for a terminal.

Everything here returns something `rich` can print and prints nothing itself. Does not know commands, files or torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schedsearch.schedule import (
    COMPUTE,
    FORECASTS,
    MODEL_ROW,
    REUSE,
    SKIP,
    Measurement,
    ModelRef,
    Schedule,
    TableTensor,
    computes,
    row_groups,
)

_STYLES = {COMPUTE: "bold green", REUSE: "blue", SKIP: "red", **dict.fromkeys(FORECASTS, "yellow")}
_LEGEND = ((COMPUTE, "compute"), (REUSE, "reuse"), (FORECASTS, "forecast, order 1 to 3"), (SKIP, "skip"))
SHOWN_TENSORS = 6
"""Tensors of a side file that are told by name; of more, how many there are of each kind."""


def drawing(schedule: Schedule, title: str) -> RenderableType:
    """Return the whole schedule drawn: what it is for, its steps, and one line of characters per group of rows."""
    return Group(Text(title, style="bold"), _facts(schedule), Text(), _rows(schedule), _legend(schedule))


def _facts(schedule: Schedule) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _fact_lines(schedule):
        facts.add_row(name, Text(value))
    return facts


def _fact_lines(schedule: Schedule) -> Iterator[tuple[str, str]]:
    yield "id", schedule.id
    yield "model", model_text(schedule.model)
    yield "steps", f"{schedule.n_steps}, {_solvers(schedule)}"
    yield "sigma", " ".join(f"{sigma:.3g}" for sigma in schedule.sigma)
    if schedule.guidance is not None:
        yield "guidance", " ".join("-" if scale is None else f"{scale:g}" for scale in schedule.guidance)
    for rule in schedule.precision:
        yield "precision", f"{rule.pattern}: weights {rule.weight}, activations {rule.activation}"
    if schedule.pruned:
        yield "pruned", ", ".join(schedule.pruned)
    if schedule.tables is not None:
        yield "tables", _tables(schedule.tables.tensors)
    for index, measurement in enumerate(schedule.measured):
        yield "measured" if index == 0 else "", measurement_text(measurement)
    origin = schedule.provenance
    told = [f"{word} {value}" for word, value in (("study", origin.study), ("searcher", origin.searcher)) if value]
    if told:
        yield "from", ", ".join([*told, f"seed {origin.seed}", f"ask {origin.ask}"])
    if origin.created_by:
        yield "made by", origin.created_by
    if origin.note:
        yield "note", origin.note


def _tables(tensors: Sequence[TableTensor]) -> str:
    """All tensors, or how many there are of each kind."""
    if len(tensors) <= SHOWN_TENSORS:
        return ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)
    kinds = Counter(tensor.name.rpartition(".")[2] for tensor in tensors)
    return f"{len(tensors)} tensors: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"


def model_text(model: ModelRef) -> str:
    """Return what a schedule was made for, on one line."""
    adapters = f", adapters {', '.join(model.adapters)}" if model.adapters else ""
    where = f"{model.width}x{model.height} px, batch {model.batch}"
    return f"{model.pipeline}, {where}, config {model.config[:12]}, blocks {model.blocks[:12]}{adapters}"


def measurement_text(measurement: Measurement) -> str:
    """Return a measured number with its spread and what it was measured on, on one line."""
    spread = "" if measurement.low == measurement.high else f" ({measurement.low:.4g} to {measurement.high:.4g})"
    on = ", ".join(part for part in (measurement.prompts, measurement.device, measurement.dtype) if part)
    number = f"{measurement.value:.4g} {measurement.unit}".strip()
    return f"{measurement.metric} {number}{spread}, n={measurement.n}{', ' + on if on else ''}"


def _solvers(schedule: Schedule) -> str:
    """Say the solvers in order, equal neighbours counted together."""
    runs: list[tuple[str, int]] = []
    for solver in schedule.solver:
        extra = "" if solver.corrector == "none" else f" with {solver.corrector} corrector"
        text = f"{solver.family} of order {solver.order} in {solver.prediction}{extra}"
        if runs and runs[-1][0] == text:
            runs[-1] = (text, runs[-1][1] + 1)
        else:
            runs.append((text, 1))
    if len(runs) == 1:
        return runs[0][0]
    return ", then ".join(f"{count} x {text}" for text, count in runs)


def _rows(schedule: Schedule) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="dim")
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_row("row", "rows", "steps", "computed", style="dim")
    for group in row_groups(schedule):
        count = f"{group.computes}/{schedule.n_steps}"
        table.add_row(group.label, f"x{group.n_rows}" if group.n_rows > 1 else "", coloured(group.row), count)
    others = "every other row" if schedule.ops else "every row"
    if MODEL_ROW not in dict(schedule.ops):
        table.add_row(Text(others, style="dim"), "", coloured(COMPUTE * schedule.n_steps), _all_of(schedule))
    return table


def _all_of(schedule: Schedule) -> str:
    return f"{schedule.n_steps}/{schedule.n_steps}"


def coloured(row: str) -> Text:
    """Return a row with a colour per character."""
    text = Text()
    for op in row:
        text.append(op, style=_STYLES[op])
    return text


def _legend(schedule: Schedule) -> Text:
    used = {op for _, row in schedule.ops for op in row} | {COMPUTE}
    text = Text("\n")
    for ops, meaning in _LEGEND:
        if used & set(ops):
            text.append(ops if len(ops) == 1 else "1-3", style=_STYLES[ops[0]])
            text.append(f" {meaning}   ", style="dim")
    text.rstrip()
    return text


def frontier_table(entries: Iterable[tuple[str, Schedule]]) -> Table:
    """Return one line per schedule of a frontier: file, steps, denoiser calls computed, and its measurements."""
    listed = tuple(entries)
    metrics = tuple(dict.fromkeys(m.metric for _, schedule in listed for m in schedule.measured))
    units = {m.metric: m.unit for _, schedule in listed for m in schedule.measured}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("file", no_wrap=True)
    table.add_column("steps", justify="right")
    table.add_column("computed", justify="right")
    for metric in metrics:
        table.add_column(f"{metric} {units[metric]}".strip(), justify="right")
    for name, schedule in listed:
        values = {m.metric: f"{m.value:.4g}" for m in schedule.measured}
        calls = f"{computes(schedule, MODEL_ROW)}/{schedule.n_steps}"
        table.add_row(name, str(schedule.n_steps), calls, *(values.get(metric, "") for metric in metrics))
    return table


def models_table(rows: Iterable[tuple[str, str, str, str, bool]]) -> Table:
    """Return the table of models; a row is name, weights, how they are had, default call, at hand or not."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("name", "weights", "default run", "at hand"):
        table.add_column(heading, overflow="fold")
    for name, weights, had, run, at_hand in rows:
        table.add_row(name, weights, run, Text(had, style="green" if at_hand else "yellow"))
    return table


def metrics_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of metrics; a row is what ``schedsearch metrics --json`` tells of one."""
    compared = {"pair": "full run's picture", "prompt": "prompt", "set": "full run's pictures"}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("name", "unit", "better", "compared with", "at hand", "what it says"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        at_hand = Text("yes", style="green") if row["at_hand"] else Text("no", style="yellow")
        table.add_row(row["name"], row["unit"], row["better"], compared[row["needs"]], at_hand, row["says"])
    return table
