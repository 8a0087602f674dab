"""Two scales for one activation, one per sign: Zhang 2025 (SegQuant's DualScale, arXiv 2507.14811).

GELU and SiLU let large positive values through and press all negative ones into ``[-0.17, 0]`` and ``[-0.28, 0]``.
Under one symmetric scale the negative half of the codes is hardly used. Split by sign, ``x = x+ + x-``, each side has a
scale of its own and the same codes as before:

    x W^T ~ s+ (q+ W^T) + s- (q- W^T)

The bits per element stay, because a code's sign says which scale it goes by. A matmul runs once per side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from schedsearch.errors import UsageError
from schedsearch.quantize._formats import Format, Quantized, format_of, quantized


class Dual(NamedTuple):
    """An activation whose two signs have scales of their own.

    Attributes:
        positive: the tensor with zeros in place of negative values.
        negative: the tensor with zeros in place of positive values.
    """

    positive: Quantized
    negative: Quantized

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the values in ``dtype``; where one side is not zero the other is, so nothing is rounded twice."""
        return (self.positive.dequantized() + self.negative.dequantized()).to(dtype)


def dual_quantized(
    x: Tensor,
    fmt: Format | str,
    *,
    scales: str = "row",
    scale: tuple[Tensor, Tensor] | None = None,
) -> Dual:
    """Returns ``x`` in a low-bit format with one scale for its positive and one for its negative values.

    Args:
        x: `(..., in)`.
        fmt: the format, or its name.
        scales: granularity, of each side; ``row`` is a scale per token and side.
        scale: static scales of the positive and the negative side, in place of those that follow from ``x``.

    Raises:
        UsageError: the format has no scales.
    """
    fmt = format_of(fmt)
    if fmt.is_cast:
        raise UsageError(f"dual scale: found format {fmt.name}, which has no scales; expected one of few bits")
    of_positive, of_negative = scale if scale is not None else (None, None)
    return Dual(
        quantized(x.clamp(min=0), fmt, scales=scales, scale=of_positive),
        quantized(x.clamp(max=0), fmt, scales=scales, scale=of_negative),
    )


def dual_fake(
    x: Tensor, fmt: Format | str, *, scales: str = "row", scale: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Returns ``x`` as it is held under two scales, in the dtype of ``x``: `dual_quantized` and back."""
    return dual_quantized(x, fmt, scales=scales, scale=scale).dequantized(x.dtype)
