"""One place says how a pipeline is called; noise is paired whatever runs beside it."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.evaluate import TextEmbeds, Workload, decode_latents, encode_prompts, initial_latents, pipeline_kwargs
from schedsearch.evaluate._noise import noise_generator
from schedsearch.evaluate._workload import pack_latents, unpack_latents

PROMPT = "red apple, blue background"


def test_a_workload_says_what_its_card_says(mini_card):
    workload = Workload.from_card(mini_card)

    assert (workload.height, workload.width, workload.steps) == (64, 64, 28)
    assert workload.branches == 1
    assert pipeline_kwargs(workload, PROMPT, steps=3) == {
        "prompt": PROMPT,
        "height": 64,
        "width": 64,
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "max_sequence_length": 16,
        "output_type": "pt",
        "return_dict": False,
    }


def test_true_guidance_brings_the_empty_prompt_along(short):
    guided = dataclasses.replace(short, true_cfg_scale=3.0)

    assert guided.branches == 2
    assert pipeline_kwargs(guided, [PROMPT, PROMPT])["negative_prompt"] == ["", ""]
    assert pipeline_kwargs(guided, PROMPT)["negative_prompt"] == ""
    assert pipeline_kwargs(guided, PROMPT)["true_cfg_scale"] == 3.0


def test_true_guidance_wants_negative_embeddings(short):
    embeds = TextEmbeds(tokens=torch.zeros(1, 16, 128), pooled=torch.zeros(1, 64))

    with pytest.raises(UsageError, match="found embeddings without negative ones, expected both"):
        pipeline_kwargs(dataclasses.replace(short, true_cfg_scale=3.0), embeds)


def test_embeddings_and_text_give_the_same_picture_under_guidance(mini, short):
    guided = dataclasses.replace(short, true_cfg_scale=2.0, steps=2)
    latents = initial_latents(mini, guided, seed=0, indices=[0])

    with torch.no_grad():
        by_text = mini(**pipeline_kwargs(guided, PROMPT, latents=latents))[0]
        by_embeds = mini(**pipeline_kwargs(guided, encode_prompts(mini, guided, [PROMPT]), latents=latents))[0]

    assert torch.equal(by_text, by_embeds)


def test_a_prompt_is_encoded_the_same_whatever_stands_beside_it(mini, short):
    alone = encode_prompts(mini, short, [PROMPT])
    among = encode_prompts(mini, short, ["rocket, black background", PROMPT])

    assert len(among) == 2
    assert torch.equal(alone.tokens, among.rows(1, 2).tokens)
    assert torch.equal(alone.pooled, among.rows(1, 2).pooled)


def test_no_prompts_are_refused(mini, short):
    with pytest.raises(UsageError, match="found no prompts, expected at least one"):
        encode_prompts(mini, short, [])


def test_decoding_latents_gives_the_pipelines_own_images(mini, short):
    embeds = encode_prompts(mini, short, [PROMPT])
    noise = initial_latents(mini, short, seed=0, indices=[0])

    with torch.no_grad():
        images = mini(**pipeline_kwargs(short, embeds, latents=noise))[0]
        latents = mini(**pipeline_kwargs(short, embeds, latents=noise, output_type="latent"))[0]

    assert torch.equal(decode_latents(mini, short, latents), images)


def test_noise_is_what_the_pipeline_draws_from_the_same_generator(mini, short):
    with torch.no_grad():
        drawn = mini(**pipeline_kwargs(short, PROMPT, generator=noise_generator(3, 5)))[0]
        given_ = mini(**pipeline_kwargs(short, PROMPT, latents=initial_latents(mini, short, seed=3, indices=[5])))[0]

    assert torch.equal(drawn, given_)


@given(seed=st.integers(0, 2**31), indices=st.lists(st.integers(0, 500), min_size=1, max_size=5))
def test_noise_does_not_depend_on_its_neighbours(mini, short, seed, indices):
    together = initial_latents(mini, short, seed=seed, indices=indices)
    alone = [initial_latents(mini, short, seed=seed, indices=[index]) for index in indices]

    assert torch.equal(together, torch.cat(alone))


def test_neighbouring_seeds_and_indices_share_no_noise(mini, short):
    drawn = [initial_latents(mini, short, seed=s, indices=[i]) for s in range(3) for i in range(3)]

    for i, one in enumerate(drawn):
        for other in drawn[i + 1 :]:
            assert not torch.equal(one, other)
    assert torch.cat(drawn).std() == pytest.approx(1.0, abs=0.02)


def test_noise_in_half_precision_is_the_rounded_noise(mini, short):
    full = initial_latents(mini, short, seed=1, indices=[0])
    half = initial_latents(mini, short, seed=1, indices=[0], dtype=torch.bfloat16)

    assert torch.equal(full.bfloat16(), half)


@given(n=st.integers(1, 3), c=st.integers(1, 4), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_unpacking_undoes_packing(n, c, rows, columns):
    grid = torch.arange(float(n * c * rows * columns * 4)).reshape(n, c, 2 * rows, 2 * columns)
    packed = pack_latents(grid)

    assert packed.shape == (n, rows * columns, 4 * c)
    assert torch.equal(unpack_latents(packed, rows=2 * rows, columns=2 * columns), grid)


def test_a_call_needs_nothing_but_keywords(short):
    with pytest.raises(TypeError, match=re.escape("takes 2 positional arguments")):
        pipeline_kwargs(short, PROMPT, 3)  # type: ignore[misc]
