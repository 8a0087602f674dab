"""The same promises on an accelerator: identities in bfloat16, and no synchronisation inside a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from schedsearch.runtime import apply, identity_schedule
from schedsearch.schedule import Solver

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]

ROWS = (("model", "CCC1RC"), ("single_transformer_blocks.3", "CCCCCR"), ("transformer_blocks.0.attn", "CCCCCR"))


@pytest.fixture
def deep_on_gpu(deep: Any) -> Iterator[Any]:
    deep.to("cuda", torch.bfloat16)
    yield deep
    deep.to("cpu", torch.float32)


@pytest.mark.parametrize("cfg", [False, True], ids=["plain", "cfg"])
def test_identity_and_removal_are_the_plain_pipeline(deep_on_gpu: Any, run: Any, cfg: bool) -> None:
    pipe = deep_on_gpu
    plain = run(pipe, steps=6, cfg=cfg)
    base = identity_schedule(pipe, 6, height=16, width=16)
    with apply(pipe, base):
        assert torch.equal(run(pipe, steps=6, cfg=cfg), plain)
    with apply(pipe, replace(base, ops=ROWS)):
        assert not torch.equal(run(pipe, steps=6, cfg=cfg), plain)
    assert torch.equal(run(pipe, steps=6, cfg=cfg), plain)


@pytest.mark.parametrize(
    "solver",
    [Solver(), Solver(family="adams", order=3), Solver(family="unipc", order=2, prediction="data", corrector="pseudo"),
     Solver(family="heun", order=2)],
    ids=lambda solver: solver.family,
)  # fmt: skip
@pytest.mark.parametrize("is_corrected", [False, True], ids=["plain", "corrected"])
def test_a_step_never_waits_for_the_device(
    deep_on_gpu: Any, corrected: Any, solver: Solver, is_corrected: bool
) -> None:
    pipe = deep_on_gpu
    call = {
        "hidden_states": torch.randn(1, 64, 4, device="cuda", dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, 16, 32, device="cuda", dtype=torch.bfloat16),
        "pooled_projections": torch.randn(1, 32, device="cuda", dtype=torch.bfloat16),
        "timestep": torch.full((1,), 0.5, device="cuda", dtype=torch.bfloat16),
        "txt_ids": torch.zeros(16, 3, device="cuda"),
        "img_ids": torch.zeros(64, 3, device="cuda"),
        "return_dict": False,
    }
    schedule = replace(identity_schedule(pipe, 6, height=16, width=16), ops=ROWS, solver=(solver,) * 6)
    with torch.no_grad(), apply(pipe, corrected(pipe, schedule) if is_corrected else schedule):
        pipe.scheduler.set_timesteps(device="cuda")
        pipe.scheduler.set_begin_index(0)
        latents = call["hidden_states"]
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for t in pipe.scheduler.timesteps.unbind():
                velocity = pipe.transformer(**(call | {"hidden_states": latents}))[0]
                latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    assert torch.isfinite(latents).all()
