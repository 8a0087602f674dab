"""The probe of a low-bit run: distances by hand, what the best correction leaves, and the plain part untouched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from schedsearch.errors import ModelMismatchError
from schedsearch.evaluate import measure_probe
from schedsearch.runtime import apply, identity_schedule
from schedsearch.schedule import PrecisionRule
from schedsearch.study import Probe

RULES = (PrecisionRule(pattern="*", weight="int4", activation="int8"),)
PROMPTS = ("x", "xx", "xxx")


@pytest.fixture(scope="module")
def probed(tiny, tiny_workload):
    return measure_probe(tiny, tiny_workload, PROMPTS, seed=0, batch=2, precision=RULES)


def outputs(pipe, runs, rules):
    """`(steps, numbers)` the denoiser's outputs of a plain run under rules."""
    found = []
    with apply(pipe, replace(identity_schedule(pipe, 6, height=8, width=8), precision=rules)) as handle:
        handle.on_call = lambda _i, _c, _x, output, _h: found.append(output.clone().flatten().double())
        runs.latents(0, 3, steps=6)
    return torch.stack(found)


def test_distances_are_those_of_the_two_runs(probed, tiny, tiny_runs):
    runs = tiny_runs(n=3, batch=3)
    full, low = outputs(tiny, runs, ()), outputs(tiny, runs, RULES)
    wanted = (full[:, None] - low[None]).abs().mean(-1).numpy()
    assert probed[0].low_bit == pytest.approx(wanted, rel=1e-2)  # batches round activations alike, to a few bits
    assert (np.diag(probed[0].low_bit) > 0.0).all()


def test_the_rest_is_the_plain_probe_and_evaluations_are_counted(probed, tiny, tiny_workload):
    plain, spent = measure_probe(tiny, tiny_workload, PROMPTS, seed=0, batch=2)
    assert plain.low_bit is None
    assert replace(probed[0], low_bit=None) == plain
    assert probed[1] == 2 * spent


def test_rules_that_round_nothing_give_the_plain_distances(tiny, tiny_workload):
    probe, _ = measure_probe(
        tiny, tiny_workload, PROMPTS, batch=2, precision=(PrecisionRule(pattern="*", weight="fp32", activation="fp32"),)
    )
    assert probe.low_bit == pytest.approx(probe.l1, abs=1e-9)


def test_a_correction_leaves_less_of_reuse_and_nothing_less_of_rounding(probed, tiny, tiny_workload):
    corrected, _ = measure_probe(tiny, tiny_workload, PROMPTS, batch=2, precision=RULES, is_corrected=True)
    later = np.tril_indices(6, -1)
    assert corrected.low_bit[later].sum() < probed[0].low_bit[later].sum()
    assert np.diag(corrected.low_bit) == pytest.approx(np.diag(probed[0].low_bit))


def test_it_comes_back_from_text(probed):
    assert Probe.from_json(probed[0].to_json()) == probed[0]


def test_rules_for_other_layers_are_refused(tiny, tiny_workload):
    with pytest.raises(ModelMismatchError, match=r"precision\[0\]\.pattern: found 'nothing'"):
        measure_probe(
            tiny,
            tiny_workload,
            PROMPTS[:1],
            precision=(PrecisionRule(pattern="nothing", weight="int8", activation="int8"),),
        )
