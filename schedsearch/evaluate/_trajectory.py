"""The latents of a run at every noise level it passed: what fits and early stops compare with.

Levels are post-shift sigmas. Does not know prompts, references or schedules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from schedsearch.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """Latents of one batch of prompts along one run.

    Attributes:
        sigma: `(n_points,)` noise levels, strictly decreasing.
        states: `(n_points,)` packed latents `(n, tokens, channels)` at these levels, in main memory.
    """

    sigma: tuple[float, ...]
    states: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        """Check that there is a state for every level.

        Raises:
            UsageError: otherwise, or if the levels do not fall.
        """
        falls = all(a > b for a, b in pairwise(self.sigma))
        if not self.states or len(self.sigma) != len(self.states) or not falls:
            raise UsageError(
                f"Trajectory: found {len(self.states)} states at {len(self.sigma)} levels, expected one state for each "
                "of at least one level, and the levels to fall."
            )

    def at(self, sigma: float) -> torch.Tensor:
        """Return the latents `(n, tokens, channels)` at noise level ``sigma``: linear in sigma between recorded levels,
        the state itself at one of them, the nearest state beyond the ends.

        >>> ends = (torch.zeros(1), torch.ones(1))
        >>> Trajectory(sigma=(1.0, 0.5), states=ends).at(0.875).item()
        0.25
        """
        if sigma >= self.sigma[0]:
            return self.states[0]
        if sigma <= self.sigma[-1]:
            return self.states[-1]
        # The levels fall, and bisect wants them to rise.
        below = bisect_left(self.sigma, -sigma, key=lambda level: -level)
        if self.sigma[below] == sigma:
            return self.states[below]
        high, low = self.sigma[below - 1], self.sigma[below]
        return torch.lerp(self.states[below - 1], self.states[below], (high - sigma) / (high - low))

    def rows(self, start: int, stop: int) -> Trajectory:
        """Return the trajectory of the prompts ``start`` to ``stop - 1`` of the batch."""
        return Trajectory(sigma=self.sigma, states=tuple(state[start:stop] for state in self.states))

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return sum(state.numel() * state.element_size() for state in self.states)


def kept_points(n_points: int, point_bytes: int, room: int) -> tuple[int, ...]:
    """Return which of ``n_points`` points of a run to keep: all if they fit into ``room`` bytes, else every second,
    third, ... such that they fit, the ends always.

    >>> kept_points(6, 10, 60)
    (0, 1, 2, 3, 4, 5)
    >>> kept_points(6, 10, 40)
    (0, 1, 3, 5)

    Args:
        n_points: levels of the run.
        point_bytes: latents of all prompts at one level.
        room: bytes.
    """
    last = n_points - 1
    for stride in range(1, last + 1):
        kept = sorted({0, *range(last, -1, -stride)})
        if len(kept) * point_bytes <= room:
            return tuple(kept)
    return (0, last) if last else (0,)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return ``|found - wanted|_2 / |wanted|_2`` over all prompts of a batch; infinity where ``found`` is no number.

    >>> relative_error(torch.tensor([3.0, 0.0]), torch.tensor([4.0, 0.0]))
    0.25
    """
    target = wanted.to(device=found.device, dtype=torch.float32)
    error = float(torch.linalg.vector_norm(found.float() - target) / torch.linalg.vector_norm(target))
    return error if error == error else float("inf")  # noqa: PLR0124 -- NaN is the one number unlike itself


def squared_sums(columns: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return the inner products `(m + 1, m + 1)` in double precision of ``columns`` and, last, ``target``.

    Args:
        columns: `(m,)` tensors of one shape.
        target: of the same shape.
    """
    place = columns[0].device
    rows = torch.stack([column.reshape(-1).double() for column in (*columns, target.to(place))])
    return rows @ rows.T
