"""Which setting goes on to the held-out prompts, which one counts for a speed, and what the table says of it."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from schedsearch.bench import FAMILIES, SpeedSettings
from schedsearch.bench._speeds_table import OURS, SpeedRow, best_at, comparison, note_of, write_csv
from schedsearch.bench._sweep import Entry, chosen, in_turns
from schedsearch.bench._tables import markdown
from schedsearch.errors import UsageError


def entry(schedule, family, speedup, score):
    plan = dataclasses.replace(schedule, sigma=(*schedule.sigma[:-1], 1e-4 * speedup))
    return Entry(family=family, setting=f"{speedup}", schedule=plan, speedup=speedup, score=score)


def row(family, speedup, psnr, **fields):
    numbers = {"calls": 5.0, "latency_ms": 10.0, "ssim": 0.9, "latent_error": 0.1, "converged_psnr": 30.0}
    numbers |= {"low": speedup - 0.1, "high": speedup + 0.1, "setting": "s", "id": f"sha256:{speedup}"}
    return SpeedRow(family=family, speedup=speedup, psnr=psnr, **{**numbers, **fields})


def settings_of(entries):
    return [(e.family, e.setting) for e in entries]


def test_the_best_beyond_each_speed_goes_on(schedule):
    entries = [entry(schedule, "fora", speed, score) for speed, score in ((2.0, 30.0), (2.5, 29.0), (4.2, 25.0))]
    kept = chosen(entries, speeds=(2.0, 3.0, 4.0), leeways=(1.0,))
    assert settings_of(kept) == [("fora", "2.0"), ("fora", "4.2")]


def test_a_prediction_just_beyond_the_speed_is_backed_up(schedule):
    """2.05 may be measured at 1.98, so the best beyond 1.08 x 2 is measured, too."""
    entries = [entry(schedule, "fora", speed, score) for speed, score in ((2.05, 30.0), (2.1, 29.0), (2.2, 28.0))]
    assert settings_of(chosen(entries, speeds=(2.0,))) == [("fora", "2.05"), ("fora", "2.2")]


def test_families_do_not_compete_before_they_are_measured(schedule):
    entries = [entry(schedule, "fora", 2.0, 30.0), entry(schedule, "euler", 2.0, 20.0)]
    assert settings_of(chosen(entries, speeds=(2.0,))) == [("fora", "2.0"), ("euler", "2.0")]


def test_of_equal_scores_the_faster_goes_on_and_what_has_none_does_not(schedule):
    entries = [
        entry(schedule, "fora", 2.0, 30.0),
        entry(schedule, "fora", 3.0, 30.0),
        entry(schedule, "fora", 9.0, None),
    ]
    assert settings_of(chosen(entries, speeds=(2.0, 8.0))) == [("fora", "3.0")]


def test_a_sweep_that_is_ended_early_has_seen_a_little_of_everything(schedule):
    entries = [entry(schedule, family, speed, None) for family in ("fora", "euler") for speed in (5.0, 2.0, 3.0, 4.0)]
    assert settings_of(in_turns(entries)) == [
        ("fora", "2.0"), ("euler", "2.0"), ("fora", "4.0"), ("euler", "4.0"),
        ("fora", "3.0"), ("euler", "3.0"), ("fora", "5.0"), ("euler", "5.0"),
    ]  # fmt: skip
    assert in_turns([]) == []


ROWS = (
    row(OURS, 2.1, 45.0),
    row(OURS, 4.2, 38.0),
    row("fora", 2.0, 41.0),
    row("fora", 1.99, 50.0),
    row("euler", 4.0, 39.5),
    row("euler", 8.5, 20.0),
)
TITLES = {"euler": "fewer steps, Euler", "fora": "FORA", "bayes": "search: bayes"}


def test_a_row_counts_for_a_speed_only_if_measured_to_reach_it():
    assert best_at(ROWS, "fora", 2.0) == ROWS[2]
    assert best_at(ROWS, "fora", 3.0) is None
    assert best_at(ROWS, OURS, 2.0) == ROWS[0]


def test_faster_schedules_count_for_lower_speeds():
    assert best_at([row("fora", 2.0, 30.0), row("fora", 4.0, 35.0)], "fora", 2.0).psnr == 35.0


def test_the_table_ends_with_the_difference_and_says_where_we_lose():
    found = comparison(ROWS, TITLES, speeds=(2.0, 4.0, 8.0, 9.0))
    assert markdown(found.header, found.rows).splitlines() == [
        "| PSNR dB at | 2x | 4x | 8x | 9x |",
        "|---|--:|--:|--:|--:|",
        "| **ours** | 45.00 | 38.00 | - | - |",
        "| fewer steps, Euler | 39.50 | 39.50 | 20.00 | - |",
        "| FORA | 41.00 | - | - | - |",
        "| ours minus the best other | +4.00 | -1.50 | - | - |",
    ]
    assert note_of(found) == (
        "Ours lose at 4x by 1.50 dB to fewer steps, Euler; at 8x to fewer steps, Euler, with nothing of ours as fast. "
        "Nobody reaches 9x."
    )


def test_where_only_ours_are_as_fast_nothing_is_lost():
    found = comparison([row(OURS, 8.1, 30.0), row("fora", 2.0, 41.0)], TITLES, speeds=(8.0,))
    assert found.rows[-1] == ("ours minus the best other", "-")
    assert note_of(found) == "Ours lose nowhere."


def test_every_measured_row_is_written(tmp_path):
    write_csv(tmp_path / "speeds.csv", ROWS[:1], {OURS: OURS})
    (read,) = csv.DictReader((tmp_path / "speeds.csv").read_text().splitlines())
    assert (read["family"], read["speedup"], read["low"], read["high"]) == (OURS, "2.1000", "2.0000", "2.2000")
    assert (read["PSNR dB"], read["SSIM"], read["latent error"], read["converged PSNR dB"], read["id"]) == (
        "45.0000", "0.900000", "0.100000", "30.0000", "sha256:2.1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"families": ("foora",)}, "--only: found 'foora', expected some of euler"),
        ({"prompts": 0}, "--prompts: found 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        SpeedSettings(model="m", frontier=Path("f"), out=Path("o"), **fields)


def test_every_family_has_one_source():
    for family in FAMILIES.values():
        assert sum((family.make is not None, family.make_probed is not None, family.search != "")) == 1
    assert "auto" not in FAMILIES
