"""The verb that makes a report anew from what a search wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schedsearch import _terminal
from schedsearch.cli_options import Json


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Output folder of `schedsearch optimize`, or the study's file in it.")
    ],
    *,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page.", show_default="RUN/report.html")] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Also draw the frontier as FILE.png and FILE.svg, without a browser.")
    ] = False,
    comparison: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Peers to draw in, as `schedsearch compare` writes them."),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `schedsearch sensitivity` wrote.", show_default="RUN/sensitivity.json"),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the study is kept, if not in the folder.")
    ] = None,
    study: Annotated[str, typer.Option(metavar="NAME", help="The study's name, if the storage holds several.")] = "",
    as_json: Json = False,
) -> None:
    """Make the report of a search again, as one HTML file that needs no network."""
    from schedsearch_reports import report_data, write_report, write_stills

    data = report_data(run, storage=storage, name=study, comparison=comparison, sensitivity=sensitivity)
    folder = run.parent if run.is_file() else run
    page = write_report(data, out or folder / "report.html")
    written = (page, *(write_stills(data, page) if png else ()))
    if as_json:
        _terminal.print_json("report", written=written)
    elif _terminal.talk_of() > _terminal.Talk.QUIET:
        for path in written:
            typer.echo(f"Wrote {path}")
