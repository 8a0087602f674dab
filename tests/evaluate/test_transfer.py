"""Schedules elsewhere than where they were searched: conditions as text, what is measured, and the file beside them."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest

from schedsearch.errors import UsageError
from schedsearch.evaluate import Condition, evaluate_at
from schedsearch.schedule import write_frontier, write_schedule

PROMPTS = ("crying cat, purple background", "rocket, red background")
HOME = Condition(width=64, height=64, batch=1, steps=4)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("96x128", {"width": 96, "height": 128}),
        ("batch=4", {"batch": 4}),
        ("steps=50", {"steps": 50}),
        ("96x96, batch=2,steps=6", {"width": 96, "height": 96, "batch": 2, "steps": 6}),
    ],
)
def test_a_condition_is_read(text, changed):
    assert HOME.altered(text) == dataclasses.replace(HOME, **changed)


@pytest.mark.parametrize(
    "text", ["", "96", "96x", "x96", "0x64", "64x064", "-64x64", "batch=0", "batch=", "steps=1.5", "size=3", "9" * 99,
             "batch=2,,steps=3", "64 x 64", "batch=99999"]
)  # fmt: skip
def test_what_is_no_condition_is_named(text):
    with pytest.raises(UsageError, match="expected WIDTHxHEIGHT, batch=N, steps=N"):
        HOME.altered(text)


def test_a_condition_says_each_thing_once():
    with pytest.raises(UsageError, match="found 'batch=2,batch=3', expected each thing once"):
        HOME.altered("batch=2,batch=3")


@pytest.fixture(scope="module")
def schedules(plan):
    return {"identity": plan(), "half": plan(rows={"model": "CRCR"})}


@pytest.fixture(scope="module")
def quick(mini, short_card, schedules):
    def run(condition, **options):
        return evaluate_at(
            mini, short_card, schedules, PROMPTS, condition, seed=9, repeats=2, warmup=0, **options
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_at_home_it_is_the_held_out_measurement(quick, mini, short_card, schedules, table):
    from schedsearch.evaluate import evaluate_held_out

    rows = quick(HOME)
    held_out = evaluate_held_out(
        mini, short_card, schedules, PROMPTS, mac_table=table, seeds=(9,), batch=1, repeats=1, warmup=0
    )
    assert rows["identity"].mean("psnr") == 100.0
    for row in held_out[1:]:
        names = ["psnr", "ssim", "latent_error", "clip[flux-mini-clip]"]
        assert rows[row.name].samples == tuple((name, row.values(name)) for name in names)
        assert rows[row.name].sets == tuple(pair for pair in row.sets if not pair[0].startswith("converged"))
        assert rows[row.name].mean("kid[flux-mini-clip]") == row.mean("kid[flux-mini-clip]")
        assert rows[row.name].denoiser_calls == row.denoiser_calls
    assert (rows["half"].speedup.n, len(rows["half"].latency.ms)) == (2, 2)


def test_another_resolution_and_batch_is_compared_with_the_plain_run_there(quick):
    rows = quick(HOME.altered("96x64,batch=2"))  # a warning about the resolution would be an error here
    assert rows["identity"].mean("psnr") == 100.0
    assert 5.0 < rows["half"].mean("psnr") < 60.0
    assert rows["half"].denoiser_calls == 2.0


def test_the_plain_run_may_take_other_steps_while_the_schedule_keeps_its_own(quick):
    progress = []
    rows = quick(HOME.altered("steps=6"), on_progress=lambda done, total: progress.append((done, total)))
    assert rows["identity"].denoiser_calls == 4.0
    assert rows["identity"].mean("psnr") < 60.0  # four steps are not six
    assert progress == [(i, 4) for i in range(1, 5)]


def test_a_size_that_would_be_rounded_is_refused(quick):
    with pytest.raises(UsageError, match=r"--at: found 97x64, expected multiples of \d+ pixels"):
        quick(HOME.altered("97x64"))


def test_no_prompts_are_no_measurement(mini, short_card):
    with pytest.raises(UsageError, match="found no prompts"):
        evaluate_at(mini, short_card, {}, (), HOME, seed=0)


# ---- the verb


@pytest.fixture
def on_mini(monkeypatch, mini, short_card):
    """The command line finds the pipeline loaded, with four steps and two held-out prompts."""
    from schedsearch.bench import _elsewhere
    from schedsearch_calibration import PromptSet

    few = PromptSet(name="few", prompts=PROMPTS, sha256="ab" * 32)
    monkeypatch.setattr(_elsewhere, "find_card", lambda _: short_card)
    monkeypatch.setattr(_elsewhere, "load_pipeline", lambda *_, **__: mini)
    monkeypatch.setattr(_elsewhere, "prompt_set", lambda _: few)
    monkeypatch.setattr(_elsewhere, "evaluate_at", functools.partial(evaluate_at, warmup=0))


@pytest.mark.slow
@pytest.mark.usefixtures("on_mini")
def test_the_verb_writes_what_it_measured_beside_the_file(run_cli, schedules, tmp_path):
    file = tmp_path / "plan.json"
    write_schedule(schedules["half"], file)
    words = ("evaluate", str(file), "--model", "flux-mini", "--repeats", "2")
    done = run_cli(*words, "--at", "batch=2")
    assert done.code == 0, done.err
    assert "64x64, batch 1, 4 steps *" in done.out
    assert "64x64, batch 2, 4 steps " in done.out
    assert f"Wrote {tmp_path / 'plan.at.json'}" in done.out

    content = json.loads((tmp_path / "plan.at.json").read_text())
    home, batch = content["conditions"]
    assert (content["format"], content["id"]) == ("schedsearch.at", schedules["half"].id)
    assert [(c["batch"], c["searched"], c["denoiser_calls"]) for c in (home, batch)] == [
        (1, True, 2.0),
        (2, False, 2.0),
    ]
    assert batch["command"] == f"schedsearch {' '.join(words)} --at batch=2"
    measured = {m["metric"]: m for m in batch["measured"]}
    net = "[flux-mini-clip]"
    further = [f"clip{net}", f"fid{net}", f"kid{net}"]
    assert list(measured) == ["speedup", "latency_ms", "psnr", "ssim", "latent_error", *further]
    assert (measured["psnr"]["n"], measured["psnr"]["batch"], measured["psnr"]["dtype"]) == (2, 2, "float32")
    assert measured["psnr"]["prompts"] == f"few sha256:{'ab' * 8}"
    assert measured["psnr"]["device"]
    assert measured["psnr"]["date"].count("-") == 2

    run_cli(*words, "--prompts", "1")
    again = json.loads((tmp_path / "plan.at.json").read_text())["conditions"]
    assert [c["batch"] for c in again] == [2, 1]
    assert again[0] == batch
    assert again[1]["measured"][2]["prompts"].startswith("few, first 1 sha256:")
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


@pytest.mark.usefixtures("on_mini")
def test_every_schedule_of_a_frontier_has_its_own_file(run_cli, schedules, tmp_path):
    from schedsearch.schedule import Measurement, read_frontier

    stamp = Measurement(metric="speedup", unit="x", better="max", value=2.0, low=2.0, high=2.0, n=1)
    write_frontier(
        tmp_path / "f", [dataclasses.replace(s, measured=(stamp,)) for s in schedules.values()], quality="psnr"
    )
    done = run_cli("evaluate", str(tmp_path / "f"), "--model", "flux-mini", "--repeats", "1", "--prompts", "1")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "f").glob("*.at.json"))) == 2
    assert len(read_frontier(tmp_path / "f").entries) == 2


@pytest.mark.usefixtures("on_mini")
@pytest.mark.parametrize(
    ("at", "said"),
    [("64by64", "--at: found '64by64', expected WIDTHxHEIGHT"), ("70x64", "--at: found 70x64, expected multiples of")],
)
def test_a_bad_condition_ends_with_code_2_before_anything_is_measured(run_cli, schedules, tmp_path, at, said):
    write_schedule(schedules["half"], tmp_path / "plan.json")
    done = run_cli("evaluate", str(tmp_path / "plan.json"), "--model", "flux-mini", "--at", at)
    assert (done.code, done.err.startswith(f"error: {said}")) == (2, True)
    assert not (tmp_path / "plan.at.json").exists()


@pytest.mark.usefixtures("on_mini")
@pytest.mark.parametrize("text", ["no json", "[]", '{"format": "other", "conditions": []}', '{"format": 1}'])
def test_another_file_in_the_way_is_left_alone(run_cli, schedules, tmp_path, text):
    write_schedule(schedules["half"], tmp_path / "plan.json")
    (tmp_path / "plan.at.json").write_text(text)
    done = run_cli("evaluate", str(tmp_path / "plan.json"), "--model", "flux-mini")
    assert done.code == 2
    assert "found something else" in done.err
    assert (tmp_path / "plan.at.json").read_text() == text
