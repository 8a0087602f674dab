"""The affine correction of a low-bit layer: folded where it holds for all steps, one multiply-add where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from schedsearch.errors import UsageError
from schedsearch.quantize import QuantLinear
from schedsearch.schedule import PrecisionRule

N_OUT, N_IN, STEPS = 24, 70, 3


def rule(weight: str = "int8", activation: str = "int8", scales: str = "default", rank: int = 0) -> PrecisionRule:
    return PrecisionRule(pattern="*", weight=weight, activation=activation, scales=scales, rank=rank)


def linear(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(N_IN, N_OUT, bias=bias).to(dtype).requires_grad_(False)


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, N_IN, generator=torch.Generator().manual_seed(1)).to(dtype)


def affine(steps: int = 1) -> torch.Tensor:
    source = torch.Generator().manual_seed(2)
    table = 0.2 * torch.randn(steps, 2, N_OUT, generator=source)
    table[:, 0] += 1.0
    table[:, 0, 3] = -0.5  # signs and zeros may come
    table[:, 0, 4] = 0.0
    return table


RULES = [rule(), rule("int4"), rule("int4", "bf16"), rule("int8", scales="tensor"), rule("fp8_e4m3", "fp8_e4m3"),
         rule("int4", rank=3), rule("mxfp8", "mxfp8"), rule("nvfp4", "nvfp4"), rule("bf16", "int8")]  # fmt: skip


@pytest.mark.parametrize("r", RULES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_one_for_all_steps_is_a_scale_and_a_shift_of_the_output(r, bias):
    layer, x, table = linear(bias=bias), inputs(), affine()
    plain = QuantLinear.of(layer, r)(x)
    found = QuantLinear.of(layer, r, {"affine": table})(x)
    assert torch.allclose(found, table[0, 0] * plain + table[0, 1], atol=2e-5 if r.activation != "bf16" else 2e-2)


def test_it_is_folded_where_rows_have_scales_of_their_own():
    assert QuantLinear.of(linear(), rule(), {"affine": affine()})._is_folded
    assert not QuantLinear.of(linear(), rule(scales="tensor"), {"affine": affine()})._is_folded
    assert not QuantLinear.of(linear(), rule("mxfp8", "mxfp8"), {"affine": affine()})._is_folded
    assert not QuantLinear.of(linear(), rule(), {"affine": affine(STEPS)})._is_folded


@pytest.mark.parametrize("r", RULES, ids=str)
def test_one_per_step_comes_with_the_call(r):
    layer, x, table = linear(), inputs(), affine(STEPS)
    plain = QuantLinear.of(layer, r)(x)
    low = QuantLinear.of(layer, r, {"affine": table})
    assert torch.equal(low(x), plain)
    for step in range(STEPS):
        assert torch.allclose(low(x, None, table[step]), table[step, 0] * plain + table[step, 1], atol=1e-5)


def test_a_layer_at_its_own_dtype_is_corrected_too():
    layer, x, table = linear(), inputs(), affine()
    found = QuantLinear.of(layer, rule("fp32", "fp32"), {"affine": table})(x)
    assert torch.allclose(found, table[0, 0] * layer(x) + table[0, 1], atol=1e-5)


@pytest.mark.parametrize("r", [rule(), rule("int4"), rule("int4", rank=3)], ids=str)
def test_ones_and_zeros_change_no_bit(r):
    table = torch.stack([torch.ones(N_OUT), torch.zeros(N_OUT)])[None]
    x = inputs()
    assert torch.equal(QuantLinear.of(linear(), r, {"affine": table})(x), QuantLinear.of(linear(), r)(x))


def test_the_dtype_of_the_input_stays():
    for steps in (1, STEPS):
        low = QuantLinear.of(linear(dtype=torch.bfloat16), rule(), {"affine": affine(steps)})
        assert low(inputs(torch.bfloat16), None, affine()[0] if steps > 1 else None).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (torch.ones(2, N_OUT), r"^affine: found shape \(2, 24\), expected \(1, 2, 24\) or \(n_steps, 2, 24\)"),
        (torch.ones(1, 2, 5), r"^affine: found shape \(1, 2, 5\)"),
        (torch.ones(1, 2, N_OUT, dtype=torch.float64), r"^affine: found torch.float64, expected torch.float32"),
        (torch.full((1, 2, N_OUT), torch.nan), r"^affine: found values that are not finite, expected numbers"),
    ],
)
def test_what_does_not_fit_is_refused(table, text):
    with pytest.raises(UsageError, match=text):
        QuantLinear.of(linear(), rule(), {"affine": table})
