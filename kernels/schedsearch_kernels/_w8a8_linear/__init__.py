"""A linear layer of one-byte codes on one-byte codes, with everything that follows the product fused behind it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from schedsearch_kernels._checks import (
    BYTE_FORMATS,
    FLOATS,
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

_NAME = "w8a8_linear"


def w8a8_linear(
    codes: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    bias: Tensor | None = None,
    correction: Correction | None = None,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Returns ``(codes weight^T) * scale * weight_scale + bias``, then the correction: `(..., out)` in ``dtype``.

    int8 products are summed in int32, exactly; float8 products in float32 as the device's tensor cores sum them.

    Args:
        codes: `(..., in)`, int8 or float8_e4m3fn, as `rowwise_quantise` makes them.
        scale: `(...)` float32, one per row.
        weight: `(out, in)`, codes of the same dtype, contiguous.
        weight_scale: `(out,)` float32, one per output channel.
        bias: `(out,)`.
        correction: scale and shift per output channel, applied last: ``y * scale + shift``.
        dtype: dtype of the result.
        out: tensor to write to, contiguous, in ``dtype``.
        implementation: ``triton`` or ``reference``; chosen by the device if ``None``.

    Raises:
        KernelInputError: an argument of another kind.
        KernelUnavailableError: ``triton`` is asked for and cannot run here.
    """
    rows, channels = _checked(codes, scale, weight, weight_scale)
    after = check_channels(_NAME, channels, bias, correction)
    check_devices(_NAME, codes, (scale, weight, weight_scale, *after, out))
    if dtype not in FLOATS:
        raise wrong(f"{_NAME}: dtype", dtype, " or ".join(map(str, FLOATS)))
    shape = (*codes.shape[:-1], channels)
    check_output(f"{_NAME}: out", out, shape, (dtype,))
    out = torch.empty(shape, dtype=dtype, device=codes.device) if out is None else out
    arguments = (
        codes.reshape(rows, codes.shape[-1]),
        scale.reshape(rows).contiguous(),
        weight,
        weight_scale.contiguous(),
    )
    flat_out = out.view(rows, channels)
    if chosen(_NAME, codes.device, implementation, fp8=codes.is_floating_point()) == "triton":
        from schedsearch_kernels._w8a8_linear import triton

        triton.w8a8_linear(*arguments, out=flat_out, after=after)
    else:
        from schedsearch_kernels._w8a8_linear import reference

        reference.w8a8_linear(*arguments, out=flat_out, after=after)
    return out


def _checked(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor) -> tuple[int, int]:
    """Checks the two matrices; returns the number of rows and of output channels."""
    check_matrix(f"{_NAME}: codes", codes)
    check_dtype(f"{_NAME}: codes", codes, [kind.dtype for kind in BYTE_FORMATS.values()], "Use rowwise_quantise.")
    check_shape(f"{_NAME}: scale", scale, codes.shape[:-1], "There is one scale per row of codes.")
    check_weight(_NAME, codes, codes.dtype, weight, weight_scale)
    for name, tensor in (("scale", scale), ("weight_scale", weight_scale)):
        check_dtype(f"{_NAME}: {name}", tensor, (torch.float32,))
    return math.prod(codes.shape[:-1]), weight.shape[0]


def check_weight(operation: str, x: Tensor, dtype: torch.dtype, weight: Tensor, weight_scale: Tensor) -> None:
    """Checks a weight of one-byte codes against its input ``x``.

    Raises:
        KernelInputError: wrong dtype, shape or layout.
    """
    check_dtype(f"{operation}: weight", weight, (dtype,), "Both factors have the same format.")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise wrong(f"{operation}: weight", f"shape {tuple(weight.shape)}", f"(out, {x.shape[-1]}), as the input has")
    check_contiguous(f"{operation}: weight", weight)
    check_shape(f"{operation}: weight_scale", weight_scale, weight.shape[:1], "There is one per output channel.")
