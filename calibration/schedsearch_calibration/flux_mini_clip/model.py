"""The model, how it is trained and how it is stored: a transformers ``CLIPModel`` with its ``CLIPProcessor``.

Radford 2021 (arXiv:2103.00020): cosines between pictures and captions, divided by a learned temperature, are the logits
of which belongs to which. Captions are cheaper than pictures here, so every picture is also told from the captions of
names that are not pictured in the batch. This module does not know where drawings come from.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from schedsearch_calibration.flux_mini import data, tokenizer
from schedsearch_calibration.flux_mini._training import Report, Settings, train
from schedsearch_calibration.flux_mini_clip.drawings import Drawings, lay, prompts

SETTINGS: Final = Settings(
    steps=2_200, batch=128, lr=1.5e-3, warmup=100, betas=(0.9, 0.98), weight_decay=0.05, clip=1.0, ema=0.995, seed=2
)
"""How the shipped model was trained; ``batch`` counts pictures."""

COLOURS_EACH: Final = 2
"""Backgrounds of every pictured name in a batch, so that the background has to be told as well."""

MORE_CAPTIONS: Final = 192
"""Further captions that a picture is told from, names and backgrounds at random."""

_MAX_LOGIT_SCALE: Final = math.log(100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """Sizes of the two towers; the defaults are those of the shipped model.

    Attributes:
        width: of the image tower.
        layers: of the image tower.
        heads: attention heads of both towers.
        patch: edge of an image token in pixels.
        text_width: of the text tower.
        text_layers: of the text tower.
        features: length of the common embedding.
    """

    width: int = 192
    layers: int = 4
    heads: int = 4
    patch: int = 16
    text_width: int = 128
    text_layers: int = 2
    features: int = 64


def build(shape: ClipShape, *, vocabulary: int, seed: int) -> Any:
    """Return an untrained ``CLIPModel`` in single precision, the same one for the same seed."""
    from transformers import CLIPConfig, CLIPModel

    pad, end = 0, 1
    config = CLIPConfig(
        text_config={
            "vocab_size": vocabulary, "hidden_size": shape.text_width, "intermediate_size": 2 * shape.text_width,
            "num_hidden_layers": shape.text_layers, "num_attention_heads": shape.heads,
            "max_position_embeddings": tokenizer.LENGTH, "projection_dim": shape.features,
            "pad_token_id": pad, "bos_token_id": end, "eos_token_id": end,
        },
        vision_config={
            "hidden_size": shape.width, "intermediate_size": 4 * shape.width, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "image_size": data.SIZE, "patch_size": shape.patch,
            "projection_dim": shape.features,
        },
        projection_dim=shape.features,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def embed_images(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return unit embeddings `(n, features)` of pictures `(n, 3, h, w)` in [-1, 1]."""
    return nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)


def embed_texts(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return unit embeddings `(n, features)` of padded token ids `(n, length)`."""
    features = model.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
    return nn.functional.normalize(features.float(), dim=-1)


def tokens_of(texts: list[str], words: Any) -> torch.Tensor:
    """Return the ids of texts, `(n, length of the longest)`, cut at the tokenizer's limit with the end mark kept."""
    ids = words(texts, padding=True, truncation=True, max_length=tokenizer.LENGTH, return_tensors="pt").input_ids
    return torch.as_tensor(ids)


def contrast(
    images: torch.Tensor, texts: torch.Tensor, more_texts: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Return the mean of both cross entropies: pictures among captions, and captions among pictures.

    Args:
        images: `(n, d)`, unit length.
        texts: `(n, d)`, the caption of each picture.
        more_texts: `(m, d)`, captions of no picture.
        logit_scale: logarithm of the inverse temperature.
    """
    scale = logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()
    right = torch.arange(len(images), device=images.device)
    by_picture = nn.functional.cross_entropy(scale * images @ torch.cat([texts, more_texts]).T, right)
    by_caption = nn.functional.cross_entropy(scale * texts @ images.T, right)
    return 0.5 * (by_picture + by_caption)


def train_clip(
    model: Any,
    drawings: Drawings,
    words: Any,
    settings: Settings,
    *,
    checkpoint: Path,
    every: int = 100,
    stop_after: int | None = None,
    report: Report = lambda _step, _loss: None,
) -> int:
    """Train ``model`` in place and return the number of steps done (see ``flux_mini._training.train``).

    Args:
        model: from `build`.
        drawings: those for the test are left alone.
        words: the tokenizer.
        settings: see `Settings`.
        checkpoint: file to go on from.
        every: steps between two checkpoints.
        stop_after: end early after this many steps in all.
        report: called after each step.
    """
    device = next(model.parameters()).device
    colours = data.palette()
    n_colours = len(colours)
    ids = tokens_of(prompts(drawings.names), words).reshape(len(drawings.names), n_colours, -1)
    learned = torch.nonzero(~drawings.is_test)[:, 0]
    # Drawings of a name lie side by side, so that one of them is drawn by index.
    by_name = learned[torch.argsort(drawings.name[learned], stable=True)]
    counts = torch.bincount(drawings.name[learned], minlength=len(drawings.names))
    first = counts.cumsum(0) - counts
    pictured = min(settings.batch // COLOURS_EACH, len(drawings.names))

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        order = torch.randperm(len(drawings.names), generator=generator)
        names = order[:pictured]
        pick = (torch.rand(pictured, generator=generator) * counts[names]).long()
        chosen = by_name[first[names] + pick].repeat_interleave(COLOURS_EACH)
        shades = torch.rand(pictured, n_colours, generator=generator).argsort(dim=1)[:, :COLOURS_EACH].reshape(-1)
        pixels = lay(drawings.rgba[chosen], colours[shades], generator).to(device)
        others = order[pictured : pictured + MORE_CAPTIONS]
        other_shades = torch.randint(n_colours, (len(others),), generator=generator)
        captions = torch.cat([ids[names.repeat_interleave(COLOURS_EACH), shades], ids[others, other_shades]])
        longest = int((captions != 0).sum(dim=1).max())
        texts = embed_texts(model, captions[:, :longest].to(device))
        n = len(pixels)
        return contrast(embed_images(model, pixels), texts[:n], texts[n:], model.logit_scale)

    return train(model, loss_of, settings, checkpoint=checkpoint, every=every, stop_after=stop_after, report=report)


def processor_of(words: Any) -> Any:
    """Return the ``CLIPProcessor`` that goes with the model: `SIZE` pixels a side, values from [0, 1] to [-1, 1].

    It neither resizes nor rescales: pictures come as floats of the right size, see ``schedsearch.evaluate``.
    """
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    side = {"height": data.SIZE, "width": data.SIZE}
    image_processor = CLIPImageProcessorPil(
        do_resize=False, do_center_crop=False, do_rescale=False, do_convert_rgb=False, size=side, crop_size=side,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return CLIPProcessor(image_processor=image_processor, tokenizer=words)


def store(folder: Path, *, model: Any, words: Any) -> Path:
    """Write model (16-bit floats) and processor into ``folder``, all or nothing, and return it.

    What was there before is replaced, ``MODEL_CARD.md`` excepted.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.to(torch.float16).save_pretrained(part, safe_serialization=True)
    processor_of(words).save_pretrained(part)
    card = folder / "MODEL_CARD.md"
    if card.is_file():
        shutil.copyfile(card, part / card.name)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    return folder
