"""Peers of a comparison in the report: points, families that can be told apart, verdicts and absences as tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from schedsearch.study import (
    OURS,
    PLAIN,
    Absent,
    Comparison,
    Conditions,
    Family,
    Interval,
    Measure,
    Row,
    Score,
    Verdict,
    Version,
    write_comparison,
)
from schedsearch_reports import ReportData, render, report_data
from schedsearch_reports._peers import peers_of
from schedsearch_reports.sample import data_of_page


def row(family: str, setting: str, speedup: float, psnr: float) -> Row:
    return Row(
        family=family,
        setting=setting,
        schedule="",
        speedup=Interval(value=speedup, low=speedup - 0.25, high=speedup + 0.25),
        latency_ms=400.0 / speedup,
        work=0.5,
        scores=(Score(metric="psnr", mean=Interval(value=psnr, low=psnr - 1, high=psnr + 1), values=(psnr, psnr)),),
        ratios=(speedup, speedup, speedup),
        note="",
    )


def family(name: str, **fields: Any) -> Family:
    return Family(name=name, title=name.title(), source="peer", library="x", swept=2, **fields)


COMPARISON = Comparison(
    format="schedsearch.comparison", version=1, created_by="schedsearch 0", created="2026-01-02T03:04:05",
    command="schedsearch compare --model toy", seconds=1.0,
    conditions=Conditions(
        model="toy", weights="w", width=64, height=64, steps=4, batch=1, dtype="float32", device="2 cores",
        prompts="toy-held-out", prompts_sha256="ab", n_prompts=2, seed=0,
        versions=(Version(name="cache-dit", version="9"),),
    ),
    metrics=(Measure(name="psnr", unit="dB", better="max"),),
    budgets=(2.0, 4.0),
    families=(family(OURS), family(PLAIN), family("fora"), family("taylorseer"), family("gone")),
    rows=(
        row(OURS, "4.25x", 4.25, 27.0), row(PLAIN, "", 1.0, 100.0),
        row("fora", "n=3", 2.5, 20.0), row("fora", "n=2", 1.5, 25.0), row("taylorseer", "<i>o1</i>", 3.0, 26.0),
    ),
    absent=(Absent(family="gone", setting="", cause="not installed", reason="no such library"),),
    verdicts=(
        Verdict(
            budget=2.0, metric="psnr", outcome="behind", ours="4.25x", rival="taylorseer", setting="<i>o1</i>",
            lead=Interval(value=-1.5, low=-2.0, high=-1.0),
        ),
        Verdict(budget=4.0, metric="psnr", outcome="alone", ours="4.25x", rival="", setting="", lead=None),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(run_folder_made: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    file = tmp_path_factory.mktemp("comparison") / "comparison.json"
    write_comparison(COMPARISON, file)
    return report_data(run_folder_made, comparison=file)


def test_peers_are_points_and_ours_stay_those_of_the_study(data: ReportData):
    peers = [run for run in data.runs if run.kind == "peer"]
    assert [(run.family, run.name, run.value("speedup"), run.value("psnr")) for run in peers] == [
        ("fora", "n=2", 1.5, 25.0), ("fora", "n=3", 2.5, 20.0), ("taylorseer", "<i>o1</i>", 3.0, 26.0),
    ]  # fmt: skip
    psnr = peers[0].measured("psnr")
    assert psnr is not None
    assert (psnr.low, psnr.high, psnr.n) == (24.0, 26.0, 2)
    assert [run.name for run in data.runs if run.family == "schedule"] == ["2.00x", "4.25x", "4.25x-2"]
    assert len({run.key for run in data.runs}) == len(data.runs)


def test_families_are_told_apart(data: ReportData):
    looks = [(family.colour, family.symbol) for family in data.families]
    assert len(set(looks)) == len(looks)
    assert [family.name for family in data.families if family.colour == 0] == ["schedule"]


def test_a_verdict_may_go_against_us(data: ReportData):
    verdicts, absent = data.tables
    assert verdicts.rows == (
        ("2×", "behind", "4.25x", "Taylorseer", "<i>o1</i>", "-1.50 dB (-2.00 dB to -1.00 dB)"),
        ("4×", "alone", "4.25x", "", "", ""),
    )
    assert absent.rows == (("Gone", "all", "not installed", "no such library"),)
    assert dict(data.facts)["cache-dit"] == "9"


def test_more_families_than_colours_still_differ():
    names = [f"family{i}" for i in range(8)]
    many = dataclasses.replace(
        COMPARISON,
        families=tuple(map(family, names)),
        rows=tuple(row(name, "s", 2.0, 20.0) for name in names),
    )
    looks = [(family.colour, family.symbol) for family in peers_of(many).families]
    assert len(set(looks)) == 8


def test_the_page_carries_them_as_text(data: ReportData):
    page = render(data)
    assert data_of_page(page) == data
    assert "<i>o1</i>" not in page.partition("<script")[0]
