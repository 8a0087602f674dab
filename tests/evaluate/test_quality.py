"""Metrics against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.evaluate import METRICS, Pictures, find_metric
from schedsearch.evaluate._quality import PSNR_CAP_DB, score_pictures
from schedsearch.protocols import Metric

GREY = torch.full((2, 3, 16, 16), 0.5)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_plug_in(name):
    metric = find_metric(name)

    assert isinstance(metric, Metric)
    assert metric.name == name
    assert metric.better in ("min", "max")


@given(offset=st.floats(1e-3, 0.4))
def test_psnr_of_a_shifted_picture_is_minus_twenty_log_ten_of_the_shift(offset):
    scores = METRICS["psnr"](GREY + offset, GREY)

    assert scores == pytest.approx((-20 * math.log10(offset),) * 2, abs=1e-3)


def test_psnr_of_equal_pictures_is_the_cap_and_finite():
    assert METRICS["psnr"](GREY, GREY) == (PSNR_CAP_DB, PSNR_CAP_DB)


@given(a=st.floats(0.05, 1.0), b=st.floats(0.05, 1.0))
def test_ssim_of_two_flat_pictures_is_the_luminance_term(a, b):
    one, other = torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b)
    c1 = 0.01**2

    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert METRICS["ssim"](one, other) == pytest.approx((expected,), abs=1e-6)


def test_ssim_of_equal_pictures_is_one():
    picture = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    assert METRICS["ssim"](picture, picture) == pytest.approx((1.0,) * 3, abs=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_latent_error_of_a_scaled_latent_is_the_excess(n):
    latents = torch.randn(n, 8, 4, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([1.25, 0.5, 1.0])[:n].reshape(n, 1, 1)

    assert METRICS["latent_error"](latents * factors, latents) == pytest.approx((0.25, 0.5, 0.0)[:n], rel=1e-5)


def test_scores_do_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 4, 3, 32, 32, generator=generator)

    for metric in METRICS.values():
        alone = tuple(metric(one[i : i + 1], other[i : i + 1])[0] for i in range(4))
        assert metric(one, other) == pytest.approx(alone, rel=1e-5)


def test_half_precision_is_scored_in_full():
    assert METRICS["psnr"](GREY.bfloat16(), GREY) == (PSNR_CAP_DB, PSNR_CAP_DB)


def test_pictures_are_scored_on_what_each_metric_looks_at():
    reference = Pictures(latents=torch.ones(2, 4, 4), images=GREY)
    outputs = Pictures(latents=torch.full((2, 4, 4), 1.5), images=GREY + 0.1)

    scores = score_pictures(tuple(METRICS.values()), outputs, reference)

    assert list(scores) == ["psnr", "ssim", "latent_error"]
    assert scores["psnr"] == pytest.approx((20.0, 20.0), abs=1e-4)
    assert scores["latent_error"] == pytest.approx((0.5, 0.5))


def test_an_unknown_metric_is_named():
    with pytest.raises(UsageError, match="found 'psnrr', expected one of psnr, ssim, latent_error"):
        find_metric("psnrr")


def test_lpips_says_what_is_missing():
    with pytest.raises(UsageError, match="found lpips, which needs the weights of a feature network"):
        find_metric("lpips")


def test_other_shapes_are_refused():
    with pytest.raises(UsageError, match=r"metric psnr: found shapes \(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        METRICS["psnr"](GREY, GREY[:1])


def test_what_is_no_tensor_is_refused():
    with pytest.raises(UsageError, match="found list and Tensor, expected tensors"):
        METRICS["psnr"]([0.5], GREY)
