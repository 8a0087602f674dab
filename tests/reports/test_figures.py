"""The README's figures and table: what they are computed from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from schedsearch.errors import UsageError
from schedsearch_reports.figures import (
    Point,
    front,
    frontier_figure,
    main,
    read_points,
    side_by_side,
    table,
)

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

CSV = """run,kind,steps,denoiser calls,speedup,low,high,latency ms,macs %,PSNR dB,SSIM,latent error,id,prompts,device
full,full,28,28,1.00,1.00,1.00,400.0,100.0,100.00,1.0,0.0,,held-out sha256:ab,2 cores
4.10x,schedule,28,5,4.10,4.00,4.20,97.0,18.0,36.50,0.98,0.03,sha256:1,held-out sha256:ab,2 cores
5 steps,fewer steps,5,5,4.20,4.10,4.30,95.0,18.0,29.00,0.95,0.1,,held-out sha256:ab,2 cores
"""


def point(kind: str, speedup: float, psnr_db: float) -> Point:
    return Point(
        name=f"{speedup}x",
        kind=kind,
        calls=5,
        speedup=speedup,
        psnr_db=psnr_db,
        latency_ms=1.0,
        prompts="p",
        device="d",
    )


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "flux-mini-4x"
    folder.mkdir()
    (folder / "results.csv").write_text(CSV)
    return folder


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def test_the_front_keeps_what_nothing_else_beats() -> None:
    points = [point("schedule", 2.0, 40.0), point("schedule", 3.0, 41.0), point("schedule", 4.0, 30.0)]
    assert [p.speedup for p in front(points)] == [3.0, 4.0]


def test_the_figure_shows_both_series() -> None:
    points = [point("schedule", 4.0, 36.0), point("schedule", 2.0, 45.0), point("fewer steps", 4.0, 29.0)]
    (axes,) = frontier_figure(points, "title").axes
    searched, plain = axes.lines
    assert list(searched.get_xdata()) == [2.0, 4.0]
    assert list(plain.get_ydata()) == [29.0]


def test_the_table_names_every_run_but_the_full_one(run_folder: Path) -> None:
    text = table(read_points(run_folder / "results.csv"))
    assert text.splitlines()[2:4] == [
        "| **schedule 4.10x** | 5 | 4.10x | 97.0 | 36.50 |",
        "| plain, 5 steps | 5 | 4.20x | 95.0 | 29.00 |",
    ]
    assert text.endswith("Measured on held-out prompts; 2 cores; float32; batch 1.")


def test_pictures_stand_side_by_side(tmp_path: Path) -> None:
    rows = {name: pictures(tmp_path / name, "000-a.png", "001-b.png") for name in ("full", "4x")}
    assert side_by_side(rows).size == (64 + 2 * 20, 2 * 20)


def test_rows_of_other_pictures_are_refused(tmp_path: Path) -> None:
    rows = {"full": pictures(tmp_path / "full", "000-a.png"), "4x": pictures(tmp_path / "4x", "000-b.png")}
    with pytest.raises(UsageError, match=r"--pictures 4x: found \['000-b.png'\], expected \['000-a.png'\]"):
        side_by_side(rows)


def test_the_program_writes_figures_and_the_readmes_table(run_folder: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    full = pictures(tmp_path / "full", "000-a.png")
    out = tmp_path / "images"
    main([str(run_folder), "--out", str(out), "--readme", str(readme), "--pictures", f"full={full}"])
    assert sorted(p.name for p in out.iterdir()) == ["frontier.png", "pictures.png"]
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| run |")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text


def test_metrics_that_see_through_a_network_have_a_table(run_folder: Path, tmp_path: Path) -> None:
    extra = ("clip[n],kid[n]", "77.375,3.5e-15", "78.5,0.0123456", "79,-0.25")
    lines = (run_folder / "results.csv").read_text().splitlines()
    text = "\n".join(f"{line},{more}" for line, more in zip(lines, extra, strict=True))
    (run_folder / "results.csv").write_text(text)
    page = tmp_path / "metrics.md"
    page.write_text("<!-- metrics: begin -->\nold\n<!-- metrics: end -->\n")
    main([str(run_folder), "--out", str(tmp_path), "--metrics", str(page)])
    assert page.read_text().splitlines()[1:-1] == [
        "| run | PSNR dB | `clip[n]` | `kid[n]` |",
        "|---|---|---|---|",
        "| full | 100 | 77.38 | 0 |",
        "| **schedule 4.10x** | 36.5 | 78.5 | 0.0123 |",
        "| 5 steps | 29 | 79 | -0.25 |",
    ]


def test_a_readme_without_markers_is_left_alone(run_folder: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(UsageError, match="found no place for the table"):
        main([str(run_folder), "--out", str(tmp_path), "--readme", str(readme)])
    assert readme.read_text() == "no place"


def test_what_is_no_results_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="found no results table"):
        read_points(tmp_path / "results.csv")
