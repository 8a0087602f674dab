"""A pipeline of the real shapes and random weights: nothing is downloaded, and nothing is ever held twice.

The denoiser is built on the ``meta`` device, cast there, and its memory is taken once, on the device and in the dtype
it will run in. Text encoders and the VAE are left out; random embeddings stand for prompts, and the latents are the
result. Weights have the variance that keeps activations near 1, so that no kernel meets infinities or zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from schedsearch.errors import EvaluationError, UsageError
from schedsearch.evaluate import _weights
from schedsearch.evaluate._models import ModelCard, parse_device, parse_dtype
from schedsearch.evaluate._workload import Pipeline, TextEmbeds, Workload

_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What must be known of a pipeline to run its denoising loop.

    Attributes:
        transformer: configuration of the denoiser.
        scheduler: configuration of the scheduler.
        vae_scale_factor: pixels per latent, in each direction.
    """

    transformer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    vae_scale_factor: int


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "black-forest-labs/FLUX.1-dev": Architecture(
        transformer={
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
        scheduler={
            "base_image_seq_len": 256,
            "base_shift": 0.5,
            "max_image_seq_len": 4096,
            "max_shift": 1.15,
            "num_train_timesteps": 1000,
            "shift": 3.0,
            "use_dynamic_shifting": True,
        },
        vae_scale_factor=8,
    ),
}
"""Public facts of models whose files ask for a licence first; random weights need none."""


def architecture_of(card: ModelCard) -> Architecture:
    """Return the architecture behind a card: a table entry, else the configuration files of its folder or repository.

    Raises:
        ModelNotFoundError: it is a hub id whose configuration cannot be had.
        UsageError: a configuration file cannot be used.
    """
    if card.weights in ARCHITECTURES:
        return ARCHITECTURES[card.weights]
    path = Path(card.weights)
    folder = path if path.is_absolute() else _weights.configuration(card.weights)
    parts = {}
    for name in ("transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"):
        try:
            parts[name.partition("/")[0]] = _weights.read_json(folder / name)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{folder / name}: found no readable configuration ({error}), expected a JSON object. A model of "
                "random weights needs the configuration files of a pipeline, though not its weights."
            ) from error
    levels = parts["vae"].get("block_out_channels")
    if not isinstance(levels, list) or not levels:
        raise UsageError(f"{folder}/vae/config.json: block_out_channels: found {levels!r}, expected a list of widths.")
    return Architecture(
        transformer=parts["transformer"], scheduler=parts["scheduler"], vae_scale_factor=2 ** (len(levels) - 1)
    )


def random_pipeline(
    card: ModelCard, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
) -> Pipeline:
    """Return the card's pipeline with a denoiser of random weights on ``device``, and neither text encoders nor VAE.

    Raises:
        UsageError: the device or dtype is unknown, not on this machine, or too small; or a configuration is unusable.
        ModelNotFoundError: the card's configuration cannot be had.
    """
    place, number = parse_device(device), parse_dtype(dtype)
    architecture = architecture_of(card)
    with _weights.quiet():
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

        denoiser = meta_denoiser(architecture)
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(architecture.scheduler))
        _materialise(denoiser.to(number), place, card)
        pipe: Any = FluxPipeline(
            scheduler=scheduler,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=denoiser,
        )
    # The pipeline asks its VAE for this, and falls back to FLUX.1's where it has none.
    pipe.vae_scale_factor = architecture.vae_scale_factor
    pipe.image_processor = type(pipe.image_processor)(vae_scale_factor=2 * architecture.vae_scale_factor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def meta_denoiser(architecture: Architecture) -> nn.Module:
    """Return the denoiser on the ``meta`` device: all its shapes and none of its numbers.

    Raises:
        UsageError: diffusers cannot build a denoiser of that configuration.
    """
    from diffusers import FluxTransformer2DModel

    try:
        with torch.device("meta"):
            found: Any = FluxTransformer2DModel.from_config(dict(architecture.transformer))
    except Exception as error:
        raise UsageError(
            f"transformer/config.json: found a configuration that diffusers cannot build ({error}), expected that of a "
            "FluxTransformer2DModel."
        ) from error
    denoiser: nn.Module = found.eval().requires_grad_(False)
    return denoiser


def _materialise(denoiser: nn.Module, device: torch.device, card: ModelCard) -> None:
    """Give a denoiser on the ``meta`` device its memory and random numbers."""
    if buffers := [name for name, _ in denoiser.named_buffers()]:
        raise EvaluationError(
            f"{card.name}: found the buffer {buffers[0]} in {type(denoiser).__name__}, expected parameters only: what "
            "a buffer holds cannot be drawn at random. Profile the model with its own weights."
        )
    n_bytes = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    free = _free_bytes(device)
    if free is not None and n_bytes > free:  # a CPU would not refuse, but thrash or kill
        raise UsageError(
            f"device: found {free / 2**30:.1f} GiB free on {device}, expected the {n_bytes / 2**30:.1f} GiB of "
            f"{card.name}'s denoiser. Use `--dtype bfloat16` or a larger device."
        )
    denoiser.to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(_SEED)
    with torch.no_grad():
        for module in denoiser.modules():
            for parameter in module.parameters(recurse=False):
                if isinstance(module, nn.Linear):
                    parameter.normal_(std=module.in_features**-0.5, generator=generator)
                else:  # the scales of norms
                    parameter.fill_(1.0)


def _free_bytes(device: torch.device) -> int | None:
    """Memory that can be taken on ``device``; ``None`` where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if device.type == "cpu" and info.is_file():
        for line in info.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def random_embeds(pipe: Pipeline, workload: Workload) -> TextEmbeds:
    """Return random prompt embeddings of the right shapes for one image, on the pipeline's device and in its dtype."""
    config = pipe.transformer.config
    generator = torch.Generator(device="cpu").manual_seed(_SEED)

    def draw() -> TextEmbeds:
        shapes = (1, workload.max_sequence_length, config.joint_attention_dim), (1, config.pooled_projection_dim)
        parameter = next(pipe.transformer.parameters())
        tokens, pooled = (torch.randn(shape, generator=generator).to(parameter) for shape in shapes)
        return TextEmbeds(tokens=tokens, pooled=pooled)

    found = draw()
    if workload.branches == 1:
        return found
    return TextEmbeds(tokens=found.tokens, pooled=found.pooled, negative=draw())
