"""The low-bit linear layer: what it computes, in which way, and what it refuses."""

from __future__ import annotations

import math
import re
import sys
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional

from schedsearch.errors import UnsupportedFeatureError, UsageError
from schedsearch.quantize import (
    EXECUTIONS,
    FORMATS,
    QuantLinear,
    activation_scales,
    execution_of,
    fake,
    quantized,
    tolerance_of,
    why_not,
)
from schedsearch.quantize._products import Kernel, Scaled, TorchAO
from schedsearch.schedule import PrecisionRule

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ACTIVATIONS = [name for name in FORMATS if name != "nf4"]


def rule(weight: str = "int8", activation: str = "int8", scales: str = "default", rank: int = 0) -> PrecisionRule:
    return PrecisionRule(pattern="*", weight=weight, activation=activation, scales=scales, rank=rank)


def linear(n_in: int = 130, n_out: int = 48, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(n_in)
    return nn.Linear(n_in, n_out, bias=bias).to(dtype).requires_grad_(False)


def inputs(n_in: int = 130, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 9, n_in, generator=torch.Generator().manual_seed(1)).to(dtype)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def by_definition(layer: nn.Linear, r: PrecisionRule, x: torch.Tensor) -> torch.Tensor:
    """FORMAT.md M15 without tables and rank, in double precision."""
    near_w = quantized(layer.weight, r.weight, scales=r.scales).dequantized().double()
    near_x = quantized(x, r.activation, scales=activation_scales(r.activation, r.scales)).dequantized().double()
    y = near_x @ near_w.T
    return y if layer.bias is None else y + layer.bias.double()


class TestValue:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("weight", FORMATS)
    def test_every_pair_of_formats_is_computed_as_defined_simulated_and_executed(self, weight, dtype):
        layer, x = linear(dtype=dtype), inputs(dtype=dtype)
        for activation in ACTIVATIONS:
            r = rule(weight, activation)
            expected = by_definition(layer, r, x)
            for execution in (None, "simulated"):
                low = QuantLinear.of(layer, r, execution=execution)
                y = low(x)
                assert (y.dtype, y.shape) == (dtype, (2, 9, 48))
                assert distance(y, expected) <= tolerance_of(r, dtype), (activation, low.choice.execution)

    @pytest.mark.parametrize("scales", ["row", "tensor"])
    @pytest.mark.parametrize(("weight", "activation"), [("int8", "int8"), ("int4", "int8"), ("int4", "int4")])
    def test_whole_numbers_are_multiplied_as_such(self, weight, activation, scales):
        layer, x, r = linear(), inputs(), rule(weight, activation, scales)
        low = QuantLinear.of(layer, r)
        assert low.choice.execution == "torch"
        assert low._product.codes.dtype == torch.int8
        assert distance(low(x), by_definition(layer, r, x)) < 1e-6
        assert torch.equal(QuantLinear.of(layer, r, execution="simulated")(x), low(x))

    def test_one_row_and_no_bias(self):
        layer, r = linear(bias=False), rule()
        x = inputs()[0, :1]
        assert distance(QuantLinear.of(layer, r)(x[0]), by_definition(layer, r, x)[0]) < 1e-6

    def test_a_rule_at_the_layers_dtype_changes_no_bit(self):
        for dtype, word in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            layer, x = linear(dtype=dtype), inputs(dtype=dtype)
            low = QuantLinear.of(layer, rule(word, word))
            assert low.choice.execution == "base"
            assert torch.equal(low(x), layer(x))
            assert low.base is layer

    def test_more_bits_are_nearer(self):
        layer, x = linear(256), inputs(256)
        plain = layer(x)
        errors = [
            (QuantLinear.of(layer, rule(*pair))(x) - plain).norm().item()
            for pair in (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8"), ("fp8_e4m3", "int8"), ("int4", "int4"))
        ]
        assert errors == sorted(errors)
        assert errors[0] == 0.0

    def test_rank_takes_the_error_of_the_weight_away(self):
        layer, x = linear(96), inputs(96)
        layer.weight[:, 5] *= 30  # a channel that spoils its groups
        layers = [QuantLinear.of(layer, rule("int4", "fp32", rank=rank)) for rank in (0, 4, 32, 48)]
        errors = [(low(x) - layer(x)).norm().item() / layer(x).norm().item() for low in layers]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-5

    def test_the_branch_reads_the_input_as_it_is(self):
        """M15: ``A`` rounds what the low-bit weight sees, not what the branch sees."""
        layer, x = linear(96), inputs(96)
        low = QuantLinear.of(layer, rule("int8", "int4", rank=48))
        assert distance(low(x), layer(x)) < 1e-3

    def test_it_compiles_to_one_graph(self):
        layer, x = linear(64), inputs(64)
        for r in (rule(), rule("int4", "fp8_e4m3", rank=2), rule("nvfp4", "mxfp8")):
            low = QuantLinear.of(layer, r, {"smooth": torch.rand(64) + 0.5})
            compiled = torch.compile(low, backend="eager", fullgraph=True)
            assert torch.equal(compiled(x), low(x))


class TestTables:
    def test_smoothing_divides_the_input_and_multiplies_the_weight(self):
        layer, x = linear(), inputs()
        smooth = torch.rand(130) + 0.5
        assert distance(QuantLinear.of(layer, rule("fp32", "fp16"), {})(x), layer(x)) < 1e-3
        low = QuantLinear.of(layer, rule(), {"smooth": smooth})
        shifted = linear()
        shifted.weight *= smooth
        assert distance(low(x), by_definition(shifted, rule(), x / smooth)) < 1e-6

    def test_smoothing_alone_is_neutral(self):
        layer, x = linear(), inputs()
        low = QuantLinear.of(layer, rule("int8", "fp32", rank=48), {"smooth": torch.rand(130) + 0.5})
        assert distance(low(x), layer(x)) < 1e-5

    def test_static_scales_cut_off(self):
        layer, x = linear(), inputs()
        scale = torch.tensor([0.01])
        for execution in ("torch", "simulated"):
            low = QuantLinear.of(layer, rule(), {"activation_scale": scale}, execution=execution)
            near = fake(x, "int8", scale=scale)
            assert near.abs().max() <= 1.2701
            expected = near.double() @ quantized(layer.weight, "int8").dequantized().double().T + layer.bias
            assert distance(low(x), expected) < 1e-6

    def test_scales_per_step_are_those_of_the_step_and_dynamic_without_one(self):
        layer, x = linear(), inputs()
        scales = torch.tensor([0.01, 0.03, 0.05])
        low = QuantLinear.of(layer, rule(), {"activation_scale": scales})
        for scale in scales:
            alone = QuantLinear.of(layer, rule(), {"activation_scale": scale[None]})
            assert torch.equal(low(x, scale), alone(x))
        assert torch.equal(low(x), QuantLinear.of(layer, rule())(x))

    def test_learned_rounding_says_which_neighbour(self):
        layer = linear(20, 8)
        eye = torch.eye(20)
        ones = torch.full((8, 3), 255, dtype=torch.uint8)
        high = QuantLinear.of(layer, rule("int4", "fp32"), {"rounding": ones}, execution="simulated")(eye)
        low = QuantLinear.of(layer, rule("int4", "fp32"), {"rounding": ones * 0}, execution="simulated")(eye)
        near = QuantLinear.of(layer, rule("int4", "fp32"), execution="simulated")(eye)
        assert ((near == high) | (near == low)).all()
        assert (high >= low).all()
        assert (high > low).float().mean() > 0.8

    def test_a_bias_replaces_the_bias(self):
        layer, x = linear(), inputs()
        bias = torch.randn(48)
        for r in (rule(), rule("fp32", "fp32")):
            plain = QuantLinear.of(layer, r)(x)
            torch.testing.assert_close(QuantLinear.of(layer, r, {"bias": bias})(x), plain - layer.bias + bias)

    @pytest.mark.parametrize(
        ("pair", "table", "text"),
        [
            (("int8", "int8"), {"zero": torch.ones(1)}, "zero: found a table of that name, expected one of smooth"),
            (("int8", "int8"), {"smooth": torch.ones(3)}, "smooth: found shape (3,), expected (130,)."),
            (("int8", "int8"), {"smooth": torch.zeros(130)}, "smooth: found values that are not above 0"),
            (("int8", "int8"), {"smooth": torch.ones(130).double()}, "smooth: found torch.float64, expected"),
            (("int8", "int8"), {"activation_scale": torch.tensor([math.nan])}, "activation_scale: found values"),
            (("int8", "bf16"), {"activation_scale": torch.ones(1)}, "activation_scale: found scales for bf16"),
            (("int8", "mxfp8"), {"activation_scale": torch.ones(1)}, "activation_scale: found scales for mxfp8"),
            (("bf16", "int8"), {"rounding": torch.ones(48, 17, dtype=torch.uint8)}, "rounding: found bits for bf16"),
            (("int8", "int8"), {"rounding": torch.ones(48, 16, dtype=torch.uint8)}, "expected (48, 17)."),
            (("fp32", "fp32"), {"smooth": torch.ones(130)}, "smooth: found a vector for fp32 x fp32"),
        ],
    )
    def test_tables_that_do_not_fit_are_refused(self, pair, table, text):
        with pytest.raises(UsageError, match=re.escape(text)):
            QuantLinear.of(linear(), rule(*pair), table)


class TestChoice:
    @pytest.mark.parametrize(
        ("pair", "scales", "execution"),
        [
            (("fp32", "fp32"), "default", "base"),
            (("bf16", "bf16"), "default", "torch"),
            (("int8", "bf16"), "default", "torch"),
            (("int8", "fp32"), "default", "simulated"),
            (("bf16", "fp16"), "default", "simulated"),
            (("int8", "int8"), "default", "torch"),
            (("int4", "int8"), "default", "simulated"),
            (("int4", "int8"), "row", "torch"),
            (("fp8_e4m3", "fp8_e4m3"), "default", "simulated"),
            (("nvfp4", "nvfp4"), "default", "simulated"),
        ],
    )
    def test_on_a_cpu(self, pair, scales, execution):
        choice = execution_of(rule(*pair, scales), (48, 128), torch.float32, CPU)
        assert choice.execution == execution
        assert sorted([choice.execution, *(word for word, _ in choice.reasons)]) == sorted(EXECUTIONS)
        assert all(reason for _, reason in choice.reasons)

    def test_reasons_say_what_stands_against_it(self):
        found = dict(execution_of(rule("int8", "int8"), (48, 128), torch.float32, CPU).reasons)
        assert found["torchao"] == "torchao divides by 127.5 for int8 scales, which is another result"
        assert found["kernel"] == "the kernels need a CUDA device"
        assert found["simulated"] == "torch comes first"
        assert "groups of 64" in why_not("torch", rule("int4", "int8"), (48, 128), torch.float32, CPU)
        assert "no kernel for fp8_e5m2" in why_not("kernel", rule("fp8_e5m2"), (8, 8), torch.float32, CPU)

    @pytest.mark.parametrize(
        ("pair", "shape", "capability", "expected"),
        [
            (("int8", "int8"), (128, 256), (8, 0), {"kernel": "triton", "torch": "", "base": "formats"}),
            (("int8", "int8"), (100, 256), (8, 0), {"torch": "multiples of 8, and the layer is 100 x 256"}),
            (("fp8_e4m3", "fp8_e4m3"), (128, 256), (9, 0), {"torch": ""}),
            (("fp8_e4m3", "fp8_e4m3"), (128, 256), (8, 0), {"torch": "capability 8.9, found 8.0"}),
            (("fp8_e4m3", "fp8_e4m3"), (120, 256), (9, 0), {"torch": "multiples of 16"}),
        ],
    )
    def test_on_a_gpu_that_is_not_here(self, pair, shape, capability, expected):
        why = "triton is not installed"
        kernels = mock.Mock(why_not_triton=lambda device, *, fp8: why)
        with (
            mock.patch.object(torch.cuda, "get_device_capability", return_value=capability),
            mock.patch.dict(sys.modules, {"schedsearch_kernels": kernels}),
        ):
            for word, text in expected.items():
                found = why_not(word, rule(*pair), shape, torch.bfloat16, CUDA)
                assert text in found
                assert bool(text) == bool(found)

    def test_one_that_is_named_is_taken_or_refused(self):
        layer = linear()
        assert QuantLinear.of(layer, rule(), execution="simulated").choice.execution == "simulated"
        with pytest.raises(UnsupportedFeatureError, match=r"found 'kernel' for int8 x int8, .* need a CUDA device"):
            QuantLinear.of(layer, rule(), execution="kernel")
        with pytest.raises(UnsupportedFeatureError, match="found 'magic', expected one of base, kernel, torchao"):
            QuantLinear.of(layer, rule(), execution="magic")

    def test_what_cannot_be_rounded_is_refused(self):
        stored = linear()
        stored.weight = nn.Parameter(torch.zeros(48, 65, dtype=torch.uint8), requires_grad=False)
        with pytest.raises(UnsupportedFeatureError, match=r"a Linear with a torch\.uint8 weight .* by another"):
            QuantLinear.of(stored, rule())
        with pytest.raises(UnsupportedFeatureError, match="found activation nf4, expected another format"):
            QuantLinear.of(linear(), rule("int8", "nf4"))


class TestProductsForDevicesThatAreNotHere:
    """Their arithmetic, on the CPU, which has the same functions, slower or in plain torch."""

    @pytest.mark.parametrize("scales", ["default", "tensor"])
    def test_scaled_mm(self, scales):
        layer, x, r = linear(128), inputs(128, torch.bfloat16), rule("fp8_e4m3", "fp8_e4m3", scales)
        weight = quantized(layer.weight, "fp8_e4m3", scales=scales)
        y = Scaled(weight, layer.bias.bfloat16(), r, torch.bfloat16)(x, None)
        assert y.dtype == torch.bfloat16
        assert distance(y, by_definition(layer, r, x)) <= tolerance_of(r, torch.bfloat16)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("pair", [("int8", "int8"), ("fp8_e4m3", "fp8_e4m3"), ("int4", "x"), ("fp4_e2m1", "x")])
    def test_kernels(self, pair, dtype):
        words = {torch.float32: "fp32", torch.bfloat16: "bf16"}
        r = rule(pair[0], words[dtype] if pair[1] == "x" else pair[1])
        layer, x = linear(128, dtype=dtype), inputs(128, dtype)
        product = Kernel(quantized(layer.weight, r.weight), layer.bias, r, dtype)
        assert distance(product(x, None), by_definition(layer, r, x)) <= tolerance_of(r, dtype)
        if pair[1] != "x":
            scale = torch.tensor([0.02])
            static = QuantLinear.of(layer, r, {"activation_scale": scale}, execution="simulated")
            assert distance(product(x, scale), static(x)) <= tolerance_of(r, dtype)

    def test_torchao(self):
        pytest.importorskip("torchao", reason="torchao is optional")
        layer, r = linear(128, dtype=torch.bfloat16), rule("fp8_e4m3", "fp8_e4m3")
        weight = quantized(layer.weight, "fp8_e4m3")
        with mock.patch("torchao.quantization.quant_api._check_hardware_support"):
            held = TorchAO(weight, layer.bias, r, torch.bfloat16).layer.weight
        assert torch.equal(held.qdata.float(), weight.codes.float())
        torch.testing.assert_close(held.scale, weight.scale, rtol=2**-8, atol=0)


def test_it_holds_nothing_in_checkpoints_and_says_what_it_holds():
    layer = linear(128)
    low = QuantLinear.of(layer, rule("int8", "int8"))
    assert low.state_dict() == {}
    assert list(low.parameters()) == []
    assert low.n_bytes == 48 * 128 + 4 * 48 + 2 * 4 * 48 - 4 * 48  # codes, scales, one bias
    assert "128, 48, int8 x int8, torch" in repr(low)
    assert torch.equal(functional.linear(inputs(128), layer.weight, layer.bias), layer(inputs(128)))
