"""The verbs that only read: show, validate, models and metrics.

Like those of `schedsearch.cli`, they import what they need when they run.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from schedsearch import _terminal
from schedsearch.cli_options import Json, one_of
from schedsearch.errors import SchedSearchError, UsageError

if TYPE_CHECKING:
    from schedsearch.schedule import Schedule

EXIT_ERROR = 2
SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";"}
COLUMNS = ("path", "label", "id", "n_steps", "computed")
"""Columns of ``show --csv`` before the measurements."""

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Schedule files, frontier folders, or folders `optimize` wrote.")
]


class Named(NamedTuple):
    """A schedule, where its file lies, and what its frontier calls it."""

    path: Path
    label: str
    schedule: Schedule


class Source(NamedTuple):
    """What one argument names: a file, or a frontier folder with the metric its schedules are preferred by."""

    path: Path
    quality: str | None
    schedules: tuple[Named, ...]


def show(
    files: Files,
    *,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print one line per schedule for other programs, separated by tabs.")
    ] = False,
    separator: Annotated[
        str,
        typer.Option(
            metavar="WORD", help="Between the cells of --csv: tab, comma or semicolon.",
            autocompletion=one_of(SEPARATORS),
        ),
    ] = "tab",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Draw schedules, or the table of a frontier folder."""
    if as_csv and as_json:
        raise UsageError("found both --csv and --json, expected at most one. Leave one out.")
    if separator not in SEPARATORS:
        raise UsageError(f"--separator: found {separator!r}, expected one of {', '.join(SEPARATORS)}.")
    if as_json:
        _terminal.print_json("show", files=[_described(source) for source in map(read_source, files)])
    elif as_csv:
        _print_rows([named for source in map(read_source, files) for named in source.schedules], SEPARATORS[separator])
    else:
        _draw_all(files)


def _draw_all(files: list[Path]) -> None:
    from schedsearch import _draw

    console = _terminal.console()
    for index, source in enumerate(map(read_source, files)):
        if index:
            console.print()
        if source.quality is not None:
            console.print(_draw.frontier_table((named.path.name, named.schedule) for named in source.schedules))
        else:
            console.print(_draw.drawing(source.schedules[0].schedule, str(source.path)))


def read_source(path: Path) -> Source:
    """Read a schedule file, a frontier folder, or the frontier in a folder that `optimize` wrote.

    Raises:
        ScheduleError: it cannot be read, or breaks a rule of the format.
    """
    from schedsearch.schedule import read_frontier, read_schedule

    if not path.is_dir():
        return Source(path, None, (Named(path, "", read_schedule(path)),))
    if not (path / "frontier.json").exists() and (path / "frontier" / "frontier.json").exists():
        path = path / "frontier"
    index = read_frontier(path)
    found = (Named(path / entry.file, entry.label, index.load(entry)) for entry in index.entries)
    return Source(path, index.quality, tuple(found))


def _described(source: Source) -> dict[str, object]:
    """A source as ``show --json`` tells it."""
    return {
        "path": source.path,
        "kind": "schedule" if source.quality is None else "frontier",
        "quality": source.quality,
        "schedules": [_described_schedule(named) for named in source.schedules],
    }


def _described_schedule(named: Named) -> dict[str, object]:
    import json

    from schedsearch.schedule import MODEL_ROW, computes, dumps, row_groups

    schedule = named.schedule
    return {
        "path": named.path,
        "label": named.label,
        "id": schedule.id,
        "n_steps": schedule.n_steps,
        "computed": computes(schedule, MODEL_ROW),
        "rows": [group._asdict() for group in row_groups(schedule)],
        "schedule": json.loads(dumps(schedule)),
    }


def _print_rows(listed: list[Named], separator: str) -> None:
    """Print one line per schedule: `COLUMNS`, then value, low and high of every metric that any of them has."""
    from schedsearch.schedule import MODEL_ROW, computes

    metrics = list(dict.fromkeys(m.metric for named in listed for m in named.schedule.measured))
    writer = csv.writer(sys.stdout, delimiter=separator, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high"))])
    for path, label, schedule in listed:
        measured = {m.metric: (m.value, m.low, m.high) for m in reversed(schedule.measured)}
        cells = (measured.get(metric, ("", "", "")) for metric in metrics)
        first = (path, label, schedule.id, schedule.n_steps, computes(schedule, MODEL_ROW))
        writer.writerow([*first, *(cell for three in cells for cell in three)])


def validate(files: Files, *, as_json: Json = False) -> None:
    """Check schedule files against every rule of the format."""
    answers = []
    for path in files:
        try:
            source = read_source(path)
        except SchedSearchError as error:
            answers.append({"path": path, "valid": False, "error": _told(error)})
            if not as_json:
                sys.stdout.flush()
                typer.echo(f"error: {error}", err=True)
            continue
        ids = [{"path": named.path, "id": named.schedule.id} for named in source.schedules]
        answers.append({"path": path, "valid": True, "schedules": ids})
        if not as_json and _terminal.talk_of() > _terminal.Talk.QUIET:
            for entry in ids:
                typer.echo(f"ok {entry['id']} {entry['path']}")
    is_valid = all(answer["valid"] for answer in answers)
    if as_json:
        _terminal.print_json("validate", valid=is_valid, files=answers)
    if not is_valid:
        raise typer.Exit(EXIT_ERROR)


def _told(error: SchedSearchError) -> dict[str, Any]:
    """An error as ``validate --json`` tells it; only one about the format knows where in the file it is."""
    parts = ("path", "found", "expected", "fix", "rule")
    return {
        "type": type(error).__name__,
        "message": str(error),
        **{part: getattr(error, part, None) for part in parts},
    }


def models(*, as_json: Json = False) -> None:
    """List the models and whether their weights are at hand."""
    from schedsearch.evaluate import cards

    found = cards()
    if as_json:
        _terminal.print_json(
            "models",
            models=[{**_fields(card), "at_hand": at_hand, "where": where} for card, at_hand, where in found],
        )
        return
    from schedsearch._draw import models_table

    rows = []
    for card, at_hand, _ in found:
        run = f"{card.width}x{card.height} px, {card.steps} steps"
        had = "yes" if at_hand else f"no; {_how_to_get(card)}"
        rows.append((card.name, card.weights, had, run, at_hand))
    console = _terminal.console()
    console.print(models_table(rows))
    if _terminal.talk_of() > _terminal.Talk.QUIET:
        console.print("\nAny local folder or hub id of a FLUX-type pipeline works as --model, too.", style="dim")


def _fields(card: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(card)


def _how_to_get(card: Any) -> str:
    accept = f"accept the licence at {card.page}, then " if card.gated else ""
    return f"{accept}run `{card.download}`"


def metrics(
    *,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose feature network to ask for; the standard ones without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the metrics, what each compares, and whether what it needs is at hand."""
    from schedsearch.errors import ModelNotFoundError
    from schedsearch.evaluate import METRICS, find_card, find_metric

    weights = "" if model is None else find_card(model).metric_weights
    rows: list[dict[str, Any]] = []
    for name, metric in METRICS.items():
        row = {"unit": metric.unit, "better": metric.better, "needs": metric.needs, "says": metric.summary}
        try:
            rows.append({"name": find_metric(name, weights=weights).name, **row, "at_hand": True, "missing": ""})
        except ModelNotFoundError as error:
            rows.append({"name": name, **row, "at_hand": False, "missing": str(error)})
    if as_json:
        _terminal.print_json("metrics", metrics=rows)
        return
    from schedsearch._draw import metrics_table

    console = _terminal.console()
    console.print(metrics_table(rows))
    if _terminal.talk_of() > _terminal.Talk.QUIET:
        for row in rows:
            if row["missing"]:
                console.print(f"\n{row['missing']}", style="dim")
