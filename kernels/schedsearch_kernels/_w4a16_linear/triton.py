"""The kernel. It makes the tile of ``y^T = W x^T``, because Hopper's tensor cores take their left factor from
registers: the widened weight need not go through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from schedsearch_kernels._checks import GROUP as _GROUP
from schedsearch_kernels._checks import After
from schedsearch_kernels._graph import one_node
from schedsearch_kernels._parts import INTERPRETED, cast, finished, product, rank_block, tile

GROUP = tl.constexpr(_GROUP)

E2M1_DOUBLED = tl.constexpr(0xC8643210 - (1 << 32))
"""Twice the eight magnitudes of fp4_e2m1, a nibble each from the lowest on, as one int32."""


def _config(m: int, n: int, *, stages: int, warps: int) -> triton.Config:
    return triton.Config({"BM": m, "BN": n, "TOGETHER": 8}, num_stages=stages, num_warps=warps)


CONFIGS = (
    _config(256, 128, stages=3, warps=8),
    _config(128, 256, stages=3, warps=8),
    _config(128, 128, stages=4, warps=8),
    _config(128, 128, stages=4, warps=4),
    _config(64, 128, stages=4, warps=4),
    _config(16, 64, stages=5, warps=4),
)
_CONFIGS = [_config(16, 32, stages=1, warps=1)] if INTERPRETED else list(CONFIGS)


@triton.jit
def widened(packed: tl.tensor, scale: tl.tensor, FP4: tl.constexpr) -> tl.tensor:
    """Returns `(BN, 64)` float32 weights from `(BN, 32)` bytes and `(BN,)` scales."""
    nibbles = tl.interleave(packed & 0xF, packed >> 4).to(tl.int32)
    if FP4:
        table = tl.full(nibbles.shape, E2M1_DOUBLED, dtype=tl.int32)
        magnitude = ((table >> ((nibbles & 7) * 4)) & 0xF).to(tl.float32) * 0.5
        values = tl.where(nibbles >= 8, -magnitude, magnitude)
    else:
        values = ((nibbles ^ 8) - 8).to(tl.float32)
    return values * scale[:, None]


@triton.autotune(configs=_CONFIGS, key=["M_CLASS", "N", "K", "RANK"])
@triton.jit
def w4a16_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    w_scale_ptr: tl.tensor,
    y_ptr: tl.tensor,
    down_ptr: tl.tensor,
    up_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    correction_scale_ptr: tl.tensor,
    correction_shift_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_stride: tl.tensor,
    rank: tl.tensor,
    M_CLASS: tl.tensor,
    RANK: tl.constexpr,
    FP4: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """Writes one tile of `(M, N)`, a group of inputs at a time."""
    m_tile, n_tile = tile(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), TOGETHER)
    rows = m_tile * BM + tl.arange(0, BM)
    columns = n_tile * BN + tl.arange(0, BN)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    rows, columns = rows % M, columns % N
    groups, row_bytes = tl.cdiv(K, GROUP), tl.cdiv(K, 2)
    inner, inner_bytes = tl.arange(0, GROUP), tl.arange(0, GROUP // 2)
    x_tile = x_ptr + rows[:, None].to(tl.int64) * x_stride + inner[None, :]
    w_tile = w_ptr + columns[:, None].to(tl.int64) * row_bytes + inner_bytes[None, :]
    scales = w_scale_ptr + columns.to(tl.int64) * groups
    total = tl.zeros((BN, BM), dtype=tl.float32)
    for group in range(groups):
        if EVEN:
            x, packed = tl.load(x_tile), tl.load(w_tile)
        else:
            x = tl.load(x_tile, mask=inner[None, :] < K - group * GROUP, other=0.0)
            packed = tl.load(w_tile, mask=inner_bytes[None, :] < row_bytes - group * (GROUP // 2), other=0)
        w = cast(widened(packed, tl.load(scales + group), FP4), x_ptr.dtype.element_ty)
        total = product(w, tl.trans(x), total)
        x_tile += GROUP
        w_tile += GROUP // 2
    y = finished(
        tl.trans(total), rows, columns, down_ptr, up_ptr, bias_ptr, correction_scale_ptr, correction_shift_ptr, rank,
        RANK,
    )  # fmt: skip
    place = y_ptr + rows[:, None].to(tl.int64) * N + columns[None, :]
    tl.store(place, cast(y, y_ptr.dtype.element_ty), mask=inside)


def w4a16_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    fmt: str,
    out: Tensor,
    after: After,
    down: Tensor | None = None,
    up: Tensor | None = None,
) -> None:
    """Writes `(rows, out)`; ``down`` `(rows, rank)` and ``up`` `(out, rank)` add their product before the bias."""
    if out.numel() == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    _linear(x, weight, weight_scale, fmt == "fp4_e2m1", out, *after, down, up)


@one_node(
    "(Tensor x, Tensor weight, Tensor weight_scale, bool is_fp4, Tensor(a!) out, Tensor? bias, "
    "Tensor? correction_scale, Tensor? correction_shift, Tensor? down, Tensor? up) -> ()",
    ("out",),
)
def _linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    is_fp4: bool,
    out: Tensor,
    bias: Tensor | None,
    correction_scale: Tensor | None,
    correction_shift: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
) -> None:
    (m, k), n = x.shape, weight.shape[0]
    rank = 0 if up is None else up.shape[1]
    w4a16_kernel[lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]),)](
        x,
        weight,
        weight_scale,
        out,
        down,
        up,
        bias,
        correction_scale,
        correction_shift,
        m,
        n,
        k,
        x.stride(0),
        rank,
        M_CLASS=triton.next_power_of_2(m),
        RANK=rank_block(rank),
        FP4=is_fp4,
        EVEN=k % _GROUP == 0,
    )
