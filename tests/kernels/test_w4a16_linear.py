"""The W4A16 linear layer: every code enumerated, the twin against float64, the kernel against the twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schedsearch_kernels import KernelInputError, pack_w4, w4a16_linear

VALUES = {
    "int4": [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1],
    "fp4_e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6],
}
SHAPES = [(1, 1, 1), (1, 64, 32), (17, 33, 31), (16, 128, 32), (20, 130, 40), (5, 95, 65)]  # rows, in, out

# Both sides multiply by the same rounded weights and sum in float32: what differs is the order of the sum, about
# sqrt(in) * 2^-24 of the sum of magnitudes, and the output's rounding, one unit in the last place in all.
RELATIVE = {"float32": 1e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def operands(rows: int, columns: int, channels: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 10007 + columns * 101 + channels)
    codes = torch.randint(0, 16, (channels, columns), generator=generator, dtype=torch.uint8)
    groups = -(-columns // 64)
    return {
        "x": torch.randn(rows, columns, generator=generator).to(device),
        "weight": pack_w4(codes).to(device),
        "weight_scale": (torch.rand(channels, groups, generator=generator) + 0.1).to(device),
    }


def check_twin(device: str, shape: list[int], fmt: str, dtype: str, *, ends: bool) -> None:
    rows, columns, channels = shape
    operand = operands(rows, columns, channels, device)
    operand["x"] = operand["x"].to(getattr(torch, dtype))
    extra = {"fmt": fmt}
    if ends:
        bias, scale, shift = torch.randn(3, channels, generator=torch.Generator().manual_seed(1)).to(device)
        extra |= {"bias": bias, "correction": (1.0 + 0.1 * scale, shift)}
    out = torch.full((rows, channels), float("nan"), dtype=operand["x"].dtype, device=device)
    expected = w4a16_linear(**operand, **extra, implementation="reference").double()
    w4a16_linear(**operand, **extra, out=out, implementation="triton")
    scales = operand["weight_scale"].repeat_interleave(64, dim=1)[:, :columns]
    magnitudes = operand["x"].double().abs() @ (8.0 * scales.double()).T
    error = (out.double() - expected).abs()
    assert (error <= 1e-6 * magnitudes + RELATIVE[dtype] * (expected.abs() + 1.0)).all(), f"largest {error.max()}"


@pytest.mark.parametrize("fmt", VALUES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_agrees_with_its_twin(run_check, fmt, shape):
    run_check(check_twin, shape=shape, fmt=fmt, dtype="float32", ends=True)


@pytest.mark.parametrize("fmt", VALUES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_kernel_agrees_in_half_precision(run_check, fmt, dtype):
    run_check(check_twin, shape=(17, 100, 33), fmt=fmt, dtype=dtype, ends=False)


def check_every_code(device: str, fmt: str) -> None:
    # An identity in place of the input reads the weight out, code by code, both nibbles of a byte.
    codes = torch.arange(16, dtype=torch.uint8)
    weight = pack_w4(torch.stack((codes, codes.flip(0), codes.roll(1)))).to(device)
    scale = torch.tensor([[1.0], [0.25], [2.0]], device=device)
    found = w4a16_linear(torch.eye(16, device=device), weight, scale, fmt=fmt, implementation="triton")
    values = torch.tensor(VALUES[fmt])
    expected = torch.stack((values, 0.25 * values.flip(0), 2.0 * values.roll(1)))
    assert torch.equal(found.T.cpu(), expected)


@pytest.mark.parametrize("fmt", VALUES)
def test_the_kernel_knows_all_sixteen_codes(run_check, fmt):
    run_check(check_every_code, fmt=fmt)


@pytest.mark.parametrize("fmt", VALUES)
def test_the_twin_knows_all_sixteen_codes(fmt):
    weight = pack_w4(torch.arange(16, dtype=torch.uint8)[None])
    found = w4a16_linear(torch.eye(16), weight, torch.ones(1, 1), fmt=fmt)
    assert found[:, 0].tolist() == VALUES[fmt]


@pytest.mark.parametrize("columns", [63, 64, 65, 129])
def test_the_twin_is_the_sum_of_products_with_a_shorter_last_group(columns):
    operand = operands(3, columns, 4)
    found = w4a16_linear(**operand)
    nibbles = operand["weight"].numpy()
    x, scale = operand["x"].double().numpy(), operand["weight_scale"].double().numpy()
    expected = np.zeros((3, 4))
    for k in range(columns):
        code = (nibbles[:, k // 2] >> (4 * (k % 2))) & 0xF
        value = np.array(VALUES["int4"])[code] * scale[:, k // 64]
        expected += np.outer(x[:, k], value)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_packing_keeps_the_low_four_bits_of_signed_and_unsigned_codes():
    codes = torch.tensor([[-8, 7, -1], [0, 1, -7]], dtype=torch.int8)
    packed = pack_w4(codes)
    assert packed.tolist() == [[0x78, 0x0F], [0x10, 0x09]]
    assert torch.equal(packed, pack_w4((codes & 0xF).view(torch.uint8)))
    with pytest.raises(KernelInputError, match=r"codes: found torch.float32, expected torch.int8 or torch.uint8"):
        pack_w4(torch.ones(2, 2))
    with pytest.raises(KernelInputError, match=r"found shape \(2,\), expected \(out, in\)"):
        pack_w4(torch.ones(2, dtype=torch.int8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.ones(3, 70, dtype=torch.int8)}, "x: found torch.int8, expected torch.float32 or"),
        ({"fmt": "nf4"}, "fmt: found 'nf4', expected int4 or fp4_e2m1."),
        (
            {"weight": torch.ones(5, 70, dtype=torch.uint8)},
            "weight: found shape (5, 70), expected (out, 35), two codes",
        ),
        ({"weight": torch.ones(5, 35)}, "weight: found torch.float32, expected torch.uint8. Pack the codes"),
        (
            {"weight_scale": torch.ones(5, 1)},
            "weight_scale: found shape (5, 1), expected (5, 2). A group is 64 inputs.",
        ),
        ({"weight_scale": torch.ones(2, 5).T}, "weight_scale: found strides (1, 5), expected a contiguous tensor."),
        ({"out": torch.ones(3, 6)}, "out: found shape (3, 6), expected (3, 5)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_inputs_are_refused_by_name(change, said):
    with pytest.raises(KernelInputError) as refused:
        w4a16_linear(**(operands(3, 70, 5) | change))
    assert f"w4a16_linear: {said}" in str(refused.value)
