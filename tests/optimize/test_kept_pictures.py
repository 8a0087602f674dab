"""Which held-out pictures are kept, how small, and what an earlier run leaves."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from schedsearch.evaluate import Pictures
from schedsearch.optimize._pictures import EXACT, SIDE, KeptPictures, encoded, shown_prompts


@dataclass
class Row:
    """As much of a held-out row as the pictures ask for."""

    name: str

    def values(self, metric: str) -> list[float]:
        assert metric == "psnr"
        return [float(i) for i in range(20)]


def pictures(n: int, side: int, seed: int = 0) -> Pictures:
    images = torch.rand(n, 3, side, 2 * side, generator=torch.Generator().manual_seed(seed))
    return Pictures(latents=torch.zeros(n, 1, 1), images=images)


def kept(side: int = 8) -> tuple[KeptPictures, list[Pictures]]:
    keeper = KeptPictures(prompts=tuple(f"prompt {i}" for i in range(20)), metric="psnr")
    batches = [pictures(10, side, seed=i) for i in range(2)]
    for run in ("full", "schedule 0"):
        for i, batch in enumerate(batches):
            keeper.keep(run, 10 * i, batch)
    return keeper, batches


def test_prompts_are_taken_by_their_place():
    assert shown_prompts(64) == (0, 8, 16, 24, 32, 40, 48, 56)
    assert shown_prompts(20) == (0, 2, 5, 7, 10, 12, 15, 17)
    assert shown_prompts(2) == (0, 1)


def test_small_pictures_come_back_exactly(tmp_path: Path):
    keeper, batches = kept()
    keeper.write(tmp_path, [Row("full"), Row("schedule 0")], {"schedule 0": "sha256:ab"})
    index = json.loads((tmp_path / "pictures.json").read_text())
    assert [run["run"] for run in index["runs"]] == ["full", "sha256:ab"]
    assert index["prompts"][2] == "prompt 5"
    assert index["runs"][1]["scores"] == [0.0, 2.0, 5.0, 7.0, 10.0, 12.0, 15.0, 17.0]
    assert (index["width"], index["height"]) == (16, 8)
    with Image.open(tmp_path / index["runs"][0]["files"][5]) as image:  # prompt 12 is number 2 of the second batch
        shown = np.asarray(image.convert("RGB"))
    drawn = (batches[1].images[2].permute(1, 2, 0) * 255).round().byte().numpy()
    assert (shown == drawn).all()


def test_runs_that_are_not_told_are_not_kept(tmp_path: Path):
    keeper, _ = kept()
    keeper.write(tmp_path, [Row("full"), Row("schedule 0")], {})
    assert len(list(tmp_path.glob("*.webp"))) == 16
    keeper.write(tmp_path, [Row("full"), Row("never drawn")], {})
    assert len(list(tmp_path.glob("*.webp"))) == 8  # what the first call left is gone
    assert len(json.loads((tmp_path / "pictures.json").read_text())["runs"]) == 1


def test_nothing_drawn_is_nothing_written(tmp_path: Path):
    KeptPictures(prompts=("a",), metric="psnr").write(tmp_path / "pictures", [Row("full")], {})
    assert not (tmp_path / "pictures").exists()


def test_large_pictures_are_shrunk(tmp_path: Path):
    keeper = KeptPictures(prompts=("a",), metric="psnr")
    keeper.keep("full", 0, pictures(1, 400))
    keeper.write(tmp_path, [Row("full")], {})
    index = json.loads((tmp_path / "pictures.json").read_text())
    assert (index["width"], index["height"]) == (800, 400)
    with Image.open(tmp_path / "000-00.webp") as image:
        assert image.size == (SIDE, SIDE // 2)


@pytest.mark.parametrize("room", [4_000, 20_000])
def test_a_large_picture_keeps_its_room(room: int):
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 24, (SIDE, SIDE, 3)).astype(np.uint8)
    image = Image.fromarray((ramp[None, :, None] // 2 + ramp[:, None, None] // 3 + noise).astype(np.uint8))
    data = encoded(image, room)
    assert Image.open(io.BytesIO(data)).size == image.size
    assert len(data) <= room or data == encoded(image, 0)  # in the room, or as small as it gets
    assert len(encoded(image, 10**9)) > len(encoded(image, 0))


def test_small_ones_are_exact_where_that_fits():
    noise = np.random.default_rng(0).integers(0, 255, (EXACT, EXACT, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    exact = encoded(image, 100_000)
    assert (np.asarray(Image.open(io.BytesIO(exact)).convert("RGB")) == noise).all()
    assert len(encoded(image, len(exact) - 1)) < len(exact)
