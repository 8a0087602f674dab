"""The kernel: one program per row, which it reads once if it fits into the registers and twice otherwise."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from schedsearch_kernels._checks import ByteFormat
from schedsearch_kernels._graph import one_node
from schedsearch_kernels._parts import row_codes, row_scale

MAX_BLOCK = 16384
"""Columns up to which a row is held in registers; 12288 and 15360 are the widest of FLUX.1."""


@triton.jit
def rowwise_quantise_kernel(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    MAXIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
) -> None:
    """Writes one row's codes and its scale."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * row_stride
    codes_ptr += row * columns
    dtype = codes_ptr.dtype.element_ty
    offsets = tl.arange(0, BLOCK)
    if ONE_BLOCK:
        x = tl.load(x_ptr + offsets, mask=offsets < columns, other=0.0).to(tl.float32)
        scale = row_scale(tl.max(tl.abs(x), axis=0), MAXIMUM)
        tl.store(codes_ptr + offsets, row_codes(x, scale, MAXIMUM, dtype), mask=offsets < columns)
    else:
        largest = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, columns, BLOCK):
            x = tl.load(x_ptr + start + offsets, mask=start + offsets < columns, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(x))
        scale = row_scale(tl.max(largest, axis=0), MAXIMUM)
        for start in range(0, columns, BLOCK):
            x = tl.load(x_ptr + start + offsets, mask=start + offsets < columns, other=0.0).to(tl.float32)
            codes = row_codes(x, scale, MAXIMUM, dtype)
            tl.store(codes_ptr + start + offsets, codes, mask=start + offsets < columns)
    tl.store(scale_ptr + row, scale)


def rowwise_quantise(x: Tensor, fmt: ByteFormat, codes: Tensor, scale: Tensor, *, max_block: int = MAX_BLOCK) -> None:
    """Writes `(rows, in)` codes and `(rows,)` scales; rows of ``x`` may be apart, columns not."""
    _quantise(x, fmt.maximum, codes, scale, max_block)


@one_node("(Tensor x, float maximum, Tensor(a!) codes, Tensor(b!) scale, int max_block) -> ()", ("codes", "scale"))
def _quantise(x: Tensor, maximum: float, codes: Tensor, scale: Tensor, max_block: int) -> None:
    rows, columns = x.shape
    if rows == 0:
        return
    block = min(triton.next_power_of_2(columns), max_block)
    rowwise_quantise_kernel[(rows,)](
        x,
        codes,
        scale,
        columns,
        x.stride(0),
        MAXIMUM=maximum,
        BLOCK=block,
        ONE_BLOCK=columns <= block,
        # 16 to 32 elements per thread: enough loads in flight, and no register spills
        num_warps=max(1, min(16, block // 512)),
    )
