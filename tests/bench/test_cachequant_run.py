"""The joint experiment, whole, on the bundled model with six steps; that it goes on, and what it says."""

from __future__ import annotations

import csv

import pytest

from schedsearch.bench import CacheQuantRow, CacheQuantSettings, run_cachequant
from schedsearch.bench import _cachequant as module
from schedsearch.errors import UsageError
from schedsearch.schedule import corrections, read_schedule


def row(format_, computed, plan, errors, cost=1.0):
    return CacheQuantRow(format=format_, computed=computed, plan=plan, mask="CR", cost=cost, errors=errors)


@pytest.mark.slow
def test_it_measures_writes_and_goes_on(six_steps, haste, screen, tmp_path, monkeypatch):
    from schedsearch.optimize import _bench

    monkeypatch.setattr(_bench, "BATCH", 4)
    document = tmp_path / "page.md"
    document.write_text("# Page\n<!-- cachequant: begin -->\n<!-- cachequant: end -->\n")
    settings = CacheQuantSettings(
        model=str(six_steps), out=tmp_path / "out", formats=("W8A8",), computed=(3, 2), prompts=2, held_out=2,
        into=document,
    )  # fmt: skip
    rows = run_cachequant(settings, screen)
    assert [(r.computed, r.plan) for r in rows] == [(n, plan) for n in (3, 2) for plan in module.PLANS]
    assert all(r.mask.count("C") == r.computed and len(r.mask) == 6 for r in rows)
    assert all(len(r.errors) == 3 and min(r.errors) > 0.0 for r in rows)
    with (settings.out / "cachequant.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["error, corrected: none"]) for line in table] == [r.errors[0] for r in rows]
    assert "| W8A8 | 3 | joint DP |" in document.read_text()
    assert "Rank correlation of the joint sums" in document.read_text()
    kept = [read_schedule(path) for path in settings.out.glob("W8A8-*.json")]
    assert kept
    assert all(list(corrections(schedule)) == ["model"] for schedule in kept)
    for name in ("measure_probe", "correct_rows", "correct_layers", "LatentErrors"):
        monkeypatch.setattr(module, name, None)  # nothing is measured again
    assert run_cachequant(settings, screen) == rows


def test_the_summary_says_who_is_ahead():
    rows = [
        row("W8A8", 7, module.UNIFORM, (0.20, 0.19, 0.18), 5.0),
        row("W8A8", 7, module.APART, (0.10, 0.09, 0.09), 3.0),
        row("W8A8", 7, module.JOINT, (0.10, 0.09, 0.08), 2.0),
        row("W8A8", 7, module.TOLD, (0.11, 0.10, 0.09), 4.0),
    ]
    said = module.summary(rows)
    lower = "corrected, has a lower error than uncorrected 'DP, then rounding' in 1 of 1 groups, on average by"
    assert f"Joint DP, {lower} 20.0 %." in said
    assert f"Joint DP, correction counted, {lower} 10.0 %." in said
    assert "Without its correction a plan is worse in 4 of 4 rows." in said
    assert "with uncorrected errors, W8A8: 0.95" in said


def test_options_that_cannot_be_used(six_steps, tmp_path, screen):
    base = {"model": str(six_steps), "out": tmp_path}
    for changes, text in (
        ({"formats": ("W2A2",)}, "--only: found 'W2A2', expected some of W8A8, W4A8"),
        ({"computed": ()}, "--computed: found .., expected numbers of 1 or more"),
        ({"held_out": 0}, "--held-out: found 0, expected 1 or more"),
    ):
        with pytest.raises(UsageError, match=text):
            CacheQuantSettings(**base, **changes)
    with pytest.raises(UsageError, match="--computed: found 7, expected at most 6, the model's steps"):
        run_cachequant(CacheQuantSettings(**base, computed=(7,)), screen)


def test_from_the_command_line(run_cli):
    done = run_cli("bench", "cachequant", "--computed", "7,x")
    assert done.code == 2
    assert "error: --computed: found 'x', expected whole numbers separated by commas." in done.err
