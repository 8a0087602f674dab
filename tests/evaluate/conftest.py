"""The bundled model, loaded once, and a FLUX of random weights for what needs no trained one."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def mini_card():
    from schedsearch.evaluate import find_card

    return find_card("flux-mini")


@pytest.fixture(scope="session")
def mini(mini_card):
    """The bundled pipeline; tests leave it as they found it."""
    from schedsearch.evaluate import load_pipeline

    return load_pipeline(mini_card)


@pytest.fixture(scope="session")
def short(mini_card):
    """The bundled model's workload with few steps."""
    import dataclasses

    from schedsearch.evaluate import Workload

    return dataclasses.replace(Workload.from_card(mini_card), steps=4)


@pytest.fixture(scope="session")
def short_card(mini_card):
    import dataclasses

    return dataclasses.replace(mini_card, steps=4)


@pytest.fixture(scope="session")
def lists(mini):
    from schedsearch.runtime import block_lists_of

    return block_lists_of(mini)


@pytest.fixture(scope="session")
def table(mini, short, lists):
    from schedsearch.evaluate import count_macs

    return count_macs(mini, short, lists)


@pytest.fixture(scope="session")
def plan(mini, mini_card):
    """Makes a schedule for the bundled model from its rows."""
    import dataclasses

    from schedsearch.runtime import identity_schedule

    def make(steps=4, **fields):
        full = identity_schedule(mini, steps, height=mini_card.height, width=mini_card.width)
        rows = fields.pop("rows", {})
        return dataclasses.replace(full, ops=tuple(rows.items()), **fields)

    return make


def _with_an_encoder(pipe):
    """Gives the pipeline an encoder that looks at a text's length only."""
    import torch

    def encode_prompt(prompt=None, prompt_embeds=None, pooled_prompt_embeds=None, **_):
        if prompt_embeds is None:
            source = torch.Generator().manual_seed(len(prompt))
            prompt_embeds = torch.randn(1, 4, 32, generator=source)
            pooled_prompt_embeds = torch.randn(1, 32, generator=source)
        return prompt_embeds, pooled_prompt_embeds, torch.zeros(prompt_embeds.shape[1], 3)

    pipe.encode_prompt = encode_prompt
    return pipe


@pytest.fixture(scope="session")
def tiny():
    """A FLUX so small that a run takes milliseconds; tests leave it as they found it."""
    from schedsearch.testing import random_flux

    return _with_an_encoder(random_flux())


@pytest.fixture(scope="session")
def tiny_workload():
    from schedsearch.evaluate import Workload

    return Workload(height=8, width=8, steps=6, guidance_scale=1.0, max_sequence_length=4)


@pytest.fixture(scope="session")
def tiny_card(mini_card):
    import dataclasses

    return dataclasses.replace(mini_card, height=8, width=8, steps=4, max_sequence_length=4)


@pytest.fixture(scope="session")
def tiny_table(tiny, tiny_workload):
    from schedsearch.evaluate import count_macs
    from schedsearch.runtime import block_lists_of

    return count_macs(tiny, tiny_workload, block_lists_of(tiny))


@pytest.fixture(scope="session")
def tiny_plan(tiny):
    """Makes a schedule for the tiny model from its rows."""
    import dataclasses

    from schedsearch.runtime import identity_schedule

    def make(steps=4, **fields):
        rows = fields.pop("rows", {})
        full = identity_schedule(tiny, steps, height=8, width=8)
        return dataclasses.replace(full, ops=tuple(rows.items()), **fields)

    return make


@pytest.fixture(scope="session")
def tiny_runs(tiny, tiny_workload):
    """Makes paired runs of a few prompts."""
    from schedsearch.evaluate._reference import PairedRuns

    def make(n=3, batch=2, **settings):
        texts = tuple("x" * (i + 1) for i in range(n))
        return PairedRuns(tiny, tiny_workload, texts, seed=settings.pop("seed", 0), batch=batch)

    return make
