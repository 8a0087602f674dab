"""`schedsearch correct`: what it writes, keeps and refuses, on the bundled model with six steps."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from schedsearch.errors import UsageError
from schedsearch.evaluate import find_card, load_pipeline
from schedsearch.optimize import CorrectSettings, Display, _correct, run_correct
from schedsearch.runtime import apply, identity_schedule
from schedsearch.schedule import PrecisionRule, corrections, read_schedule, write_schedule


@pytest.fixture(scope="module")
def model(six_steps):
    return six_steps


@pytest.fixture(scope="module")
def pipe(model):
    return load_pipeline(find_card(str(model)))


@pytest.fixture
def made(model, pipe, tmp_path, monkeypatch):
    """Writes a schedule with these changes and returns the settings to correct it, and a quiet display."""
    monkeypatch.setattr(_correct, "load_pipeline", lambda *_, **__: pipe)
    card = find_card(str(model))

    def make(**changes):
        base = identity_schedule(pipe, 6, height=card.height, width=card.width)
        write_schedule(replace(base, **changes), tmp_path / "s.json")
        display = Display(Console(file=io.StringIO(), highlight=False, width=200))
        settings = CorrectSettings(source=tmp_path / "s.json", model=str(model), prompts=4)
        return settings, display

    return make


def test_it_writes_a_schedule_that_replays_and_says_what_it_brought(made, pipe):
    settings, display = made(ops=(("model", "CRRCRR"),))
    path = run_correct(settings, display)
    assert path == settings.source.with_name("s-corrected.json")
    assert path.with_suffix(".safetensors").exists()
    before, found = read_schedule(settings.source), read_schedule(path)
    assert list(corrections(found)) == ["model"]
    assert replace(found, tables=None, measured=(), provenance=before.provenance) == before
    assert found.provenance.parents == (before.id,)
    assert [m.metric for m in found.measured] == ["latent_error"]
    with apply(pipe, path) as handle:
        assert "corrected at 4 steps" in handle.describe()
    told = display.console.file.getvalue()
    assert "rows corrected" in told
    assert "layers corrected" not in told
    assert "Held out (4 prompts of" in told


def test_layers_and_rows(made):
    rules = (PrecisionRule(pattern="transformer_blocks.*", weight="int4", activation="int8"),)
    settings, display = made(ops=(("model", "CRCRCR"),), precision=rules)
    run_correct(replace(settings, layers="constant", on_policy=False), display)
    told = display.console.file.getvalue()
    assert told.index("as it was") < told.index("layers corrected") < told.index("rows corrected")


def test_nothing_is_written_where_nothing_helps(made, monkeypatch):
    monkeypatch.setattr(_correct._Judge, "__call__", lambda _self, _schedule: 1.0)
    settings, display = made(ops=(("model", "CRRCRR"),))
    assert run_correct(settings, display) is None
    assert not settings.target.exists()
    assert "rows corrected (left out)" in display.console.file.getvalue()
    assert "Wrote nothing: no correction lowers the error" in display.console.file.getvalue()


class TestRefused:
    def test_a_schedule_with_nothing_to_correct(self, made):
        settings, display = made(ops=(("transformer_blocks.0", "CSCCCC"),))
        with pytest.raises(UsageError, match="found no row that reuses or forecasts, and no low-bit layer to correct"):
            run_correct(settings, display)

    def test_its_own_file(self, made):
        settings, display = made(ops=(("model", "CRRCRR"),))
        with pytest.raises(UsageError, match=r"--out: found .*, the schedule itself; expected another file"):
            run_correct(replace(settings, out=settings.source), display)

    def test_more_prompts_than_there_are(self, made):
        settings, display = made(ops=(("model", "CRRCRR"),))
        with pytest.raises(UsageError, match="--prompts: found 64, expected 1 to 63"):
            run_correct(replace(settings, prompts=64), display)

    def test_an_unknown_word(self, made):
        settings, display = made(ops=(("model", "CRRCRR"),))
        with pytest.raises(UsageError, match="--layers: found 'all', expected one of step, constant, none"):
            run_correct(replace(settings, layers="all"), display)

    def test_from_the_command_line(self, run_cli, tmp_path):
        done = run_cli("correct", str(tmp_path / "missing.json"), "--model", "flux-mini")
        assert (done.code, done.err.startswith("error: ")) == (2, True)
