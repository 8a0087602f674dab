"""Paired noise: every run of a prompt starts from the same latents, whatever else runs beside it.

A prompt's latents are a function of the seed and the prompt's index alone: each has its own generator on the CPU, so
neither the batch it runs in, nor its neighbours, nor the device change a bit of it. Does not know prompts or schedules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from schedsearch.evaluate._workload import Pipeline, Workload, latent_grid, pack_latents


def noise_generator(seed: int, index: int) -> torch.Generator:
    """Return the CPU generator that belongs to prompt ``index`` under ``seed``.

    The two are hashed, not added: with ``seed + index``, seeds 0 and 1 would share all but one of their draws.
    """
    digest = hashlib.sha256(f"noise:{seed}:{index}".encode()).digest()
    # 63 bits: torch takes a signed 64-bit seed.
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def initial_latents(
    pipe: Pipeline,
    workload: Workload,
    *,
    seed: int,
    indices: Iterable[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return packed initial noise `(n, tokens, channels)` for ``pipe(latents=...)``, one row per prompt index.

    Noise is drawn in float32 and rounded to ``dtype`` afterwards, so a run in half precision starts from the same
    picture as one in full precision.
    """
    rows, columns = latent_grid(pipe, workload)
    channels = int(pipe.transformer.config.in_channels) // 4
    shape = (1, channels, rows, columns)
    drawn = [torch.randn(shape, generator=noise_generator(seed, index)) for index in indices]
    return pack_latents(torch.cat(drawn)).to(device=device, dtype=dtype)
