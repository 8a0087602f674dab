"""The kernels: one pass over the input that quantises and projects it, then the low-bit product with the branch added
to its tiles. With four-bit weights the input stays as it is, and torch makes the projection.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from schedsearch_kernels._checks import BYTE_FORMATS, After, ByteFormat
from schedsearch_kernels._graph import one_node
from schedsearch_kernels._parts import INTERPRETED, cast, product, rank_block, row_codes, row_scale
from schedsearch_kernels._w4a16_linear.triton import w4a16_linear
from schedsearch_kernels._w8a8_linear.triton import w8a8_linear

# 16 rows, the least a product takes, make 256 programs of 4096 tokens: two for each of Hopper's multiprocessors.
_ROWS, _COLUMNS = 16, 32 if INTERPRETED else 128


@triton.jit
def quantise_and_project_kernel(
    x_ptr: tl.tensor,
    down_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    projected_ptr: tl.tensor,
    M: tl.tensor,
    K: tl.tensor,
    x_stride: tl.tensor,
    rank: tl.tensor,
    MAXIMUM: tl.constexpr,
    RANK: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Writes codes, scales and ``x down^T`` of ``BM`` rows; the second reading comes from the cache."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inner, ranks = tl.arange(0, BK), tl.arange(0, RANK)
    x_tile = x_ptr + rows[:, None].to(tl.int64) * x_stride + inner[None, :]
    down_tile = down_ptr + ranks[None, :].to(tl.int64) * K + inner[:, None]
    largest = tl.zeros((BM,), dtype=tl.float32)
    projected = tl.zeros((BM, RANK), dtype=tl.float32)
    for start in range(0, K, BK):
        inside = (rows[:, None] < M) & (start + inner[None, :] < K)
        x = tl.load(x_tile + start, mask=inside, other=0.0)
        down = tl.load(down_tile + start, mask=(ranks[None, :] < rank) & (start + inner[:, None] < K), other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(x.to(tl.float32)), axis=1))
        projected = product(x, down, projected)
    scale = row_scale(largest, MAXIMUM)
    codes_tile = codes_ptr + rows[:, None].to(tl.int64) * K + inner[None, :]
    for start in range(0, K, BK):
        inside = (rows[:, None] < M) & (start + inner[None, :] < K)
        x = tl.load(x_tile + start, mask=inside, other=0.0).to(tl.float32)
        codes = row_codes(x, scale[:, None], MAXIMUM, codes_ptr.dtype.element_ty)
        tl.store(codes_tile + start, codes, mask=inside)
    tl.store(scale_ptr + rows, scale, mask=rows < M)
    place = projected_ptr + rows[:, None].to(tl.int64) * rank + ranks[None, :]
    inside = (rows[:, None] < M) & (ranks[None, :] < rank)
    tl.store(place, cast(projected, projected_ptr.dtype.element_ty), mask=inside)


def quantise_and_project(x: Tensor, fmt: ByteFormat, down: Tensor, *, out: tuple[Tensor, Tensor, Tensor]) -> None:
    """Writes codes `(rows, in)`, scales `(rows,)` and ``x down^T`` `(rows, rank)`."""
    if len(x) > 0:
        _quantise_and_project(x, fmt.maximum, down, *out)


@one_node(
    "(Tensor x, float maximum, Tensor down, Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) projected) -> ()",
    ("codes", "scale", "projected"),
)
def _quantise_and_project(
    x: Tensor, maximum: float, down: Tensor, codes: Tensor, scale: Tensor, projected: Tensor
) -> None:
    (m, k), rank = x.shape, down.shape[0]
    quantise_and_project_kernel[(triton.cdiv(m, _ROWS),)](
        x,
        down,
        codes,
        scale,
        projected,
        m,
        k,
        x.stride(0),
        rank,
        MAXIMUM=maximum,
        RANK=rank_block(rank),
        BM=_ROWS,
        BK=_COLUMNS,
        num_warps=4,
    )


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    fmt: str,
    out: Tensor,
    after: After,
) -> None:
    """Writes `(rows, out)`."""
    if fmt not in BYTE_FORMATS:
        projected = functional.linear(x, down)
        w4a16_linear(x, weight, weight_scale, fmt=fmt, out=out, after=after, down=projected, up=up)
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    codes = torch.empty(x.shape, dtype=BYTE_FORMATS[fmt].dtype, device=x.device)
    scale = x.new_empty(len(x), dtype=torch.float32)
    projected = x.new_empty(len(x), down.shape[0])
    quantise_and_project(x, BYTE_FORMATS[fmt], down, out=(codes, scale, projected))
    w8a8_linear(codes, scale, weight, weight_scale, out=out, after=after, down=projected, up=up)
