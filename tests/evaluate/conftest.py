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
