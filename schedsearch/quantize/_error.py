"""What the quality tools minimise: the squared error of a linear layer's output on sample inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from schedsearch.quantize._formats import activation_scales, fake
from schedsearch.quantize._lowrank import low_rank


def output_error(exact: Tensor, seen: Tensor) -> float:
    """Returns the mean squared difference of two outputs of equal shape, taken in double precision."""
    return float((seen.double() - exact.double()).square().mean())


def simulated_output(
    x: Tensor,
    weight: Tensor,
    *,
    weight_fmt: str,
    activation_fmt: str,
    scales: str = "default",
    rank: int = 0,
    smooth: Tensor | None = None,
) -> Tensor:
    """Returns what a quantised linear layer without bias gives for ``x``, `(rows, out)`, the arithmetic in x's dtype.

    The low-rank branch sees the smoothed activations in full precision, the quantised residual sees them quantised
    (SVDQuant, equation 5).

    Args:
        x: `(rows, in)` inputs.
        weight: `(out, in)`.
        weight_fmt: name of the weight's format.
        activation_fmt: name of the activations' format.
        scales: granularity of the scales, as a rule says it; ``default`` is a scale per token for activations.
        rank: of the low-rank branch; 0 for none.
        smooth: `(in,)` smoothing vector; None for none.
    """
    weight = weight.to(x.dtype)
    if smooth is not None:
        smooth = smooth.to(x)
        x, weight = x / smooth, weight * smooth
    branch: Tensor | float = 0.0
    if rank:
        parts = low_rank(weight, rank)
        branch, weight = (x @ parts.right.T) @ parts.left.T, parts.residual
    seen_x = fake(x, activation_fmt, scales=activation_scales(activation_fmt, scales))
    return torch.nn.functional.linear(seen_x, fake(weight, weight_fmt, scales=scales)) + branch
