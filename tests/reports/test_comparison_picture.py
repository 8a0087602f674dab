"""The picture of a comparison: our front in both panels, everybody else in one."""

from __future__ import annotations

import pytest

from schedsearch.errors import StudyError
from schedsearch_reports.comparison import comparison_figure, draw


def lines_of(axes):
    return {text.get_text() for text in axes.get_legend().get_texts()}


def test_ours_stand_beside_hand_made_schedules_and_beside_libraries(comparison):
    left, right = comparison_figure(comparison, "psnr").axes
    assert lines_of(left) == {"ours", "fewer steps, Euler"}
    assert lines_of(right) == {"ours", "diffusers FirstBlockCache"}
    assert left.get_ylabel() == "psnr (dB), more is better"


def test_bars_are_the_intervals(comparison):
    left, _ = comparison_figure(comparison, "psnr").axes
    ours = next(each for each in left.containers if each.get_label() == "ours")
    assert list(ours.lines[0].get_xdata()) == [2.1, 4.1]
    (bars,) = ours.lines[2]
    mean = comparison.rows[0].score("psnr").mean
    assert [tuple(point) for point in bars.get_segments()[0]] == [(2.1, mean.low), (2.1, mean.high)]


def test_an_error_is_better_where_it_is_less(comparison, tmp_path):
    left, _ = comparison_figure(comparison, "latent_error").axes
    assert left.get_ylabel() == "latent error, less is better"
    draw(comparison, tmp_path / "deep" / "x.png", "latent_error")
    assert (tmp_path / "deep" / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StudyError, match="metric: found 'fid'"):
        comparison_figure(comparison, "fid")
