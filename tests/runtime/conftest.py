"""Pipelines the runtime tests run on: the trained one in the box, and a random one of FLUX.1's depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from schedsearch.runtime._correction import value_shape
from schedsearch.schedule import Schedule, SideTensor, with_tensors
from schedsearch.testing import random_flux
from schedsearch_calibration import flux_mini_path

Run = Callable[..., torch.Tensor]


def _flux_mini() -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(flux_mini_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def mini_session() -> FluxPipeline:
    return _flux_mini()


@pytest.fixture(scope="session")
def deep_session() -> FluxPipeline:
    return random_flux(19, 38)


@pytest.fixture(scope="session")
def shallow_session() -> FluxPipeline:
    return random_flux(2, 1)


def _bare(pipe: FluxPipeline) -> FluxPipeline:
    """The tests share a pipeline, so each must find it without a schedule."""
    assert not hasattr(pipe.transformer, "_schedsearch_handle")
    assert "forward" not in pipe.transformer.__dict__
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    return pipe


@pytest.fixture
def mini(mini_session: FluxPipeline) -> Any:
    yield _bare(mini_session)
    _bare(mini_session)


@pytest.fixture
def deep(deep_session: FluxPipeline) -> Any:
    yield _bare(deep_session)
    _bare(deep_session)


@pytest.fixture
def shallow(shallow_session: FluxPipeline) -> Any:
    """For what takes long per block, such as compiling."""
    yield _bare(shallow_session)
    _bare(shallow_session)


@pytest.fixture(params=["mini", "deep"])
def pipe(request: pytest.FixtureRequest) -> FluxPipeline:
    return request.getfixturevalue(request.param)


def embeddings(pipe: FluxPipeline, batch: int, seed: int) -> dict[str, torch.Tensor]:
    """Random prompt embeddings of the right size, so that a pipeline without text encoders can be called."""
    config, dtype = pipe.transformer.config, pipe.transformer.dtype
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(batch, 16, config.joint_attention_dim, generator=generator).to(pipe.device, dtype),
        "pooled_prompt_embeds": torch.randn(batch, config.pooled_projection_dim, generator=generator).to(
            pipe.device, dtype
        ),
    }


@pytest.fixture(scope="session")
def corrected() -> Callable[[Any, Schedule], Schedule]:
    """Returns a function that gives every row of a schedule a correction at its predictions but at every third step."""

    def make(pipe: Any, schedule: Schedule) -> Schedule:
        source, tensors = torch.Generator().manual_seed(0), {}
        for name, row in schedule.ops:
            streams, channels = value_shape(pipe, name)
            table = torch.zeros(schedule.n_steps, streams, 2, channels)
            table[:, :, 0] = 1.0
            for step, op in enumerate(row):
                if op not in "CS" and step % 3:
                    table[step] += 0.1 * torch.randn(table[step].shape, generator=source)
            tensors[f"{name}.correction"] = SideTensor("F32", tuple(table.shape), table.numpy().tobytes())
        return with_tensors(schedule, tensors, role="test")

    return make


@pytest.fixture(scope="session")
def run() -> Run:
    """Returns a function that runs a pipeline and gives its images as a tensor."""

    def call(
        pipe: Any, *, batch: int = 1, cfg: bool = False, steps: int = 8, size: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        size = size or 16 * pipe.vae_scale_factor  # 64 image tokens
        negative = {f"negative_{k}": v for k, v in embeddings(pipe, batch, 9).items()} if cfg else {}
        return pipe(
            **embeddings(pipe, batch, 1),
            **negative,
            true_cfg_scale=3.0 if cfg else 1.0,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **kwargs,
        ).images

    return call
