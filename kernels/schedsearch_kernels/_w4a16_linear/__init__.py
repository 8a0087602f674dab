"""A linear layer of four-bit weights on inputs as they are: the weight is read in nibbles and widened on the way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from schedsearch_kernels._checks import (
    FLOATS,
    GROUP,
    NIBBLE_FORMATS,
    Correction,
    check_channels,
    check_contiguous,
    check_devices,
    check_dtype,
    check_matrix,
    check_output,
    check_shape,
    wrong,
)
from schedsearch_kernels._dispatch import chosen

_NAME = "w4a16_linear"


def pack_w4(codes: Tensor) -> Tensor:
    """Returns four-bit codes two per byte, `(out, ceil(in / 2))` uint8: of each pair the first is the low nibble.

    Args:
        codes: `(out, in)`, whole numbers of -8 to 7 or bit patterns of 0 to 15; only the low four bits count.

    Raises:
        KernelInputError: not a matrix of int8 or uint8.
    """
    if codes.ndim != 2:
        raise wrong("pack_w4: codes", f"shape {tuple(codes.shape)}", "(out, in)")
    check_dtype("pack_w4: codes", codes, (torch.int8, torch.uint8))
    nibbles = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).view(torch.uint8) & 0xF
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4)


def w4a16_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    fmt: str = "int4",
    bias: Tensor | None = None,
    correction: Correction | None = None,
    out: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Returns ``x W^T + bias``, then the correction, `(..., out)` in the dtype of ``x``; sums are float32.

    ``W = value(code) * scale``, rounded to the dtype of ``x``. Groups of 64 neighbours along the input share a scale;
    the last group may be shorter.

    Args:
        x: `(..., in)`, float32, float16 or bfloat16.
        weight: `(out, ceil(in / 2))` uint8, as `pack_w4` makes it, contiguous.
        weight_scale: `(out, ceil(in / 64))` float32, contiguous.
        fmt: ``int4`` (two's complement) or ``fp4_e2m1`` (sign, two bits of exponent, one of mantissa).
        bias: `(out,)`.
        correction: scale and shift per output channel, applied last: ``y * scale + shift``.
        out: tensor to write to, contiguous, in the dtype of ``x``.
        implementation: ``triton`` or ``reference``; chosen by the device if ``None``.

    Raises:
        KernelInputError: an argument of another kind.
        KernelUnavailableError: ``triton`` is asked for and cannot run here.
    """
    check_matrix(f"{_NAME}: x", x)
    check_dtype(f"{_NAME}: x", x, FLOATS)
    check_packed(_NAME, x, fmt, weight, weight_scale)
    channels, rows = weight.shape[0], math.prod(x.shape[:-1])
    after = check_channels(_NAME, channels, bias, correction)
    check_devices(_NAME, x, (weight, weight_scale, *after, out))
    shape = (*x.shape[:-1], channels)
    check_output(f"{_NAME}: out", out, shape, (x.dtype,))
    out = torch.empty(shape, dtype=x.dtype, device=x.device) if out is None else out
    arguments = (x.reshape(rows, x.shape[-1]), weight, weight_scale)
    flat_out = out.view(rows, channels)
    if chosen(_NAME, x.device, implementation) == "triton":
        from schedsearch_kernels._w4a16_linear import triton

        triton.w4a16_linear(*arguments, fmt=fmt, out=flat_out, after=after)
    else:
        from schedsearch_kernels._w4a16_linear import reference

        reference.w4a16_linear(*arguments, fmt=fmt, out=flat_out, after=after)
    return out


def check_packed(operation: str, x: Tensor, fmt: str, weight: Tensor, weight_scale: Tensor) -> None:
    """Checks a packed weight against its input ``x``.

    Raises:
        KernelInputError: wrong format, dtype, shape or layout.
    """
    if fmt not in NIBBLE_FORMATS:
        raise wrong(f"{operation}: fmt", repr(fmt), " or ".join(NIBBLE_FORMATS))
    columns = x.shape[-1]
    check_dtype(f"{operation}: weight", weight, (torch.uint8,), "Pack the codes with pack_w4.")
    if weight.ndim != 2 or weight.shape[1] != -(-columns // 2):
        expected = f"(out, {-(-columns // 2)}), two codes per byte for an input of {columns}"
        raise wrong(f"{operation}: weight", f"shape {tuple(weight.shape)}", expected, "Pack the codes with pack_w4.")
    groups = -(-columns // GROUP)
    check_shape(f"{operation}: weight_scale", weight_scale, (weight.shape[0], groups), f"A group is {GROUP} inputs.")
    check_dtype(f"{operation}: weight_scale", weight_scale, (torch.float32,))
    for name, tensor in (("weight", weight), ("weight_scale", weight_scale)):
        check_contiguous(f"{operation}: {name}", tensor)
