"""The kernels: every tensor is read once and written once, whatever the order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from schedsearch_kernels._graph import one_node
from schedsearch_kernels._parts import cast

_BLOCK = 2048  # 16 bytes per thread and tensor, twice over, with the four warps below
_WARPS = 4


@triton.jit
def _rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Returns ``x`` as a tensor of ``dtype`` would hold it, in float32."""
    return cast(x, dtype).to(tl.float32)


@triton.jit
def _term(value: tl.tensor, level_ptr: tl.tensor, weight_ptr: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Returns ``value + level * weight``, rounded as torch's addcmul rounds: the weight to the level's dtype too."""
    dtype = level_ptr.dtype.element_ty
    level = tl.load(level_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return _rounded(value + level * _rounded(tl.load(weight_ptr), dtype), dtype)


@triton.jit
def forecast_kernel(
    out_ptr: tl.tensor,
    stream_ptr: tl.tensor,
    level_0: tl.tensor,
    level_1: tl.tensor,
    level_2: tl.tensor,
    level_3: tl.tensor,
    weight_0: tl.tensor,
    weight_1: tl.tensor,
    weight_2: tl.tensor,
    n: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Writes ``BLOCK`` elements of the forecast; absent levels and an absent stream are ``None``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(level_0 + at, mask=inside, other=0.0).to(tl.float32)
    if level_1 is not None:
        value = _term(value, level_1, weight_0, at, inside)
    if level_2 is not None:
        value = _term(value, level_2, weight_1, at, inside)
    if level_3 is not None:
        value = _term(value, level_3, weight_2, at, inside)
    if stream_ptr is not None:
        value = _rounded(value, level_0.dtype.element_ty)
        value += tl.load(stream_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, cast(value, out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _kept(
    carry: tl.tensor, level_ptr: tl.tensor, next_ptr: tl.tensor, scale_ptr: tl.tensor, at: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Writes ``carry`` to its level and returns the next divided difference, rounded as torch rounds it."""
    dtype = next_ptr.dtype.element_ty
    level = tl.load(level_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(level_ptr + at, cast(carry, level_ptr.dtype.element_ty), mask=inside)
    return _rounded(_rounded(carry - level, dtype) * _rounded(tl.load(scale_ptr), dtype), dtype)


@triton.jit
def forecast_keep_kernel(
    value_ptr: tl.tensor,
    level_0: tl.tensor,
    level_1: tl.tensor,
    level_2: tl.tensor,
    level_3: tl.tensor,
    scale_0: tl.tensor,
    scale_1: tl.tensor,
    scale_2: tl.tensor,
    n: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Takes ``BLOCK`` elements of the value into all levels; those above the order are ``None``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    carry = tl.load(value_ptr + at, mask=inside, other=0.0).to(tl.float32)
    last = level_0
    if level_1 is not None:
        carry = _kept(carry, level_0, level_1, scale_0, at, inside)
        last = level_1
    if level_2 is not None:
        carry = _kept(carry, level_1, level_2, scale_1, at, inside)
        last = level_2
    if level_3 is not None:
        carry = _kept(carry, level_2, level_3, scale_2, at, inside)
        last = level_3
    tl.store(last + at, cast(carry, last.dtype.element_ty), mask=inside)


def _padded(tensors: Sequence[Tensor], count: int) -> tuple[Tensor | None, ...]:
    return (*tensors, *(None,) * (count - len(tensors)))


def forecast(levels: Sequence[Tensor], weights: Sequence[Tensor], stream: Tensor | None, out: Tensor | None) -> Tensor:
    """Returns the forecast, added to ``stream`` if there is one."""
    out = torch.empty_like(levels[0]) if out is None else out
    if out.numel() > 0:
        _forecast(list(levels), list(weights), None if stream is None else stream.contiguous(), out)
    return out


@one_node("(Tensor[] levels, Tensor[] weights, Tensor? stream, Tensor(a!) out) -> ()", ("out",))
def _forecast(levels: Sequence[Tensor], weights: Sequence[Tensor], stream: Tensor | None, out: Tensor) -> None:
    n = out.numel()
    forecast_kernel[(triton.cdiv(n, _BLOCK),)](
        out, stream, *_padded(levels, 4), *_padded(weights, 3), n, BLOCK=_BLOCK, num_warps=_WARPS
    )


def forecast_keep(value: Tensor, levels: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
    """Writes the divided differences."""
    if value.numel() > 0:
        _keep(value.contiguous(), list(levels), list(scales))


@one_node("(Tensor value, Tensor(a!)[] levels, Tensor[] scales) -> ()", ("levels",))
def _keep(value: Tensor, levels: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
    n = value.numel()
    forecast_keep_kernel[(triton.cdiv(n, _BLOCK),)](
        value,
        *_padded(levels, 4),
        *_padded(scales, 3),
        n,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
        # torch rounds the product before the next subtraction takes it; one fused operation would not
        enable_fp_fusion=False,
    )
