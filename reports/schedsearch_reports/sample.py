"""Makes ``reports/sample/report.html`` again: of a run, or of the data in the page that is there.

    python -m schedsearch_reports.sample reports/sample/report.html              # after a change of the page
    python -m schedsearch_reports.sample reports/sample/report.html --run runs/flux-mini-4x

A page carries its data, so a committed page is its own gold file: what it says stays, how it is shown may change.
"""

from __future__ import annotations

import argparse
import json
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from schedsearch.errors import UsageError
from schedsearch_reports._build import report_data
from schedsearch_reports._data import ReportData
from schedsearch_reports._page import write_report

T = TypeVar("T")

_BEGIN, _END = '<script type="application/json" id="data">', "</script>"


def data_of_page(text: str) -> ReportData:
    """Return the data that a page was made of.

    Raises:
        UsageError: the text is no such page, or one of another release.
    """
    before, found, rest = text.partition(_BEGIN)
    if not found:
        raise UsageError(f"page: found {before[:40]!r}, expected a report of this program.")
    try:
        return cast("ReportData", _record(ReportData, json.loads(rest.partition(_END)[0])))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"page: found the data of another release ({type(error).__name__}: {error}). Make the page from its run."
        ) from error


def _record(kind: Any, value: Any) -> Any:
    """``value`` as a ``kind``: dataclasses, tuples, literals, optional ones and plain values."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return cast("Any", kind)(
            **{field.name: _record(hints[field.name], value[field.name]) for field in fields(kind)}
        )
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_record(each, item) for each, item in zip(kinds, value, strict=True))
    if origin in (Union, types.UnionType):
        rest = next(each for each in inner if each is not type(None))
        return None if value is None else _record(rest, value)
    if origin is Literal and value not in inner:
        raise ValueError(f"{value!r} is none of {inner}")
    return value if origin is Literal else kind(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Make the committed sample of a report again.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--run", type=Path, help="take the data from this run instead of from the page")
    options = parser.parse_args(arguments)
    data = report_data(options.run) if options.run else data_of_page(options.page.read_text(encoding="utf-8"))
    write_report(data, options.page)


if __name__ == "__main__":
    main()
