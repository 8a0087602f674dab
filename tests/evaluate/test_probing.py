"""The measured probe: closed forms of the plain run it was measured on, and no trace left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schedsearch.evaluate import measure_probe
from schedsearch.evaluate._reference import Reference
from schedsearch.runtime import block_lists_of


@pytest.fixture(scope="module")
def probed(tiny, tiny_workload):
    return measure_probe(tiny, tiny_workload, ("x", "xx", "xxx"), seed=0, batch=2)


def test_it_costs_one_plain_run_per_prompt(probed):
    assert probed[1] == 3 * 6


def test_its_inner_products_hold_the_teachers_states(probed, tiny_runs):
    """The state products that follow from the Gram matrix are those of the recorded latents."""
    probe, runs = probed[0], tiny_runs(n=3, batch=2)
    reference = Reference(runs)
    reference.prepare(3)
    alongs = [reference.trajectory(0, 2), reference.trajectory(2, 3)]
    states = torch.stack([torch.cat([a.states[i].flatten() for a in alongs]) for i in range(7)]).double()

    assert probe.sigma == reference.sigma
    assert probe.state_products == pytest.approx((states @ states.T / states.shape[1]).numpy(), rel=1e-5)


def test_distances_are_a_metric(probed):
    l1 = probed[0].l1

    assert np.diag(l1) == pytest.approx(0.0)
    assert (l1[0, 1:] > 0.0).all()
    assert all(l1[0, 2] <= l1[0, k] + l1[k, 2] + 1e-12 for k in range(6))


def test_every_block_is_there_with_its_changes(probed, tiny):
    probe = probed[0]

    assert [b.name for b in probe.blocks] == [b.name for each in block_lists_of(tiny) for b in each]
    for block in probe.blocks:
        assert block.size > 0.0
        assert np.isfinite(block.change[:3]).all()
        assert np.isnan(block.change[5]).all()


def test_changes_are_those_of_residuals_by_hand(probed, tiny, tiny_runs):
    name, found = "transformer_blocks.1", []
    block = tiny.transformer.get_submodule(name)

    def note(_module, _args, kwargs, out):
        pairs = zip(("encoder_hidden_states", "hidden_states"), out, strict=True)
        found.append(torch.cat([(after - kwargs[stream]).flatten() for stream, after in pairs]))

    hook = block.register_forward_hook(note, with_kwargs=True)
    runs = tiny_runs(n=3, batch=3)
    runs.latents(0, 3)
    hook.remove()
    record = next(b for b in probed[0].blocks if b.name == name)

    for k in (1, 2, 3):
        wanted = (found[0] - found[k]).abs().sum() / found[k].abs().sum()
        assert record.change[0, k - 1] == pytest.approx(float(wanted), rel=1e-4)


def test_nothing_is_left_behind(probed, tiny):
    assert probed[0].scale > 0.0
    assert not hasattr(tiny.transformer, "_schedsearch_handle")
    assert not any(m._forward_hooks for m in tiny.transformer.modules())
    assert probed[0] == type(probed[0]).from_json(probed[0].to_json())
