"""The twin in torch: a tensor operation per order, as the runtime's cache does it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forecast(levels: Sequence[Tensor], weights: Sequence[Tensor], stream: Tensor | None, out: Tensor | None) -> Tensor:
    """Returns the forecast, added to ``stream`` if there is one."""
    value = levels[0]
    for level, weight in zip(levels[1:], weights, strict=True):
        value = torch.addcmul(value.to(level.dtype), level, weight)
    value = value.to(levels[0].dtype)
    if stream is not None:
        value = stream + value
    return value if out is None else out.copy_(value)


def forecast_keep(value: Tensor, levels: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
    """Writes the divided differences."""
    carry = value
    for i, scale in enumerate(scales):
        following = (carry.to(levels[i + 1].dtype) - levels[i]) * scale
        levels[i].copy_(carry)
        carry = following
    levels[len(scales)].copy_(carry)
