"""The README's pictures and table, and the table of metrics, made from a run folder.

    python -m schedsearch_reports.figures runs/flux-mini-4x --pictures full=images/full 4x=images/4x \
        --out docs/images --readme README.md --metrics docs/metrics.md

Reads ``results.csv`` and folders of PNG files that `schedsearch generate` wrote; measures nothing.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schedsearch.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

BEGIN = "<!-- {}: begin -->"
END = "<!-- {}: end -->"
SCALE = 2
"""Pictures are shown this many times their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One row of ``results.csv``: a run, its measured speed-up, PSNR in dB and denoiser calls per image."""

    name: str
    kind: str
    calls: float
    speedup: float
    psnr_db: float
    latency_ms: float
    prompts: str
    device: str


def read_points(path: Path) -> list[Point]:
    """Returns the rows of a results table.

    Raises:
        UsageError: the file is missing, or is not a results table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Point(
                    name=row["run"],
                    kind=row["kind"],
                    calls=float(row["denoiser calls"]),
                    speedup=float(row["speedup"]),
                    psnr_db=float(row["PSNR dB"]),
                    latency_ms=float(row["latency ms"]),
                    prompts=row["prompts"],
                    device=row["device"],
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: found no results table ({error!r}), expected the results.csv of `schedsearch optimize`."
        ) from error


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points no other of them beats in both speed-up and PSNR, slowest first."""
    ordered = sorted(points, key=lambda p: (-p.speedup, -p.psnr_db))
    kept: list[Point] = []
    for point in ordered:
        if not kept or point.psnr_db > kept[-1].psnr_db:
            kept.append(point)
    return kept[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that are drawn alike and joined: a label, matplotlib's style, a colour, and ``(x, y, text)`` of each."""

    label: str
    style: str
    colour: str
    points: Sequence[tuple[float, float, str]]


def tradeoff_figure(series: Sequence[Series], *, title: str, x_label: str, y_label: str, legend: str = "") -> Figure:
    """Returns quality against speed, one line per series, with a few letters beside each point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for one in series:
        axes.plot([p[0] for p in one.points], [p[1] for p in one.points], one.style, color=one.colour, label=one.label)
        for x, y, text in one.points:
            axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 5), fontsize=7, color=one.colour)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(title=legend or None, title_fontsize=8, fontsize=9)
    return figure


OURS = ("searched schedules", "o-", "#c2410c")
PLAIN = ("fewer steps, default solver", "s--", "#475569")


def frontier_figure(points: Sequence[Point], title: str) -> Figure:
    """Returns PSNR against measured speed-up: the searched schedules and the plain pipeline with fewer steps."""
    series = [
        Series(
            label=label,
            style=style,
            colour=colour,
            points=[(p.speedup, p.psnr_db, f"{p.calls:g}") for p in front([p for p in points if p.kind == kind])],
        )
        for kind, (label, style, colour) in (("schedule", OURS), ("fewer steps", PLAIN))
    ]
    return tradeoff_figure(
        series,
        title=title,
        x_label="speed-up of the whole call, measured (x)",
        y_label="PSNR against the full run (dB)",
        legend="labels: denoiser calls",
    )


def side_by_side(rows: Mapping[str, Path]) -> Image:
    """Returns one picture: a row per folder with its label, a column per PNG file, matched by name.

    Raises:
        UsageError: a folder holds no PNG files, or other ones than the first.
    """
    from PIL import Image, ImageDraw, ImageFont

    files = {label: sorted(folder.glob("*.png")) for label, folder in rows.items()}
    names = [path.name for path in next(iter(files.values()))]
    for label, paths in files.items():
        if not paths or [path.name for path in paths] != names:
            raise UsageError(
                f"--pictures {label}: found {[p.name for p in paths]}, expected {names or 'PNG files'} as in the first "
                "folder. Generate all rows with the same prompts."
            )
    pictures = {label: [Image.open(p).convert("RGB") for p in paths] for label, paths in files.items()}
    width, height = (SCALE * side for side in next(iter(pictures.values()))[0].size)
    margin, gap = 64, 4
    sheet = Image.new("RGB", (margin + len(names) * (width + gap), len(rows) * (height + gap)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for y, (label, row) in enumerate(pictures.items()):
        draw.text((8, y * (height + gap) + height // 2 - 8), label, fill="black", font=font)
        for x, picture in enumerate(row):
            sheet.paste(
                picture.resize((width, height), Image.Resampling.NEAREST),
                (margin + x * (width + gap), y * (height + gap)),
            )
    return sheet


def table(points: Sequence[Point]) -> str:
    """Returns the results as a Markdown table, slowest first."""
    lines = ["| run | denoiser calls | measured speed-up | ms per image | PSNR dB |", "|---|---|---|---|---|"]
    for p in sorted(points, key=lambda p: p.speedup):
        if p.kind != "full":
            name = f"plain, {p.name}" if p.kind == "fewer steps" else f"**schedule {p.name}**"
            lines.append(f"| {name} | {p.calls:g} | {p.speedup:.2f}x | {p.latency_ms:.1f} | {p.psnr_db:.2f} |")
    first = points[0]
    lines += ["", f"Measured on {first.prompts.split(' sha256')[0]} prompts; {first.device}; float32; batch 1."]
    return "\n".join(lines)


def metrics_table(path: Path) -> str:
    """Returns PSNR and what metrics say that see through a network, run by run, as a Markdown table.

    Args:
        path: the results table.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["PSNR dB", *(name for name in rows[0] if name.endswith("]"))]
    heads = [name if name == "PSNR dB" else f"`{name}`" for name in names]
    lines = [f"| run | {' | '.join(heads)} |", "|---" * (1 + len(names)) + "|"]
    for row in rows:
        run = f"**schedule {row['run']}**" if row["kind"] == "schedule" else row["run"]
        lines.append(f"| {run} | {' | '.join(f'{round(float(row[name]), 4):.4g}' for name in names)} |")
    return "\n".join(lines)


def put_table(readme: Path, text: str, name: str = "results") -> None:
    """Replaces what stands between the two markers of ``readme`` that have this ``name``.

    Raises:
        UsageError: the markers are missing.
    """
    begin, end = BEGIN.format(name), END.format(name)
    content = readme.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1:
        raise UsageError(f"{readme}: found no place for the table, expected one line {begin} and one {end}.")
    before, rest = content.split(begin)
    after = rest.split(end)[1]
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _labelled(word: str) -> tuple[str, Path]:
    label, _, folder = word.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected LABEL=FOLDER")
    return label, Path(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes ``frontier.png`` and ``pictures.png``, and the tables into a README and a page of metrics."""
    parser = argparse.ArgumentParser(description="Make the README's figures and tables from a run folder.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", nargs="*", type=_labelled, default=[], metavar="LABEL=FOLDER")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--metrics", type=Path)
    options = parser.parse_args(arguments)
    points = read_points(options.run / "results.csv")
    options.out.mkdir(parents=True, exist_ok=True)
    title = f"{options.run.name}: held-out prompts, {points[0].device}"
    frontier_figure(points, title).savefig(options.out / "frontier.png", dpi=130)
    if options.pictures:
        side_by_side(dict(options.pictures)).save(options.out / "pictures.png")
    if options.readme is not None:
        put_table(options.readme, table(points))
    if options.metrics is not None:
        put_table(options.metrics, metrics_table(options.run / "results.csv"), "metrics")


if __name__ == "__main__":
    main()
