"""A search that is stopped writes what it found, says how to go on, and leaves nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from schedsearch.errors import UsageError
from schedsearch.optimize import Display
from schedsearch.optimize._unfinished import remove_unfinished, write_unfinished
from schedsearch.schedule import read_frontier
from schedsearch.study import Study

SCRIPT = Path(__file__).parent / "interrupted_job.py"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, six_steps, steady_cost):
    """How the two processes of the script ended, and their output folder."""
    from schedsearch.evaluate import Workload, find_card, load_pipeline

    place = tmp_path_factory.mktemp("stopped")
    card = find_card(str(six_steps))
    cost = steady_cost(load_pipeline(card), Workload.from_card(card), device="cpu")
    (place / "cost.json").write_text(cost.to_json())
    command = [sys.executable, str(SCRIPT), str(six_steps), str(place / "out"), str(place / "cost.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), place / "out"


@pytest.mark.slow
def test_ctrl_c_writes_the_frontier_so_far_and_says_how_to_go_on(stopped):
    (code, _, kept, told), _ = stopped[0]
    out = stopped[1]
    assert code == 130
    assert "Traceback" not in told
    assert f"Wrote {out / 'unfinished'}/: " in told
    assert "unfinished: costs are predicted, and quality is that of the search's own prompts" in told
    last = told.strip().splitlines()[-1]
    assert last.startswith("stopped; what was measured is kept. Go on with: schedsearch optimize --model ")
    assert last.endswith("--resume")
    assert kept >= 12
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith("study.db")) == ["unfinished"]


@pytest.mark.slow
def test_what_it_wrote_is_the_frontier_of_the_study_and_says_that_it_is_unfinished(stopped):
    _, out = stopped
    index = read_frontier(out / "unfinished")
    with Study.load(out / "study.db") as study:
        known = {e.candidate.ask: e for e in study.evaluations()}
    assert index.quality == "search_psnr"
    assert "<html" in (out / "unfinished" / "report.html").read_text("utf-8")
    assert len(index.entries) >= 1
    for entry in index.entries:
        schedule = index.load(entry)
        origin = schedule.provenance
        assert origin.note.startswith("unfinished: the search was stopped after ")
        assert not schedule.unfitted
        record = known[origin.ask]
        psnr = next(m for m in schedule.measured if m.metric == "search_psnr")
        assert psnr.value == pytest.approx(record.values[1])
        assert psnr.prompts.endswith("2 prompts of the search, not held out")
        assert entry.value("macs_fraction") < 1.0
        assert entry.value("speedup") is None
    with pytest.raises(UsageError, match=r"measured in unfinished \(macs_fraction, search_psnr\)"):
        index.pick("4x")


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_with_nothing_half_written(stopped):
    _, (code, seconds, kept, told) = stopped[0]
    assert code == -2, "ended by the signal itself, which a shell calls 130"
    assert seconds < 10.0, "while what it was doing takes a hundred"
    assert kept >= 15
    assert "Wrote" not in told


class TestNothingToWrite:
    def test_before_anything_was_told(self, capsys):
        from types import SimpleNamespace

        bench = SimpleNamespace(display=Display())
        assert write_unfinished(bench, None) is None
        assert capsys.readouterr().out == "Nothing was measured yet, so there is nothing to write.\n"

    def test_nothing_cheaper_than_the_plain_run(self, capsys):
        from types import SimpleNamespace

        bench = SimpleNamespace(
            display=Display(), cost=SimpleNamespace(), reference_point=(100.0, 10.0), cost_name="latency_ms",
            ahead=lambda margin: 4.0 * (1.0 + margin),
        )  # fmt: skip
        from schedsearch.study import Frontier, Objective

        objectives = (
            Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"),
        )  # fmt: skip
        empty = SimpleNamespace(frontier=lambda: Frontier.of(objectives, []))
        assert write_unfinished(bench, empty) is None
        assert "Nothing cheaper than the plain run was found yet" in capsys.readouterr().out


def test_a_run_that_gets_through_takes_it_away(tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "frontier.json").touch()
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []
