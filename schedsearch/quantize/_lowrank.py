"""The low-rank branch beside a quantised weight: Li 2024 (SVDQuant, arXiv 2411.05007).

    W = L1 L2 + R        y = (x L2^T) L1^T  in the base dtype  +  Q(x) Q(R)^T  in few bits

``L1 L2`` is the truncated singular value decomposition of the (smoothed) weight, the nearest matrix of that rank, so
what is left to quantise is as small as can be in the Frobenius norm. Large matrices, of which a few directions are
wanted, are decomposed by subspace iteration (Halko 2011, SIAM Review 53, arXiv 0909.4061, algorithm 4.4) from a start
that is always the same. This module knows nothing of formats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schedsearch.errors import UsageError

EXACT_UP_TO = 1024
"""Matrices whose smaller side is at most this are decomposed exactly."""

_OVERSAMPLED = 16  # further directions that are iterated with the wanted ones and then dropped
_ITERATIONS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """A matrix as a product of two thin ones and what is left: ``W = left @ right + residual``.

    Attributes:
        left: `(out, rank)`, L1, in the weight's dtype.
        right: `(rank, in)`, L2, in the weight's dtype.
        residual: `(out, in)`, what their product **in this dtype** misses, so rounding them loses nothing.
    """

    left: Tensor
    right: Tensor
    residual: Tensor


def low_rank(weight: Tensor, rank: int, *, exact_up_to: int = EXACT_UP_TO) -> LowRank:
    """Returns the branch of the given rank and the residual. The same weight on the same device gives the same bits.

    Both factors carry the square roots of the singular values. In each row of ``right`` the entry of largest absolute
    value, the first of equals, is positive; that settles the sign that a decomposition leaves open.

    Args:
        weight: `(out, in)`, floating.
        rank: 1 to the smaller side; more is cut to that. 0 gives empty factors and the weight itself.
        exact_up_to: smaller sides beyond this are decomposed by subspace iteration, unless a quarter or more of the
            directions is wanted.

    Raises:
        UsageError: the weight is not a floating matrix, or the rank is negative.

    >>> parts = low_rank(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1)
    >>> parts.residual.tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise UsageError(
            f"low-rank branch: found a {weight.dtype} tensor of shape {tuple(weight.shape)}, expected a floating matrix"
        )
    if rank < 0:
        raise UsageError(f"low-rank branch: found rank {rank}, expected 0 or more")
    weight = weight.detach()
    smaller = min(weight.shape)
    rank = min(rank, smaller)
    if rank == 0:
        empty = weight.new_empty
        return LowRank(left=empty(weight.shape[0], 0), right=empty(0, weight.shape[1]), residual=weight.clone())
    thin = smaller > exact_up_to and 4 * (rank + _OVERSAMPLED) < smaller
    u, s, vh = _leading(weight.double(), rank) if thin else torch.linalg.svd(weight.double(), full_matrices=False)
    u, root, vh = u[:, :rank], s[:rank].sqrt(), vh[:rank]
    top = vh.abs().argmax(1, keepdim=True)
    sign = vh.gather(1, top).sign()[:, 0]
    left, right = (u * (sign * root)).to(weight.dtype), ((sign * root)[:, None] * vh).to(weight.dtype)
    residual = (weight.double() - left.double() @ right.double()).to(weight.dtype)
    return LowRank(left=left.contiguous(), right=right.contiguous(), residual=residual)


def branch_of(weight: Tensor, rank: int, dtype: torch.dtype) -> LowRank:
    """Returns the branch as a layer of ``dtype`` has it, and in float32 what its product misses.

    Args:
        weight: `(out, in)` float32.
        rank: as for `low_rank`.
        dtype: dtype of both factors.
    """
    parts = low_rank(weight, rank)
    left, right = parts.left.to(dtype), parts.right.to(dtype)
    return LowRank(left=left, right=right, residual=weight - left.to(torch.float32) @ right.to(torch.float32))


def _leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns about ``rank`` leading singular triplets of a large matrix, by subspace iteration."""
    generator = torch.Generator().manual_seed(0)  # on the CPU, so the start is the same on every device
    count = rank + _OVERSAMPLED
    start = torch.randn(weight.shape[1], count, generator=generator, dtype=torch.float64).to(weight.device)
    basis = torch.linalg.qr(weight @ start)[0]
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis)[0])[0]
    u, s, vh = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ u, s, vh
