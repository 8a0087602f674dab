"""One scale and one shift per channel by least squares, from sums that are taken up as values come.

For values ``c`` and what they should be, ``g``, the fit is ``g ~ a c + b`` with ``a = cov(c, g) / var(c)`` and
``b = mean(g) - a mean(c)`` (Liu et al. 2025, "CacheQuant", arXiv 2503.01323, section on decoupled error correction).
Sums are kept of ``d = g - c`` in place of ``g``: equal values then give exact zeros, hence exactly scale 1 and shift 0.
Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schedsearch.errors import EvaluationError

FLAT = 1e-6
"""Variance, relative to the mean square, up to which a channel counts as constant and gets a shift alone: a scale that
is found in less, and taken in float32, could put more rounding into the value than it takes out of its error."""

LEAST = 1e-3
"""Share of the squared error that a channel's correction must take away to be kept; less may be noise of the sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineFit:
    """A fit and what it brought.

    Attributes:
        table: `(2, channels)` float32 scales and shifts.
        before: `(channels,)` mean squared error of the values as they are.
        after: the same with scale and shift; nowhere higher.
    """

    table: Tensor
    before: Tensor
    after: Tensor


class AffineSums:
    """Sums over samples, per channel, in float64 and main memory.

    Args:
        channels: length of the last dimension of what is added.
    """

    def __init__(self, channels: int) -> None:
        self._sums = torch.zeros(6, channels, dtype=torch.float64)

    def add(self, seen: Tensor, wanted: Tensor) -> None:
        """Takes in values and what they should be, `(..., channels)` each."""
        c, g = (_wide(t).reshape(-1, t.shape[-1]) for t in (seen, wanted))
        d = g - c
        count = torch.full_like(c[0], len(c))
        self._sums += torch.stack([count, c.sum(0), (c * c).sum(0), d.sum(0), (c * d).sum(0), (d * d).sum(0)]).cpu()

    def fit(self) -> AffineFit:
        """Returns scale and shift of least squared error; 1 and 0 for channels that they do not help more than chance
        would, such as those without samples.

        Raises:
            EvaluationError: a value was no number.
        """
        if not bool(torch.isfinite(self._sums).all()):
            raise EvaluationError(
                "correction: found NaN or infinity among the values to fit to, expected numbers. The schedule fails on "
                "these prompts; run it without a correction first."
            )
        n, c, cc, d, cd, dd = self._sums
        n = n.clamp(min=1.0)
        mean, missing, before = c / n, d / n, dd / n
        # Around the means, or large squares would cancel where values are far from 0.
        spread, together = cc / n - mean.square(), cd / n - mean * missing
        is_flat = spread <= FLAT * cc / n
        slope = torch.where(is_flat, 0.0, together / torch.where(is_flat, 1.0, spread))
        scale = (1.0 + slope).float()  # what is stored counts, so the shift is fitted to the rounded scale
        slope = scale.double() - 1.0
        shift = (missing - slope * mean).float()
        off = missing - slope * mean - shift.double()
        left = before - missing.square() - 2.0 * slope * together + slope.square() * spread + off.square()
        after = left.clamp(min=0.0)
        # Akaike's criterion: two numbers must take away more of the error than two numbers would by chance.
        bound = torch.exp(-4.0 / n).clamp(max=1.0 - LEAST) * before
        helps = (after < bound) & torch.isfinite(scale) & torch.isfinite(shift)
        table = torch.stack([torch.where(helps, scale, 1.0), torch.where(helps, shift, 0.0)]) + 0.0
        return AffineFit(table=table, before=before, after=torch.where(helps, after, before))


def _wide(tensor: Tensor) -> Tensor:
    """In float64, which MPS devices do not have."""
    return tensor.detach().cpu().double() if tensor.device.type == "mps" else tensor.detach().double()
