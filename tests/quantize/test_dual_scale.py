"""Separate scales for the two signs of an activation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from schedsearch.errors import UsageError
from schedsearch.quantize._dual import dual_fake, dual_quantized
from schedsearch.quantize._formats import FORMATS, fake, quantized

LOW_BIT = tuple(name for name, fmt in FORMATS.items() if not fmt.is_cast)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(seen, x):
    return (seen - x).square().mean()


@pytest.mark.parametrize("activation", [functional.gelu, functional.silu])
@pytest.mark.parametrize("fmt", ["int8", "int4", "fp4_e2m1"])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_two_scales_beat_one_after_gelu_and_silu(activation, fmt, spread):
    for seed in range(5):
        x = activation(spread * random(64, 128, seed=seed))
        assert error(dual_fake(x, fmt), x) < error(fake(x, fmt, scales="row"), x)


def test_the_negative_side_gets_all_its_codes():
    x = functional.gelu(4.0 * random(256, 64))
    negative = x < 0
    one, two = fake(x, "int4", scales="row"), dual_fake(x, "int4")
    assert error(two[negative], x[negative]) < 0.02 * error(one[negative], x[negative])
    torch.testing.assert_close(two[~negative], one[~negative])


def test_by_hand():
    x = torch.tensor([[127.0, 64.4, -1.27, -0.638, 0.0]])
    assert dual_fake(x, "int8").tolist()[0] == pytest.approx([127.0, 64.0, -1.27, -0.64, 0.0], rel=1e-6)
    assert fake(x, "int8").tolist() == [[127.0, 64.0, -1.0, -1.0, 0.0]]


def test_static_scales_are_used():
    x = torch.tensor([[10.0, -1.0]])
    seen = dual_fake(x, "int8", scale=(torch.tensor([4.0]), torch.tensor([0.3])))
    assert seen.tolist()[0] == pytest.approx([8.0, -0.9])  # 2.5 steps go to the even 2


@given(seed=st.integers(0, 10**6), fmt=st.sampled_from(LOW_BIT), n_in=st.integers(1, 70))
@settings(max_examples=30)
def test_each_side_is_quantised_alone_and_neither_disturbs_the_other(seed, fmt, n_in):
    x = random(3, n_in, seed=seed)
    dual = dual_quantized(x, fmt)
    positive, negative = dual.positive.dequantized(), dual.negative.dequantized()
    assert not ((positive != 0) & (negative != 0)).any()
    assert torch.equal(positive, quantized(x.clamp(min=0), fmt, scales="row").dequantized())
    assert torch.equal(dual.dequantized(), positive + negative)
    assert (dual.dequantized() * x >= 0).all()


def test_a_linear_layer_is_two_matmuls():
    x, weight = functional.silu(random(8, 16)), random(4, 16, seed=1)
    dual = dual_quantized(x, "int8")
    sides = [side.codes.float() @ weight.T * side.scale for side in dual]
    torch.testing.assert_close(sides[0] + sides[1], dual_fake(x, "int8") @ weight.T)


def test_a_format_without_scales_is_refused():
    with pytest.raises(UsageError, match=r"dual scale: found format bf16, which has no scales; expected one of few"):
        dual_quantized(torch.ones(1, 2), "bf16")


def test_the_dtype_is_kept():
    assert dual_fake(torch.ones(1, 2, dtype=torch.bfloat16), "int8").dtype == torch.bfloat16
