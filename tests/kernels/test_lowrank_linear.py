"""The linear layer with a low-rank branch: the twin against its parts, the kernels against the twin."""

from __future__ import annotations

import pytest
import torch

from schedsearch_kernels import KernelInputError, lowrank_linear, pack_w4, rowwise_quantise, w4a16_linear, w8a8_linear

FORMATS = ("int8", "fp8_e4m3", "int4", "fp4_e2m1")
SHAPES = [(1, 33, 5, 1), (17, 33, 31, 3), (16, 64, 32, 16), (20, 130, 40, 17)]  # rows, in, out, rank

# As w8a8_linear and w4a16_linear; besides, the projection is a float32 sum that is rounded to the input's dtype, so a
# value near the middle of two may go either way: one unit in its last place, times what `up` makes of it.
RELATIVE = {"float32": 2e-6, "bfloat16": 2.0**-7, "float16": 2.0**-10}
SUMS = {"cpu": 1e-6, "cuda": 2.0**-12}  # of float8 on Hopper's tensor cores, see test_w8a8_linear.py


def operands(shape: list[int], fmt: str, dtype: str = "float32", device: str = "cpu") -> dict[str, object]:
    rows, columns, channels, rank = shape
    generator = torch.Generator().manual_seed(sum(shape))
    kind = {"generator": generator}
    x, w = torch.randn(rows, columns, **kind), torch.randn(channels, columns, **kind)
    down, up = torch.randn(rank, columns, **kind) / columns**0.5, torch.randn(channels, rank, **kind)
    if fmt in ("int8", "fp8_e4m3"):
        weight, weight_scale = rowwise_quantise(w, fmt)
    else:
        weight = pack_w4(torch.randint(0, 16, w.shape, dtype=torch.uint8, **kind))
        weight_scale = torch.rand(channels, -(-columns // 64), **kind) / 4
    wide = {"x": x, "down": down, "up": up}
    parts = {name: tensor.to(getattr(torch, dtype)) for name, tensor in wide.items()}
    parts |= {"weight": weight, "weight_scale": weight_scale}
    return {name: tensor.to(device) for name, tensor in parts.items()} | {"fmt": fmt}


def check_twin(device: str, shape: list[int], fmt: str, dtype: str, *, ends: bool) -> None:
    operand = operands(shape, fmt, dtype, device)
    rows, _, channels, _ = shape
    if ends:
        bias, scale, shift = torch.randn(3, channels, generator=torch.Generator().manual_seed(1)).to(device)
        operand |= {"bias": bias, "correction": (1.0 + 0.1 * scale, shift)}
    x = operand["x"]
    out = torch.full((rows, channels), float("nan"), dtype=x.dtype, device=device)
    expected = lowrank_linear(**operand, implementation="reference").double()
    lowrank_linear(**operand, out=out, implementation="triton")
    # No weight here is larger than 4 in size.
    low_bit = 4.0 * x.double().abs().sum(dim=1)[:, None] * (SUMS[device] if fmt == "fp8_e4m3" else 1e-6)
    projected = x.double().abs() @ operand["down"].double().abs().T
    branch = projected @ operand["up"].double().abs().T
    error = (out.double() - expected).abs()
    assert (error <= low_bit + RELATIVE[dtype] * (branch + expected.abs() + 1.0)).all(), f"largest {error.max()}"


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_agree_with_their_twin(run_check, fmt, shape):
    run_check(check_twin, shape=shape, fmt=fmt, dtype="float32", ends=True)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_kernels_agree_in_half_precision(run_check, fmt, dtype):
    run_check(check_twin, shape=(17, 70, 33, 5), fmt=fmt, dtype=dtype, ends=False)


def check_first_pass(device: str, fmt: str) -> None:
    from schedsearch_kernels._checks import BYTE_FORMATS
    from schedsearch_kernels._lowrank_linear.triton import quantise_and_project

    operand = operands((19, 75, 4, 3), fmt, device=device)
    x, down = operand["x"], operand["down"]
    codes = torch.full(x.shape, 127 if fmt == "fp8_e4m3" else -128, dtype=torch.int8, device=device)
    scale, projected = torch.full((19,), float("nan"), device=device), torch.full((19, 3), float("nan"), device=device)
    quantise_and_project(x, BYTE_FORMATS[fmt], down, out=(codes.view(BYTE_FORMATS[fmt].dtype), scale, projected))
    expected, expected_scale = rowwise_quantise(x, fmt, implementation="reference")
    assert torch.equal(scale, expected_scale)
    assert torch.equal(codes, expected.view(torch.int8))
    torch.testing.assert_close(projected.double(), x.double() @ down.double().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fmt", ["int8", "fp8_e4m3"])
def test_the_first_pass_quantises_as_the_operation_of_its_own(run_check, fmt):
    run_check(check_first_pass, fmt=fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_twin_is_the_sum_of_its_parts(fmt):
    operand = operands((5, 70, 6, 3), fmt)
    x, weight, scale = operand["x"], operand["weight"], operand["weight_scale"]
    if fmt in ("int8", "fp8_e4m3"):
        low_bit = w8a8_linear(*rowwise_quantise(x, fmt), weight, scale, dtype=torch.float32)
    else:
        low_bit = w4a16_linear(x, weight, scale, fmt=fmt)
    branch = x.double() @ operand["down"].double().T @ operand["up"].double().T
    torch.testing.assert_close(lowrank_linear(**operand).double(), low_bit.double() + branch, rtol=1e-5, atol=1e-5)


def test_a_branch_of_zeros_changes_nothing():
    operand = operands((4, 64, 6, 2), "int8")
    operand["up"] = torch.zeros_like(operand["up"])
    plain = w8a8_linear(
        *rowwise_quantise(operand["x"], "int8"), operand["weight"], operand["weight_scale"], dtype=torch.float32
    )
    assert torch.equal(lowrank_linear(**operand), plain)


def test_a_branch_of_full_rank_carries_the_whole_weight():
    x, w = torch.randn(5, 12), torch.randn(7, 12)
    nothing = torch.zeros(7, 12, dtype=torch.int8)
    found = lowrank_linear(x, nothing, torch.ones(7), torch.eye(12), w, fmt="int8")
    torch.testing.assert_close(found, x @ w.T)


def test_leading_dimensions_keep_their_shape():
    operand = operands((6, 64, 5, 2), "int4")
    flat = lowrank_linear(**operand)
    shaped = lowrank_linear(**(operand | {"x": operand["x"].view(2, 3, 64)}))
    assert torch.equal(shaped, flat.view(2, 3, 5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fmt": "nf4"}, "fmt: found 'nf4', expected int8 or fp8_e4m3 or int4 or fp4_e2m1."),
        ({"down": torch.ones(0, 64)}, "down: found shape (0, 64), expected (rank, 64) with a rank of 1 or more."),
        ({"down": torch.ones(2, 63)}, "down: found shape (2, 63), expected (2, 64)."),
        ({"down": torch.ones(2, 64).half()}, "down: found torch.float16, expected torch.float32. The branch is in"),
        ({"up": torch.ones(5, 3)}, "up: found shape (5, 3), expected (5, 2). Its columns are the rank that down has."),
        ({"up": torch.ones(2, 5).T}, "up: found strides (1, 5), expected a contiguous tensor."),
        ({"weight": torch.ones(5, 64)}, "weight: found torch.float32, expected torch.int8."),
        ({"weight_scale": torch.ones(5).double()}, "weight_scale: found torch.float64, expected torch.float32."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_inputs_are_refused_by_name(change, said):
    with pytest.raises(KernelInputError) as refused:
        lowrank_linear(**(operands((3, 64, 5, 2), "int8") | change))
    assert f"lowrank_linear: {said}" in str(refused.value)
