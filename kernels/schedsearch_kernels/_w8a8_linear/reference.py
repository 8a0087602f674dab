"""The twin in torch. float64 holds every sum of these products exactly, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from schedsearch_kernels._checks import After


def w8a8_linear(
    codes: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    out: Tensor,
    after: After,
) -> None:
    """Writes `(rows, out)`."""
    y = dequantised_product(codes, scale, weight, weight_scale)
    out.copy_(finished(y, after))


def dequantised_product(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """Returns `(rows, out)` float32."""
    total = codes.to(torch.float64) @ weight.to(torch.float64).T
    return total.to(torch.float32) * scale[:, None] * weight_scale


def finished(y: Tensor, after: After) -> Tensor:
    """Returns float32 ``y`` with bias and correction, as every linear operation here ends."""
    if after.bias is not None:
        y = y + after.bias.to(torch.float32)
    if after.scale is not None and after.shift is not None:
        y = y * after.scale + after.shift
    return y
