"""Pictures of the bench's tables: what they show, and what is refused."""

from __future__ import annotations

import pytest

from schedsearch.errors import UsageError
from schedsearch_reports.contest import (
    COLOURS,
    curves_figure,
    draw,
    draw_speeds,
    read_runs,
    read_speeds,
    speeds_figure,
    volume_at,
)

CURVES = """searcher,seed,evals,seconds,volume
auto,0,10,1.0,0.5
auto,0,30,2.0,1.0
auto,1,20,1.0,0.7
ecad,0,100,9.0,0.4
"""

SPEEDS = """family,title,setting,denoiser calls,speedup,latency ms,PSNR dB,id
ours,ours,4.1x,6,4.1,90.0,40.0,sha256:1
fora,FORA,N=4 E=1,7,3.9,95.0,30.0,sha256:2
fora,FORA,N=5 E=1,6,3.8,95.0,28.0,sha256:3
"""


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "search.csv").write_text(CURVES)
    (tmp_path / "speeds.csv").write_text(SPEEDS)
    return tmp_path


def test_runs_are_grouped_by_searcher(tables):
    runs = read_runs(tables / "search.csv")
    assert runs == {"auto": [[(10.0, 0.5), (30.0, 1.0)], [(20.0, 0.7)]], "ecad": [[(100.0, 0.4)]]}
    assert [volume_at(runs["auto"][0], e) for e in (9, 10, 40)] == [0.0, 0.5, 1.0]


def test_a_curve_is_the_median_and_the_best_comes_first(tables):
    (axes,) = curves_figure(read_runs(tables / "search.csv"), "title").axes
    auto, ecad = axes.lines
    assert (auto.get_label(), ecad.get_label()) == ("auto", "ecad")
    # seeds at 10, 20 and 25 (the median end): 0.5 and nothing, 0.5 and 0.7, the same
    assert list(auto.get_xdata()) == [10.0, 20.0, 25.0]
    assert list(auto.get_ydata()) == pytest.approx([0.25, 0.6, 0.6])


def test_families_show_their_fronts_and_ours_stands_out(tables):
    (axes,) = speeds_figure(read_speeds(tables / "speeds.csv"), "title", ours="ours").axes
    fora, ours = axes.lines
    assert list(fora.get_xdata()) == [3.9]  # the other is slower and worse
    assert (ours.get_label(), ours.get_color()) == ("ours", COLOURS[0])
    assert fora.get_color() != COLOURS[0]
    assert ours.get_linewidth() > fora.get_linewidth()


def test_many_families_are_told_apart():
    from schedsearch_reports.figures import Point

    point = Point(name="s", kind="f", calls=5, speedup=2.0, psnr_db=30.0, latency_ms=1.0, prompts="", device="")
    (axes,) = speeds_figure({f"family {i}": [point] for i in range(16)}, "title", ours="ours").axes
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 17


def test_pictures_are_written(tables):
    draw(tables / "search.csv", tables / "out" / "search.png", "t")
    draw_speeds(tables / "speeds.csv", tables / "out" / "speeds.png", "t", ours="ours")
    assert sorted(p.name for p in (tables / "out").iterdir()) == ["search.png", "speeds.png"]


@pytest.mark.parametrize(("read", "verb"), [(read_runs, "search"), (read_speeds, "speeds")])
def test_other_tables_are_refused(tmp_path, read, verb):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for name in ("t.csv", "none.csv"):
        with pytest.raises(UsageError, match=f"`schedsearch bench {verb}` writes"):
            read(tmp_path / name)
