"""Models of random weights: what they are, and what they need and refuse."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from schedsearch.errors import ModelNotFoundError, UsageError
from schedsearch.evaluate import find_card
from schedsearch.evaluate.profile import architecture_of, meta_denoiser, random_embeds, random_pipeline
from schedsearch.runtime import model_ref


def test_a_random_pipeline_runs_without_text_encoders_and_vae(pipe, workload):
    out = pipe(
        prompt_embeds=random_embeds(pipe, workload).tokens,
        pooled_prompt_embeds=random_embeds(pipe, workload).pooled,
        height=16,
        width=24,
        num_inference_steps=2,
        output_type="latent",
    ).images

    assert out.shape == (1, 4 * 6, 4)  # a token is 2 x 2 latents of 2 x 2 pixels
    assert torch.isfinite(out).all()
    assert 0.01 < float(out.std()) < 100.0
    assert not any(p.requires_grad for p in pipe.transformer.parameters())


def test_random_weights_are_repeatable_and_of_the_dtype_asked_for(card):
    one, two = (random_pipeline(card, dtype="bfloat16").transformer.state_dict() for _ in range(2))

    assert all(torch.equal(one[name], two[name]) and one[name].dtype == torch.bfloat16 for name in one)
    assert one["x_embedder.weight"].float().std() == pytest.approx(0.5, rel=0.2)  # 4 inputs
    assert torch.all(one["transformer_blocks.0.attn.norm_q.weight"] == 1.0)


def test_random_weights_are_never_held_twice_nor_in_float32(card, monkeypatch):
    """All memory is taken by one `to_empty`, after the cast on the meta device."""
    seen = []
    real = torch.nn.Module.to_empty

    def watched(self, *, device, recurse=True):
        seen.append({(p.device.type, p.dtype) for p in self.parameters()})
        return real(self, device=device, recurse=recurse)

    monkeypatch.setattr(torch.nn.Module, "to_empty", watched)
    random_pipeline(card, dtype="bfloat16")

    assert seen == [{("meta", torch.bfloat16)}]


def test_flux_needs_no_files_for_random_weights(monkeypatch):
    monkeypatch.setattr("schedsearch.evaluate._weights.configuration", lambda repo: pytest.fail(f"asked for {repo}"))
    denoiser = meta_denoiser(architecture_of(find_card("flux")))

    assert (len(denoiser.transformer_blocks), len(denoiser.single_transformer_blocks)) == (19, 38)
    assert denoiser.inner_dim == 3072
    assert denoiser.config.guidance_embeds
    assert {p.device.type for p in denoiser.parameters()} == {"meta"}


def test_a_random_model_is_the_same_denoiser_to_a_schedule(mini, mini_card):
    """Its configuration hash is that of the loaded model, so schedules go from one to the other."""
    random = random_pipeline(mini_card)

    size = {"height": mini_card.height, "width": mini_card.width}
    assert model_ref(random, **size) == model_ref(mini, **size)
    assert random.vae_scale_factor == mini.vae_scale_factor


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("vae/config.json", "{}", "block_out_channels: found None, expected a list of widths"),
        ("vae/config.json", "[", "found no readable configuration"),
        (
            "transformer/config.json",
            json.dumps({"_class_name": "FluxTransformer2DModel", "num_layers": "two"}),
            "found a configuration that diffusers cannot build",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(*, card, folder, tmp_path, file, content, said):
    for path in folder.rglob("*.*"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / file).write_text(content)

    with pytest.raises(UsageError, match=said):
        random_pipeline(dataclasses.replace(card, weights=str(tmp_path)))


def test_a_model_that_does_not_fit_is_refused_before_its_memory_is_taken(monkeypatch):
    monkeypatch.setattr("schedsearch.evaluate.profile._random._free_bytes", lambda _device: 8 * 2**30)

    with pytest.raises(
        UsageError, match=r"device: found 8.0 GiB free on cpu, expected the 22.2 GiB of flux's denoiser"
    ):
        random_pipeline(find_card("flux"), dtype="bfloat16")


def test_a_hub_id_without_configuration_is_not_at_hand(card):
    with pytest.raises(ModelNotFoundError, match="the weights of nobody/nothing are not at hand"):
        random_pipeline(dataclasses.replace(card, weights="nobody/nothing"))


def test_a_workload_of_two_passes_gets_two_prompts(pipe, workload):
    both = random_embeds(pipe, dataclasses.replace(workload, true_cfg_scale=2.0))

    assert both.negative is not None
    assert both.tokens.shape == both.negative.tokens.shape == (1, 3, 32)
    assert not torch.equal(both.tokens, both.negative.tokens)
