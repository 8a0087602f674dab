"""The numbers a site keeps between steps: divided differences of what it computed, per stream.

Buffers are allocated once per shape and written in place, so a run makes no garbage that grows with its steps. Knows
nothing of schedules: when to keep and with which numbers is the plan's business (see ``_plan.py`` for the formula).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schedsearch.errors import ApplyError

Scalars = tuple[Tensor, ...]
"""0-dimensional float32 tensors on the denoiser's device: reading them needs no synchronisation."""

Affine = tuple[Tensor, Tensor]
"""A scale and a shift, `(channels,)` float32 on the denoiser's device, for the last dimension of a value."""


class Cache:
    """Divided differences of one site's values, newest first.

    ``levels[k][j]`` is the ``j``-th divided difference of stream ``k``. Not thread-safe, like the pipeline it serves.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.levels: list[list[Tensor]] = []

    def keep(self, values: Sequence[Tensor], scales: Scalars) -> None:
        """Takes newly computed ``values`` (one tensor per stream).

        Args:
            values: what the site computed; copied.
            scales: ``1 / (s_new - s_j)`` for the newest, second newest, ... kept noise level; their number is the
                highest difference that exists after this call.
        """
        if not self._fits(values):
            self.levels = [[_buffer(v, level) for level in range(self.order + 1)] for v in values]
        for differences, value in zip(self.levels, values, strict=True):
            carry = value
            for level, scale in enumerate(scales):
                following = (carry.to(differences[level + 1].dtype) - differences[level]) * scale
                differences[level].copy_(carry)
                carry = following
            differences[len(scales)].copy_(carry)

    def predict(self, weights: Scalars, affines: Sequence[Affine] = ()) -> list[Tensor]:
        """Returns the forecast per stream: the kept value itself without weights and correction, else a new tensor.

        Args:
            weights: of the divided differences; their number is the order.
            affines: the correction, one per stream, or none: one fused multiply-add more.
        """
        if not affines:
            return [_evaluate(differences, weights, None) for differences in self.levels]
        if len(affines) != len(self.levels):
            raise ApplyError(
                f"correction: found {len(affines)} streams for a value of {len(self.levels)}, expected as many: a "
                "module gives more here than its row has (an image-prompt adapter?). Take the correction out."
            )
        pairs = zip(self.levels, affines, strict=True)
        return [_evaluate(differences, weights, affine) for differences, affine in pairs]

    def add_to(self, streams: Sequence[Tensor], weights: Scalars, affines: Sequence[Affine] = ()) -> list[Tensor]:
        """Returns each stream plus its forecast: one addition per stream and order."""
        return [s + p for s, p in zip(streams, self.predict(weights, affines), strict=True)]

    def forget(self) -> None:
        """Frees the buffers."""
        self.levels = []

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for stream in self.levels for t in stream)

    def _fits(self, values: Sequence[Tensor]) -> bool:
        if len(self.levels) != len(values):
            return False
        pairs = zip((stream[0] for stream in self.levels), values, strict=True)
        return all(h.shape == v.shape and h.dtype == v.dtype and h.device == v.device for h, v in pairs)


def _buffer(value: Tensor, level: int) -> Tensor:
    """Returns a buffer for a divided difference; those of float16 values go beyond its range, so they are float32."""
    wide = level > 0 and value.dtype == torch.float16
    return torch.empty_like(value, dtype=torch.float32 if wide else value.dtype)


def _evaluate(differences: Sequence[Tensor], weights: Scalars, affine: Affine | None) -> Tensor:
    value = differences[0]
    for difference, weight in zip(differences[1:], weights, strict=False):
        value = torch.addcmul(value.to(difference.dtype), difference, weight)
    if affine is not None:
        scale, shift = affine  # float32 whatever the value's dtype: a bfloat16 scale near 1 misses by 0.4 %
        value = torch.addcmul(shift, value.to(shift.dtype), scale)
    return value.to(differences[0].dtype)
