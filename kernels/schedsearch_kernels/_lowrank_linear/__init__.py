"""A low-bit linear layer with a low-rank branch beside it (Li 2024, SVDQuant, arXiv 2411.05007), in two kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from schedsearch_kernels._checks import (
    BYTE_FORMATS,
    FLOATS,
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
from schedsearch_kernels._w4a16_linear import check_packed
from schedsearch_kernels._w8a8_linear import check_weight

_NAME = "lowrank_linear"


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    fmt: str,
    bias: Tensor | None = None,
    correction: Correction | None = None,
    out: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Returns ``Q(x) W^T + (x down^T) up^T + bias``, then the correction: `(..., out)` in the dtype of ``x``.

    In the formats of one byte ``Q`` quantises ``x`` by row, in the same pass that projects it down; in those of four
    bits it leaves ``x`` as it is. ``x down^T`` is made once per row and rounded to the dtype of ``x``, as a linear
    layer's output would be; its product with ``up`` is added to the other in float32.

    Args:
        x: `(..., in)`, float32, float16 or bfloat16.
        weight: as `w8a8_linear` or `w4a16_linear` takes it.
        weight_scale: likewise.
        down: `(rank, in)` in the dtype of ``x``, contiguous; a linear layer's weight.
        up: `(out, rank)` in the dtype of ``x``, contiguous; likewise.
        fmt: ``int8``, ``fp8_e4m3``, ``int4`` or ``fp4_e2m1``.
        bias: `(out,)`.
        correction: scale and shift per output channel, applied last: ``y * scale + shift``.
        out: tensor to write to, contiguous, in the dtype of ``x``.
        implementation: ``triton`` or ``reference``; chosen by the device if ``None``.

    Raises:
        KernelInputError: an argument of another kind.
        KernelUnavailableError: ``triton`` is asked for and cannot run here.
    """
    channels, rows = _checked(x, weight, weight_scale, down, up, fmt=fmt), math.prod(x.shape[:-1])
    after = check_channels(_NAME, channels, bias, correction)
    check_devices(_NAME, x, (weight, weight_scale, down, up, *after, out))
    shape = (*x.shape[:-1], channels)
    check_output(f"{_NAME}: out", out, shape, (x.dtype,))
    out = torch.empty(shape, dtype=x.dtype, device=x.device) if out is None else out
    arguments = (x.reshape(rows, x.shape[-1]), weight, weight_scale.contiguous(), down, up)
    flat_out = out.view(rows, channels)
    if chosen(_NAME, x.device, implementation, fp8=fmt == "fp8_e4m3") == "triton":
        from schedsearch_kernels._lowrank_linear import triton

        triton.lowrank_linear(*arguments, fmt=fmt, out=flat_out, after=after)
    else:
        from schedsearch_kernels._lowrank_linear import reference

        reference.lowrank_linear(*arguments, fmt=fmt, out=flat_out, after=after)
    return out


def _checked(x: Tensor, weight: Tensor, weight_scale: Tensor, down: Tensor, up: Tensor, *, fmt: str) -> int:
    """Checks input, weight and branch; returns the number of output channels."""
    check_matrix(f"{_NAME}: x", x)
    check_dtype(f"{_NAME}: x", x, FLOATS)
    if fmt in BYTE_FORMATS:
        check_weight(_NAME, x, BYTE_FORMATS[fmt].dtype, weight, weight_scale)
    elif fmt in NIBBLE_FORMATS:
        check_packed(_NAME, x, fmt, weight, weight_scale)
    else:
        raise wrong(f"{_NAME}: fmt", repr(fmt), " or ".join((*BYTE_FORMATS, *NIBBLE_FORMATS)))
    check_dtype(f"{_NAME}: weight_scale", weight_scale, (torch.float32,))
    if down.ndim != 2 or down.shape[0] == 0:
        raise wrong(f"{_NAME}: down", f"shape {tuple(down.shape)}", f"(rank, {x.shape[-1]}) with a rank of 1 or more")
    check_shape(f"{_NAME}: down", down, (down.shape[0], x.shape[-1]))
    check_shape(f"{_NAME}: up", up, (weight.shape[0], down.shape[0]), "Its columns are the rank that down has.")
    for name, tensor in (("down", down), ("up", up)):
        check_dtype(f"{_NAME}: {name}", tensor, (x.dtype,), "The branch is in the dtype of the input.")
        check_contiguous(f"{_NAME}: {name}", tensor)
    return weight.shape[0]
