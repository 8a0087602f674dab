"""The tables of a layer, and that the layer uses them as they were fitted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from schedsearch.errors import UsageError
from schedsearch.quantize._error import output_error, simulated_output
from schedsearch.quantize._formats import fake
from schedsearch.quantize._layer import QuantLinear
from schedsearch.quantize._lowrank import low_rank
from schedsearch.quantize._rounding import unpacked
from schedsearch.quantize._tables import corrected_bias, fit_tables
from schedsearch.schedule import PrecisionRule


def rule(weight="int4", activation="int8", **more):
    return PrecisionRule(pattern="*", weight=weight, activation=activation, **more)


def layer(seed=0, n_in=40, n_out=24, *, bias=True, dtype=torch.float32):
    """A layer and inputs whose channels go together, have a mean, and outliers."""
    torch.manual_seed(seed)
    linear = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
    x = torch.randn(400, n_in) @ torch.randn(n_in, n_in) / n_in**0.5 + 0.3 * torch.randn(n_in)
    x[:, ::10] *= 20.0
    return linear, x.to(dtype)


RULES = [
    rule(),
    rule("int4", "int4", rank=8),
    rule("fp4_e2m1", "fp8_e4m3", scales="row"),
    rule("int8", "int8"),
    rule("nvfp4", "nvfp4"),
    rule("nf4", "fp32"),
]


@pytest.mark.parametrize("of", RULES, ids=lambda of: f"{of.weight}-{of.activation}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_never_rise_and_are_those_of_the_layer(of, dtype):
    linear, x = layer(dtype=dtype)
    before = linear.weight.clone()
    fitted = fit_tables(linear, of, x)
    errors = [error for _, error in fitted.errors]
    assert errors == sorted(errors, reverse=True)
    assert fitted.errors[0][0] == "plain"
    exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    with torch.no_grad():
        last = output_error(exact, QuantLinear.of(linear, of, fitted.tables, execution="simulated")(x))
        assert output_error(exact, QuantLinear.of(linear, of, {}, execution="simulated")(x)) == errors[0]
    assert last == errors[-1]
    assert torch.equal(linear.weight, before)


def test_four_bits_lose_most_of_their_error():
    for seed in range(5):
        linear, x = layer(seed)
        errors = dict(fit_tables(linear, rule(), x[:300], judge=x[300:]).errors)
        assert errors["bias"] < 0.4 * errors["plain"]


def test_each_tool_alone_helps():
    linear, x = layer()
    for tool in ("smooth", "rounding", "bias"):
        errors = dict(fit_tables(linear, rule(), x, tools=(tool,)).errors)
        assert list(errors) == ["plain", tool]
        assert errors[tool] < errors["plain"]


def test_what_does_not_help_those_who_judge_is_left_out():
    linear, x = layer()
    fitted = fit_tables(linear, rule(), x[:2] * 0.01, judge=x[100:])
    assert all(name not in fitted.tables for name, error in fitted.errors[1:] if error == fitted.errors[0][1])
    assert "rounding" not in fitted.tables  # two rows say nothing about forty channels


def test_formats_without_codes_have_only_a_bias():
    linear, x = layer(dtype=torch.float32)
    assert [name for name, _ in fit_tables(linear, rule("bf16", "bf16"), x).errors] == ["plain", "bias"]
    assert [name for name, _ in fit_tables(linear, rule("bf16", "int8"), x).errors] == ["plain", "smooth", "bias"]


@pytest.mark.parametrize("rank", [0, 8])
def test_the_layer_rounds_the_weight_that_was_fitted(rank):
    linear, x = layer()
    of = rule("int4", "fp32", rank=rank)
    fitted = fit_tables(linear, of, x, tools=("rounding",))
    weight = linear.weight.detach()
    rest = low_rank(weight, rank).residual
    learned = fake(rest, "int4", up=unpacked(fitted.tables["rounding"], 40))
    with torch.no_grad():
        seen = QuantLinear.of(linear, of, fitted.tables, execution="simulated")(x)
        torch.testing.assert_close(seen, x @ (weight - rest + learned).T + linear.bias, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("of", RULES[:4], ids=lambda of: f"{of.weight}-{of.activation}")
def test_the_layer_is_the_simulation_that_smoothing_is_chosen_by(of):
    linear, x = layer(bias=False)
    fitted = fit_tables(linear, of, x, tools=("smooth",))
    smooth = fitted.tables.get("smooth")
    words = {"weight_fmt": of.weight, "activation_fmt": of.activation, "scales": of.scales, "rank": of.rank}
    with torch.no_grad():
        expected = simulated_output(x, linear.weight.detach(), smooth=smooth, **words)
        seen = QuantLinear.of(linear, of, fitted.tables, execution="simulated")(x)
    assert (seen - expected).norm() < 1e-3 * expected.norm()


def test_no_bias_has_less_error_than_the_corrected_one():
    exact, seen = torch.randn(50, 3), torch.randn(50, 3) + 2.0
    bias = torch.tensor([1.0, 0.0, -1.0])
    found = corrected_bias(exact, seen, bias)
    torch.testing.assert_close((seen - bias + found).mean(0), exact.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(corrected_bias(exact, seen, None), found - bias)
    for step in (-0.01, 0.01):
        assert output_error(exact, seen - bias + found) < output_error(exact, seen - bias + found + step)


def test_what_cannot_be_fitted_is_refused():
    linear, x = layer()
    with pytest.raises(UsageError, match=r"tables: found tools clip, expected some of smooth, rounding, bias"):
        fit_tables(linear, rule(), x, tools=("smooth", "clip"))
    with pytest.raises(
        UsageError, match=r"found inputs of shape \(400, 39\), expected one or more rows of 40 channels"
    ):
        fit_tables(linear, rule(), x[:, 1:])
    with pytest.raises(UsageError, match=r"found inputs of shape \(0, 40\), expected one or more rows"):
        fit_tables(linear, rule(), x[:0])
