"""Smoothing vectors and the statistics they are made of."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.quantize._error import output_error, simulated_output
from schedsearch.quantize._formats import fake
from schedsearch.quantize._smooth import DEFAULT_ALPHA, ChannelStatistics, searched_smoothing, smoothing

W4A8 = {"weight_fmt": "int4", "activation_fmt": "int8"}


def linear_with_outliers(seed=0, *, rows=64, n_in=32, n_out=24, outliers=3, factor=40.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n_in, generator=generator)
    x[:, :outliers] *= factor
    return x, torch.randn(n_out, n_in, generator=generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_smoothing_changes_nothing_without_quantisation(dtype, tolerance, alpha):
    x, weight = (part.to(dtype) for part in linear_with_outliers())
    s = smoothing(x.abs().amax(0).float(), weight, alpha=alpha).to(dtype)
    exact, smoothed = x @ weight.T, (x / s) @ (weight * s).T
    assert (smoothed - exact).norm() / exact.norm() < tolerance


def test_vector_by_hand():
    largest, weight = torch.tensor([16.0, 0.25, 0.0, 3.0]), torch.tensor([[1.0, 4.0, 2.0, 0.0], [-4.0, 1.0, 1.0, 0.0]])
    assert smoothing(largest, weight).tolist() == [2.0, 0.25, 1.0, 1.0]  # sqrt(16/4), sqrt(.25/4), unused, no weight
    assert smoothing(largest, weight, alpha=1.0).tolist() == [16.0, 0.25, 1.0, 1.0]
    assert smoothing(largest, weight, alpha=0.0).tolist() == [0.25, 0.25, 1.0, 1.0]


def test_default_alpha_makes_both_ranges_equal():
    x, weight = linear_with_outliers()
    s = smoothing(x.abs().amax(0), weight)
    torch.testing.assert_close((x / s).abs().amax(0), (weight * s).abs().amax(0))


def test_smoothing_tames_outliers():
    x, weight = linear_with_outliers()
    s = smoothing(x.abs().amax(0), weight)
    plain = output_error(x @ weight.T, simulated_output(x, weight, weight_fmt="int8", activation_fmt="int8"))
    smooth = output_error(x @ weight.T, simulated_output(x, weight, weight_fmt="int8", activation_fmt="int8", smooth=s))
    assert smooth < 0.5 * plain


@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 100.0), fmt=st.sampled_from(["int8", "int4", "fp8_e4m3"]))
@settings(max_examples=25)
def test_grid_is_never_worse_than_default_or_none(seed, factor, fmt):
    x, weight = linear_with_outliers(seed, rows=16, n_in=12, n_out=6, factor=factor)
    largest = x.abs().amax(0)
    best = searched_smoothing(largest, weight, x, weight_fmt="int4", activation_fmt=fmt)

    def error(vector):
        seen = simulated_output(x, weight, weight_fmt="int4", activation_fmt=fmt, smooth=vector)
        return output_error(x.double() @ weight.double().T, seen)

    assert best.default_error == error(smoothing(largest, weight, alpha=DEFAULT_ALPHA))
    assert best.plain_error == error(None)
    assert best.error == (best.plain_error if best.alpha is None else error(best.vector))
    assert best.error <= min(best.default_error, best.plain_error)


def test_a_formats_cast_keeps_no_smoothing_or_default():
    x, weight = linear_with_outliers(rows=4)
    best = searched_smoothing(x.abs().amax(0), weight, x.double(), weight_fmt="fp32", activation_fmt="fp32")
    assert best.error <= 1e-9  # every candidate is exact up to float32


def test_statistics_of_all_steps_beat_those_of_one():
    """Channel 5 is large early, channel 9 late: what the last step alone says is wrong for the first."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(24, 32, generator=generator)
    steps = [torch.randn(64, 32, generator=generator) for _ in range(6)]
    for i, x in enumerate(steps):
        x[:, 5] *= 60.0 if i < 3 else 1.0
        x[:, 9] *= 60.0 if i >= 3 else 1.0
    statistics = ChannelStatistics(32, n_steps=6)
    for i, x in enumerate(steps):
        statistics.update(x, step=i)
    everything = torch.cat(steps)
    exact = everything @ weight.T

    def error(largest):
        s = smoothing(largest, weight)
        return output_error(exact, simulated_output(everything, weight, smooth=s, **W4A8))

    together = error(statistics.largest())
    assert all(together < 0.8 * error(statistics.largest(i)) for i in range(6))
    assert together < error(torch.ones(32))


@given(cuts=st.lists(st.integers(0, 30), max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_statistics_do_not_depend_on_batches(cuts, seed):
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(seed))
    whole, parts, other = (ChannelStatistics(7, n_steps=2) for _ in range(3))
    whole.update(x.reshape(2, 15, 7), step=1)
    borders = sorted({0, 30, *cuts})
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        (parts if number % 2 else other).update(x[start:end], step=1)
    parts.merge(other)
    assert torch.equal(whole.largest(), parts.largest())
    assert torch.equal(whole.count, parts.count)
    torch.testing.assert_close(whole.second_moment(), parts.second_moment())
    torch.testing.assert_close(whole.second_moment(1), x.double().square().mean(0))


def test_statistics_of_steps_that_were_not_seen_are_zero():
    statistics = ChannelStatistics(3, n_steps=4)
    statistics.update(torch.tensor([[1.0, -5.0, 0.0]], dtype=torch.bfloat16), step=2)
    statistics.update(torch.empty(0, 3), step=2)
    assert statistics.largest(2).tolist() == statistics.largest().tolist() == [1.0, 5.0, 0.0]
    assert statistics.largest(0).tolist() == statistics.second_moment(0).tolist() == [0.0, 0.0, 0.0]
    assert statistics.second_moment().tolist() == [1.0, 25.0, 0.0]
    assert statistics.count.tolist() == [0, 0, 1, 0]


def test_what_cannot_be_taken_in_is_refused():
    statistics = ChannelStatistics(3, n_steps=2)
    with pytest.raises(UsageError, match=r"channel statistics: found step 2, expected 0 to 1"):
        statistics.update(torch.ones(1, 3), step=2)
    with pytest.raises(UsageError, match=r"channel statistics: found 4 channels, expected 3"):
        statistics.update(torch.ones(1, 4))
    with pytest.raises(UsageError, match=r"not finite at step 1, expected finite ones; calibrate in a dtype"):
        statistics.update(torch.tensor([[1.0, float("inf"), 0.0]]), step=1)
    with pytest.raises(UsageError, match=r"found \(1, 3\) steps and channels to merge, expected \(2, 3\)"):
        statistics.merge(ChannelStatistics(3))
    with pytest.raises(UsageError, match=r"found 0 channels and 1 steps, expected 1 or more"):
        ChannelStatistics(0)
    with pytest.raises(UsageError, match=r"smoothing: found alpha 1.5, expected 0 to 1"):
        smoothing(torch.ones(3), torch.ones(2, 3), alpha=1.5)
    with pytest.raises(UsageError, match=r"found \(2,\) activation maxima, expected one for each of the 3 columns"):
        smoothing(torch.ones(2), torch.ones(2, 3))


def test_simulated_output_is_the_formula():
    x, weight = linear_with_outliers(rows=5)
    expected = fake(x, "int8", scales="row") @ fake(weight, "int4").T
    torch.testing.assert_close(simulated_output(x, weight, **W4A8), expected)
