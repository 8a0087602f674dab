"""The kernels: tiles of the output, int8 or float8 on tensor cores, everything after the product in registers.

There are two that differ in how tiles come in. One lets Hopper's copy engine fetch them by descriptors, which needs
rows that begin at multiples of 16 bytes; the other computes addresses and takes any layout and any device.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from schedsearch_kernels._checks import After
from schedsearch_kernels._graph import one_node
from schedsearch_kernels._parts import INTERPRETED, cast, finished, product, rank_block, tile

_HAS_DESCRIPTORS = find_spec("triton.tools.tensor_descriptor") is not None  # from Triton 3.4 on
_KEY = ["M_CLASS", "N", "K", "RANK", "FP8"]


def _config(m: int, n: int, k: int, *, stages: int, warps: int) -> triton.Config:
    return triton.Config({"BM": m, "BN": n, "BK": k, "TOGETHER": 8}, num_stages=stages, num_warps=warps)


# Hopper has 227 KiB of shared memory per program; a stage takes (BM + BN) * BK bytes. Two warpgroups (8 warps) share a
# tile of 256 columns; the narrow tiles are for few rows: adaLN has one per picture.
CONFIGS = (
    _config(128, 256, 128, stages=3, warps=8),
    _config(128, 256, 128, stages=4, warps=8),
    _config(256, 128, 128, stages=3, warps=8),
    _config(128, 128, 128, stages=4, warps=4),
    _config(128, 128, 128, stages=4, warps=8),
    _config(64, 256, 128, stages=4, warps=4),
    _config(64, 128, 128, stages=4, warps=4),
    _config(16, 64, 256, stages=4, warps=4),
)
# One small configuration is not timed, which the interpreter could not, and makes several tiles of a small matrix.
_CONFIGS = [_config(16, 32, 64, stages=1, warps=1)] if INTERPRETED else list(CONFIGS)


def _set_blocks(arguments: Mapping[str, Any]) -> None:
    """Gives the descriptors the tile sizes of the configuration that is about to run."""
    arguments["x_tiles"].block_shape = [arguments["BM"], arguments["BK"]]
    arguments["w_tiles"].block_shape = [arguments["BN"], arguments["BK"]]


def _descriptor_config(config: triton.Config, *, persistent: bool) -> triton.Config:
    return triton.Config(
        config.kwargs | {"PERSISTENT": persistent},
        num_stages=config.num_stages,
        num_warps=config.num_warps,
        pre_hook=_set_blocks,
    )


# A persistent program goes from tile to tile and fetches the next while it writes the last.
DESCRIPTOR_CONFIGS = (
    *(_descriptor_config(config, persistent=True) for config in CONFIGS[:3]),
    *(_descriptor_config(config, persistent=False) for config in CONFIGS),
)
_DESCRIPTOR_CONFIGS = [_descriptor_config(_CONFIGS[0], persistent=True)] if INTERPRETED else list(DESCRIPTOR_CONFIGS)
_INTERPRETED_PROGRAMS = 2  # so that a persistent program has more than one tile


@triton.jit
def write_tile(
    total: tl.tensor,
    m_tile: tl.tensor,
    n_tile: tl.tensor,
    x_scale_ptr: tl.tensor,
    w_scale_ptr: tl.tensor,
    y_ptr: tl.tensor,
    down_ptr: tl.tensor,
    up_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    correction_scale_ptr: tl.tensor,
    correction_shift_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    rank: tl.tensor,
    RANK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """Writes a tile of the output from its sums of products of codes."""
    rows = m_tile * BM + tl.arange(0, BM)
    columns = n_tile * BN + tl.arange(0, BN)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    # Beyond the edge the tile wraps around: reads need no mask, and what they give is not written.
    rows, columns = rows % M, columns % N
    y = total.to(tl.float32) * tl.load(x_scale_ptr + rows)[:, None] * tl.load(w_scale_ptr + columns)[None, :]
    y = finished(y, rows, columns, down_ptr, up_ptr, bias_ptr, correction_scale_ptr, correction_shift_ptr, rank, RANK)
    place = y_ptr + rows[:, None].to(tl.int64) * N + columns[None, :]
    tl.store(place, cast(y, y_ptr.dtype.element_ty), mask=inside)


@triton.autotune(configs=_CONFIGS, key=_KEY)
@triton.jit
def w8a8_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
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
    rank: tl.tensor,
    x_stride: tl.tensor,
    M_CLASS: tl.tensor,
    RANK: tl.constexpr,
    FP8: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """Makes one tile of `(M, N)`. ``M_CLASS``, the power of two from ``M`` on, is there for the autotuner's key."""
    m_tile, n_tile = tile(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), TOGETHER)
    rows = (m_tile * BM + tl.arange(0, BM)) % M
    columns = (n_tile * BN + tl.arange(0, BN)) % N
    inner = tl.arange(0, BK)
    x_tile = x_ptr + rows[:, None].to(tl.int64) * x_stride + inner[None, :]
    w_tile = w_ptr + columns[None, :].to(tl.int64) * K + inner[:, None]
    total = tl.zeros((BM, BN), dtype=tl.float32 if FP8 else tl.int32)
    for start in range(0, K, BK):
        if EVEN:
            x, w = tl.load(x_tile), tl.load(w_tile)
        else:
            x = tl.load(x_tile, mask=inner[None, :] < K - start, other=0.0)
            w = tl.load(w_tile, mask=inner[:, None] < K - start, other=0.0)
        total = product(x, w, total)
        x_tile += BK
        w_tile += BK
    write_tile(
        total, m_tile, n_tile, x_scale_ptr, w_scale_ptr, y_ptr, down_ptr, up_ptr, bias_ptr, correction_scale_ptr,
        correction_shift_ptr, M, N, rank, RANK, BM, BN,
    )  # fmt: skip


@triton.autotune(configs=_DESCRIPTOR_CONFIGS, key=_KEY)
@triton.jit
def w8a8_descriptor_kernel(
    x_tiles: tl.tensor,
    w_tiles: tl.tensor,
    x_scale_ptr: tl.tensor,
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
    rank: tl.tensor,
    M_CLASS: tl.tensor,
    RANK: tl.constexpr,
    FP8: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TOGETHER: tl.constexpr,
    PERSISTENT: tl.constexpr,
) -> None:
    """Makes one tile of `(M, N)` after another; what a descriptor reads beyond the edge is zero."""
    m_tiles, n_tiles = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for number in tl.range(tl.program_id(0), m_tiles * n_tiles, tl.num_programs(0), flatten=PERSISTENT):
        m_tile, n_tile = tile(number, m_tiles, n_tiles, TOGETHER)
        total = tl.zeros((BM, BN), dtype=tl.float32 if FP8 else tl.int32)
        for start in range(0, K, BK):
            x = x_tiles.load([m_tile * BM, start])
            w = w_tiles.load([n_tile * BN, start])
            total = product(x, tl.trans(w), total)
        write_tile(
            total, m_tile, n_tile, x_scale_ptr, w_scale_ptr, y_ptr, down_ptr, up_ptr, bias_ptr, correction_scale_ptr,
            correction_shift_ptr, M, N, rank, RANK, BM, BN,
        )  # fmt: skip


def takes_descriptors(codes: Tensor, weight: Tensor) -> bool:
    """Returns whether the copy engine can fetch these operands: Hopper or later, rows at multiples of 16 bytes."""
    if not _HAS_DESCRIPTORS or (not INTERPRETED and torch.cuda.get_device_capability(codes.device) < (9, 0)):
        return False
    return all(t.stride(1) == 1 and t.stride(0) % 16 == 0 and t.data_ptr() % 16 == 0 for t in (codes, weight))


def w8a8_linear(
    codes: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    out: Tensor,
    after: After,
    down: Tensor | None = None,
    up: Tensor | None = None,
    descriptors: bool | None = None,
) -> None:
    """Writes `(rows, out)`; ``down`` `(rows, rank)` and ``up`` `(out, rank)` add their product before the bias.

    ``descriptors`` says which kernel runs, `takes_descriptors` if it is ``None``.
    """
    if out.numel() == 0:
        return
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    _linear(codes, scale, weight, weight_scale, out, *after, down, up, descriptors)


@one_node(
    "(Tensor codes, Tensor scale, Tensor weight, Tensor weight_scale, Tensor(a!) out, Tensor? bias, "
    "Tensor? correction_scale, Tensor? correction_shift, Tensor? down, Tensor? up, bool? descriptors) -> ()",
    ("out",),
)
def _linear(
    codes: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out: Tensor,
    bias: Tensor | None,
    correction_scale: Tensor | None,
    correction_shift: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    descriptors: bool | None,
) -> None:
    (m, k), n = codes.shape, weight.shape[0]
    rank = 0 if up is None else up.shape[1]
    after = (bias, correction_scale, correction_shift)
    arguments = (scale, weight_scale, out, down, up, *after, m, n, k, rank)
    constants = {
        "M_CLASS": triton.next_power_of_2(m),
        "RANK": rank_block(rank),
        "FP8": codes.is_floating_point(),
    }

    def tiles(meta: Mapping[str, Any]) -> int:
        return int(triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]))

    if takes_descriptors(codes, weight) if descriptors is None else descriptors:
        from triton.tools.tensor_descriptor import TensorDescriptor

        operands = [TensorDescriptor.from_tensor(tensor, [1, 16]) for tensor in (codes, weight)]
        most = _INTERPRETED_PROGRAMS if INTERPRETED else _multiprocessors(codes.device)
        w8a8_descriptor_kernel[lambda meta: (min(tiles(meta), most) if meta["PERSISTENT"] else tiles(meta),)](
            *operands, *arguments, **constants
        )
    else:
        # EVEN: whole blocks of inputs in every configuration
        w8a8_kernel[lambda meta: (tiles(meta),)](
            codes, weight, *arguments, codes.stride(0), **constants, EVEN=k % 256 == 0
        )


def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
