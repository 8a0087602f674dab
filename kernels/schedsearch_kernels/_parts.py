"""Device functions that several Triton kernels share. Imported only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl

from schedsearch_kernels._dispatch import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)
"""The interpreter works on numpy arrays, which know no bfloat16 and no float8. What follows from that is done here and
only there: casts to these are rounded by hand (the interpreter's own cut off, or round without carrying), and matrices
in bfloat16 are multiplied as float32."""

TINY = tl.constexpr(1.1754943508222875e-38)
"""The least normal float32: no scale is smaller."""

ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and taking away this rounds a small float32 to a whole number, ties to even."""

SUBNORMAL_ROUNDER = tl.constexpr(24576.0)
"""The same for multiples of 2**-9, the distance of the least E4M3 numbers."""


def rank_block(rank: int) -> int:
    """Returns the rank rounded up to what a product takes; 0 for no branch."""
    return max(16, triton.next_power_of_2(rank)) if rank else 0


@triton.jit
def cast(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Returns float32 ``x`` in ``dtype``, rounded to nearest, ties to even."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        if dtype == tl.float8e4nv:
            bits = x.to(tl.uint32, bitcast=True)
            normal = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0x7FF00000
            subnormal = ((tl.abs(x) + SUBNORMAL_ROUNDER) - SUBNORMAL_ROUNDER).to(tl.uint32, bitcast=True)
            bits = (bits & 0x80000000) | tl.where(tl.abs(x) < 0.015625, subnormal, normal)
            x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def row_codes(x: tl.tensor, scale: tl.tensor, MAXIMUM: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Returns the codes of float32 ``x`` under ``scale``: int8 or E4M3."""
    # The exact quotient, as torch's: an approximate one moves codes that lie on a tie.
    scaled = tl.math.div_rn(x, tl.broadcast_to(scale, x.shape))
    scaled = tl.minimum(tl.maximum(scaled, -MAXIMUM), MAXIMUM)
    if dtype == tl.int8:
        codes = ((scaled + ROUNDER) - ROUNDER).to(tl.int8)
    else:
        codes = cast(scaled, dtype)
    return codes


@triton.jit
def row_scale(largest: tl.tensor, MAXIMUM: tl.constexpr) -> tl.tensor:
    """Returns the scale that takes a magnitude to the maximum."""
    return tl.maximum(tl.math.div_rn(largest, tl.zeros_like(largest) + MAXIMUM), TINY)


@triton.jit
def product(a: tl.tensor, b: tl.tensor, accumulator: tl.tensor) -> tl.tensor:
    """Returns ``accumulator + a b``; float32 stays float32, without tensor cores."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    # One exit per device function: Triton compiles what follows a return too, here a product that int8 does not have.
    if a.dtype == tl.int8:
        total = tl.dot(a, b, accumulator, out_dtype=tl.int32)
    else:
        total = tl.dot(a, b, accumulator, input_precision="ieee")
    return total


@triton.jit
def tile(number: tl.tensor, m_tiles: tl.tensor, n_tiles: tl.tensor, TOGETHER: tl.constexpr) -> tl.tensor:
    """Returns row and column of a tile by its number. ``TOGETHER`` tile rows are walked column by column, so that
    programs that run at the same time share what they read in the second-level cache.
    """
    per_band = TOGETHER * n_tiles
    band = number // per_band
    first = band * TOGETHER
    height = tl.minimum(m_tiles - first, TOGETHER)
    within = number % per_band
    return first + within % height, within // height


@triton.jit
def finished(
    y: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    down_ptr: tl.tensor,
    up_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    correction_scale_ptr: tl.tensor,
    correction_shift_ptr: tl.tensor,
    rank: tl.tensor,
    RANK: tl.constexpr,
) -> tl.tensor:
    """Returns the tile ``y`` plus low-rank part and bias, then the affine: what follows every matrix product.

    ``down`` is `(rows, rank)` and ``up`` `(columns, rank)`, both contiguous; ``RANK`` is the rank rounded up to what
    a product takes. Pointers may be ``None``. ``rows`` and ``columns`` are within the matrix already.
    """
    if down_ptr is not None:
        inner = tl.arange(0, RANK)
        inside = inner[None, :] < rank
        down = tl.load(down_ptr + rows[:, None].to(tl.int64) * rank + inner[None, :], mask=inside, other=0.0)
        up = tl.load(up_ptr + columns[:, None].to(tl.int64) * rank + inner[None, :], mask=inside, other=0.0)
        y = product(down, tl.trans(up), y)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
    if correction_scale_ptr is not None:
        y = y * tl.load(correction_scale_ptr + columns)[None, :] + tl.load(correction_shift_ptr + columns)[None, :]
    return y
