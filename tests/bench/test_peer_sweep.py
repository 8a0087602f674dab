"""Trying other libraries: what works goes on, what does not has a reason, and nothing is tried twice."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager

import pytest

from schedsearch.bench._compare import picked
from schedsearch.bench._log import Log
from schedsearch.bench._peer_sweep import PeerEntry, PeerTrials
from schedsearch.bench._peers import Host, Peer, Setting, fresh
from schedsearch.errors import UsageError
from schedsearch.evaluate import Look, SideBySide, find_card, load_pipeline

STEPS = 3


class Rigged(Peer):
    """A peer that does what its settings say."""

    library = "rigged"

    def __init__(self, *does, reason="", is_kept=False):
        self.title = "rigged"
        self.does = does
        self.reason = reason
        self.is_kept = is_kept

    def why_not(self, host):
        return self.reason

    def settings(self, host):
        if "no settings" in self.does:
            raise RuntimeError("cannot be calibrated")
        return [Setting(words=f"{what} {i}", values={"what": what}) for i, what in enumerate(self.does)]

    def enable(self, pipe, setting, host):
        self.pipe = pipe
        what = setting.values["what"]
        if what == "raises":
            raise RuntimeError("this model is not supported")
        if what == "skips":  # the last block gives back what it got
            block = pipe.transformer.single_transformer_blocks[-1]
            block.forward = lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)

    def disable(self, pipe):
        pass


@pytest.fixture(scope="module")
def mini():
    card = dataclasses.replace(find_card("flux-mini"), steps=STEPS)
    return load_pipeline(card), card


@pytest.fixture
def trials(mini, screen, tmp_path):
    pipe, card = mini
    host = Host(steps=STEPS, branches=1, dtype=pipe.dtype, fresh=lambda: fresh(pipe), draw=lambda _: None)

    def make(**more):
        runs = SideBySide(pipe, card, ("a red apple",), seed=0)
        log = Log(tmp_path / "log.jsonl", {"run": "x"})
        return PeerTrials(host=host, runs=runs, log=log, prompts=1, display=screen, **more)

    return make


def causes(swept):
    return [(each.family, each.setting, each.cause, each.reason) for each in swept.absent]


def test_what_works_goes_on_and_the_rest_has_a_reason(trials):
    swept = trials().sweep(
        {
            "good": Rigged("skips", "raises"),
            "broken": Rigged("raises", "raises", "raises"),
            "idle": Rigged("nothing", "nothing"),
            "gone": Rigged(reason="rigged is not installed: pip install rigged"),
            "other": Rigged(reason="rigged 1.0 has no such class"),
            "uncalibrated": Rigged("no settings"),
            "compiled": Rigged("nothing", is_kept=True),
        }
    )
    assert [(entry.family, entry.key) for entry in swept.entries] == [("good", "skips 0"), ("compiled", "nothing 0")]
    good = swept.entries[0]
    assert good.look.work < 0.999
    assert good.look.changes
    assert 5.0 < good.score < 60.0
    assert good.speedup > 0.0
    assert causes(swept) == [
        ("gone", "", "not installed", "rigged is not installed: pip install rigged"),
        ("other", "", "not applicable", "rigged 1.0 has no such class"),
        ("uncalibrated", "", "failed", "RuntimeError: cannot be calibrated"),
        ("good", "raises 1", "failed", "RuntimeError: this model is not supported"),
        ("broken", "", "failed", "RuntimeError: this model is not supported"),
        ("idle", "", "no effect",
         "all 2 settings computed everything and gave the plain run's pictures, bit for bit"),
    ]  # fmt: skip
    assert swept.swept == {"good": 1, "broken": 0, "idle": 2, "compiled": 1}


def test_a_run_that_was_stopped_tries_only_what_is_left(trials, tmp_path):
    first = trials().sweep({"good": Rigged("skips")})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"name": "sweep good: torn')

    class Never(Rigged):
        @contextmanager
        def applied(self, setting, host):
            assert setting.words == "nothing 1", "tried again"
            yield host.fresh()

    again = trials().sweep({"good": Never("skips", "nothing")})
    assert again.entries[0] == first.entries[0]
    assert again.swept == {"good": 2}


def test_when_time_is_up_what_is_left_has_a_record_that_says_so(trials):
    swept = trials(is_over=lambda: True).sweep({"good": Rigged("skips", "skips")})
    assert swept.entries == ()
    assert causes(swept) == [("good", "", "not reached", "time was up with 2 of 2 settings untried")]


def test_a_log_of_another_run_is_refused(tmp_path):
    Log(tmp_path / "x.jsonl", {"model": "a", "dtype": "float32"})
    with pytest.raises(UsageError, match="found another run, which differs in model; expected the same one"):
        Log(tmp_path / "x.jsonl", {"model": "b", "dtype": "float32"})
    (tmp_path / "y.jsonl").write_text("no json\n")
    with pytest.raises(UsageError, match="found a line that is no JSON"):
        Log(tmp_path / "y.jsonl", {})


def test_a_log_keeps_values_and_loses_a_torn_line(tmp_path):
    log = Log(tmp_path / "x.jsonl", {"a": 1})
    log.put("one", {"x": [1, 2.5]})
    log.put("one", 2)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"name":"two","va')
    again = Log(tmp_path / "x.jsonl", {"a": 1})
    assert again["one"] == 2
    assert "two" not in again
    assert again.get("two", 7) == 7
    again.put("two", 3)
    assert Log(tmp_path / "x.jsonl", {"a": 1})["two"] == 3


def entry(family, words, speedup, score):
    look = Look(work=0.5, changes=True)
    return PeerEntry(family=family, setting=Setting(words=words), speedup=speedup, score=score, look=look)


def test_the_best_per_speed_go_on_and_of_slow_families_the_fastest():
    entries = [
        entry("fbc", "0.1", 1.6, 40.0), entry("fbc", "0.2", 1.7, 41.0), entry("fbc", "0.5", 3.2, 30.0),
        entry("pab", "2", 1.1, 50.0), entry("pab", "4", 1.2, 45.0),
        entry("compiled", "blocks", 1.2, 90.0), entry("compiled", "whole", 1.3, 90.0),
    ]  # fmt: skip
    known = {"fbc": Rigged(), "pab": Rigged(), "compiled": Rigged(is_kept=True)}
    found = [(each.family, each.key) for each in picked(entries, known)]
    assert found == [("fbc", "0.2"), ("fbc", "0.5"), ("pab", "4"), ("compiled", "blocks"), ("compiled", "whole")]
