"""Learned rounding: Nagel 2020 (AdaRound, arXiv 2004.10568), Frantar 2022 (GPTQ, arXiv 2210.17323), in closed form.

Each weight goes to the code below or above it, and which one is decided for the output of the layer, not for the
weight: with ``H = X^T X`` of the calibration inputs, a row ``w`` and its rounding ``q`` have the output error

    f(q) = (q - w) H (q - w)^T = |R (q - w)^T|^2            H = R^T R, R upper triangular

AdaRound relaxes this to a sigmoid and trains; here it stays the discrete problem that it is, and all rows are solved
at once. A *beam* search decides the columns from the last to the first, where each decision sees the errors of those
before it: with one survivor per row this is GPTQ (whose order, by ``H_jj``, is taken), with more it is the K-best
decoder of lattice problems, and with ``2^in`` survivors it is exhaustive. Then single bits are flipped, the best one
first, until none helps. The same descent starts from nearest rounding, and the best of all is kept per row, so the
result is never worse than nearest. No randomness.

Where the input is quantised too, the layer sees ``Xq``, not ``X``. Then ``H = Xq^T Xq``, and what the rounding should
come near is not the weight but the one that makes most of ``Xq``, `shifted` (Li 2025, GPTAQ, arXiv 2504.02692).

The bits are the table ``NAME.rounding``: `(out, ceil(in / 8))` uint8, column ``8 j + i`` in bit ``i`` (least first) of
byte ``j``, set for the code above. Zero-filled at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schedsearch.errors import UsageError
from schedsearch.quantize._formats import Format, fake, format_of

BEAM = 8
"""Survivors per row; layers of up to three inputs are then solved exactly, larger ones nearly so."""

BEAM_UP_TO = 1024
"""Inputs up to which a layer is searched with `BEAM` unless told."""

_DAMPING = 0.01  # of the mean of H's diagonal, for the factorisation only (GPTQ, section 3.3, step 3)
_SHIFT_DAMPING = 0.3  # of the same mean: samples must not talk the target too far away from the weight
_MOST_AT_ONCE = 2**24  # elements of the beam that are held at a time; rows are independent


class Gram:
    """Inner products of a layer's input channels over everything it was shown: ``H = X^T X``.

    Attributes:
        matrix: `(channels, channels)` float64.
        count: rows (tokens) seen.
    """

    def __init__(self, channels: int, *, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self.count = 0

    def update(self, x: Tensor) -> None:
        """Takes in `(..., channels)` inputs.

        Raises:
            UsageError: another number of channels.
        """
        if x.shape[-1] != len(self.matrix):
            raise UsageError(f"inner products: found {x.shape[-1]} channels, expected {len(self.matrix)}")
        rows = x.detach().reshape(-1, x.shape[-1]).to(self.matrix)
        self.matrix += rows.T @ rows
        self.count += len(rows)

    def smoothed(self, smooth: Tensor) -> Tensor:
        """Returns the inner products of ``x / smooth``, as a layer with ``NAME.smooth`` sees it."""
        smooth = smooth.to(self.matrix)
        return self.matrix / (smooth[:, None] * smooth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Which way each weight goes.

    Attributes:
        bits: `(out, ceil(in / 8))` uint8, the table ``NAME.rounding``.
        error: `(out,)` float64, squared output error of each row over the calibration inputs; lower is better.
        nearest_error: the same for rounding to nearest.
    """

    bits: Tensor
    error: Tensor
    nearest_error: Tensor


def packed(up: Tensor) -> Tensor:
    """Returns `(out, in)` truth values as `(out, ceil(in / 8))` bytes, least bit first.

    >>> packed(torch.tensor([[True, False, True, False, False, False, False, False, True]])).tolist()
    [[5, 1]]
    """
    filled = torch.nn.functional.pad(up.to(torch.uint8), (0, -up.shape[-1] % 8))
    eights = filled.reshape(*up.shape[:-1], -1, 8)
    return (eights << _places(up.device)).sum(-1).to(torch.uint8)


def unpacked(bits: Tensor, columns: int) -> Tensor:
    """Returns the `(out, columns)` truth values that `packed` has made bytes of.

    Raises:
        UsageError: the bytes are not those of so many columns.
    """
    if bits.dtype != torch.uint8 or bits.shape[-1] != (columns + 7) // 8:
        raise UsageError(
            f"rounding: found {tuple(bits.shape)} of {bits.dtype}, expected {(columns + 7) // 8} bytes of torch.uint8 "
            f"a row for {columns} columns"
        )
    one_by_one = (bits.unsqueeze(-1) >> _places(bits.device)) & 1
    return one_by_one.flatten(-2)[..., :columns].bool()


def learned_rounding(
    weight: Tensor,
    products: Tensor,
    fmt: Format | str,
    *,
    scales: str = "default",
    scale: Tensor | None = None,
    target: Tensor | None = None,
    beam: int | None = None,
) -> Rounding:
    """Returns the rounding of a weight that keeps the layer's output best; in no row worse than nearest.

    Args:
        weight: `(out, in)`, as it is quantised: smoothed, and without the low-rank branch, where there are such.
        products: `(in, in)` inner products of the layer's inputs (`Gram`), smoothed likewise.
        fmt: the weight's format, or its name.
        scales: granularity of the scales.
        scale: the scales, where they are not those that follow from the weight.
        target: `(out, in)` what the errors are counted from, such as `shifted`; the weight itself where left out. The
            two neighbours to choose from are the weight's in any case.
        beam: survivors of the search per row; `BEAM` where left out, and 1 beyond `BEAM_UP_TO` inputs, where more cost
            much and bring little. Solved exactly where it is ``2^in`` or more.

    Raises:
        UsageError: the format has no codes to choose from, the shapes do not fit, or ``beam`` is less than 1.
    """
    target = weight if target is None else target
    beam = beam if beam is not None else BEAM if weight.shape[-1] <= BEAM_UP_TO else 1
    _check(weight, products, target, format_of(fmt), beam)
    # Bits are found and replayed in float32, but a residual may come out otherwise in its last bits elsewhere. That
    # moves one weight in a million across a code, which does not count, and the largest of every group, which is on a
    # code by construction: for those that are, the bit says away from zero, where the end of the grid holds them.
    wide = weight.detach().float()
    all_up = torch.ones_like(wide, dtype=torch.bool)
    low = fake(wide, fmt, scales=scales, scale=scale, up=~all_up).double()
    high = fake(wide, fmt, scales=scales, scale=scale, up=all_up).double()
    near = fake(wide, fmt, scales=scales, scale=scale).double()
    problem = _Problem(target.detach().double(), low, high, products.to(wide.device, torch.float64))
    start = (near == high) & (high > low)
    candidates = [start, problem.descended(start), problem.descended(problem.searched(beam))]
    errors = torch.stack([problem.error(up) for up in candidates])
    best = errors.argmin(0)  # the first of equals
    chosen = torch.stack(candidates).gather(0, best[None, :, None].expand(1, *start.shape))[0]
    chosen = torch.where(high > low, chosen, wide > 0)
    return Rounding(bits=packed(chosen), error=errors.amin(0), nearest_error=errors[0])


def shifted(weight: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    """Returns the weight, `(out, in)` float64, whose product with the quantised inputs is nearest to ``x weight^T``.

    It is ``W + W (X - Xq)^T Xq (Xq^T Xq + damping)^-1``: the weight, and what regression on the seen inputs says of the
    part of the output that they miss.

    Args:
        weight: `(out, in)`.
        x: `(rows, in)` inputs.
        seen: `(rows, in)` what the layer sees of them.

    Raises:
        UsageError: the inputs do not fit each other or the weight.
    """
    if x.shape != seen.shape or x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise UsageError(
            f"shifted weight: found inputs of {tuple(x.shape)} and {tuple(seen.shape)}, expected two equal shapes with "
            f"{weight.shape[1]} channels"
        )
    wide, known = weight.double(), seen.double()
    products = known.T @ known
    mean = products.diagonal().mean()
    damping = torch.where(mean > 0, _SHIFT_DAMPING * mean, 1.0)
    damped = products + damping * torch.eye(len(products), dtype=torch.float64, device=products.device)
    missing = wide @ ((x.double() - known).T @ known)
    shift: Tensor = torch.linalg.solve(damped, missing.T)
    return wide + shift.T


@dataclass(frozen=True, slots=True)
class _Problem:
    """Choosing between two neighbours for every weight. All `(out, in)` and `(in, in)` float64."""

    target: Tensor
    low: Tensor
    high: Tensor
    products: Tensor

    def error(self, up: Tensor) -> Tensor:
        """Returns `(out,)` errors of a choice."""
        off = torch.where(up, self.high, self.low) - self.target
        return ((off @ self.products) * off).sum(1).clamp(min=0.0)

    def descended(self, up: Tensor) -> Tensor:
        """Returns the choice after flipping bits, in each row always the one that helps most, until none does."""
        up = up.clone()
        gap = self.high - self.low
        diagonal = self.products.diagonal()
        slope = (torch.where(up, self.high, self.low) - self.target) @ self.products
        least = -1e-12 * (gap.square() * diagonal).amax(1)  # below this a change is rounding noise, and could go on
        for _ in range(4 * up.shape[1]):
            step = torch.where(up, -gap, gap)
            change, column = (step * (2.0 * slope + step * diagonal)).min(1)
            rows = (change < least).nonzero()[:, 0]
            if not len(rows):
                break
            columns = column[rows]
            slope[rows] += step[rows, columns, None] * self.products[columns]
            up[rows, columns] ^= True
        return up

    def searched(self, beam: int) -> Tensor:
        """Returns the choice that the beam search finds."""
        diagonal = self.products.diagonal()
        order = diagonal.argsort(stable=True)  # the largest last, which is decided first
        products = self.products[order][:, order]
        # A channel that never fires has no say; 1 instead of 0 keeps the factorisation defined
        damped = products + torch.diag(_DAMPING * diagonal.mean() + (products.diagonal() == 0).double())
        root = torch.linalg.cholesky(damped, upper=True)
        low, high = (self.low - self.target)[:, order], (self.high - self.target)[:, order]
        at_once = max(1, _MOST_AT_ONCE // (min(beam, 2 ** min(len(order), 30)) * len(order)))
        parts = [
            _beam_search(some_low, some_high, root, products, beam)
            for some_low, some_high in zip(torch.split(low, at_once), torch.split(high, at_once), strict=True)
        ]
        up = torch.empty_like(self.low, dtype=torch.bool)
        up[:, order] = torch.cat(parts)
        return up


def _beam_search(low: Tensor, high: Tensor, root: Tensor, products: Tensor, beam: int) -> Tensor:
    """Returns `(rows, in)` truth values: of the survivors of each row, which have the least ``|root @ e|^2`` for ``e``
    among low and high, the one with the least ``e @ products @ e``.

    Args:
        low: `(rows, in)` errors of going down.
        high: `(rows, in)` errors of going up.
        root: `(in, in)` upper triangular factor of the damped products.
        products: `(in, in)`.
        beam: partial choices kept per row.
    """
    rows, columns = low.shape
    both = torch.stack([low, high], 1)
    errors = low.new_zeros(rows, 1, columns)
    cost = low.new_zeros(rows, 1)
    up = torch.zeros(rows, 1, columns, dtype=torch.bool, device=low.device)
    for j in reversed(range(columns)):
        carried = errors[:, :, j + 1 :] @ root[j, j + 1 :]
        reached = (carried[:, :, None] + root[j, j] * both[:, None, :, j]).square() + cost[:, :, None]
        kept = min(beam, 2 * errors.shape[1])
        cost, index = reached.flatten(1).sort(dim=1, stable=True)
        cost, index = cost[:, :kept], index[:, :kept]
        if kept > 1:
            parent = (index // 2)[:, :, None].expand(-1, -1, columns)
            errors, up = errors.gather(1, parent), up.gather(1, parent)
        up[:, :, j] = index % 2 == 1
        errors[:, :, j] = both[:, :, j].gather(1, index % 2)
    best = ((errors @ products) * errors).sum(-1).argmin(1)
    return up.gather(1, best[:, None, None].expand(-1, 1, columns))[:, 0]


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def _check(weight: Tensor, products: Tensor, target: Tensor, fmt: Format, beam: int) -> None:
    if fmt.is_cast:
        raise UsageError(f"learned rounding: found format {fmt.name}, expected one of few bits")
    if weight.ndim != 2 or products.shape != (weight.shape[1], weight.shape[1]):
        raise UsageError(
            f"learned rounding: found a weight of {tuple(weight.shape)} and inner products of {tuple(products.shape)}, "
            "expected (out, in) and (in, in)"
        )
    if target.shape != weight.shape:
        raise UsageError(
            f"learned rounding: found a target of {tuple(target.shape)}, expected the weight's {tuple(weight.shape)}"
        )
    if beam < 1:
        raise UsageError(f"learned rounding: found beam {beam}, expected 1 or more")
