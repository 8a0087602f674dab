"""The record of a comparison as a file, and what follows from its numbers: fronts, intervals and verdicts."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import StudyError
from schedsearch.study import (
    Comparison,
    Measure,
    front,
    mean_of,
    median_of,
    read_comparison,
    rows_on_front,
    verdict,
    write_comparison,
)
from schedsearch.study._tree import decoded, encoded

PSNR = Measure(name="psnr", unit="dB", better="max")
ERROR = Measure(name="latent_error", unit="1", better="min")


# ---- the file


def test_a_file_gives_back_what_was_written(comparison, tmp_path):
    write_comparison(comparison, tmp_path / "compare.json")
    read = read_comparison(tmp_path / "compare.json")
    assert read == decoded(Comparison, json.loads(json.dumps(encoded(comparison))))
    assert read.rows[0].score("psnr").values == comparison.rows[0].score("psnr").values
    assert read.verdicts[0].lead.value == pytest.approx(comparison.verdicts[0].lead.value, rel=1e-5)
    write_comparison(read, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "compare.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["rows"][0].update(extra=1), r"rows\[0\].extra: found an unknown key, expected some of family"),
        (lambda d: d["rows"][1].pop("work"), r"rows\[1\].work: found nothing, expected this key"),
        (lambda d: d["rows"][0]["speedup"].update(low="2"), r"rows\[0\].speedup.low: found '2', expected a finite"),
        (lambda d: d["rows"][0]["speedup"].update(low=True), r"rows\[0\].speedup.low: found True, expected a finite"),
        (lambda d: d["rows"][0].update(ratios=3.0), r"rows\[0\].ratios: found 3.0, expected a list"),
        (
            lambda d: d["absent"][0].update(cause="bad luck"),
            r"absent\[0\].cause: found 'bad luck', expected one of not",
        ),
        (lambda d: d["conditions"].update(steps=28.5), r"conditions.steps: found 28.5, expected a whole number"),
        (lambda d: d.update(rows={}), r"rows: found \{\}, expected a list"),
        (lambda d: d.update(conditions=[]), r"conditions: found \[\], expected an object"),
        (
            lambda d: d.update(version=2),
            "found another kind of file, expected format schedsearch.comparison, version 1",
        ),
    ],
)
def test_a_changed_file_is_refused_with_the_place(comparison, tmp_path, change, message):
    document = json.loads(json.dumps(encoded(comparison)))
    change(document)
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(document))
    with pytest.raises(StudyError, match=rf"compare.json: {message}"):
        read_comparison(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "NaN"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(StudyError, match=r"x\.json: found"):
        read_comparison(tmp_path / "x.json")
    with pytest.raises(StudyError, match="found no comparison"):
        read_comparison(tmp_path / "missing.json")


def test_no_number_that_json_lacks_is_written(comparison, tmp_path):
    broken = dataclasses.replace(comparison, seconds=math.inf)
    with pytest.raises(ValueError, match="Out of range float"):
        write_comparison(broken, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_questions_about_what_is_not_there_name_what_is(comparison):
    with pytest.raises(StudyError, match="family: found 'fora', expected one of ours, plain, euler"):
        comparison.family("fora")
    with pytest.raises(StudyError, match="metric: found 'fid', expected one of psnr, latent_error"):
        comparison.measure("fid")
    with pytest.raises(StudyError, match="metric: found 'fid', expected one of psnr, latent_error"):
        comparison.rows[0].score("fid")


# ---- fronts


def test_a_front_holds_what_nothing_beats():
    speeds, psnr = [1.0, 2.0, 2.0, 3.0, 4.0], [50.0, 40.0, 41.0, 42.0, 10.0]
    assert front(speeds, psnr, "max") == (0, 3, 4)
    assert front(speeds, [-value for value in psnr], "min") == (0, 3, 4)
    assert front([], [], "max") == ()


@given(st.lists(st.tuples(st.floats(1, 10), st.floats(10, 60)), min_size=1, max_size=12))
def test_every_point_off_the_front_is_beaten_by_one_on_it(points):
    speeds, quality = zip(*points, strict=True)
    on = front(speeds, quality, "max")
    assert list(on) == sorted(on, key=lambda i: speeds[i])
    for i, (speed, value) in enumerate(points):
        beaten = any(speeds[j] >= speed and quality[j] >= value for j in on)
        assert beaten, (i, on)
        strictly = any(s >= speed and q >= value and (s > speed or q > value) for s, q in points)
        assert (i in on) <= (not strictly)


def test_rows_stand_on_the_front_of_their_metric(comparison):
    assert [row.setting for row in rows_on_front(comparison.rows_of("ours"), PSNR)] == ["ours-2x", "ours-4x"]
    slow = dataclasses.replace(comparison.rows[0], speedup=comparison.rows[1].speedup)
    assert rows_on_front((slow, comparison.rows[1]), ERROR) == (slow,)


# ---- intervals


def test_an_interval_of_equal_numbers_has_no_width():
    found = mean_of((3.0,) * 5)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_an_interval_of_two_numbers_spans_both():
    """Their resampled mean is either of them with a probability of one in four each, far more than the tails."""
    found = mean_of((0.0, 1.0))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_a_long_row_of_numbers_has_the_interval_of_its_standard_error():
    values = [math.sin(1000.0 * i) for i in range(400)]
    mean = sum(values) / 400
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 400) / math.sqrt(400)
    found = mean_of(values)
    assert found.value == pytest.approx(mean)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_one_disturbed_prompt_does_not_move_the_median():
    found = median_of((2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.1))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


# ---- verdicts


def test_ours_lead_where_the_interval_is_above_nothing(comparison):
    found = verdict(comparison.rows, PSNR, 2.0)
    assert (found.outcome, found.ours, found.rival, found.setting) == ("ahead", "ours-2x", "euler", "14 steps")
    assert found.lead.value == pytest.approx((10.0 + 10.0 + 9.5) / 3)
    assert (found.lead.low, found.lead.high) == (9.5, 10.0)


def test_ours_lose_where_another_is_better(comparison):
    found = verdict(comparison.rows, PSNR, 4.0)
    assert (found.outcome, found.ours, found.rival) == ("behind", "ours-4x", "diffusers-fbc")
    assert found.lead.value == pytest.approx(-(5.0 + 5.0 + 5.5) / 3)
    assert found.lead.high < 0.0


def test_ours_lose_where_nothing_of_ours_is_as_fast(comparison):
    found = verdict(comparison.rows, PSNR, 6.0)
    assert (found.outcome, found.ours, found.rival, found.lead) == ("out of reach", "", "diffusers-fbc", None)


def test_nobody_wins_where_nobody_is_as_fast(comparison):
    assert verdict(comparison.rows, PSNR, 8.0).outcome == "nobody"


def test_ours_are_alone_where_only_ours_are_as_fast(comparison):
    ours = comparison.rows_of("ours")
    assert verdict((*ours, *comparison.rows_of("euler")), PSNR, 4.0).outcome == "alone"


def test_a_difference_that_may_be_chance_is_called_level(make_row):
    rows = (
        make_row("ours", "a", (2.0,) * 4, (40.0, 41.0, 39.0, 40.0)),
        make_row("fora", "b", (2.0,) * 4, (41.0, 40.0, 40.0, 39.0)),
    )
    found = verdict(rows, PSNR, 2.0)
    assert found.outcome == "level"
    assert found.lead.low < 0.0 < found.lead.high


def test_for_an_error_less_is_better(comparison):
    found = verdict(comparison.rows, ERROR, 2.0)
    assert (found.outcome, found.rival) == ("ahead", "euler")
    assert found.lead.value == pytest.approx(sum(1 / e - 1 / o for e, o in ((40, 50), (42, 52), (44.5, 54))) / 3)


def test_the_full_run_itself_is_no_rival(comparison):
    """It is what everything is compared with: bit for bit at its own speed."""
    assert verdict(comparison.rows, PSNR, 1.0).rival == "euler"


def test_a_schedule_that_misses_the_speed_does_not_count(make_row):
    rows = (make_row("ours", "a", (1.9, 1.95, 1.99), (60.0,) * 3), make_row("fora", "b", (2.0,) * 3, (30.0,) * 3))
    assert verdict(rows, PSNR, 2.0).outcome == "out of reach"


def test_there_are_no_verdicts_without_ours(comparison):
    from schedsearch.study import verdicts

    assert verdicts(comparison.rows_of("euler"), (PSNR,), (2.0,)) == ()
    assert len(comparison.verdicts) == 2 * 4
