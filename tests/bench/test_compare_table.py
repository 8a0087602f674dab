"""What a comparison says in tables and sentences."""

from __future__ import annotations

import dataclasses

from schedsearch.bench._compare_table import (
    by_speed,
    csv_header,
    csv_rows,
    label,
    origin,
    reasons,
    report,
    sentences,
    settings_table,
    write_all,
)
from schedsearch.study import Measure, read_comparison


def test_the_table_has_every_family_at_the_speeds_it_reaches(comparison):
    header, rows = by_speed(comparison, comparison.metrics[0])
    assert header == ["PSNR dB at", "2x", "4x", "6x", "8x"]
    assert rows == [
        ["**ours**", "52.00", "31.00", "-", "-"],
        ["fewer steps, Euler", "42.17", "-", "-", "-"],
        ["diffusers FirstBlockCache", "36.17", "36.17", "21.00", "-"],
        ["ours minus the best other", "+9.83 [+9.50, +10.00]", "-5.17 [-5.50, -5.00]", "-", "-"],
    ]


def test_where_ours_lose_the_words_say_so(comparison):
    told = sentences(comparison, comparison.metrics[0])
    assert told == [
        "2x: ours lead by 9.83 dB [9.50, 10.00] over fewer steps, Euler (14 steps).",
        "4x: ours lose by 5.17 dB [5.00, 5.50] to diffusers FirstBlockCache (threshold 0.5).",
        "6x: ours lose to diffusers FirstBlockCache (threshold 1): nothing of ours is as fast.",
        "8x: nobody is as fast.",
    ]
    level = dataclasses.replace(comparison.verdicts[0], outcome="level", lead=dataclasses.replace(
        comparison.verdicts[0].lead, value=0.1, low=-0.2, high=0.4))  # fmt: skip
    (line,) = sentences(dataclasses.replace(comparison, verdicts=(level,)), comparison.metrics[0])
    assert line == "2x: ours and fewer steps, Euler (14 steps) cannot be told apart: +0.10 dB [-0.20, +0.40]."


def test_settings_of_other_libraries_are_shown_with_their_version(comparison):
    header, rows = settings_table(comparison, comparison.metrics[0])
    assert header == ["way", "version", "setting", "speed-up", "PSNR dB", "latent error"]
    assert [row[:3] for row in rows] == [
        ["diffusers FirstBlockCache", "0.42.1", "threshold 0.5"],
        ["diffusers FirstBlockCache", "0.42.1", "threshold 1 (by hand)"],
    ]
    assert rows[0][3] == "4.50x [4.40, 4.60]"


def test_what_is_missing_is_told_once_per_reason(comparison):
    assert reasons(comparison) == [
        "cache-dit DBCache + FoCa: failed; ValueError: not there yet.",
        "diffusers FirstBlockCache, 2 settings: failed; RuntimeError: no.",
    ]


def test_numbers_come_with_where_they_are_from(comparison):
    text = origin(comparison)
    assert "3 held-out prompts (toy-held-out sha256:abababab" in text
    assert "2 cores, float32, batch 1, 28 steps of 64x64; diffusers 0.42.1; 1.5 minutes in all" in text
    assert "The full run against itself: 1.00x [1.00, 1.00]" in text


def test_the_csv_has_every_row_and_says_what_stands_on_a_front(comparison):
    header, rows = csv_header(comparison), csv_rows(comparison)
    assert len(rows) == len(comparison.rows)
    assert all(len(row) == len(header) for row in rows)
    first = dict(zip(header, rows[0], strict=True))
    assert (first["setting"], first["PSNR dB"], first["work %"]) == ("ours-2x", "52", "50.00")
    assert first["on front"] == "psnr latent_error"


def test_names_of_metrics_are_readable():
    assert label(Measure(name="converged_ssim", unit="1", better="max")) == "converged SSIM"
    assert label(Measure(name="clip_score", unit="1", better="max")) == "clip score"


def test_all_files_are_written_and_the_readme_gets_the_tables(comparison, tmp_path, screen):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- compare: begin -->\nbefore\n<!-- compare: end -->\n")
    write_all(comparison, tmp_path, readme, screen)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md", "compare.csv", "compare.json", "compare.md", "compare.png",
    ]  # fmt: skip
    assert read_comparison(tmp_path / "compare.json").rows[0].setting == "ours-2x"
    assert report(comparison) in readme.read_text()
    assert "before" not in readme.read_text()
    assert "ours lose by 5.17 dB" in screen.text()


def test_without_ours_there_is_a_table_and_no_verdict(comparison):
    alone = dataclasses.replace(comparison, rows=comparison.rows[2:], verdicts=(), families=comparison.families[1:])
    assert "ours" not in report(alone)
