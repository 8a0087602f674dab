"""The comparison, whole, on the bundled model with six steps: every kind of family, stopped and gone on with."""

from __future__ import annotations

import dataclasses

import pytest

from schedsearch.bench import CompareSettings, families, families_named, run_compare
from schedsearch.bench._compare import Clock
from schedsearch.errors import UsageError
from schedsearch.schedule import write_schedule
from schedsearch.study import read_comparison


@pytest.fixture
def few(monkeypatch, haste):
    """Few settings: of every grid the first ones."""
    from schedsearch.bench import _compare, _peer_sweep

    del haste
    everything = _compare.entries_of
    monkeypatch.setattr(_compare, "entries_of", lambda *a, **k: everything(*a, **k)[:6])
    whole = _peer_sweep.PeerTrials._settings
    monkeypatch.setattr(_peer_sweep.PeerTrials, "_settings", lambda self, peer: (*whole(self, peer)[:2],
                                                                              whole(self, peer)[2][:4]))  # fmt: skip


@pytest.fixture
def bad_schedule(six_steps, tmp_path):
    """One step, whatever it looks like: the fastest and the worst."""
    from schedsearch.evaluate import find_card, load_pipeline
    from schedsearch.runtime import identity_schedule

    card = find_card(str(six_steps))
    plan = identity_schedule(load_pipeline(card), 1, height=card.height, width=card.width)
    write_schedule(plan, tmp_path / "bad.json")
    return tmp_path / "bad.json"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what other libraries warn of is theirs
@pytest.mark.usefixtures("few")
def test_everything_is_measured_in_one_run_that_can_be_stopped(six_steps, bad_schedule, tmp_path, screen, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- compare: begin -->\nold\n<!-- compare: end -->\n")
    settings = CompareSettings(
        model=str(six_steps),
        schedules=(bad_schedule,),
        out=tmp_path / "out",
        only=("euler", "fora", "diffusers-fbc", "diffusers-seacache", "cachedit-scm", "cachedit-foca"),
        prompts=2,
        into=readme,
        command="schedsearch compare --model six",
    )
    from schedsearch.evaluate import SideBySide

    round_of, seen = SideBySide.round, []

    def stop_at_the_last(self, index, contenders):
        if len(seen) and index == 1 and any(c.name.startswith("plain") for c in contenders):
            raise KeyboardInterrupt
        seen.append(index)
        return round_of(self, index, contenders)

    monkeypatch.setattr(SideBySide, "round", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        run_compare(settings, screen)
    monkeypatch.setattr(SideBySide, "round", round_of)
    calls = []
    monkeypatch.setattr(SideBySide, "round", lambda s, i, c: calls.append(i) or round_of(s, i, c))
    found = run_compare(settings, screen)

    assert calls == [1], "only the round that was stopped is run again"
    measured = {row.family for row in found.rows}
    assert {"ours", "plain", "euler", "fora"} <= measured
    assert {row.family for row in found.rows if row.family.startswith(("diffusers", "cachedit"))}
    reasons = {each.family: each for each in found.absent if not each.setting}
    assert reasons["diffusers-seacache"].cause == "no effect"
    assert reasons["cachedit-foca"].cause == "failed"
    (plain,) = found.rows_of("plain")
    assert plain.score("psnr").values == (100.0, 100.0)
    assert plain.work == 1.0
    (ours,) = found.rows_of("ours")
    assert ours.work == pytest.approx(1 / 6)
    assert found.conditions.n_prompts == 2
    assert {each.name for each in found.conditions.versions} >= {"torch", "diffusers", "cache-dit"}
    at_slowest = next(v for v in found.verdicts if v.metric == "psnr" and v.rival)
    assert at_slowest.outcome == "behind"
    assert at_slowest.lead.high < 0.0
    read = read_comparison(settings.out / "compare.json")
    assert [row.setting for row in read.rows] == [row.setting for row in found.rows]
    assert read.command == "schedsearch compare --model six"
    text = readme.read_text()
    assert "ours lose by" in text
    assert "| **ours** |" in text
    assert "cache-dit DBCache + FoCa: failed;" in text

    other = dataclasses.replace(settings, dtype="bfloat16")
    with pytest.raises(UsageError, match="found another run, which differs in dtype"):
        run_compare(other, screen)


def test_families_are_named_one_by_one_or_by_library():
    assert families_named("euler, fora,euler") == ("euler", "fora")
    assert set(families_named("cachedit")) == {name for name in families() if name.startswith("cachedit-")}
    assert families_named("") == ()
    with pytest.raises(UsageError, match="--only: found 'teacache', expected some of compiled, euler"):
        families_named("teacache")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("only", ("nobody",), "--only: found 'nobody', expected some of compiled"),
        ("prompts", 0, "--prompts: found 0, expected 1 or more"),
        ("minutes", 0.0, "--minutes: found 0, expected a number above 0"),
        ("minutes", float("nan"), "--minutes: found nan"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, field, value, message):
    with pytest.raises(UsageError, match=message):
        CompareSettings(model="flux-mini", out=tmp_path, **{field: value})


def test_time_is_counted_from_the_beginning():
    assert not Clock(None).is_past(1.0)
    assert not Clock(1000.0).is_past(0.5)
    assert Clock(1e-9).is_past(1.0)


def test_every_family_knows_who_runs_it():
    known = families()
    assert known["compiled"].library == "torch"
    assert {family.source for family in known.values()} == {"schedules", "peer"}
    assert all((family.source == "peer") == bool(family.library) for family in known.values())
    assert not any(name.startswith("search") for name in known)
