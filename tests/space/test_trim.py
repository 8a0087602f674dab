"""Trimming: it computes less, by about what was asked, and changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from schedsearch.schedule import MODEL_ROW
from schedsearch.space import trimmed
from schedsearch.testing import toy_space


def left_out(schedule, space) -> float:
    """Share of all blocks at all computed steps that do not compute."""
    model = schedule.row(MODEL_ROW)
    cells = [schedule.row(block.name)[step] for block in space.blocks for step, char in enumerate(model) if char == "C"]
    return sum(char != "C" for char in cells) / len(cells)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_about_the_share_asked_for_is_left_out_and_the_rest_stays(share) -> None:
    space = toy_space((("model", "CR123"), ("block", "CR123S")), n_double=4, n_single=8)
    start = space.repair(space.base)
    found = [trimmed(start, space, np.random.default_rng(seed), share=share) for seed in range(40)]
    shares = [left_out(schedule, space) for schedule in found]
    assert all(space.check(schedule) is None for schedule in found)
    assert all(schedule.row(MODEL_ROW) == "C" * 10 and schedule.sigma == start.sigma for schedule in found)
    assert all(0.0 < value < share + 0.15 for value in shares)
    assert np.mean(shares) == pytest.approx(share, rel=0.5)
    assert len({schedule.id for schedule in found}) > 30


def test_where_no_block_may_be_forecast_or_reused_there_is_nothing_to_trim() -> None:
    rng = np.random.default_rng(0)
    for levels in ((("model", "CR123"),), (("model", "CR"), ("block", "CS"))):
        space = toy_space(levels)
        assert trimmed(space.base, space, rng, share=0.2) is None
    space = toy_space((("block", "CR"),), n_steps=1)
    assert trimmed(space.base, space, rng, share=0.2) is None
