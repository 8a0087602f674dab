"""Smoothing of activation outliers into the weight: Xiao 2022 (SmoothQuant, arXiv 2211.10438), Dong 2024 (DiTAS, arXiv
2409.07756).

A linear layer computes ``x W^T``, and the same is ``(x / s) (W s)^T`` for any vector ``s > 0`` over the input channels.
Channels whose activations are large are made smaller and their columns of ``W`` larger, which moves difficulty from
the activations, where one scale per token serves all channels, to the weight:

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)                                              (SmoothQuant, equation 4)

In a diffusion model the large channels move with the timestep, so DiTAS aggregates the maxima over all timesteps, and
picks ``alpha`` for each layer by the error of its output. The vector is the table ``NAME.smooth``. This module knows
linear layers as a weight and sample inputs; it does not know where those come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schedsearch.errors import UsageError
from schedsearch.quantize._error import output_error, simulated_output

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The exponents that `searched_smoothing` tries."""

DEFAULT_ALPHA = 0.5
"""Half the difficulty to each side, SmoothQuant's own choice."""

_SMALLEST = 1e-5  # SmoothQuant's floor of a maximum; below it a channel says nothing about its range


class ChannelStatistics:
    """What the inputs of one layer look like, channel by channel, at each step and overall; updated batch by batch.

    Maxima and sums do not depend on how rows were put into batches (sums up to their last bits).

    Attributes:
        maximum: `(n_steps, channels)` float32, largest absolute value seen so far.
        squares: `(n_steps, channels)` float64, sum of squares.
        count: `(n_steps,)` int64, rows (tokens) seen.
    """

    def __init__(self, channels: int, *, n_steps: int = 1) -> None:
        if channels < 1 or n_steps < 1:
            raise UsageError(f"channel statistics: found {channels} channels and {n_steps} steps, expected 1 or more")
        self.maximum = torch.zeros(n_steps, channels)
        self.squares = torch.zeros(n_steps, channels, dtype=torch.float64)
        self.count = torch.zeros(n_steps, dtype=torch.int64)

    def update(self, x: Tensor, *, step: int = 0) -> None:
        """Takes in one batch.

        Args:
            x: `(..., channels)` inputs of the layer.
            step: the step they were seen at, 0 first.

        Raises:
            UsageError: another number of channels, a step that is not there, or values that are not finite.
        """
        n_steps, channels = self.maximum.shape
        if not 0 <= step < n_steps:
            raise UsageError(f"channel statistics: found step {step}, expected 0 to {n_steps - 1}")
        if x.shape[-1] != channels:
            raise UsageError(f"channel statistics: found {x.shape[-1]} channels, expected {channels}")
        rows = x.detach().reshape(-1, channels)
        if not len(rows):
            return
        largest = rows.abs().amax(0).float().cpu()
        if not torch.isfinite(largest).all():
            raise UsageError(
                f"channel statistics: found values that are not finite at step {step}, expected finite ones; "
                "calibrate in a dtype that holds the activations"
            )
        self.maximum[step] = torch.maximum(self.maximum[step], largest)
        self.squares[step] += rows.double().square().sum(0).cpu()
        self.count[step] += len(rows)

    def merge(self, other: ChannelStatistics) -> None:
        """Takes in what another object saw, such as one of another process.

        Raises:
            UsageError: it is for another number of steps or channels.
        """
        if other.maximum.shape != self.maximum.shape:
            found, expected = tuple(other.maximum.shape), tuple(self.maximum.shape)
            raise UsageError(f"channel statistics: found {found} steps and channels to merge, expected {expected}")
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.squares = self.squares + other.squares
        self.count = self.count + other.count

    def largest(self, step: int | None = None) -> Tensor:
        """Returns `(channels,)` float32: the largest absolute values at ``step``, or over all steps."""
        return self.maximum.amax(0) if step is None else self.maximum[step].clone()

    def second_moment(self, step: int | None = None) -> Tensor:
        """Returns `(channels,)` float64: the mean of squares at ``step``, or over all rows of all steps; 0 where none
        was seen.
        """
        squares = self.squares.sum(0) if step is None else self.squares[step]
        count = self.count.sum() if step is None else self.count[step]
        return squares / count.clamp(min=1)


def smoothing(largest: Tensor, weight: Tensor, *, alpha: float = DEFAULT_ALPHA) -> Tensor:
    """Returns the smoothing vector of a layer, `(in,)` float32, positive; ``x / s``, ``W * s`` replace ``x``, ``W``.

    Channels that are never used, or have no weight, keep 1.

    Args:
        largest: `(in,)` largest absolute activations per channel (`ChannelStatistics.largest`).
        weight: `(out, in)`.
        alpha: share of the difficulty that goes to the weight, 0 to 1.

    Raises:
        UsageError: ``alpha`` is not in [0, 1], or the two do not have the same number of channels.

    >>> smoothing(torch.tensor([16.0, 1.0]), torch.tensor([[1.0, 1.0]])).tolist()
    [4.0, 1.0]
    """
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"smoothing: found alpha {alpha}, expected 0 to 1")
    if largest.shape != weight.shape[1:]:
        raise UsageError(
            f"smoothing: found {tuple(largest.shape)} activation maxima, expected one for each of the "
            f"{weight.shape[-1]} columns of the weight"
        )
    of_weight = weight.detach().abs().amax(0).double()
    of_input = largest.to(of_weight)
    used = (of_weight > 0) & (of_input > 0)
    vector = of_input.clamp(min=_SMALLEST) ** alpha / of_weight.clamp(min=_SMALLEST) ** (1.0 - alpha)
    return torch.where(used, vector, torch.ones_like(vector)).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """A layer's smoothing vector and why it was chosen.

    Attributes:
        vector: `(in,)` float32, the table ``NAME.smooth``; ones where no smoothing is best.
        alpha: the exponent; None where no smoothing is best.
        error: mean squared output error with this vector, lower is better.
        default_error: the same with `DEFAULT_ALPHA`.
        plain_error: the same without smoothing.
    """

    vector: Tensor
    alpha: float | None
    error: float
    default_error: float
    plain_error: float


def searched_smoothing(
    largest: Tensor,
    weight: Tensor,
    x: Tensor,
    *,
    weight_fmt: str,
    activation_fmt: str,
    scales: str = "default",
    rank: int = 0,
    alphas: Sequence[float] = ALPHAS,
) -> Smoothing:
    """Returns the smoothing whose quantised layer is nearest to the layer on ``x``: no worse there than the default
    ``alpha`` and than no smoothing, both of which are among the candidates. Equal errors go to the first of default,
    none, then ``alphas`` in order.

    Args:
        largest: `(in,)` largest absolute activations, of all timesteps.
        weight: `(out, in)`.
        x: `(rows, in)` sample inputs, of all timesteps.
        weight_fmt: name of the weight's format.
        activation_fmt: name of the activations' format.
        scales: granularity of the scales.
        rank: of the low-rank branch beside the quantised weight.
        alphas: exponents to try.

    Raises:
        UsageError: as `smoothing`.
    """
    exact = x.double() @ weight.double().T

    def error(vector: Tensor | None) -> float:
        seen = simulated_output(
            x, weight, weight_fmt=weight_fmt, activation_fmt=activation_fmt, scales=scales, rank=rank, smooth=vector
        )
        return output_error(exact, seen)

    ones = torch.ones_like(smoothing(largest, weight))
    candidates: list[tuple[float | None, Tensor]] = [(DEFAULT_ALPHA, smoothing(largest, weight)), (None, ones)]
    candidates += [(alpha, smoothing(largest, weight, alpha=alpha)) for alpha in alphas if alpha != DEFAULT_ALPHA]
    errors = [error(None if alpha is None else vector) for alpha, vector in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    return Smoothing(
        vector=candidates[best][1],
        alpha=candidates[best][0],
        error=errors[best],
        default_error=errors[0],
        plain_error=errors[1],
    )
