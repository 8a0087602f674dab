"""Tables for timestep-only modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from schedsearch.errors import UsageError
from schedsearch.quantize._clip import static_scale, step_scales
from schedsearch.quantize._finite import build_table, lookup
from schedsearch.quantize._formats import fake

STEPS = [(torch.full((2,), 1000.0 * (1 - i / 8) ** 2),) for i in range(8)]


class TimeEmbedding(nn.Module):
    """Sines of the timestep, then a small network; counts its calls."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 64, dtype=dtype), nn.Linear(64, 48, dtype=dtype)
        self.calls = 0

    def sines(self, t):
        angle = t[:, None] * torch.exp(-math.log(10000.0) * torch.arange(16) / 16)
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.first.weight.dtype)

    def forward(self, t):
        self.calls += 1
        return self.second(functional.silu(self.first(self.sines(t))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lookup_is_the_live_output_bit_for_bit_and_runs_nothing(dtype):
    module = TimeEmbedding(dtype)
    table = build_table(module, STEPS)
    assert len(table) == 8
    before = module.calls
    found = [lookup(table, i) for i in range(8)]
    assert module.calls == before
    for (t,), seen in zip(STEPS, found, strict=True):
        assert torch.equal(seen, module(t))
        assert not seen.requires_grad


def test_structures_are_kept():
    table = build_table(lambda t, name: {name: (t + 1, t.sum() * 2)}, [(torch.ones(3) * i, "x") for i in range(4)])
    kept = lookup(table, 3)
    assert kept["x"][0].tolist() == [4.0, 4.0, 4.0]
    assert kept["x"][1].item() == 18.0


def test_nothing_is_copied_at_lookup():
    table = build_table(TimeEmbedding(), STEPS)
    assert lookup(table, 5).untyped_storage().data_ptr() == table.outputs[0].untyped_storage().data_ptr()


def test_lookup_compiles_without_a_break():
    table = build_table(TimeEmbedding(), STEPS)
    compiled = torch.compile(lambda x: x + lookup(table, 2), fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(2, 48)), 1 + lookup(table, 2))


def test_scales_of_each_timestep_beat_one_for_all():
    """Where such a module is quantised after all, its finite set of inputs is what it is calibrated for, one by one."""
    module = TimeEmbedding().eval()
    with torch.no_grad():
        # what comes in shrinks along the run, as embeddings scaled by the noise level do
        inputs = [module.sines(t) * 0.6**i for i, (t,) in enumerate(STEPS)]
        apart, together = step_scales([[x] for x in inputs], "int8"), static_scale(inputs, "int8")
        weight = fake(module.first.weight, "int8")

        def cosine(x, scale):
            seen = functional.linear(fake(x, "int8", scale=scale), weight)
            return functional.cosine_similarity(seen, functional.linear(x, module.first.weight)).min().item()

        own = [cosine(x, scale) for x, scale in zip(inputs, apart, strict=True)]
        joint = [cosine(x, together) for x in inputs]
    assert min(own) >= 0.999
    assert min(own) > min(joint)
    assert sum(own) > sum(joint)


def test_what_is_no_function_of_its_inputs_is_refused():
    module = TimeEmbedding()
    with pytest.raises(UsageError, match=r"finite table: found no calls, expected one or more"):
        build_table(module, [])
    with pytest.raises(UsageError, match=r"found two answers for the first call, .* is the module in training mode"):
        build_table(lambda t: functional.dropout(module(t), 0.5), STEPS)
    with pytest.raises(UsageError, match=r"found another shape or dtype at call 1 than at call 0, expected the same"):
        build_table(module, [STEPS[0], (torch.ones(3),)])
    with pytest.raises(UsageError, match=r"found a call that returns other things than tensors, expected tensors"):
        build_table(lambda t: (t, 3), STEPS)
    table = build_table(module, STEPS)
    for call in (8, -1):
        with pytest.raises(UsageError, match=rf"finite table: found call {call}, expected 0 to 7; it was built for"):
            lookup(table, call)


def test_a_nan_is_the_same_as_itself():
    table = build_table(lambda t: t / 0.0 * 0.0, [(torch.zeros(2),)])
    assert lookup(table, 0).isnan().all()
