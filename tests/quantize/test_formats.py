"""The number formats: their grids, how values are rounded to them, and which elements share a scale."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.quantize import (
    FORMATS,
    SCALES,
    activation_scales,
    average_bits,
    block_of,
    fake,
    format_of,
    quantized,
    scale_of,
)
from schedsearch.schedule import NUMBER_FORMATS

ONE = torch.ones(1)
LOW_BIT = [name for name, fmt in FORMATS.items() if not fmt.is_cast]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FLOAT8 = {"fp8_e4m3": (4, 3, 7, 448.0), "fp8_e5m2": (5, 2, 15, 57344.0)}
"""Bits of exponent and mantissa, bias, largest number."""


def grid(name: str) -> list[float]:
    """All finite magnitudes of an 8-bit float in order, from the definition of its bits alone."""
    _, mantissa_bits, bias, most = FLOAT8[name]
    found = []
    for code in range(128):
        exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        lead = 1 if exponent else 0
        found.append(math.ldexp(lead + mantissa / (1 << mantissa_bits), max(exponent, 1) - bias))
    return [value for value in found if value <= most]


def nearest(values: list[float], x: float) -> float:
    """The nearest of ``values`` in order, ties to the one with an even index, signs apart; in exact arithmetic."""
    magnitude = min(abs(x), values[-1])
    ranked = sorted(range(len(values)), key=lambda i: (abs(values[i] - magnitude), i % 2))
    return math.copysign(values[ranked[0]], x)


def tensors(rows: int = 3, columns: int = 40):
    """Tensors over many magnitudes, with zeros and whole rows of them."""

    def make(seed: int, spread: float) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((rows, columns)) * np.exp(spread * rng.standard_normal((rows, columns)))
        x[rng.random(x.shape) < 0.1] = 0.0
        x[0] *= rng.random() < 0.9
        return torch.from_numpy(x.astype(np.float32))

    return st.builds(make, st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 3.0]))


def test_every_format_of_a_schedule_is_here_under_its_name():
    assert tuple(FORMATS) == NUMBER_FORMATS
    assert all(fmt.name == name for name, fmt in FORMATS.items())


class TestGrids:
    def test_int4_holds_sixteen_whole_numbers_and_uses_fifteen(self):
        assert FORMATS["int4"].codes == tuple(range(-8, 8))
        x = torch.linspace(-9, 9, 20001)
        assert fake(x, "int4", scale=ONE).unique().tolist() == list(range(-7, 8))

    @pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
    def test_whole_numbers_of_few_bits_are_symmetric_in_groups_of_64(self, bits):
        fmt = FORMATS[f"int{bits}"]
        top = 2 ** (bits - 1) - 1
        assert (fmt.bits, fmt.maximum, fmt.block) == (bits, top, 64)
        assert fmt.codes == tuple(range(-top - 1, top + 1))
        x = torch.linspace(-top - 2, top + 2, 4001)
        assert fake(x, fmt, scale=ONE).unique().tolist() == list(range(-top, top + 1))
        assert torch.equal(fake(x, fmt, scale=ONE), x.round().clamp(-top, top))

    def test_int8_uses_all_but_its_least_code(self):
        x = torch.linspace(-200, 200, 40001)
        assert fake(x, "int8", scale=ONE).unique().tolist() == list(range(-127, 128))

    @pytest.mark.parametrize("name", ["fp4_e2m1", "nvfp4"])
    def test_fp4_holds_exactly_the_codes_of_e2m1(self, name):
        assert FORMATS[name].codes == tuple(E2M1 + [-value for value in E2M1])
        x = torch.linspace(-7, 7, 28001)
        held = quantized(x, "fp4_e2m1", scale=ONE)
        assert held.dequantized().unique().tolist() == [-value for value in E2M1[:0:-1]] + E2M1
        assert held.codes.unique().tolist() == list(range(16))

    def test_fp4_goes_to_the_nearest_code_and_from_the_middle_to_the_even_one(self):
        middles = [(low + high) / 2 for low, high in pairwise(E2M1)]
        x = [*middles, *(np.nextafter(np.float32(m), np.float32(9)).item() for m in middles), 0.1, 5.9, 7.0]
        x += [-value for value in x]
        expected = [nearest(E2M1, value) for value in x]
        assert fake(torch.tensor(x), "fp4_e2m1", scale=ONE).tolist() == expected

    def test_nf4_holds_sixteen_values_among_them_minus_one_zero_and_one(self):
        codes = FORMATS["nf4"].codes
        assert codes is not None
        assert len(set(codes)) == 16
        assert {-1.0, 0.0, 1.0} < set(codes)
        assert sorted(codes) == list(codes)
        assert fake(torch.tensor(codes), "nf4", scale=ONE).tolist() == list(codes)

    def test_nf4_goes_to_the_nearest_code(self):
        x = torch.linspace(-1.2, 1.2, 4001)
        codes = torch.tensor(FORMATS["nf4"].codes)
        assert torch.equal(fake(x, "nf4", scale=ONE), codes[(x[:, None] - codes).abs().argmin(1)])


class TestFloat8:
    @pytest.mark.parametrize("name", FLOAT8)
    def test_every_code_of_torch_is_on_the_grid_and_stays(self, name):
        dtype = FORMATS[name].dtype
        held = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)
        held = held[held.isfinite()]
        assert held[held.signbit().logical_not()].tolist() == grid(name)
        again = quantized(held, name, scale=ONE)
        assert torch.equal(again.codes.view(torch.uint8), held.to(dtype).view(torch.uint8))

    @pytest.mark.parametrize("name", FLOAT8)
    def test_rounding_is_that_of_the_grid_and_of_torch_bit_for_bit(self, name):
        values = grid(name)
        middles = [(low + high) / 2 for low, high in pairwise(values)]
        beside = [np.nextafter(np.float32(m), np.float32(s)).item() for m in middles for s in (0, 1e9)]
        x = [*values, *middles, *beside]
        x = torch.tensor([*x, *(-value for value in x)])
        held = quantized(x, name, scale=ONE)
        assert held.dequantized().tolist() == [nearest(values, value) for value in x.tolist()]
        assert torch.equal(held.codes.view(torch.uint8), x.to(FORMATS[name].dtype).view(torch.uint8))

    @pytest.mark.parametrize("name", FLOAT8)
    def test_what_is_too_large_becomes_the_largest_whatever_torch_makes_of_it(self, name):
        most = FLOAT8[name][3]
        x = torch.tensor([most * 1.01, most * 2, math.inf, -most * 2, -math.inf])
        assert fake(x, name, scale=ONE).tolist() == [most, most, most, -most, -most]


class TestProperties:
    @given(x=tensors(), name=st.sampled_from(LOW_BIT), scales=st.sampled_from(SCALES))
    @settings(max_examples=120, deadline=None)
    def test_rounding_twice_is_rounding_once(self, x, name, scales):
        once = quantized(x, name, scales=scales)
        again = quantized(once.dequantized(), name, scales=scales, scale=once.scale)
        assert torch.equal(again.dequantized(), once.dequantized())
        if name != "nvfp4":  # whose scales depend on the largest value of the whole tensor, which may be cut off
            torch.testing.assert_close(
                fake(once.dequantized(), name, scales=scales), once.dequantized(), rtol=1e-6, atol=0
            )

    @given(x=tensors(), name=st.sampled_from(LOW_BIT), scales=st.sampled_from(SCALES))
    @settings(max_examples=80, deadline=None)
    def test_zero_stays_zero_and_signs_do_not_matter(self, x, name, scales):
        y = fake(x, name, scales=scales)
        assert not y[x == 0].any()
        if name != "nf4":
            assert torch.equal(fake(-x, name, scales=scales), -y)

    @given(x=tensors(), name=st.sampled_from(LOW_BIT), scales=st.sampled_from(SCALES))
    @settings(max_examples=80, deadline=None)
    def test_the_error_is_at_most_half_the_step_to_the_neighbour(self, x, name, scales):
        """No value of the format, times the element's scale, is nearer; beyond the last value it is the last."""
        held = quantized(x, name, scales=scales)
        codes = held.fmt.codes or [
            sign * v for v in grid("fp8_e4m3" if "e5m2" not in name else name) for sign in (1, -1)
        ]
        values = torch.tensor(codes).unique().clamp(-held.fmt.maximum, held.fmt.maximum)
        scale = held.scale
        if scale.shape[-1] > 1:
            scale = scale.repeat_interleave(held.fmt.block, -1)[:, : x.shape[1]]
        exact, got = x / scale, held.dequantized() / scale
        least = (exact[..., None] - values).abs().amin(-1)
        assert ((got - exact).abs() <= least + 1e-5 * (1 + exact.abs())).all()

    @given(x=tensors(), name=st.sampled_from([n for n in LOW_BIT if n != "nvfp4"]))
    @settings(max_examples=40, deadline=None)
    def test_nothing_is_cut_off_under_its_own_scales(self, x, name):
        held = quantized(x, name)
        largest = x.abs().amax()
        assert held.dequantized().abs().amax() >= largest * (1 - 1 / 8)

    @given(x=tensors(columns=70), factor=st.sampled_from([0.25, 2.0, 64.0]), name=st.sampled_from(LOW_BIT))
    @settings(max_examples=40, deadline=None)
    def test_powers_of_two_pass_through(self, x, factor, name):
        assert torch.equal(fake(x * factor, name), fake(x, name) * factor)

    @given(x=tensors(), name=st.sampled_from(LOW_BIT), seed=st.integers(0, 99))
    @settings(max_examples=60, deadline=None)
    def test_rounding_up_or_down_gives_the_two_neighbours(self, x, name, seed):
        scale = scale_of(x, name)
        up = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        low = fake(x, name, scale=scale, up=torch.zeros_like(up))
        high = fake(x, name, scale=scale, up=torch.ones_like(up))
        near = fake(x, name, scale=scale)
        assert ((near == low) | (near == high)).all()
        assert (low <= high).all()
        assert torch.equal(fake(x, name, scale=scale, up=up), torch.where(up, high, low))


class TestScales:
    @pytest.mark.parametrize(
        ("name", "scales", "shape"),
        [
            ("int8", "default", (6, 1)),
            ("int8", "tensor", (1, 1)),
            ("fp8_e4m3", "row", (6, 1)),
            ("int4", "default", (6, 3)),
            ("nf4", "default", (6, 3)),
            ("int6", "default", (6, 3)),
            ("int2", "row", (6, 1)),
            ("int4", "row", (6, 1)),
            ("fp4_e2m1", "tensor", (1, 1)),
            ("mxfp8", "default", (6, 5)),
            ("mxfp8", "tensor", (6, 5)),
            ("nvfp4", "default", (6, 9)),
        ],
    )
    def test_which_elements_share_a_scale(self, name, scales, shape):
        x = torch.randn(6, 130, generator=torch.Generator().manual_seed(0))
        held = quantized(x, name, scales=scales)
        assert tuple(held.scale.shape) == shape
        assert held.codes.shape == x.shape == held.shape
        block = block_of(name, scales)
        if block:
            one = fake(x[2:3, block : 2 * block], name, scales=scales, scale=held.scale[2:3, 1:2])
            assert torch.equal(held.dequantized()[2:3, block : 2 * block], one)

    def test_the_last_group_is_as_long_as_it_comes_out(self):
        x = torch.tensor([[7.0] * 64 + [0.7, 0.1]])
        torch.testing.assert_close(scale_of(x, "int4"), torch.tensor([[1.0, 0.1]]))

    @pytest.mark.parametrize("exponent", [-20, -3, 0, 5])
    def test_scales_of_mxfp8_are_the_least_powers_of_two_that_cut_nothing_off(self, exponent):
        just = math.ldexp(448.0, exponent)
        x = torch.tensor([[just] * 32, [just * 1.001] * 32, [just * 0.51] * 32, [just * 0.5] * 32, [0.0] * 32])
        scale = scale_of(x, "mxfp8").flatten().tolist()
        assert scale[:4] == [math.ldexp(1.0, exponent + k) for k in (0, 1, 0, -1)]
        assert fake(x[4], "mxfp8").tolist() == [0.0] * 32

    def test_scales_of_nvfp4_are_e4m3_numbers_in_units_of_one_for_the_tensor(self):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        unit = x.abs().amax() / (6 * 448)
        codes = scale_of(x, "nvfp4") / unit
        torch.testing.assert_close(codes, codes.to(torch.float8_e4m3fn).to(torch.float32), rtol=1e-6, atol=0)

    def test_a_scale_that_is_given_is_used_and_cuts_off(self):
        x = torch.tensor([[300.0, -300.0, 1.4, 0.0]])
        assert fake(x, "int8", scale=torch.tensor([2.0])).tolist() == [[254.0, -254.0, 2.0, 0.0]]

    def test_activations_go_by_token_unless_the_format_has_blocks(self):
        assert activation_scales("int4") == activation_scales("int8") == "row"
        assert activation_scales("mxfp8") == "default"
        assert activation_scales("int8", "tensor") == "tensor"

    def test_values_keep_their_dtype(self):
        x = torch.randn(2, 64).to(torch.bfloat16)
        assert fake(x, "int8").dtype == torch.bfloat16
        assert torch.equal(fake(x, "bf16"), x)
        assert torch.equal(fake(x.float(), "fp16"), x.half().float())

    def test_unknown_words_and_scales_for_casts_are_refused(self):
        x = torch.ones(2, 2)
        with pytest.raises(UsageError, match=r"format: found 'int7', expected one of fp32, bf16"):
            format_of("int7")
        with pytest.raises(UsageError, match=r"scales: found 'column', expected one of default, row, tensor"):
            quantized(x, "int8", scales="column")
        with pytest.raises(UsageError, match=r"scale: found one for bf16, expected none"):
            quantized(x, "bf16", scale=ONE)


@pytest.mark.parametrize(
    ("name", "kwargs", "bits"),
    [
        ("bf16", {}, 16),
        ("int8", {}, 8 + 32 / 100),
        ("int8", {"scales": "tensor"}, 8 + 32 / 5000),
        ("int4", {}, 4 + 2 * 32 / 100),
        ("int6", {}, 6 + 2 * 32 / 100),
        ("int2", {}, 2 + 2 * 32 / 100),
        ("mxfp8", {}, 8 + 4 * 8 / 100),
        ("nvfp4", {}, 4 + 7 * 8 / 100 + 32 / 5000),
        ("int4", {"scales": "row", "rank": 2}, 4 + 32 / 100 + 2 * 150 * 16 / 5000),
        ("int4", {"scales": "row", "rank": 2, "base_bits": 32}, 4 + 32 / 100 + 2 * 150 * 32 / 5000),
    ],
)
def test_average_bits_count_scales_and_branch(name, kwargs, bits):
    assert average_bits((50, 100), name, **kwargs) == pytest.approx(bits)
