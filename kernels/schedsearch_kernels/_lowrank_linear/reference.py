"""The twin in torch, made of the others' twins."""

from __future__ import annotations

import torch
from torch import Tensor

from schedsearch_kernels._checks import BYTE_FORMATS, After
from schedsearch_kernels._rowwise_quantise.reference import rowwise_quantise
from schedsearch_kernels._w4a16_linear.reference import widened_product
from schedsearch_kernels._w8a8_linear.reference import dequantised_product, finished


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    fmt: str,
    out: Tensor,
    after: After,
) -> None:
    """Writes `(rows, out)`."""
    if fmt in BYTE_FORMATS:
        codes, scale = torch.empty_like(x, dtype=BYTE_FORMATS[fmt].dtype), x.new_empty(len(x), dtype=torch.float32)
        rowwise_quantise(x, BYTE_FORMATS[fmt], codes, scale)
        y = dequantised_product(codes, scale, weight, weight_scale)
    else:
        y = widened_product(x, weight, weight_scale, fmt)
    projected = (x.to(torch.float64) @ down.to(torch.float64).T).to(x.dtype)
    branch = projected.to(torch.float64) @ up.to(torch.float64).T
    out.copy_(finished(y + branch.to(torch.float32), after))
