"""The W8A8 linear layer: the twin against arithmetic in whole numbers and float64, the kernel against the twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schedsearch_kernels import KernelInputError, rowwise_quantise, w8a8_linear

FORMATS = ("int8", "fp8_e4m3")
SHAPES = [(1, 1, 1), (1, 64, 32), (17, 33, 31), (16, 64, 32), (40, 130, 70), (33, 63, 65)]  # rows, in, out

# The sum is exact (int8) or a float32 sum of exact products (float8; Hopper's tensor cores keep about 14 bits of each
# partial sum, hence the second number, of the sum of magnitudes), and the epilogue has four float32 roundings; then the
# output's own rounding: half a unit in the last place, 2^-9 of bfloat16, 2^-12 of float16, counted once per side.
RELATIVE = {"float32": 2e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SUMS = {"cpu": 1e-6, "cuda": 2.0**-12}


def operands(rows: int, columns: int, channels: int, fmt: str, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 10007 + columns * 101 + channels)
    codes, scale = rowwise_quantise(torch.randn(rows, columns, generator=generator), fmt)
    weight, weight_scale = rowwise_quantise(torch.randn(channels, columns, generator=generator), fmt)
    parts = {"codes": codes, "scale": scale, "weight": weight, "weight_scale": weight_scale}
    return {name: tensor.to(device) for name, tensor in parts.items()}


def channels_of(channels: int, device: str) -> dict[str, object]:
    generator = torch.Generator().manual_seed(channels)
    bias, scale, shift = torch.randn(3, channels, generator=generator).to(device)
    return {"bias": bias, "correction": (1.0 + 0.1 * scale, shift)}


def check_twin(device: str, shape: list[int], fmt: str, dtype: str, after: list[str]) -> None:
    rows, columns, channels = shape
    operand = operands(rows, columns, channels, fmt, device)
    extra = {name: value for name, value in channels_of(channels, device).items() if name in after}
    out = torch.full((rows, channels), float("nan"), dtype=getattr(torch, dtype), device=device)
    kind = {"dtype": out.dtype, **extra}
    expected = w8a8_linear(**operand, **kind, implementation="reference").double()
    w8a8_linear(**operand, **kind, out=out, implementation="triton")
    magnitudes = operand["codes"].double().abs() @ operand["weight"].double().abs().T
    sums = magnitudes * operand["scale"][:, None] * operand["weight_scale"] * (SUMS[device] if fmt != "int8" else 1e-6)
    error = (out.double() - expected).abs()
    assert (error <= sums * 1.5 + RELATIVE[dtype] * (expected.abs() + 1.0)).all(), f"largest error {error.max()}"


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_agrees_with_its_twin(run_check, fmt, shape):
    run_check(check_twin, shape=shape, fmt=fmt, dtype="float32", after=["bias", "correction"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("after", [[], ["bias"], ["correction"]], ids=str)
def test_every_end_of_the_kernel_agrees(run_check, dtype, after):
    run_check(check_twin, shape=(17, 40, 33), fmt="int8", dtype=dtype, after=after)


def check_kernel(device: str, rows: int, fmt: str, *, descriptors: bool) -> None:
    from schedsearch_kernels._checks import After
    from schedsearch_kernels._w8a8_linear import triton

    operand = operands(rows, 144, 70, fmt, device)
    expected = w8a8_linear(**operand, dtype=torch.float32, implementation="reference")
    out = torch.full_like(expected, float("nan"))
    triton.w8a8_linear(**operand, out=out, after=After(None, None, None), descriptors=descriptors)
    # as above; elements are about 12 in size
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=2e-5 if fmt == "int8" or device == "cpu" else 0.05)
    assert triton.takes_descriptors(operand["codes"], operand["weight"]) or device == "cuda"
    assert not triton.takes_descriptors(operand["codes"][:, 1:], operand["weight"][:, 1:])


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("rows", [1, 40])
def test_tiles_by_descriptor_and_by_address_give_the_same(run_check, rows, fmt, descriptors):
    run_check(check_kernel, rows=rows, fmt=fmt, descriptors=descriptors)


def check_sum_beyond_float32(device: str) -> None:
    # 2^24 + 1 is no float32 and not the sum of float32 products either; int32 gets there and rounds once.
    codes = torch.full((1, 1100), 127, dtype=torch.int8, device=device)
    weight = torch.full((3, 1100), 127, dtype=torch.int8, device=device)
    weight[0, 0], weight[1, 0] = 126, -127
    one = torch.ones(3, device=device)
    found = w8a8_linear(codes, one[:1], weight, one, dtype=torch.float32, implementation="triton")
    exact = (codes.long().cpu() @ weight.long().cpu().T).float()
    assert exact.max() > 2**24
    assert torch.equal(found.cpu(), exact)


def test_int8_sums_are_whole_numbers(run_check):
    run_check(check_sum_beyond_float32)


def check_inputs_apart(device: str) -> None:
    operand = operands(12, 40, 20, "int8", device)
    wide = torch.zeros(12, 64, dtype=torch.int8, device=device)
    wide[:, :40] = operand["codes"]
    plain = w8a8_linear(**operand, dtype=torch.float32, implementation="triton")
    for codes in (wide[:, :40], operand["codes"].T.contiguous().T):
        again = w8a8_linear(**(operand | {"codes": codes}), dtype=torch.float32, implementation="triton")
        assert torch.equal(again, plain)
    # one scale for all rows, every second number of a longer vector
    one = operand["scale"][:1].expand(12)
    twice = {name: torch.stack((operand["weight_scale"], plain[0]), dim=1)[:, 0] for name in ("weight_scale", "bias")}
    apart = operand | twice | {"scale": one}
    near = {name: tensor.contiguous() for name, tensor in apart.items()}
    found = [w8a8_linear(**each, dtype=torch.float32, implementation="triton") for each in (apart, near)]
    assert torch.equal(*found)
    assert (
        torch.equal(found[0], w8a8_linear(**near, dtype=torch.float32, implementation="reference")) or device == "cuda"
    )


def test_rows_of_codes_may_be_apart(run_check):
    run_check(check_inputs_apart)


def test_the_int8_twin_is_arithmetic_in_whole_numbers():
    operand = operands(5, 33, 7, "int8", "cpu")
    extra = channels_of(7, "cpu")
    found = w8a8_linear(**operand, **extra, dtype=torch.float32)
    numbers = {name: tensor.numpy() for name, tensor in operand.items()}
    whole = np.einsum("mk,nk->mn", numbers["codes"].astype(np.int64), numbers["weight"].astype(np.int64))
    y = whole * numbers["scale"].astype(np.float64)[:, None] * numbers["weight_scale"].astype(np.float64)
    scale, shift = extra["correction"]
    y = (y + extra["bias"].numpy()) * scale.numpy() + shift.numpy()
    np.testing.assert_allclose(found.numpy(), y, rtol=1e-5, atol=1e-5)


def test_the_float8_twin_is_the_sum_of_the_products():
    operand = operands(4, 21, 6, "fp8_e4m3", "cpu")
    found = w8a8_linear(**operand, dtype=torch.float32)
    x = operand["codes"].float().numpy().astype(np.float64) * operand["scale"].numpy()[:, None]
    w = operand["weight"].float().numpy().astype(np.float64) * operand["weight_scale"].numpy()[:, None]
    np.testing.assert_allclose(found.numpy(), np.einsum("mk,nk->mn", x, w), rtol=1e-5, atol=1e-5)


def test_leading_dimensions_empty_batches_and_the_default_dtype():
    operand = operands(6, 16, 5, "int8", "cpu")
    shaped = operand | {"codes": operand["codes"].view(2, 3, 16), "scale": operand["scale"].view(2, 3)}
    found = w8a8_linear(**shaped)
    assert (found.shape, found.dtype) == ((2, 3, 5), torch.bfloat16)
    assert torch.equal(found.view(6, 5), w8a8_linear(**operand))
    empty = operand | {"codes": operand["codes"][:0], "scale": operand["scale"][:0]}
    assert w8a8_linear(**empty).shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": torch.ones(3, 16)}, "codes: found torch.float32, expected torch.int8 or torch.float8_e4m3fn. Use"),
        ({"scale": torch.ones(4)}, "scale: found shape (4,), expected (3,). There is one scale per row of codes."),
        ({"scale": torch.ones(3).double()}, "scale: found torch.float64, expected torch.float32"),
        ({"weight": torch.ones(5, 15, dtype=torch.int8)}, "weight: found shape (5, 15), expected (out, 16)"),
        ({"weight": torch.ones(16, 5, dtype=torch.int8).T}, "weight: found strides (1, 5), expected a contiguous"),
        ({"weight": torch.ones(5, 16, dtype=torch.uint8)}, "weight: found torch.uint8, expected torch.int8"),
        ({"weight_scale": torch.ones(1)}, "weight_scale: found shape (1,), expected (5,)"),
        ({"bias": torch.ones(4)}, "bias: found shape (4,), expected (5,)"),
        ({"correction": (torch.ones(5), torch.ones(4))}, "correction shift: found shape (4,), expected (5,)"),
        ({"dtype": torch.int32}, "dtype: found torch.int32, expected torch.float32 or"),
        ({"out": torch.ones(3, 5)}, "out: found torch.float32, expected torch.bfloat16"),
        ({"bias": torch.ones(5, device="meta")}, "found tensors on cpu and meta, expected all on one device. Move"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_inputs_are_refused_by_name(change, said):
    with pytest.raises(KernelInputError) as refused:
        w8a8_linear(**(operands(3, 16, 5, "int8", "cpu") | change))
    assert f"w8a8_linear: {said}" in str(refused.value)
