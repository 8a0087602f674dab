"""The shipped flux-mini: the weights are those of the card, and a prompt gives the same image every time."""

from __future__ import annotations

import re

import pytest

from schedsearch_calibration import flux_mini_path
from schedsearch_calibration.flux_mini.assemble import parameters_sha256


def files():
    return [path for path in flux_mini_path().rglob("*") if path.is_file()]


def test_the_weights_have_the_hash_that_the_model_card_states():
    stated = re.findall(r"`([0-9a-f]{64})`", (flux_mini_path() / "MODEL_CARD.md").read_text("utf-8"))
    assert stated == [parameters_sha256(flux_mini_path())]


def test_the_folder_is_small_and_every_file_is_an_ordinary_one():
    assert sum(path.stat().st_size for path in files()) < 30e6
    assert not [path for path in files() if path.is_symlink() or not path.stat().st_mode & 0o200]


def test_the_card_names_every_source_with_its_licence():
    card = (flux_mini_path() / "MODEL_CARD.md").read_text("utf-8")
    for source, licence in [("Noto Emoji", "Apache-2.0"), ("twemoji", "CC BY 4.0"), ("Fluent Emoji Flat", "MIT")]:
        assert re.search(rf"\|.*{source}.*\|.*{licence}", card), source


def test_the_hash_of_weights_sees_a_changed_number_and_a_changed_name(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    def hash_of(tensors):
        (tmp_path / "part").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "part" / "model.safetensors", metadata={"n": str(len(tensors))})
        return parameters_sha256(tmp_path)

    zeros = np.zeros((2, 2), dtype=np.float32)
    same = [hash_of({"a": zeros, "b": zeros}) for _ in range(2)]
    others = [hash_of({"a": zeros + 1, "b": zeros}), hash_of({"a": zeros, "c": zeros}), hash_of({"a": zeros.T[:1]})]
    assert len({*same, *others}) == 4


@pytest.mark.slow
def test_a_prompt_gives_the_same_image_every_time_and_what_it_names():
    import numpy as np
    import torch

    from schedsearch.evaluate import find_card, load_pipeline

    card = find_card("flux-mini")
    pipe = load_pipeline(card, device="cpu", dtype="float32")

    def image():
        return pipe(
            "red apple, blue background",
            height=card.height,
            width=card.width,
            num_inference_steps=12,
            guidance_scale=card.guidance_scale,
            max_sequence_length=card.max_sequence_length,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]

    first, second = image(), image()
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, second)
    corners = np.stack([first[:6, :6], first[:6, -6:], first[-6:, :6], first[-6:, -6:]]).mean(axis=(0, 1, 2))
    assert np.abs(corners - np.array([60, 120, 220]) / 255).max() < 0.12  # the blue of the training backgrounds
    red, green, blue = first[24:48, 20:44].mean(axis=(0, 1))
    assert red > 1.5 * max(green, blue)
