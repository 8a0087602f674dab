"""From `ReportData` to one HTML file that holds everything it shows: styles, scripts, pictures, files.

Whatever a study or a prompt says is text here, never markup: the template escapes, the data lie in a JSON element whose
``<`` are escaped, and a policy in the page lets the browser run the page's own scripts only, by their hashes, and load
nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path

from schedsearch import __version__
from schedsearch.schedule import write_atomically
from schedsearch_reports._data import Metric, ReportData, Run
from schedsearch_reports._metrics import metric_of

SCRIPTS = (
    "plot.min.js", "base.js", "frontier.js", "pictures.js", "schedule.js", "search.js", "main.js",
)  # fmt: skip
PLOT_LIBRARY = "Observable Plot 0.6.17 (ISC)"


def render(data: ReportData) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(_static("templates/report.html"))
    scripts = [_static(f"static/{name}") for name in SCRIPTS]
    quality = next((m for m in data.metrics if m.name == data.metric), metric_of(data.metric, "", "max"))
    return template.render(
        data=data,
        style=_static("static/report.css"),
        scripts=scripts,
        policy=_policy(scripts),
        document=document_text(data),
        generator=f"schedsearch {__version__}",
        plot_library=PLOT_LIBRARY,
        qualities=[m for m in data.metrics if m.axis == "quality"],
        speeds=[m for m in data.metrics if m.axis == "speed"],
        quality=quality,
        families={family.name: family.label for family in data.families},
        minutes=_duration(data.search.seconds),
        cell=_cell,
        number=_number,
    )


def write_report(data: ReportData, path: Path) -> Path:
    """Write the page to ``path``, as a whole or not at all; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(data).encode())
    return path


def document_text(data: ReportData) -> str:
    """Return the data as JSON that cannot end the element it stands in."""
    text = json.dumps(_finite(asdict(data)), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _finite(value: object) -> object:
    """``value`` with what JSON has no word for as ``None``."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@cache
def _static(name: str) -> str:
    return files("schedsearch_reports").joinpath(name).read_text("utf-8")


def _policy(scripts: list[str]) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    loaded = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    return f"{loaded}; base-uri 'none'; form-action 'none'"


def _number(metric: Metric, value: float) -> str:
    return f"{value * metric.scale:,.{metric.digits}f}"


def _cell(run: Run, metric: Metric) -> object:
    """A number, and its interval below it."""
    from markupsafe import Markup

    value = run.measured(metric.name)
    if value is None or (run.kind == "full" and metric.is_relative):
        return ""
    text = _number(metric, value.value)
    if value.low == value.high:
        return text
    return Markup("{} <small>{}–{}</small>").format(text, _number(metric, value.low), _number(metric, value.high))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
