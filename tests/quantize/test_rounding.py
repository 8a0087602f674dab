"""Learned rounding, against brute force and against nearest."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.quantize._formats import FORMATS, fake, scale_of
from schedsearch.quantize._rounding import Gram, learned_rounding, packed, shifted, unpacked

LOW_BIT = tuple(name for name, fmt in FORMATS.items() if not fmt.is_cast)


def correlated(n_in, rows, generator):
    """Inputs whose channels go together, as those of a network do."""
    return torch.randn(rows, n_in, generator=generator) @ torch.randn(n_in, n_in, generator=generator) / n_in**0.5


def layer(seed, *, n_out, n_in, rows):
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(n_out, n_in, generator=generator), correlated(n_in, rows, generator)
    gram = Gram(n_in)
    gram.update(x)
    return weight, x, gram.matrix


def least(weight, products, fmt):
    """The least error of each row over all choices."""
    n_in = weight.shape[1]
    low = fake(weight, fmt, up=torch.zeros(weight.shape, dtype=torch.bool)).double()
    high = fake(weight, fmt, up=torch.ones(weight.shape, dtype=torch.bool)).double()
    choices = torch.tensor(list(itertools.product([False, True], repeat=n_in)))
    off = torch.where(choices, high[:, None], low[:, None]) - weight[:, None].double()
    return ((off @ products) * off).sum(-1).amin(1)


@pytest.mark.parametrize("fmt", ["int4", "fp4_e2m1", "nf4", "int8", "fp8_e4m3"])
@pytest.mark.parametrize("n_in", [1, 2, 5, 10])
def test_a_beam_of_all_choices_is_brute_force(fmt, n_in):
    weight, _, products = layer(n_in, n_out=8, n_in=n_in, rows=40)
    found = learned_rounding(weight, products, fmt, beam=2**n_in).error
    torch.testing.assert_close(found, least(weight, products, fmt), rtol=1e-9, atol=1e-12)


def test_the_default_beam_is_within_a_fiftieth_of_brute_force():
    """Over 160 rows of ten inputs: at most 2 % above the optimum in the mean, and equal to it in nine of ten rows."""
    ratios = []
    for seed in range(10):
        weight, _, products = layer(100 + seed, n_out=16, n_in=10, rows=40)
        ratios.append(learned_rounding(weight, products, "int4").error / least(weight, products, "int4"))
    ratio = torch.cat(ratios)
    assert ratio.min() >= 1 - 1e-9
    assert ratio.mean() <= 1.02
    assert (ratio <= 1 + 1e-9).double().mean() >= 0.9


def test_output_error_falls_on_calibration_and_on_other_inputs():
    better_here, better_elsewhere = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        mix = torch.randn(24, 24, generator=generator) / 5
        x, other = torch.randn(200, 24, generator=generator) @ mix, torch.randn(200, 24, generator=generator) @ mix
        weight = torch.randn(16, 24, generator=generator)
        up = unpacked(learned_rounding(weight, x.double().T @ x.double(), "int4").bits, 24)
        learned, nearest = fake(weight, "int4", up=up), fake(weight, "int4")
        for inputs, better in ((x, better_here), (other, better_elsewhere)):
            off = [((q - weight) @ inputs.T).square().mean() for q in (learned, nearest)]
            better.append(bool(off[0] < off[1]))
    assert all(better_here)
    assert sum(better_elsewhere) >= 18


@given(
    seed=st.integers(0, 10**6),
    n_in=st.integers(1, 20),
    rows=st.integers(1, 30),
    fmt=st.sampled_from(LOW_BIT),
    beam=st.sampled_from([1, 3, 8]),
)
@settings(max_examples=40)
def test_no_row_is_worse_than_nearest_and_errors_are_those_of_the_table(seed, n_in, rows, fmt, beam):
    weight, x, products = layer(seed, n_out=5, n_in=n_in, rows=rows)
    x[:, 0] *= seed % 2  # a channel that never fires, every other time
    products = x.double().T @ x.double()
    rounding = learned_rounding(weight, products, fmt, beam=beam)
    assert (rounding.error <= rounding.nearest_error).all()
    seen = fake(weight, fmt, up=unpacked(rounding.bits, n_in))
    error = ((seen.double() - weight.double()) @ x.double().T).square().sum(1)
    nearest = ((fake(weight, fmt).double() - weight.double()) @ x.double().T).square().sum(1)
    size = products.trace() * weight.double().square().sum()
    torch.testing.assert_close(error, rounding.error, rtol=1e-5, atol=1e-13 * float(size))  # values are float32
    torch.testing.assert_close(nearest, rounding.nearest_error, rtol=1e-7, atol=1e-13 * float(size))


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    weight, _, _ = layer(0, n_out=6, n_in=12, rows=1)
    rounding = learned_rounding(weight, torch.eye(12, dtype=torch.float64), "int4")
    assert torch.equal(rounding.error, rounding.nearest_error)
    assert torch.equal(fake(weight, "int4", up=unpacked(rounding.bits, 12)), fake(weight, "int4"))


def test_two_equal_inputs_share_their_errors():
    """Both weights are .4 of a step above a code. The inputs are equal, so what counts is the sum: .8 is nearly 1."""
    weight = torch.tensor([[2.4, 3.4, 7.0]])
    products = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    rounding = learned_rounding(weight, products, "int4")
    assert fake(weight, "int4", up=unpacked(rounding.bits, 3)).sum().item() == pytest.approx(13.0)
    assert rounding.error.item() == pytest.approx(0.04, rel=1e-4)
    assert rounding.nearest_error.item() == pytest.approx(0.64, rel=1e-4)


def test_the_shifted_weight_makes_most_of_quantised_inputs():
    before, after, rounded, learned = [], [], [], []
    for seed in range(5):
        weight, x, _ = layer(seed, n_out=8, n_in=16, rows=500)
        seen = fake(x, "int4", scales="row")
        exact, products = x @ weight.T, seen.double().T @ seen.double()
        target = shifted(weight, x, seen)
        before.append((seen @ weight.T - exact).square().mean())
        after.append((seen @ target.float().T - exact).square().mean())
        for results, aim in ((rounded, None), (learned, target)):
            up = unpacked(learned_rounding(weight, products, "int4", target=aim).bits, 16)
            results.append((seen @ fake(weight, "int4", up=up).T - exact).square().mean())
    assert all(new < old for new, old in zip(after, before, strict=True))
    assert sum(learned) < sum(rounded)


def test_inputs_that_are_seen_as_they_are_shift_nothing():
    weight, x, _ = layer(0, n_out=3, n_in=5, rows=20)
    assert torch.equal(shifted(weight, x, x), weight.double())
    assert torch.equal(shifted(weight, 0 * x, 0 * x), weight.double())


@pytest.mark.parametrize("fmt", ["int4", "int8", "fp4_e2m1", "nf4", "fp8_e4m3"])
def test_the_largest_of_a_group_stays_at_the_end_of_the_grid(fmt):
    """It is on a code, but a last bit less, as after another device's decomposition, must not cost it a whole step."""
    weight, _, products = layer(3, n_out=8, n_in=16, rows=50)
    up = unpacked(learned_rounding(weight, products, fmt).bits, 16)
    scale = scale_of(weight, fmt)
    for factor in (1 - 2.0**-22, 1 + 2.0**-22):
        moved = fake(weight * factor, fmt, scale=scale, up=up)
        assert (moved - fake(weight, fmt, scale=scale, up=up)).abs().amax() < 1e-5


def test_the_scale_may_be_given():
    weight, _, products = layer(1, n_out=4, n_in=9, rows=30)
    scale = 0.7 * scale_of(weight, "int4", scales="row")
    rounding = learned_rounding(weight, products, "int4", scales="row", scale=scale)
    seen = fake(weight, "int4", scale=scale, up=unpacked(rounding.bits, 9)).double()
    torch.testing.assert_close((((seen - weight) @ products) * (seen - weight)).sum(1), rounding.error)


def test_wide_layers_are_searched_with_one_survivor_unless_told(monkeypatch):
    from schedsearch.quantize import _rounding

    weight, _, products = layer(5, n_out=12, n_in=20, rows=60)
    monkeypatch.setattr(_rounding, "BEAM_UP_TO", 19)
    one, more = learned_rounding(weight, products, "int4"), learned_rounding(weight, products, "int4", beam=8)
    assert torch.equal(one.bits, learned_rounding(weight, products, "int4", beam=1).bits)
    assert not torch.equal(one.bits, more.bits)
    assert (one.error <= one.nearest_error).all()
    assert more.error.sum() < one.error.sum()


def test_rows_in_several_portions_are_the_same_rows(monkeypatch):
    from schedsearch.quantize import _rounding

    weight, _, products = layer(2, n_out=20, n_in=16, rows=50)
    whole = learned_rounding(weight, products, "int4").bits
    monkeypatch.setattr(_rounding, "_MOST_AT_ONCE", 3 * 8 * 16)
    assert torch.equal(learned_rounding(weight, products, "int4").bits, whole)


@given(st.integers(1, 40).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
@settings(max_examples=30)
def test_bits_survive_packing(rows):
    up = torch.tensor(rows)
    bits = packed(up)
    assert bits.shape == (len(rows), (len(rows[0]) + 7) // 8)
    assert bits.dtype == torch.uint8
    assert torch.equal(unpacked(bits, len(rows[0])), up)


def test_the_first_column_is_the_lowest_bit():
    assert packed(torch.eye(9, dtype=torch.bool)).tolist() == [[1 << i, 0] for i in range(8)] + [[0, 1]]


def test_inner_products_do_not_depend_on_batches():
    x = torch.randn(2, 15, 6, generator=torch.Generator().manual_seed(0))
    whole, parts = Gram(6), Gram(6)
    whole.update(x)
    for part in x.reshape(30, 6).split(7):
        parts.update(part)
    torch.testing.assert_close(whole.matrix, parts.matrix)
    assert whole.count == parts.count == 30
    smooth = torch.linspace(0.5, 2.0, 6)
    other = Gram(6)
    other.update(x.double() / smooth)
    torch.testing.assert_close(whole.smoothed(smooth), other.matrix)


def test_what_cannot_be_rounded_is_refused():
    weight, products = torch.ones(2, 9), torch.eye(9)
    with pytest.raises(UsageError, match=r"learned rounding: found format bf16, expected one of few bits"):
        learned_rounding(weight, products, "bf16")
    with pytest.raises(UsageError, match=r"found a weight of \(2, 9\) and inner products of \(8, 8\), expected"):
        learned_rounding(weight, torch.eye(8), "int4")
    with pytest.raises(UsageError, match=r"learned rounding: found a target of \(9,\), expected the weight's \(2, 9\)"):
        learned_rounding(weight, products, "int4", target=torch.ones(9))
    with pytest.raises(UsageError, match=r"shifted weight: found inputs of \(4, 9\) and \(4, 8\), expected two equal"):
        shifted(weight, torch.ones(4, 9), torch.ones(4, 8))
    with pytest.raises(UsageError, match=r"learned rounding: found beam 0, expected 1 or more"):
        learned_rounding(weight, products, "int4", beam=0)
    with pytest.raises(UsageError, match=r"rounding: found \(2, 1\) of torch.uint8, expected 2 bytes of torch.uint8"):
        unpacked(torch.zeros(2, 1, dtype=torch.uint8), 9)
    with pytest.raises(UsageError, match=r"inner products: found 3 channels, expected 9"):
        Gram(9).update(torch.ones(4, 3))
