"""Metrics against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure

from schedsearch.errors import UsageError
from schedsearch.evaluate import METRICS, Pictures, find_metric
from schedsearch.evaluate._quality import PSNR_CAP_DB
from schedsearch.evaluate._scoring import score_pictures
from schedsearch.protocols import Metric

GREY = torch.full((2, 3, 16, 16), 0.5)


BY_FORMULA = [name for name, metric in METRICS.items() if metric.score is not None]


@pytest.mark.parametrize("name", BY_FORMULA)
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

    for metric in map(METRICS.__getitem__, BY_FORMULA):
        alone = tuple(metric(one[i : i + 1], other[i : i + 1])[0] for i in range(4))
        assert metric(one, other) == pytest.approx(alone, rel=1e-5)


def test_half_precision_is_scored_in_full():
    assert METRICS["psnr"](GREY.bfloat16(), GREY) == (PSNR_CAP_DB, PSNR_CAP_DB)


def test_pictures_are_scored_on_what_each_metric_looks_at():
    reference = Pictures(latents=torch.ones(2, 4, 4), images=GREY)
    outputs = Pictures(latents=torch.full((2, 4, 4), 1.5), images=GREY + 0.1)

    scores = score_pictures(tuple(map(METRICS.__getitem__, BY_FORMULA)), outputs, reference)

    assert list(scores) == ["psnr", "ssim", "latent_error"]
    assert scores["psnr"] == pytest.approx((20.0, 20.0), abs=1e-4)
    assert scores["latent_error"] == pytest.approx((0.5, 0.5))


def test_an_unknown_metric_is_named():
    with pytest.raises(UsageError, match="found 'psnrr', expected one of psnr, ssim, latent_error"):
        find_metric("psnrr")


def by_hand(name, outputs, reference):
    """PSNR and SSIM as their papers have them, in double precision and plain loops."""
    x, y = outputs.double().numpy(), reference.double().numpy()
    if name == "psnr":
        return 10 * np.log10(1 / np.mean((x - y) ** 2))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    x, y = (np.pad(z, ((0, 0), (5, 5), (5, 5)), mode="reflect") for z in (x, y))
    for channel in range(3):
        for row in range(outputs.shape[1]):
            for column in range(outputs.shape[2]):
                a, b = (z[channel, row : row + 11, column : column + 11] for z in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
                cov = (window * a * b).sum() - mean_a * mean_b
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                values.append(luminance * (2 * cov + c2) / (var_a + var_b + c2))
    return np.mean(values)


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_scores_are_those_of_plain_loops_in_double_precision(name):
    one, other = torch.rand(2, 1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    mixed = 0.9 * one + 0.1 * other

    # torchmetrics takes the logarithm of 10 in single precision
    assert METRICS[name](mixed, one)[0] == pytest.approx(by_hand(name, mixed[0], one[0]), rel=1e-7)


@pytest.mark.parametrize("shape", [(1, 3, 12, 20), (2, 3, 64, 48), (2, 1, 7, 6)])
def test_ssim_is_that_of_torchmetrics(shape):
    one, other = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).double()
    close = one.lerp(other, 0.1)

    both = [
        structural_similarity_index_measure(a[None], b[None], data_range=1.0) for a, b in zip(close, one, strict=True)
    ]
    assert METRICS["ssim"](close, one) == pytest.approx([float(value) for value in both], abs=1e-12)


def test_other_shapes_are_refused():
    with pytest.raises(UsageError, match=r"metric psnr: found shapes \(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        METRICS["psnr"](GREY, GREY[:1])


def test_what_is_no_tensor_is_refused():
    with pytest.raises(UsageError, match="metric psnr: found list, expected a tensor"):
        METRICS["psnr"]([0.5], GREY)
    with pytest.raises(UsageError, match="metric psnr: found list as reference, expected a tensor"):
        METRICS["psnr"](GREY, [0.5])
