"""Dynamic quantisation by row: the twin against the definition, the kernel against the twin, to the bit."""

from __future__ import annotations

import pytest
import torch

from schedsearch_kernels import KernelInputError, rowwise_quantise

FORMATS = ("int8", "fp8_e4m3")
CODES = {"int8": (torch.int8, 127.0), "fp8_e4m3": (torch.float8_e4m3fn, 448.0)}


def values(rows: int, columns: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Rows of very different size, one of zeros, and the values that lie on a tie."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 1000 + columns))
    x *= 10.0 ** torch.arange(rows).remainder(9).sub(4)[:, None]
    x[0, : columns // 2] = torch.arange(columns // 2) + 0.5
    if rows > 2:
        x[1] = 0.0
    return x.to(device, dtype)


def poisoned(rows: int, columns: int, fmt: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs full of what the operation never writes: the unused least int8, and NaN."""
    codes = torch.full((rows, columns), -128 if fmt == "int8" else 127, dtype=torch.int8, device=device)
    return codes.view(CODES[fmt][0]), torch.full((rows,), float("nan"), device=device)


def check_twin(device: str, rows: int, columns: int, *, fmt: str, dtype: str, max_block: int | None = None) -> None:
    x = values(rows, columns, getattr(torch, dtype), device)
    expected, expected_scale = rowwise_quantise(x, fmt, implementation="reference")
    codes, scale = poisoned(rows, columns, fmt, device)
    if max_block is None:
        rowwise_quantise(x, fmt, out=(codes, scale), implementation="triton")
    else:
        from schedsearch_kernels._checks import BYTE_FORMATS
        from schedsearch_kernels._rowwise_quantise import triton

        triton.rowwise_quantise(x, BYTE_FORMATS[fmt], codes, scale, max_block=max_block)
    # Both divide exactly and round to nearest even, so there is nothing to tolerate.
    assert torch.equal(scale, expected_scale)
    assert torch.equal(codes.view(torch.int8), expected.view(torch.int8))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 64), (17, 33)])
def test_the_kernel_is_its_twin_to_the_bit(run_check, fmt, dtype, rows, columns):
    run_check(check_twin, rows=rows, columns=columns, fmt=fmt, dtype=dtype)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("columns", [65, 128])
def test_a_row_that_does_not_fit_is_read_in_blocks(run_check, fmt, columns):
    run_check(check_twin, rows=3, columns=columns, fmt=fmt, dtype="float32", max_block=32)


def check_rows_apart(device: str) -> None:
    wide = values(5, 40, torch.float32, device)
    for x in (wide[:, :33], wide[:, ::2], wide.T):
        expected = rowwise_quantise(x.contiguous(), "int8", implementation="reference")
        found = rowwise_quantise(x, "int8", implementation="triton")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rows_and_columns_may_be_apart(run_check):
    run_check(check_rows_apart)


def check_every_float8(device: str) -> None:
    every = torch.arange(256, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn).float()
    grid = every[every.isfinite()].sort().values.unique()
    middles = (grid[1:] + grid[:-1]) / 2
    near = torch.cat((grid, middles, middles.nextafter(grid[1:]), middles.nextafter(grid[:-1])))
    codes, scale = rowwise_quantise(near[None], "fp8_e4m3", implementation="triton")
    assert scale.item() == 1.0
    assert torch.equal(codes[0].view(torch.uint8), near.to(torch.float8_e4m3fn).view(torch.uint8))


def test_every_float8_number_and_every_tie_between_two_rounds_as_torch_rounds(run_check):
    run_check(check_every_float8)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_twin_is_the_definition(fmt):
    x = values(6, 50, torch.float32, "cpu")
    codes, scale = rowwise_quantise(x, fmt)
    dtype, maximum = CODES[fmt]
    assert codes.dtype == dtype
    largest = x.double().abs().amax(dim=1)
    torch.testing.assert_close(scale.double(), (largest / maximum).clamp(min=2.0**-126), rtol=1e-7, atol=0.0)
    error = (codes.double() * scale.double()[:, None] - x.double()).abs()
    # Half a step: of int8 everywhere 1/2; of E4M3 (three bits of mantissa) 2^-4 of the value, below 2^-6 2^-10.
    half = 0.5 if fmt == "int8" else (x.double() / scale.double()[:, None]).abs().clamp(min=2.0**-6) * 2.0**-4
    assert (error <= half * scale.double()[:, None] * (1 + 1e-6)).all()
    assert codes.double().abs().amax(dim=1)[0] == maximum
    assert not codes[1].double().any()


def test_leading_dimensions_and_empty_batches_keep_their_shape():
    codes, scale = rowwise_quantise(torch.ones(2, 3, 4, 8), "int8")
    assert codes.shape == (2, 3, 4, 8)
    assert scale.shape == (2, 3, 4)
    codes, scale = rowwise_quantise(torch.ones(0, 8), "int8")
    assert (codes.shape, scale.shape) == ((0, 8), (0,))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.ones(2, 4), "int9"), "rowwise_quantise: fmt: found 'int9', expected int8 or fp8_e4m3."),
        ((torch.ones(2, 4, dtype=torch.int8), "int8"), "x: found torch.int8, expected torch.float32 or"),
        ((torch.ones(2, 0), "int8"), "x: found shape (2, 0), expected (..., in) with in of 1 or more."),
    ],
)
def test_other_inputs_are_refused_by_name(arguments, said):
    with pytest.raises(KernelInputError) as refused:
        rowwise_quantise(*arguments)
    assert said in str(refused.value)


def test_outputs_are_checked():
    x = torch.ones(2, 4)
    codes, scale = torch.empty(2, 4, dtype=torch.int8), torch.empty(2)
    with pytest.raises(KernelInputError, match=r"codes: found torch.int8, expected torch.float8_e4m3fn"):
        rowwise_quantise(x, "fp8_e4m3", out=(codes, scale))
    with pytest.raises(KernelInputError, match=r"scale: found shape \(3,\), expected \(2,\)"):
        rowwise_quantise(x, "int8", out=(codes, torch.empty(3)))
    with pytest.raises(KernelInputError, match="expected a contiguous tensor"):
        rowwise_quantise(x, "int8", out=(torch.empty(4, 2, dtype=torch.int8).T, scale))
