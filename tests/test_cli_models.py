"""The verbs that touch models: models and generate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from schedsearch._pictures import slug

STEPS = 5


def test_models_lists_the_bundled_model_as_at_hand(run_cli):
    done = run_cli("models")
    assert (done.code, done.err) == (0, "")
    row = next(line for line in done.out.splitlines() if line.startswith("flux-mini "))
    assert row.split()[-1] == "yes"
    assert "64x64 px, 28 steps" in row


def test_models_says_how_to_get_what_is_not_at_hand(run_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    row = next(line for line in run_cli("models").out.splitlines() if line.startswith("flux "))
    assert "no; accept the licence at https://huggingface.co/black-forest-labs/FLUX.1-dev, then run `" in row


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Red apple, blue background!", "red-apple-blue-background"),
        ("../../etc/passwd", "etc-passwd"),
        ("日本 の りんご", "日本-の-りんご"),
        ("!!!", "picture"),
        ("x" * 500, "x" * 60),
    ],
)
def test_a_picture_is_named_after_its_prompt(text, name):
    assert slug(text) == name


def test_an_unknown_model_is_named_with_what_there_is(run_cli, tmp_path):
    done = run_cli("generate", "--model", "flux-mnii", "--out", str(tmp_path / "out"), "a cat")
    assert done.code == 2
    assert done.err.startswith("error: model: found 'flux-mnii', expected one of ")
    assert "Did you mean 'flux-mini'?" in done.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def flux_mini():
    from schedsearch.evaluate import find_card, load_pipeline

    return load_pipeline(find_card("flux-mini"))


@pytest.fixture
def generate(run_cli, flux_mini, monkeypatch, tmp_path):
    """Runs the verb on a pipeline that is loaded once, in few steps; the words after the model are the test's."""
    from schedsearch.evaluate import find_card

    card = dataclasses.replace(find_card("flux-mini"), steps=STEPS)
    monkeypatch.setattr("schedsearch.evaluate.find_card", lambda name: card)
    monkeypatch.setattr("schedsearch.evaluate.load_pipeline", lambda card, *, device, dtype: flux_mini)
    return lambda *words: run_cli("generate", "--model", "flux-mini", "--out", str(tmp_path / "out"), *words)


def written(done):
    assert (done.code, done.err) == (0, "")
    return [line.removeprefix("Wrote ") for line in done.out.splitlines()]


def pixels(path):
    with Image.open(path) as image:
        assert image.size == (64, 64)
        return image.tobytes()


def test_generate_writes_one_picture_per_prompt(generate, tmp_path):
    paths = written(generate("red apple, blue background", "rocket, black background"))
    folder = tmp_path / "out"
    assert paths == [
        str(folder / "000-red-apple-blue-background.png"), str(folder / "001-rocket-black-background.png")
    ]  # fmt: skip
    assert pixels(paths[0]) != pixels(paths[1])


def test_generate_tells_programs_what_it_drew(generate, tmp_path):
    done = generate("--json", "dog face")
    path = str(tmp_path / "out" / "000-dog-face.png")
    assert json.loads(done.out)["pictures"] == [{"prompt": "dog face", "path": path}]
    assert done.err == f"Wrote {path}\n"


def test_generate_never_overwrites_and_repeats_exactly(generate, tmp_path):
    first, again, other = (written(generate("--seed", seed, "dog face"))[0] for seed in ("0", "0", "1"))
    assert [path.rsplit("/", 1)[1] for path in (first, again, other)] == [
        "000-dog-face.png", "000-dog-face-2.png", "000-dog-face-3.png"
    ]  # fmt: skip
    assert pixels(first) == pixels(again) != pixels(other)


def test_generate_replays_a_schedule_and_leaves_the_pipeline_plain(generate, flux_mini, tmp_path):
    from schedsearch import runtime
    from schedsearch.schedule import write_schedule

    identity = runtime.identity_schedule(flux_mini, STEPS, height=64, width=64)
    lazy = dataclasses.replace(identity, ops=(("model", "CCRCR"),))
    calls = []
    hook = flux_mini.transformer.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    outcomes = {}
    try:
        for name, plan in (("plain", None), ("identity", identity), ("lazy", lazy), ("plain again", None)):
            words = []
            if plan is not None:
                write_schedule(plan, tmp_path / f"{name}.json")
                words = ["--schedule", str(tmp_path / f"{name}.json")]
            calls.clear()
            path = written(generate(*words, "red heart, white background"))[0]
            outcomes[name] = (pixels(path), len(calls))
    finally:
        hook.remove()
    assert outcomes["identity"] == outcomes["plain"] == outcomes["plain again"]
    assert outcomes["plain"][1] == STEPS
    assert outcomes["lazy"][1] == 3
    assert outcomes["lazy"][0] != outcomes["plain"][0]


def test_generate_picks_from_a_frontier_by_budget(generate, flux_mini, tmp_path):
    from schedsearch import runtime
    from schedsearch.schedule import Measurement, write_frontier

    def plan(n_steps, speedup):
        made = Measurement(metric="speedup", unit="x", better="max", value=speedup, low=speedup, high=speedup, n=1)
        identity = runtime.identity_schedule(flux_mini, n_steps, height=64, width=64)
        return dataclasses.replace(identity, measured=(made,))

    write_frontier(tmp_path / "frontier", [plan(2, 4.0), plan(4, 2.0)], quality="psnr")
    calls = []
    hook = flux_mini.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        written(generate("--schedule", str(tmp_path / "frontier"), "--budget", "4x", "pizza, red background"))
    finally:
        hook.remove()
    assert len(calls) == 2


def test_a_frontier_without_a_budget_is_refused(generate, frontier_folder):
    done = generate("--schedule", str(frontier_folder), "a cat")
    assert done.code == 2
    assert done.err.startswith("error: budget: found none, expected one such as '4x'")


def test_a_schedule_of_another_model_is_refused_by_name(generate, schedule_file):
    done = generate("--schedule", str(schedule_file), "a cat")
    assert done.code == 2
    assert done.err.startswith("error: model.config: found ")
    assert "schedsearch optimize" in done.err


def test_metrics_lists_what_each_needs_and_how_to_get_what_is_missing(run_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = run_cli("metrics", "--model", "flux-mini")
    assert (done.code, done.err) == (0, "")
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    assert rows["psnr"][1:3] == ["dB", "max"]
    for name in ("clip[flux-mini-clip]", "fid[flux-mini-clip]", "kid[flux-mini-clip]"):
        assert "yes" in rows[name]
    done = run_cli("metrics")
    assert done.code == 0
    assert "Run `hf download openai/clip-vit-large-patch14`" in done.out


def test_every_metric_and_network_has_its_line_in_the_docs():
    from schedsearch.evaluate import METRICS
    from schedsearch.evaluate._nets import names

    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    for name, metric in METRICS.items():
        direction = "larger" if metric.better == "max" else "smaller"
        assert f"| `{name}` | {metric.unit} | {direction} |" in text
    assert all(f"`{name}`" in text for name in names())


def test_an_objective_that_is_not_at_hand_is_one_paragraph_and_code_2(run_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = run_cli(
        "optimize", "--model", "flux-mini", "--budget", "4x", "--metric", "clip[clip-vit-base-patch16]",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.code == 2
    assert done.err.startswith("error: metric clip[clip-vit-base-patch16]: the weights are not at hand")
    assert not (tmp_path / "out").exists()
