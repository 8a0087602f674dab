"""Least squares from streaming sums: planted distortions, guards, and never worse than nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import EvaluationError
from schedsearch.evaluate import AffineSums


def fitted(seen, wanted, parts=1):
    sums = AffineSums(seen.shape[-1])
    for c, g in zip(seen.tensor_split(parts), wanted.tensor_split(parts), strict=True):
        sums.add(c, g)
    return sums.fit()


def drawn(n=200, channels=6, seed=0):
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(seed)) + torch.arange(channels)


def error(table, seen, wanted):
    return (table[0] * seen.double() + table[1] - wanted.double()).square().mean(0)


def test_a_planted_distortion_is_found():
    """The value is ``(g - b) / a``, so the fit must give ``a`` and ``b`` back and leave nothing."""
    wanted = drawn()
    scale, shift = torch.tensor([0.5, 2.0, -1.0, 1.0, 1.01, 30.0]), torch.tensor([0.0, 1.0, -2.0, 0.5, 0.0, 100.0])
    fit = fitted((wanted - shift) / scale, wanted)
    assert torch.allclose(fit.table[0], scale, rtol=1e-5)
    assert torch.allclose(fit.table[1], shift, atol=1e-4)
    assert bool((fit.after <= 1e-9).all())


def test_it_is_the_least_squares_solution():
    seen, wanted = drawn(), drawn(seed=1)
    fit = fitted(seen, wanted, parts=7)
    for c in range(6):
        columns = torch.stack([seen[:, c], torch.ones(len(seen))], 1).double()
        best = torch.linalg.lstsq(columns, wanted[:, c].double()[:, None]).solution[:, 0]
        assert torch.allclose(fit.table[:, c].double(), best, atol=1e-4)


def test_errors_told_are_those_there_are():
    seen, wanted = drawn(), drawn(seed=1)
    fit = fitted(seen, wanted, parts=3)
    assert torch.allclose(fit.before, (seen.double() - wanted.double()).square().mean(0))
    assert torch.allclose(fit.after, error(fit.table, seen, wanted), rtol=1e-6)


def test_equal_values_are_left_alone_to_the_bit():
    seen = drawn() * 1e3 + 1e4
    fit = fitted(seen, seen.clone(), parts=4)
    assert fit.table.tolist() == [[1.0] * 6, [0.0] * 6]
    assert not fit.before.any()


def test_a_constant_channel_is_shifted_only():
    seen = torch.full((50, 1), 3.7)
    wanted = drawn(50, 1)
    fit = fitted(seen, wanted)
    assert fit.table[0].item() == 1.0
    assert fit.table[1].item() == pytest.approx((wanted - seen).mean().item(), rel=1e-5)


def test_a_channel_that_hardly_varies_counts_as_constant():
    """The fit would be a scale of about a million, which in float32 adds more noise than it takes away."""
    seen = 1000.0 + 1e-3 * drawn(50, 1)
    assert fitted(seen, 1000.0 + 1000.0 * drawn(50, 1)).table[0].item() == 1.0


def test_what_brings_next_to_nothing_is_left_out():
    seen = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]).repeat(2500, 1)
    error = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]).repeat(2500, 1)  # of mean 0, not related to the values
    assert fitted(seen, seen + error + 0.03).table.tolist() == [[1.0], [0.0]]
    assert fitted(seen, seen + error + 0.05).table.flatten().tolist() == pytest.approx([1.0, 0.05])


def test_what_chance_would_bring_is_left_out():
    """Of five samples, two numbers take up two fifths of any noise."""
    kept = 0
    for seed in range(40):
        seen = drawn(5, 1, seed=seed)
        kept += fitted(seen, seen + drawn(5, 1, seed=100 + seed)).table[0].item() != 1.0
    assert kept < 20


def test_a_channel_of_zeros_and_no_samples_at_all():
    assert fitted(torch.zeros(9, 2), torch.zeros(9, 2)).table.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert AffineSums(2).fit().table.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(EvaluationError, match="correction: found NaN or infinity among the values to fit to"):
        fitted(torch.tensor([[float("nan")]]), torch.zeros(1, 1))


numbers = st.floats(-1e4, 1e4, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_no_channel_is_worse_than_before(pairs):
    seen, wanted = (torch.tensor(column)[:, None] for column in zip(*pairs, strict=True))
    fit = fitted(seen, wanted)
    found = error(fit.table.double(), seen, wanted)
    assert bool((found <= fit.before).all())
    assert bool((fit.after <= fit.before).all())
