"""The twin in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from schedsearch_kernels._checks import GROUP, After
from schedsearch_kernels._w8a8_linear.reference import finished

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of fp4_e2m1 by bit pattern; the fourth bit is the sign."""


def w4a16_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    fmt: str,
    out: Tensor,
    after: After,
) -> None:
    """Writes `(rows, out)`."""
    y = widened_product(x, weight, weight_scale, fmt)
    out.copy_(finished(y, after))


def widened_product(x: Tensor, weight: Tensor, weight_scale: Tensor, fmt: str) -> Tensor:
    """Returns `(rows, out)` float32, summed in float64."""
    wide = widened(weight, weight_scale, fmt, columns=x.shape[1]).to(x.dtype)
    return (x.to(torch.float64) @ wide.to(torch.float64).T).to(torch.float32)


def widened(weight: Tensor, weight_scale: Tensor, fmt: str, *, columns: int) -> Tensor:
    """Returns the weight, `(out, in)` float32."""
    nibbles = torch.stack((weight & 0xF, weight >> 4), dim=-1).flatten(1)[:, :columns].to(torch.int64)
    if fmt == "int4":
        values = ((nibbles ^ 8) - 8).to(torch.float32)
    else:
        table = torch.tensor((*E2M1, *(-value for value in E2M1)), device=weight.device)
        values = table[nibbles]
    return values * weight_scale.repeat_interleave(GROUP, dim=1)[:, :columns]
