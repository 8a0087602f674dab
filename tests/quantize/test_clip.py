"""Clip-range search and static scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.quantize._clip import RATIOS, clipped_scale, static_scale, step_scales
from schedsearch.quantize._formats import FORMATS, fake, quantized, scale_of

LOW_BIT = tuple(name for name, fmt in FORMATS.items() if not fmt.is_cast)


def heavy_tails(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) / torch.rand(*shape, generator=generator).clamp(min=0.05)


def squared(x, fmt, scale, importance=1.0):
    return ((fake(x, fmt, scale=scale) - x).double().square() * importance).sum()


@given(
    seed=st.integers(0, 10**6),
    fmt=st.sampled_from(LOW_BIT),
    scales=st.sampled_from(["default", "row", "tensor"]),
    n_in=st.sampled_from([1, 16, 33, 70, 128]),
)
@settings(max_examples=40)
def test_never_worse_than_the_maximum_in_any_group(seed, fmt, scales, n_in):
    x = heavy_tails(3, n_in, seed=seed)
    usual, clipped = scale_of(x, fmt, scales=scales), clipped_scale(x, fmt, scales=scales)
    assert clipped.shape == usual.shape
    assert squared(x, fmt, clipped) <= squared(x, fmt, usual)
    if usual.shape[-1] == 1 and usual.numel() > 1:
        for row in range(3):
            part = x[row : row + 1]
            assert squared(part, fmt, clipped[row : row + 1]) <= squared(part, fmt, usual[row : row + 1])


@pytest.mark.parametrize(("fmt", "left"), [("int4", 0.5), ("fp4_e2m1", 0.9), ("nf4", 0.7)])
def test_long_rows_gain_from_clipping(fmt, left):
    """Laplace values: the largest of 4096 is about 8 scales out, where a grid of 4 bits does best at about 5."""
    x = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(4, 4096, generator=torch.Generator().manual_seed(0)))
    usual, clipped = scale_of(x, fmt, scales="row"), clipped_scale(x, fmt, scales="row")
    assert squared(x, fmt, clipped) < left * squared(x, fmt, usual)


def test_the_grid_holds_the_answer_that_is_known():
    """63 values of half the range and one of 1.02: the best int4 scale fits the many, within one step of the ratios."""
    x = torch.full((1, 64), 0.5)
    x[0, 0] = 1.02
    ratio = (clipped_scale(x, "int4") / scale_of(x, "int4")).item()
    by_hand = min(RATIOS, key=lambda r: squared(x, "int4", r * scale_of(x, "int4")).item())
    assert ratio == pytest.approx(by_hand)
    assert squared(x, "int4", clipped_scale(x, "int4")) < 0.1 * squared(x, "int4", scale_of(x, "int4"))


def test_values_on_the_grid_keep_their_scale():
    x = torch.arange(-7.0, 8.0)[None]
    assert torch.equal(clipped_scale(x, "int4"), scale_of(x, "int4"))
    assert torch.equal(clipped_scale(torch.zeros(2, 5), "int8"), scale_of(torch.zeros(2, 5), "int8"))


def test_importance_moves_the_scale_to_what_matters():
    x = heavy_tails(8, 64)
    importance = torch.ones(64)
    importance[x.abs().argmax(1)] = 1e4
    plain, weighted = clipped_scale(x, "int4"), clipped_scale(x, "int4", importance=importance)
    assert squared(x, "int4", weighted, importance) < squared(x, "int4", plain, importance)
    assert squared(x, "int4", weighted) >= squared(x, "int4", plain)


def test_scales_of_few_bits_stay_what_they_can_be():
    x = heavy_tails(4, 64)
    power = torch.log2(clipped_scale(x, "mxfp8"))
    assert torch.equal(power, power.round())
    whole = x.abs().amax() / (6.0 * 448.0)
    part = clipped_scale(x, "nvfp4") / whole
    torch.testing.assert_close(part.to(torch.float8_e4m3fn).float(), part, rtol=1e-6, atol=0)
    assert quantized(x, "nvfp4", scale=clipped_scale(x, "nvfp4")).scale.shape == (4, 4)


def test_static_scale_is_that_of_all_samples():
    samples = [torch.tensor([[1.0, -2.0]]), torch.tensor([63.5, 0.5, 127.0])]
    assert static_scale(samples, "int8", ratios=(1.0,)).tolist() == [1.0]
    many = [heavy_tails(10, 10, seed=i) for i in range(3)]
    everything = torch.cat([part.flatten() for part in many])[None]
    clipped, largest = static_scale(many, "int8"), static_scale(many, "int8", ratios=(1.0,))
    assert squared(everything, "int8", clipped) <= squared(everything, "int8", largest)


def test_scales_per_step_fit_ranges_that_change():
    steps = [[torch.randn(200, generator=torch.Generator().manual_seed(i)) * 2.0**i] for i in range(5)]
    scales, one = step_scales(steps, "int8"), static_scale([x for some in steps for x in some], "int8")
    assert scales.shape == (5,)
    assert (scales[1:] > 1.5 * scales[:-1]).all()
    apart = [squared(some[0], "int8", scales[i]) / some[0].square().sum() for i, some in enumerate(steps)]
    together = [squared(some[0], "int8", one) / some[0].square().sum() for some in steps]
    assert sum(apart) < 0.1 * sum(together)


def test_steps_that_never_ran_take_the_nearest_scale():
    one, two = [torch.tensor([127.0])], [torch.tensor([254.0])]
    assert step_scales([[], one, [], two, []], "int8", ratios=(1.0,)).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_what_cannot_be_searched_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(UsageError, match=r"clip search: found format fp16, which has no scales; expected one of few"):
        clipped_scale(x, "fp16")
    with pytest.raises(UsageError, match=r"clip search: found ratios \(1.0, 0.0\), expected positive ones"):
        clipped_scale(x, "int8", ratios=(1.0, 0.0))
    with pytest.raises(UsageError, match=r"clip search: found \(2,\) importances, expected one for each of 3 channels"):
        clipped_scale(x, "int8", importance=torch.ones(2))
    with pytest.raises(UsageError, match=r"static scale: found no samples, expected one or more"):
        static_scale([], "int8")
    with pytest.raises(
        UsageError, match=r"static scale: found format mxfp8, expected one that can have one scale for all"
    ):
        static_scale([x], "mxfp8")
    with pytest.raises(UsageError, match=r"step scales: found no samples in 2 steps, expected some in one or more"):
        step_scales([[], []], "int8")
