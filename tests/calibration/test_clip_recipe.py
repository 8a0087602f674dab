"""The recipe of the image-text model on drawings made here: split, batches, loss, resumption, what is stored."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from schedsearch_calibration import feature_net_path
from schedsearch_calibration.flux_mini import COLOURS, data, tokenizer
from schedsearch_calibration.flux_mini.assemble import parameters_sha256
from schedsearch_calibration.flux_mini_clip import model as clip
from schedsearch_calibration.flux_mini_clip.drawings import gather, lay, prompts
from schedsearch_calibration.flux_mini_clip.retrieval import Model, of_drawings, ranked
from schedsearch_calibration.flux_mini_clip.train import app

SHAPE = clip.ClipShape(width=16, layers=1, heads=2, patch=16, text_width=16, text_layers=1, features=8)
SETTINGS = replace(clip.SETTINGS, steps=8, batch=6, warmup=2)
NET = feature_net_path("flux-mini-clip")


def package(names, seed):
    """Squares of noise with half their pixels see-through."""
    rgba = np.random.default_rng(seed).integers(0, 256, (len(names), data.SIZE, data.SIZE, 4), dtype=np.uint8)
    return data.Pictures(captions=tuple(names), rgba=rgba)


@pytest.fixture
def drawings():
    names = [f"thing {word}" for word in ("one", "two", "three", "four", "five")]
    return gather([package(names, 0), package([*names[:4], "stranger"], 1), package(names[1:], 2)], n_test=2)


@pytest.fixture
def words(drawings):
    return tokenizer.build([*drawings.names, *COLOURS, "background"])


def test_the_other_drawings_of_some_names_are_kept_for_the_test(drawings):
    assert len(drawings.rgba) == 5 + 4 + 4  # the stranger has no name to go by
    kept = drawings.name[drawings.is_test]
    assert len(kept) == 4
    assert len(set(kept.tolist())) == 2
    assert set(drawings.package[drawings.is_test].tolist()) == {1, 2}
    assert not drawings.is_test[drawings.package == 0].any()


def test_the_split_does_not_depend_on_the_order_of_packages_after_the_first():
    names = [f"n{i}" for i in range(20)]
    packages = [package(names, seed) for seed in range(3)]
    first, second = gather(packages, n_test=5), gather([packages[0], packages[2], packages[1]], n_test=5)
    assert set(first.name[first.is_test].tolist()) == set(second.name[second.is_test].tolist())


def test_without_a_generator_drawings_are_laid_as_the_first_recipe_does():
    rgba = torch.from_numpy(package(["a", "b"], 0).rgba)
    colours = data.palette()[:2]
    assert torch.equal(lay(rgba, colours), data.compose(rgba, colours))


def test_moved_drawings_keep_their_background_and_their_range():
    rgba = torch.zeros(4, 64, 64, 4, dtype=torch.uint8)
    rgba[:, 24:40, 24:40] = 255
    laid = lay(rgba, data.palette()[2:6], torch.Generator().manual_seed(0))
    corners = laid[:, :, :4, :4].mean(dim=(2, 3))
    assert (corners - (data.palette()[2:6] / 127.5 - 1.0)).abs().max() < 0.1
    assert laid.min() > -1.6
    assert laid.max() < 1.6
    again = lay(rgba, data.palette()[2:6], torch.Generator().manual_seed(0))
    assert torch.equal(laid, again)


def test_the_loss_is_that_of_two_choices():
    """Two pictures, their captions at right angles, one caption more that equals the first."""
    x = torch.eye(2)
    loss = clip.contrast(x, x, x[:1], torch.tensor(math.log(3.0)))
    first = -math.log(math.exp(3) / (2 * math.exp(3) + 1))
    second = -math.log(math.exp(3) / (math.exp(3) + 2))
    by_caption = -math.log(math.exp(3) / (math.exp(3) + 1))
    assert float(loss) == pytest.approx(0.5 * ((first + second) / 2 + by_caption), rel=1e-6)


def test_the_temperature_has_a_limit():
    x = torch.eye(2)
    at_limit, beyond = (clip.contrast(x, x, x[:0], torch.tensor(value)) for value in (math.log(100.0), 9.0))
    assert torch.equal(at_limit, beyond)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, drawings, words):
    def go_on(model, name, stop_after=None):
        path = tmp_path / name
        return clip.train_clip(model, drawings, words, SETTINGS, checkpoint=path, stop_after=stop_after)

    whole, first, second = (clip.build(SHAPE, vocabulary=len(words), seed=0) for _ in range(3))
    assert go_on(whole, "whole") == 8
    assert go_on(first, "halves", stop_after=3) == 3
    torch.manual_seed(99)
    assert go_on(second, "halves") == 8
    result = whole.state_dict()
    assert all(torch.equal(value, result[name]) for name, value in second.state_dict().items())
    assert not all(torch.equal(value, result[name]) for name, value in first.state_dict().items())


def test_training_never_sees_what_is_kept_for_the_test(tmp_path, drawings, words):
    marked = drawings.rgba.clone()
    marked[drawings.is_test] = 0
    models = []
    for rgba in (drawings.rgba, marked):
        model = clip.build(SHAPE, vocabulary=len(words), seed=0)
        path = tmp_path / str(len(models))
        clip.train_clip(model, replace(drawings, rgba=rgba), words, SETTINGS, checkpoint=path)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_what_is_stored_is_a_model_and_a_processor_for_transformers(tmp_path, drawings, words):
    from transformers import CLIPModel, CLIPProcessor

    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "MODEL_CARD.md").write_text("kept")
    model = clip.build(SHAPE, vocabulary=len(words), seed=0)
    folder = clip.store(tmp_path / "net", model=model, words=words)
    assert (folder / "MODEL_CARD.md").read_text() == "kept"
    read, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    assert read.dtype == torch.float16
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    inputs = processor(text=["Thing ONE, red background"], images=[image], return_tensors="pt", padding=True)
    assert torch.allclose(inputs["pixel_values"], 2 * image[None] - 1, atol=1e-6)
    known = [words.convert_tokens_to_ids(word) for word in ("thing", "one", "red", "background")]
    assert inputs["input_ids"].tolist() == [[*known, 1]]
    assert read.float()(**inputs).logits_per_image.shape == (1, 1)


def test_retrieval_counts_first_places_and_first_fives_and_no_ties():
    answers = torch.eye(8)
    queries = torch.eye(8).clone()
    queries[0] = torch.eye(8)[1] + 0.5 * torch.eye(8)[0]  # its answer comes second
    queries[1] = torch.ones(8)  # all alike: the right one counts as the last
    found = ranked("x", queries, answers, torch.arange(8))
    assert (found.n, found.first, found.five) == (8, 6 / 8, 7 / 8)


def test_drawings_that_look_like_their_captions_are_all_found(drawings, words):
    class Perfect(Model):
        """Knows every drawing by heart."""

        def __init__(self):
            self.names = drawings.names

        def read(self, texts):
            every = prompts(self.names)
            return torch.eye(len(every))[[every.index(text) for text in texts]]

        def seen(self, pixels):
            rows = []
            for picture in pixels:
                laid = [
                    (lay(rgba[None], colour[None])[0] - picture).abs().sum()
                    for rgba in drawings.rgba
                    for colour in data.palette()
                ]
                place = int(torch.stack(laid).argmin())
                rows.append(int(drawings.name[place // 8]) * 8 + place % 8)
            return torch.eye(len(self.names) * 8)[rows]

    lines = of_drawings(Perfect(), drawings)
    assert [(line.n, line.first, line.five) for line in lines] == [
        (4, 1.0, 1.0), (2, 1.0, 1.0), (5, 1.0, 1.0), (5, 1.0, 1.0), (32, 1.0, 1.0),
    ]  # fmt: skip


def test_the_command_says_what_is_wrong_and_ends_with_code_2(tmp_path):
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "o"), "--data", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "error: data: " in done.output


# ---- the shipped one


def test_the_shipped_network_is_small_and_what_its_card_states():
    files = [path for path in NET.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    card = (NET / "MODEL_CARD.md").read_text("utf-8")
    assert re.findall(r"`([0-9a-f]{64})`", card) == [parameters_sha256(NET)]
    for source, licence in [("Noto Emoji", "Apache-2.0"), ("twemoji", "CC BY 4.0"), ("Fluent Emoji Flat", "MIT")]:
        assert re.search(rf"\|.*{source}.*\|.*{licence}", card), source


def test_the_shipped_network_has_the_recipes_shape_and_words():
    config = json.loads((NET / "config.json").read_text())
    shape = clip.ClipShape()
    assert config["projection_dim"] == shape.features
    assert config["vision_config"]["hidden_size"] == shape.width
    assert config["vision_config"]["patch_size"] == shape.patch
    known = json.loads((NET / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(known) == config["text_config"]["vocab_size"]
    assert {"apple", "white", "background"} <= set(known)
