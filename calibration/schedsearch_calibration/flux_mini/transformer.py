"""Stage 3: the denoiser with its two text encoders, trained together from scratch by flow matching.

Lipman 2022 (arXiv:2210.02747): the network predicts the velocity ``noise - data`` at ``(1 - sigma) data + sigma
noise``. ``sigma`` is the logistic function of a normal number, so that most batches lie where a picture takes shape.
Captions are dropped at times, so that guidance with a second, empty prompt works. This module does not know how the
pictures were made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from schedsearch_calibration.flux_mini import COLOURS, data, tokenizer
from schedsearch_calibration.flux_mini._training import Report, Settings, train

SIGMA_LOGIT_MEAN: Final = 0.2
SIGMA_LOGIT_STD: Final = 1.2
DROP_CAPTION: Final = 0.1
"""Probability of training on an empty prompt."""

SETTINGS: Final = Settings(
    steps=8_750, batch=32, lr=1.5e-3, warmup=200, betas=(0.9, 0.98), weight_decay=0.01, clip=1.0, ema=0.9995, seed=1
)
"""How the shipped denoiser was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """Sizes of denoiser and text encoders; the defaults are those of the shipped ones.

    Attributes:
        double_blocks: blocks with separate weights for picture and text.
        single_blocks: blocks with one stream.
        heads: attention heads.
        head_dim: width of a head; the denoiser's width is ``heads * head_dim``.
        rope_dims: parts of ``head_dim`` for the three position axes; even numbers that sum to it.
        text_dim: width of the T5 encoder.
        pooled_dim: width of the CLIP encoder.
        text_layers: layers of each text encoder.
    """

    double_blocks: int = 4
    single_blocks: int = 8
    heads: int = 4
    head_dim: int = 32
    rope_dims: tuple[int, int, int] = (8, 12, 12)
    text_dim: int = 128
    pooled_dim: int = 64
    text_layers: int = 2


class Denoiser(nn.Module):
    """What is trained: the denoiser and the two text encoders, as one module."""

    def __init__(self, transformer: Any, text_encoder: Any, text_encoder_2: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2

    def forward(self, latents: torch.Tensor, sigma: torch.Tensor, tokens: torch.Tensor, side: int) -> torch.Tensor:
        """Return the velocity, exactly as ``FluxPipeline`` computes it.

        Args:
            latents: `(n, side * side, c)`, packed.
            sigma: `(n,)`, noise level in [0, 1].
            tokens: `(n, LENGTH)`, ids.
            side: packed latent tokens along a picture's edge.
        """
        text = self.text_encoder_2(tokens)[0]
        pooled = self.text_encoder(tokens).pooler_output
        velocity: torch.Tensor = self.transformer(
            hidden_states=latents,
            timestep=sigma,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            txt_ids=torch.zeros(tokens.shape[1], 3, device=latents.device),
            img_ids=image_ids(side).to(latents.device),
            return_dict=False,
        )[0]
        return velocity


def image_ids(side: int) -> torch.Tensor:
    """Return the positions of a square picture's tokens, `(side * side, 3)`: 0, row, column."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).to(torch.float32)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Turn `(..., c, 2 h, 2 w)` into tokens `(..., h * w, 4 c)`, each a 2x2 patch, as ``FluxPipeline`` does."""
    *lead, c, height, width = latents.shape
    patches = latents.reshape(-1, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(*lead, (height // 2) * (width // 2), 4 * c)


def build(shape: TransformerShape, *, latent_channels: int, vocabulary: int, seed: int) -> Denoiser:
    """Return untrained modules, the same ones for the same seed."""
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    pad, end = 0, 1
    t5 = T5Config(
        vocab_size=vocabulary, d_model=shape.text_dim, d_kv=32, d_ff=2 * shape.text_dim, num_layers=shape.text_layers,
        num_heads=4, dropout_rate=0.0, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        pad_token_id=pad, eos_token_id=end,
    )  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=shape.pooled_dim, intermediate_size=2 * shape.pooled_dim,
        projection_dim=shape.pooled_dim, num_hidden_layers=shape.text_layers, num_attention_heads=2,
        max_position_embeddings=tokenizer.LENGTH, pad_token_id=pad, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * latent_channels,
            num_layers=shape.double_blocks,
            num_single_layers=shape.single_blocks,
            attention_head_dim=shape.head_dim,
            num_attention_heads=shape.heads,
            joint_attention_dim=shape.text_dim,
            pooled_projection_dim=shape.pooled_dim,
            guidance_embeds=False,
            axes_dims_rope=shape.rope_dims,
        )
        _initialise(transformer)
        return Denoiser(transformer, CLIPTextModel(clip), T5EncoderModel(t5))


def _initialise(transformer: Any) -> None:
    """Xavier for linear layers; zero for modulation and output, so that every block begins as the identity."""
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        modulation = name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear"))
        if modulation or name == "proj_out":
            nn.init.zeros_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def tokens_of(captions: tuple[str, ...], words: Any) -> torch.Tensor:
    """Return the ids of every caption on every colour, `(n_captions, n_colours, LENGTH)`."""
    prompts = [f"{caption}, {colour} background" for caption in captions for colour in COLOURS]
    ids = words(
        prompts, padding="max_length", max_length=tokenizer.LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return torch.as_tensor(ids).reshape(len(captions), len(COLOURS), tokenizer.LENGTH)


def train_transformer(
    model: Denoiser,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    settings: Settings,
    *,
    checkpoint: Path,
    every: int = 250,
    stop_after: int | None = None,
    report: Report = lambda _step, _loss: None,
) -> int:
    """Train ``model`` in place and return the number of steps done (see `_training.train`).

    Args:
        model: from `build`.
        latents: `(n_captions, n_colours, c, h, w)`, shifted and scaled to mean 0 and deviation 1.
        tokens: `(n_captions, n_colours, LENGTH)` (see `tokens_of`).
        settings: see `Settings`.
        checkpoint: file to go on from.
        every: steps between two checkpoints.
        stop_after: end early after this many steps in all.
        report: called after each step.
    """
    device = next(model.parameters()).device
    packed = pack(latents)
    side = latents.shape[-1] // 2
    empty = torch.tensor([1] + [0] * (tokenizer.LENGTH - 1))

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        n = settings.batch
        which = torch.randint(len(packed), (n,), generator=generator)
        colour = data.draw_colours(n, generator)
        clean = packed[which, colour].to(device)
        dropped = torch.rand(n, generator=generator) < DROP_CAPTION
        ids = torch.where(dropped[:, None], empty, tokens[which, colour]).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        logit = SIGMA_LOGIT_MEAN + SIGMA_LOGIT_STD * torch.randn(n, generator=generator)
        sigma = logit.sigmoid().to(device)
        mixed = torch.lerp(clean, noise, sigma[:, None, None])
        return nn.functional.mse_loss(model(mixed, sigma, ids, side).float(), noise - clean)

    return train(model, loss_of, settings, checkpoint=checkpoint, every=every, stop_after=stop_after, report=report)
