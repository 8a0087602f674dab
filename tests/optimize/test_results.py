"""Which results are handed over: the choice for a budget, and the frontier after scoring on fresh prompts."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from schedsearch.optimize._results import HEADER, Result, choose, further, rows, undominated, write_table
from schedsearch.schedule import Measurement, Schedule, parse_budget

UNITS = {"speedup": "x", "latency_ms": "ms", "macs_fraction": "1", "psnr": "dB", "ssim": "1", "latent_error": "1",
         "converged_psnr": "dB"}  # fmt: skip


def result(schedule: Schedule | None, name: str, speedup: float, psnr: float = 30.0) -> Result:
    values = {
        "speedup": speedup,
        "latency_ms": 400.0 / speedup,
        "macs_fraction": 1.0 / speedup,
        "psnr": psnr,
        "ssim": 0.9,
        "latent_error": 0.1,
        "converged_psnr": psnr - 1.0,
    }
    measured = tuple(
        Measurement(metric=m, unit=UNITS[m], better="max", value=v, low=v, high=v, n=10) for m, v in values.items()
    )
    kind = "fewer steps" if schedule is None else "schedule"
    return Result(name=name, kind=kind, steps=5, denoiser_calls=5, measured=measured, schedule=schedule)


@pytest.mark.parametrize(
    ("budget", "name"), [("4x", "b"), ("100ms", "b"), ("25%macs", "b"), ("3x", "a"), ("5x", "c"), ("9x", None)]
)
def test_the_best_score_within_the_budget_is_chosen(schedule: Schedule, budget: str, name: str | None) -> None:
    results = [result(schedule, n, s) for n, s in (("a", 3.5), ("b", 4.0), ("c", 6.0))]
    results.append(result(None, "5 steps", 8.0))
    chosen = choose(results, parse_budget(budget), {"a": (40.0,), "b": (35.0,), "c": (30.0,)})
    assert (chosen.name if chosen else None) == name


def test_the_score_decides_and_not_the_held_out_number(schedule: Schedule) -> None:
    results = [result(schedule, "a", 4.0, psnr=30.0), result(schedule, "b", 4.0, psnr=50.0)]
    chosen = choose(results, parse_budget("4x"), {"a": (36.0,), "b": (35.0,)})
    assert chosen is not None
    assert chosen.name == "a"


@pytest.mark.parametrize("budget", ["4x", "100ms", "25%macs"])
def test_a_lucky_draw_does_not_ship(schedule: Schedule, budget: str) -> None:
    """Slower than another, and worse than it on prompts the search has not seen."""
    results = [result(schedule, n, s) for n, s in (("fine", 2.0), ("lucky", 3.0), ("fast", 4.5))]
    scores = {"fine": (45.0,), "lucky": (36.0,), "fast": (37.0,)}
    kept = undominated([*results, result(None, "9 steps", 9.0)], parse_budget(budget), scores)
    assert [r.name for r in kept] == ["fine", "fast"]


def test_equals_both_stay(schedule: Schedule) -> None:
    results = [result(schedule, "a", 4.0), result(schedule, "b", 4.0)]
    assert len(undominated(results, parse_budget("4x"), {"a": (30.0,), "b": (30.0,)})) == 2


def test_of_several_qualities_the_first_decides_and_all_count_for_the_frontier(schedule: Schedule) -> None:
    results = [result(schedule, n, s) for n, s in (("a", 4.0), ("b", 4.2), ("c", 4.1))]
    scores = {"a": (36.0, 70.0), "b": (36.0, 80.0), "c": (35.0, 90.0)}
    chosen = choose(results, parse_budget("4x"), scores)
    assert chosen is not None
    assert chosen.name == "b"
    assert [r.name for r in undominated(results, parse_budget("4x"), scores)] == ["b", "c"]


def test_a_further_metric_has_a_column_of_its_own(schedule: Schedule, tmp_path: Path) -> None:
    more = Measurement(metric="clip[net]", unit="1", better="max", value=71.25, low=60.0, high=80.0, n=10)
    with_it, without = result(schedule, "a", 4.0), result(None, "5 steps", 5.0)
    with_it = replace(with_it, measured=(*with_it.measured, more))
    assert further([without, with_it]) == ("clip[net]",)
    write_table(tmp_path / "t.csv", [with_it, without])
    written = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [row["clip[net]"] for row in written] == ["71.25", ""]
    assert [row["PSNR dB"] for row in written] == ["30.00", "30.00"]


def test_rows_hold_the_columns_asked_for(schedule: Schedule) -> None:
    (whole,) = rows([result(schedule, "4.00x", 4.0)])
    assert dict(zip(HEADER, whole, strict=True))["macs %"] == "25.0"
    assert dict(zip(HEADER, whole, strict=True))["converged PSNR dB"] == "29.00"
    assert rows([result(schedule, "4.00x", 4.0)], ("PSNR dB", "run")) == [["30.00", "4.00x"]]


def test_plain_runs_have_no_schedule_to_stamp() -> None:
    with pytest.raises(ValueError, match="7 steps is a plain run, without a schedule"):
        _ = result(None, "7 steps", 3.0).stamped
