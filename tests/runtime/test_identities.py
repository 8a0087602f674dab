"""The exact promises of the runtime, bit for bit, on the trained model and on one of FLUX.1's depth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline

from schedsearch.runtime import apply, blocks_of, identity_schedule
from schedsearch.schedule import Schedule

STEPS = 6


def schedule_for(pipe: Any, **rows: str) -> Schedule:
    """A six-step schedule; rows by module name, with ``__`` for the dot."""
    size = 16 * pipe.vae_scale_factor
    base = identity_schedule(pipe, STEPS, height=size, width=size)
    return replace(base, ops=tuple((name.replace("__", "."), row) for name, row in rows.items()))


def count_calls(pipe: Any) -> dict[str, int]:
    """Counts, from now on, how often each block's own code runs."""
    calls = {b.name: 0 for b in blocks_of(pipe)}
    for name in list(calls):
        norm = "norm1" if name.startswith("transformer") else "norm"
        module = pipe.transformer.get_submodule(f"{name}.{norm}")
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    return calls


@pytest.fixture
def counted(pipe: Any) -> Any:
    calls = count_calls(pipe)
    yield calls
    for module in pipe.transformer.modules():
        module._forward_hooks.clear()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("cfg", [False, True], ids=["plain", "cfg"])
def test_identity_schedule_is_the_plain_pipeline(pipe: Any, run: Any, batch: int, cfg: bool) -> None:
    plain = run(pipe, batch=batch, cfg=cfg, steps=STEPS)
    with apply(pipe, schedule_for(pipe)):
        assert torch.equal(run(pipe, batch=batch, cfg=cfg, steps=STEPS), plain)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("cfg", [False, True], ids=["plain", "cfg"])
def test_apply_then_remove_is_the_plain_pipeline(pipe: Any, run: Any, batch: int, cfg: bool) -> None:
    plain = run(pipe, batch=batch, cfg=cfg, steps=STEPS)
    rows = {
        "model": "CC1R2C",
        "transformer_blocks__1": "CCCCCR",
        "single_transformer_blocks__0__attn": "CCCCC1",
    }
    handle = apply(pipe, schedule_for(pipe, **rows))
    changed = run(pipe, batch=batch, cfg=cfg, steps=STEPS)
    handle.remove()
    assert not torch.equal(changed, plain)
    assert torch.equal(run(pipe, batch=batch, cfg=cfg, steps=STEPS), plain)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("cfg", [False, True], ids=["plain", "cfg"])
def test_a_reused_model_runs_no_block(pipe: Any, run: Any, counted: dict[str, int], batch: int, cfg: bool) -> None:
    with apply(pipe, schedule_for(pipe, model="CRRC1R")):
        run(pipe, batch=batch, cfg=cfg, steps=STEPS)
    assert set(counted.values()) == {2 * (1 + cfg)}


@pytest.mark.parametrize("cfg", [False, True], ids=["plain", "cfg"])
def test_a_reused_block_does_not_run(pipe: Any, run: Any, counted: dict[str, int], cfg: bool) -> None:
    row = "CRR1CR"
    with apply(pipe, schedule_for(pipe, transformer_blocks__1=row, transformer_blocks__2=row)):
        run(pipe, cfg=cfg, steps=STEPS)
    for name, calls in counted.items():
        own = row.count("C") if name in ("transformer_blocks.1", "transformer_blocks.2") else STEPS
        assert calls == own * (1 + cfg), name


def test_a_pruned_block_never_runs(pipe: Any, run: Any, counted: dict[str, int]) -> None:
    with apply(pipe, replace(schedule_for(pipe), pruned=("single_transformer_blocks.1", "transformer_blocks.0"))):
        run(pipe, steps=STEPS)
    assert counted["single_transformer_blocks.1"] == counted["transformer_blocks.0"] == 0
    assert counted["transformer_blocks.1"] == STEPS


def test_pruning_is_a_row_of_skips(mini: Any, run: Any) -> None:
    with apply(mini, replace(schedule_for(mini), pruned=("transformer_blocks.2",))):
        pruned = run(mini, steps=STEPS)
    with apply(mini, schedule_for(mini, transformer_blocks__2="SSSSSS")):
        assert torch.equal(run(mini, steps=STEPS), pruned)


def test_a_second_pipeline_of_the_same_class_is_untouched(mini: FluxPipeline, run: Any, deep: FluxPipeline) -> None:
    plain = run(deep, steps=STEPS)
    with apply(mini, schedule_for(mini, model="CRRRRR")):
        run(mini, steps=STEPS)
        assert torch.equal(run(deep, steps=STEPS), plain)


def test_a_second_run_does_not_see_the_first(mini: Any, run: Any) -> None:
    with apply(mini, schedule_for(mini, model="CC2C2R", transformer_blocks__0="CR1CC1")):
        first = run(mini, steps=STEPS)
        run(mini, batch=3, steps=STEPS)
        assert torch.equal(run(mini, steps=STEPS), first)


def test_images_do_not_depend_on_the_batch_they_are_in(mini: Any) -> None:
    prompts = ["red apple, blue background", "dog face, green background"]

    def images(chosen: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in chosen]
        call = {"height": 64, "width": 64, "num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "pt"}
        return mini([prompts[i] for i in chosen], generator=generators, max_sequence_length=16, **call).images

    with apply(mini, schedule_for(mini, model="CC1C1R")):
        together = images([0, 1])
        torch.testing.assert_close(images([0]), together[:1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(images([1]), together[1:], atol=1e-5, rtol=1e-5)


def test_branches_keep_their_own_values(mini: Any, run: Any) -> None:
    """A shared cache would hand the unconditional pass the conditional output: the image by hand tells."""
    rows = schedule_for(mini, model="CRRRRR")
    with apply(mini, rows):
        cfg = run(mini, cfg=True, steps=STEPS)
    kept: list[torch.Tensor] = []
    original = mini.transformer.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if len(kept) < 2:
            kept.append(output[0].clone())
        return output

    mini.transformer.forward = spy
    try:
        run(mini, cfg=True, steps=STEPS)
    finally:
        del mini.transformer.forward
    cond, uncond = kept
    velocity = uncond + 3.0 * (cond - uncond)
    latents = run_latents(mini)
    sigma = torch.tensor(rows.sigma)
    for delta in (sigma[1:] - sigma[:-1]).unbind():
        latents = latents + delta * velocity
    torch.testing.assert_close(decode(mini, latents), cfg, atol=1e-5, rtol=1e-5)


def run_latents(pipe: Any) -> torch.Tensor:
    """The initial noise that the fixture ``run`` starts from."""
    return pipe.prepare_latents(
        1, pipe.transformer.config.in_channels // 4, 64, 64, torch.float32, "cpu", torch.Generator().manual_seed(0)
    )[0]


def decode(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    unpacked = pipe._unpack_latents(latents, 64, 64, pipe.vae_scale_factor)
    unpacked = unpacked / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    with torch.no_grad():
        return pipe.image_processor.postprocess(pipe.vae.decode(unpacked, return_dict=False)[0], output_type="pt")


def test_controlnet_residuals_between_reused_blocks_survive(mini: Any) -> None:
    """A cached run of blocks keeps only its own residual: what is added between blocks is added at every step."""
    transformer = mini.transformer
    torch.manual_seed(0)
    call = {
        "hidden_states": torch.randn(1, 64, 32),
        "encoder_hidden_states": torch.randn(1, 4, 128),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([0.5]),
        "txt_ids": torch.zeros(4, 3),
        "img_ids": torch.zeros(64, 3),
        "return_dict": False,
    }
    control = [torch.randn(1, 64, 128) for _ in range(4)]
    rows = dict.fromkeys((f"transformer_blocks__{i}" for i in range(4)), "CRCCCC")
    into: list[torch.Tensor] = []
    hook = transformer.single_transformer_blocks[0].register_forward_pre_hook(
        lambda _module, _args, kwargs: into.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad(), apply(mini, schedule_for(mini, **rows)):
        mini.scheduler.set_timesteps(device="cpu")
        embedded = transformer.x_embedder(call["hidden_states"])
        transformer(**call, controlnet_block_samples=control)
        mini.scheduler.step(torch.zeros(1, 64, 32), 0.0, torch.zeros(1, 64, 32))
        transformer(**call, controlnet_block_samples=[2 * c for c in control])
    hook.remove()
    own = into[0] - embedded - sum(control)
    torch.testing.assert_close(into[1], embedded + own + 2 * sum(control), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_starts_in_the_middle(mini: Any, run: Any, strength: float) -> None:
    pipe = FluxImg2ImgPipeline.from_pipe(mini)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    plain = run(pipe, image=image, strength=strength, steps=STEPS)
    with apply(pipe, schedule_for(pipe)):
        assert torch.equal(run(pipe, image=image, strength=strength, steps=STEPS), plain)
    with apply(pipe, schedule_for(pipe, model="CR1RRR", transformer_blocks__0="CCCRC1")):
        changed = run(pipe, image=image, strength=strength, steps=STEPS)
        assert torch.isfinite(changed).all()
        assert torch.equal(run(pipe, image=image, strength=strength, steps=STEPS), changed)
    assert not torch.equal(changed, plain)
    assert torch.equal(run(pipe, image=image, strength=strength, steps=STEPS), plain)
