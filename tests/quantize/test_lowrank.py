"""The low-rank branch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.quantize._error import output_error, simulated_output
from schedsearch.quantize._formats import fake
from schedsearch.quantize._lowrank import low_rank
from schedsearch.quantize._smooth import smoothing

RANKS = (0, 4, 8, 16, 32, 48)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(seed=0, n_in=64, n_out=48, rows=256):
    """A layer whose inputs have eight outlier channels, and whose weight has a few strong directions."""
    x, weight = random(rows, n_in, seed=seed), random(n_out, n_in, seed=seed + 1)
    x[:, 3:64:8] *= 50.0
    return x, weight


@given(n_out=st.integers(1, 12), n_in=st.integers(1, 12), rank=st.integers(0, 14), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_parts_add_up_and_the_rest_is_the_least_there_is(n_out, n_in, rank, seed):
    weight = random(n_out, n_in, seed=seed).double()
    parts = low_rank(weight, rank)
    kept = min(rank, n_out, n_in)
    assert parts.left.shape == (n_out, kept)
    assert parts.right.shape == (kept, n_in)
    torch.testing.assert_close(parts.left @ parts.right + parts.residual, weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.residual.norm(), torch.linalg.svdvals(weight)[kept:].norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_rounding_of_the_factors_goes_into_the_rest(dtype, tolerance):
    weight = random(20, 30).to(dtype)
    parts = low_rank(weight, 5)
    assert {parts.left.dtype, parts.right.dtype, parts.residual.dtype} == {dtype}
    again = parts.left.double() @ parts.right.double() + parts.residual.double()
    assert (again - weight.double()).abs().max() < tolerance * weight.abs().max().item() / 2


def test_signs_are_settled_and_bits_repeat():
    weight = random(16, 12)
    first, second, negative = low_rank(weight, 6), low_rank(weight.clone(), 6), low_rank(-weight, 6)
    assert all(torch.equal(getattr(first, part), getattr(second, part)) for part in ("left", "right", "residual"))
    assert (first.right.gather(1, first.right.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(negative.right, first.right)
    torch.testing.assert_close(negative.left, -first.left)


def test_a_known_decomposition():
    u, v = torch.tensor([0.6, 0.8]), torch.tensor([0.0, -1.0, 0.0])
    parts = low_rank(9.0 * torch.outer(u, v), 1)
    torch.testing.assert_close(parts.left[:, 0], -3.0 * u)
    torch.testing.assert_close(parts.right[0], -3.0 * v)
    assert parts.residual.abs().max() < 1e-6


@pytest.mark.parametrize("fmt", ["int4", "fp4_e2m1"])
def test_w4a4_with_a_branch_has_at_most_half_the_error(fmt):
    for seed in range(3):
        x, weight = planted(10 * seed)
        exact = x.double() @ weight.double().T
        smooth = smoothing(x.abs().amax(0), weight)
        plain = output_error(exact, simulated_output(x, weight, weight_fmt=fmt, activation_fmt=fmt))
        branch = simulated_output(x, weight, weight_fmt=fmt, activation_fmt=fmt, rank=16, smooth=smooth)
        assert output_error(exact, branch) <= 0.5 * plain


def test_error_falls_with_rank_and_vanishes_at_full_rank():
    x, weight = planted()
    exact = x.double() @ weight.double().T
    smooth = smoothing(x.abs().amax(0), weight)
    of_output = [
        output_error(
            exact, simulated_output(x, weight, weight_fmt="int4", activation_fmt="int4", rank=r, smooth=smooth)
        )
        for r in RANKS
    ]
    of_weight = []
    for rank in RANKS:
        rest = low_rank(weight * smooth, rank).residual
        of_weight.append(float((fake(rest, "int4") - rest).norm() / weight.norm()))
    assert of_output == sorted(of_output, reverse=True)
    assert of_weight == sorted(of_weight, reverse=True)
    assert of_weight[-1] < 1e-6
    assert of_output[-1] < 1e-9 * of_output[0]


def test_large_matrices_are_iterated_to_the_same_answer():
    weight = random(300, 400) * torch.linspace(2.0, 0.1, 400) + 3.0 * random(300, 4, seed=1) @ random(4, 400, seed=2)
    exact, iterated = low_rank(weight, 16), low_rank(weight, 16, exact_up_to=100)
    assert exact.residual.norm() <= iterated.residual.norm() * (1 + 1e-6)
    assert iterated.residual.norm() < exact.residual.norm() * 1.0005
    torch.testing.assert_close(iterated.left @ iterated.right + iterated.residual, weight)
    assert torch.equal(iterated.right, low_rank(weight, 16, exact_up_to=100).right)


def test_iteration_is_left_out_where_many_directions_are_wanted():
    weight = random(120, 130)
    assert torch.equal(low_rank(weight, 40, exact_up_to=100).right, low_rank(weight, 40).right)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(UsageError, match=r"low-rank branch: found rank -1, expected 0 or more"):
        low_rank(torch.ones(2, 2), -1)
    with pytest.raises(UsageError, match=r"found a torch.int8 tensor of shape \(2, 2\), expected a floating matrix"):
        low_rank(torch.ones(2, 2, dtype=torch.int8), 1)
    with pytest.raises(UsageError, match=r"found a torch.float32 tensor of shape \(2,\), expected a floating matrix"):
        low_rank(torch.ones(2), 1)
