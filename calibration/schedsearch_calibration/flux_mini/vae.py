"""Stage 2: the autoencoder, `AutoencoderKL` at a quarter of the picture's height and width.

The loss is L1 on the pixels plus half the L1 on horizontal and vertical differences (edges are most of an icon), plus a
small KL term per latent element. This module does not know about prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from schedsearch_calibration.flux_mini import data
from schedsearch_calibration.flux_mini._training import Report, Settings, train

EDGE_WEIGHT: Final = 0.5
KL_WEIGHT: Final = 1e-4

SETTINGS: Final = Settings(steps=1_550, batch=32, lr=2e-3)
"""How the shipped VAE was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeShape:
    """Sizes of the autoencoder; the defaults are those of the shipped one.

    Attributes:
        channels: feature maps per level; each level after the first halves height and width.
        latent_channels: channels of a latent.
        groups: of the group norms.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 8
    groups: int = 8


def build(shape: VaeShape, *, seed: int) -> Any:
    """Return an untrained `AutoencoderKL`, the same one for the same seed."""
    from diffusers import AutoencoderKL

    levels = len(shape.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=shape.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            latent_channels=shape.latent_channels,
            norm_num_groups=shape.groups,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return L1 plus `EDGE_WEIGHT` times the L1 of neighbour differences; `(n, 3, h, w)` each."""
    loss: torch.Tensor = nn.functional.l1_loss(output, target)
    for axis in (2, 3):
        loss = loss + EDGE_WEIGHT * nn.functional.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


def train_vae(
    vae: Any,
    pictures: Sequence[data.Pictures],
    settings: Settings,
    *,
    checkpoint: Path,
    every: int = 250,
    stop_after: int | None = None,
    report: Report = lambda _step, _loss: None,
) -> int:
    """Train ``vae`` in place on all ``pictures`` and return the number of steps done (see `_training.train`)."""
    rgba = torch.cat([torch.from_numpy(one.rgba) for one in pictures])
    colours = data.palette()

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(rgba), (settings.batch,), generator=generator)
        batch = data.compose(rgba[chosen], colours[data.draw_colours(settings.batch, generator)]).to(vae.device)
        posterior = vae.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(vae.device)
        output = vae.decode(posterior.mean + posterior.std * noise).sample
        kl: torch.Tensor = 0.5 * (posterior.mean.pow(2) + posterior.var - 1.0 - posterior.logvar).mean()
        return reconstruction_loss(output, batch) + KL_WEIGHT * kl

    return train(vae, loss_of, settings, checkpoint=checkpoint, every=every, stop_after=stop_after, report=report)


@torch.no_grad()
def encode_all(vae: Any, pictures: data.Pictures, *, report: Report = lambda _done, _share: None) -> torch.Tensor:
    """Return the latent of every picture on every colour, `(n_pictures, n_colours, c, h, w)`, and set its scale.

    Also records mean and 1/std of these latents as ``shift_factor`` and ``scaling_factor`` in the VAE's configuration;
    the latents returned are not scaled yet.
    """
    colours = data.palette()
    rgba = torch.from_numpy(pictures.rgba)
    rows = []
    for i in range(len(rgba)):
        batch = data.compose(rgba[i].expand(len(colours), -1, -1, -1), colours)
        rows.append(vae.encode(batch.to(vae.device)).latent_dist.mean.cpu())
        report(i + 1, (i + 1) / len(rgba))
    latents = torch.stack(rows)
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1.0 / latents.std()))
    return latents
