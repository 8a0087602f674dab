"""Runs a contest and hands over its result: a table in the terminal, curves as data, a picture.

Knows nothing of how candidates are proposed or measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from schedsearch.bench._contest import Contestant, ContestSettings, contest
from schedsearch.bench._curves import COLUMNS, SHOWN, Standing, curves_of, rows_of, summary_of, write_curves
from schedsearch.bench._tables import markdown, write_rows
from schedsearch.optimize import Display


def run_contest(
    settings: ContestSettings,
    entries: Mapping[str, Contestant],
    *,
    rival: str,
    name: str,
    into: Path | None = None,
    display: Display | None = None,
) -> tuple[Standing, ...]:
    """Runs what is missing in ``settings.out`` and writes ``NAME.csv`` (curves), ``NAME-table.csv`` and ``NAME.png``.

    Args:
        settings: what to run.
        entries: who may take part, for the words in the table.
        rival: whom the others are compared with.
        name: of the files, and of the markers in ``into``.
        into: Markdown file that gets the table.
        display: where progress goes; the terminal by default.

    Returns:
        How the entries compare, the best first.
    """
    from schedsearch_reports.contest import draw
    from schedsearch_reports.figures import put_table

    display = display or Display()
    outset = contest(settings, display)
    files = [settings.study(entry, seed) for entry in settings.entries for seed in settings.seeds]
    curves = curves_of(files, outset)
    standings = summary_of(curves, rival=rival)
    table = rows_of(standings, {entry: who.what for entry, who in entries.items()})
    header = [column.replace("auto", rival) for column in COLUMNS]
    write_curves(settings.out / f"{name}.csv", curves)
    write_rows(settings.out / f"{name}-table.csv", header, table)
    draw(
        settings.out / f"{name}.csv",
        settings.out / f"{name}.png",
        f"{settings.model}, {settings.prompts} prompts, {len(settings.seeds)} seeds: median and span",
    )
    places = [COLUMNS.index(column) for column in SHOWN]
    display.table(
        f"{settings.model}: share of the best known hypervolume",
        [header[i] for i in places],
        [[row[i] for i in places] for row in table],
    )
    for suffix in (".csv", "-table.csv", ".png"):
        display.line(f"Wrote {settings.out / f'{name}{suffix}'}")
    if into is not None:
        put_table(into, markdown(header, table), name=name)
        display.line(f"Wrote the table into {into}")
    return standings
