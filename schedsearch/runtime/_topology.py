"""What the runtime must know of each pipeline class, as data: where the denoiser is, its blocks, their conventions.

Adding a model family is adding a row to `TOPOLOGIES`. Knows nothing of schedules being run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from schedsearch.errors import UnsupportedFeatureError
from schedsearch.schedule import ModelRef, Schedule, Solver
from schedsearch.types import BlockSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockList:
    """A list of equal blocks inside a denoiser.

    Attributes:
        name: attribute of the denoiser, a ``ModuleList``.
        components: parts of a block that can be scheduled on their own.
        streams: the block's residual streams by argument name, in the order in which the block returns them.
        paired: components that return one value per stream; the others return one.
    """

    name: str
    components: tuple[str, ...]
    streams: tuple[str, ...]
    paired: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A family of pipelines around one denoiser class.

    Attributes:
        family: name of the search space that fits.
        pipelines: pipeline classes that drive this denoiser, by name.
        denoiser: attribute of the pipeline.
        lists: its block lists, in running order.
        width: attribute of the denoiser that says how many channels every stream has.
        output: the denoiser's linear layer whose output is its own.
    """

    family: str
    pipelines: tuple[str, ...]
    denoiser: str
    lists: tuple[BlockList, ...]
    width: str
    output: str


TOPOLOGIES = (
    Topology(
        family="flux",
        pipelines=(
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxControlPipeline",
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxFillPipeline",
            "FluxKontextPipeline",
            "FluxKontextInpaintPipeline",
        ),
        denoiser="transformer",
        lists=(
            BlockList(
                name="transformer_blocks",
                components=("attn", "ff", "ff_context"),
                streams=("encoder_hidden_states", "hidden_states"),
                paired=("attn",),
            ),
            BlockList(
                name="single_transformer_blocks",
                components=("attn", "proj_mlp", "proj_out"),
                streams=("encoder_hidden_states", "hidden_states"),
            ),
        ),
        width="inner_dim",
        output="proj_out",
    ),
)


def topology_of(pipe: object) -> Topology:
    """Returns the topology of ``pipe``'s class (or of a class it derives from).

    Raises:
        UnsupportedFeatureError: no topology knows the class.
    """
    names = [cls.__name__ for cls in type(pipe).__mro__]
    for topology in TOPOLOGIES:
        if any(name in topology.pipelines for name in names):
            return topology
    known = ", ".join(name for t in TOPOLOGIES for name in t.pipelines[:2])
    raise UnsupportedFeatureError(
        f"pipe: found a {names[0]}, expected one of the pipelines this release can drive ({known}, ...). "
        "Load the model with a FLUX-type diffusers pipeline."
    )


def denoiser_of(pipe: object) -> torch.nn.Module:
    """Returns the module that a step calls, without a ``torch.compile`` shell around it."""
    module = getattr(pipe, topology_of(pipe).denoiser)
    return cast("torch.nn.Module", getattr(module, "_orig_mod", module))


def block_lists_of(pipe: object) -> tuple[tuple[BlockSpec, ...], ...]:
    """Returns the denoiser's blocks, list by list in running order."""
    denoiser = denoiser_of(pipe)
    return tuple(
        tuple(
            BlockSpec(name=f"{blocks.name}.{i}", components=blocks.components)
            for i in range(len(getattr(denoiser, blocks.name)))
        )
        for blocks in topology_of(pipe).lists
    )


def blocks_of(pipe: object) -> tuple[BlockSpec, ...]:
    """Returns all schedulable blocks of ``pipe``'s denoiser in running order."""
    return tuple(block for blocks in block_lists_of(pipe) for block in blocks)


def adapters_of(pipe: object) -> tuple[str, ...]:
    """Returns the names of the adapters (LoRA) loaded into the denoiser, sorted."""
    return tuple(sorted(getattr(denoiser_of(pipe), "peft_config", {}) or {}))


def model_ref(pipe: object, *, height: int, width: int, batch: int = 1) -> ModelRef:
    """Returns the identity of ``pipe``'s denoiser, at this size in pixels and images per call."""
    denoiser = denoiser_of(pipe)
    # Not how its weights are stored: quantised weights are still the same denoiser.
    config = {
        k: v
        for k, v in cast("Mapping[str, Any]", denoiser.config).items()
        if not k.startswith("_") and k != "quantization_config"
    }
    blocks = [[b.name, type(denoiser.get_submodule(b.name)).__name__, list(b.components)] for b in blocks_of(pipe)]
    return ModelRef(
        pipeline=type(pipe).__name__,
        config=_digest(config),
        blocks=_digest(blocks),
        height=height,
        width=width,
        batch=batch,
        adapters=adapters_of(pipe),
    )


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tokens(pipe: object, *, height: int, width: int) -> int:
    """Returns how many image tokens the denoiser sees for an image of this size in pixels."""
    patch = 2 * int(getattr(pipe, "vae_scale_factor", 8))
    return (height // patch) * (width // patch)


def default_sigmas(pipe: object, n_steps: int, *, height: int, width: int) -> tuple[float, ...]:
    """Returns the `(n_steps + 1,)` post-shift noise levels ``pipe`` itself uses for this many steps and this size.

    The values are float32 numbers, so a schedule holding them replays the plain pipeline bit for bit.

    Raises:
        UnsupportedFeatureError: the pipeline has another kind of scheduler than its family's own.
    """
    require_flow_euler(cast("Any", pipe).scheduler)
    config = cast("Any", pipe).scheduler.config
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
    mu = config.get("base_shift", 0.5) + slope * (tokens(pipe, height=height, width=width) - low)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / n_steps, n_steps), mu=mu)
    return tuple(float(s) for s in scheduler.sigmas)


def require_flow_euler(scheduler: object) -> None:
    """Refuses a scheduler whose plain run a schedule could not be compared with.

    Raises:
        UnsupportedFeatureError: it is no deterministic `FlowMatchEulerDiscreteScheduler`.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise UnsupportedFeatureError(
            f"pipe.scheduler: found a {type(scheduler).__name__}, expected a FlowMatchEulerDiscreteScheduler, which "
            "FLUX models come with. A schedule brings its own solver; load the pipeline with its own scheduler."
        )
    if cast("Any", scheduler).config.get("stochastic_sampling", False):
        raise UnsupportedFeatureError(
            "pipe.scheduler.config.stochastic_sampling: found True, expected False. A schedule describes a "
            "deterministic run; load the pipeline with a deterministic scheduler."
        )


def identity_schedule(pipe: object, n_steps: int, *, height: int, width: int, batch: int = 1) -> Schedule:
    """Returns the schedule that computes everything, at the noise levels ``pipe`` itself would use."""
    return Schedule(
        sigma=default_sigmas(pipe, n_steps, height=height, width=width),
        solver=(Solver(),) * n_steps,
        model=model_ref(pipe, height=height, width=width, batch=batch),
    )
