"""The number formats of a low-bit layer: which values each can hold, and how a tensor is rounded to them.

A tensor ``x`` becomes codes and scales, ``x ~ value(code) * scale``; which elements share a scale is the *granularity*:

* ``row``: one scale for everything along the last dimension (an output row of a weight, a token of an activation);
* ``tensor``: one scale for all of it;
* a block of `Format.block` neighbours along the last dimension, the last block as short as it comes out;
* ``default``: what the format itself says (`Format.block`; 0 is a row).

All arithmetic is float32. Scales are symmetric (zero is always zero) and the largest magnitude goes to
`Format.maximum`; what lies beyond it, under a scale that was given, becomes the maximum with its sign, whatever
torch's own cast to float8 makes of it (its releases differ). NaN is not handled: a layer that makes one has no right
answer.

Formats: OCP 8-bit Floating Point (E4M3, E5M2), OCP Microscaling 1.0 (MXFP8), NVFP4 (blocks of 16 under E4M3 scales),
NF4 of Dettmers 2023 (arXiv 2305.14314, appendix E). This module knows nothing of layers and devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from schedsearch.errors import UsageError
from schedsearch.schedule import SCALES

Kind = Literal["cast", "int", "float", "codes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One number format.

    Attributes:
        name: its word in a schedule.
        bits: bits per element, scales not counted.
        kind: ``cast`` (a dtype of torch, without scales), ``int`` (whole numbers), ``float`` (an 8-bit dtype of torch),
            ``codes`` (entries of a table).
        maximum: the largest magnitude that is used; a scale takes the largest input there.
        codes: all values, by code: for ``int`` from the least on, for ``codes`` by index; ``None`` for the others.
        block: elements along the last dimension that share a scale by default; 0 for all of them.
        scale: how a scale is stored: any float32, a power of two (``e8m0``), or an E4M3 number times one float32.
        dtype: dtype of the stored codes.
    """

    name: str
    bits: float
    kind: Kind
    maximum: float
    codes: tuple[float, ...] | None = None
    block: int = 0
    scale: Literal["float32", "e8m0", "e4m3"] = "float32"
    dtype: torch.dtype

    @property
    def is_cast(self) -> bool:
        """Whether it is one of torch's dtypes, which need no scales."""
        return self.kind == "cast"

    @property
    def scale_bits(self) -> int:
        """Bits of one stored scale."""
        return 32 if self.scale == "float32" else 8


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (*_E2M1, *(-value for value in _E2M1))


def _cast(name: str, bits: int, dtype: torch.dtype) -> Format:
    return Format(name=name, bits=bits, kind="cast", maximum=torch.finfo(dtype).max, dtype=dtype)


def _whole(name: str, bits: int, block: int) -> Format:
    """Two's complement codes; the least one is left unused, so that the range is symmetric."""
    top = 2 ** (bits - 1)
    codes = tuple(float(code) for code in range(-top, top))
    return Format(name=name, bits=bits, kind="int", maximum=top - 1, codes=codes, block=block, dtype=torch.int8)


FORMATS: Mapping[str, Format] = MappingProxyType({
    fmt.name: fmt
    for fmt in (
        _cast("fp32", 32, torch.float32),
        _cast("bf16", 16, torch.bfloat16),
        _cast("fp16", 16, torch.float16),
        Format(name="fp8_e4m3", bits=8, kind="float", maximum=448.0, dtype=torch.float8_e4m3fn),
        Format(name="fp8_e5m2", bits=8, kind="float", maximum=57344.0, dtype=torch.float8_e5m2),
        _whole("int8", 8, 0),
        *(_whole(f"int{bits}", bits, 64) for bits in (6, 5, 4, 3, 2)),
        Format(name="fp4_e2m1", bits=4, kind="codes", maximum=6.0, codes=_FP4, block=64, dtype=torch.uint8),
        Format(name="nf4", bits=4, kind="codes", maximum=1.0, codes=_NF4, block=64, dtype=torch.uint8),
        Format(name="mxfp8", bits=8, kind="float", maximum=448.0, block=32, scale="e8m0", dtype=torch.float8_e4m3fn),
        Format(
            name="nvfp4", bits=4, kind="codes", maximum=6.0, codes=_FP4, block=16, scale="e4m3", dtype=torch.uint8
        ),
    )
})  # fmt: skip
"""Every format by its word in a schedule. The index of an ``fp4_e2m1`` or ``nvfp4`` code is its bit pattern."""


class Quantized(NamedTuple):
    """A tensor in a low-bit format.

    Attributes:
        codes: `shape`, in `Format.dtype`: whole numbers, float8 values, or indices into `Format.codes`.
        scale: float32, as many dimensions as ``codes``: 1 or the number of blocks in the last one.
        fmt: the format.
        shape: shape of the tensor.
    """

    codes: Tensor
    scale: Tensor
    fmt: Format
    shape: torch.Size

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns `shape` values in ``dtype``: the values of the codes times their scales."""
        if self.fmt.is_cast:
            return self.codes.to(dtype)
        values = _values(self.codes, self.fmt)
        if self.scale.shape[-1] in (1, self.shape[-1]):
            return (values * self.scale).to(dtype)
        return _joined(_blocks(values, self.fmt.block) * self.scale.unsqueeze(-1), self.shape).to(dtype)


def format_of(fmt: Format | str) -> Format:
    """Returns the format of that name.

    Raises:
        UsageError: there is none.
    """
    if isinstance(fmt, Format):
        return fmt
    if fmt not in FORMATS:
        raise UsageError(f"format: found {fmt!r}, expected one of {', '.join(FORMATS)}.")
    return FORMATS[fmt]


def block_of(fmt: Format | str, scales: str = "default") -> int | None:
    """Returns how many neighbours along the last dimension share a scale: 0 for all, ``None`` for the whole tensor.

    A format whose scales are part of its definition (``mxfp8``, ``nvfp4``) keeps its blocks whatever ``scales`` says.

    Raises:
        UsageError: ``scales`` is none of `SCALES`.
    """
    fmt = format_of(fmt)
    if scales not in SCALES:
        raise UsageError(f"scales: found {scales!r}, expected one of {', '.join(SCALES)}.")
    if scales == "default" or fmt.scale != "float32":
        return fmt.block
    return None if scales == "tensor" else 0


def activation_scales(fmt: Format | str, scales: str = "default") -> str:
    """Returns the word that activations go by: ``default`` is a scale per token (blocks in ``mxfp8``, ``nvfp4``)."""
    return "row" if scales == "default" and format_of(fmt).scale == "float32" else scales


def quantized(
    x: Tensor,
    fmt: Format | str,
    *,
    scales: str = "default",
    scale: Tensor | None = None,
    up: Tensor | None = None,
) -> Quantized:
    """Returns ``x`` in a low-bit format, rounded to nearest, ties to even.

    Args:
        x: `(..., in)`, of a floating dtype.
        fmt: the format, or its name.
        scales: the granularity, one of `SCALES`.
        scale: scales to use in place of those that follow from ``x``: anything that broadcasts against ``x``, or one
            per block in the last dimension.
        up: `x.shape` truth values, for learned rounding: the neighbouring code above where true, below where not. What
            is a code exactly stays.

    Raises:
        UsageError: unknown names, or a scale for a format that has none.
    """
    fmt = format_of(fmt)
    if fmt.is_cast:
        if scale is not None:
            raise UsageError(f"scale: found one for {fmt.name}, expected none, because that format has no scales.")
        return Quantized(x.to(fmt.dtype), x.new_ones((1,) * x.ndim, dtype=torch.float32), fmt, x.shape)
    wide = x.to(torch.float32)
    scale = scale_of(wide, fmt, scales=scales) if scale is None else scale.to(torch.float32)
    scale = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape) if scale.ndim < x.ndim else scale
    scaled = (
        wide / scale
        if scale.shape[-1] in (1, x.shape[-1])
        else _joined(_blocks(wide, fmt.block) / scale.unsqueeze(-1), x.shape)
    )
    return Quantized(_codes(scaled, fmt, up), scale, fmt, x.shape)


def fake(
    x: Tensor,
    fmt: Format | str,
    *,
    scales: str = "default",
    scale: Tensor | None = None,
    up: Tensor | None = None,
) -> Tensor:
    """Returns ``x`` as the format holds it, in the dtype of ``x``: `quantized` and back."""
    return quantized(x, fmt, scales=scales, scale=scale, up=up).dequantized(x.dtype)


def scale_of(x: Tensor, fmt: Format | str, *, scales: str = "default") -> Tensor:
    """Returns the float32 scales that take the largest magnitudes of ``x`` to the format's maximum.

    Args:
        x: `(..., in)`.
        fmt: the format, or its name.
        scales: the granularity, one of `SCALES`.

    Returns:
        `(..., n_blocks)`, `(..., 1)` for rows, or ones in all dimensions for the whole tensor.
    """
    fmt = format_of(fmt)
    block = block_of(fmt, scales)
    magnitude = x.detach().to(torch.float32).abs()
    if block is None:
        largest = magnitude.amax().reshape((1,) * x.ndim)
    elif block == 0 or block >= x.shape[-1]:
        largest = magnitude.amax(dim=-1, keepdim=True)
    else:
        largest = _blocks(magnitude, block).amax(dim=-1)
    return _stored_scale(largest, fmt)


def _stored_scale(largest: Tensor, fmt: Format) -> Tensor:
    """Scales for these largest magnitudes, as the format can store them; never 0, so that zeros divide."""
    if fmt.scale == "e8m0":
        # The least power of two under which nothing is cut off ("RCEIL"); OCP's own, the floor, cuts off up to 1/8.
        mantissa, exponent = torch.frexp(largest / fmt.maximum)
        power = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(-126, 127)
        return torch.ldexp(torch.ones_like(largest), power)
    if fmt.scale == "e4m3":
        return in_e4m3(largest / fmt.maximum, fmt, largest.amax())
    return (largest / fmt.maximum).clamp(min=torch.finfo(torch.float32).tiny)


def in_e4m3(scale: Tensor, fmt: Format, largest: Tensor) -> Tensor:
    """Returns scales rounded to E4M3 numbers of the one float32 that takes ``largest``, of the whole tensor, to the end
    of both ranges.
    """
    inner = FORMATS["fp8_e4m3"].maximum
    whole = (largest / (fmt.maximum * inner)).clamp(min=torch.finfo(torch.float32).tiny)
    part = (scale / whole).clamp(2.0**-9, inner)  # 2^-9 is the least number E4M3 has
    return part.to(torch.float8_e4m3fn).to(torch.float32) * whole


def _blocks(x: Tensor, block: int) -> Tensor:
    """`(..., n_blocks, block)`, the last block filled up with zeros."""
    missing = -x.shape[-1] % block
    if missing:
        x = functional.pad(x, (0, missing))
    return x.reshape(*x.shape[:-1], -1, block)


def _joined(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`(..., n_blocks, block)` as `(..., in)` again."""
    return x.flatten(-2)[..., : shape[-1]]


def _codes(scaled: Tensor, fmt: Format, up: Tensor | None) -> Tensor:
    """Codes of values that are divided by their scale already."""
    scaled = scaled.clamp(-fmt.maximum, fmt.maximum)
    if fmt.kind == "int":
        whole = scaled.round() if up is None else torch.where(up, scaled.ceil(), scaled.floor())
        return whole.to(fmt.dtype)
    if fmt.kind == "float":
        near = scaled.to(fmt.dtype)
        return near if up is None else _neighbour(scaled, near, up)
    return _index(scaled, fmt) if up is None else _index_of_neighbour(scaled, fmt, up)


def _neighbour(scaled: Tensor, near: Tensor, up: Tensor) -> Tensor:
    """The float8 code above or below, given the nearest one: of a positive number the next bit pattern is the next
    number, of a negative one the one before.
    """
    value = near.to(torch.float32)
    bits = near.view(torch.uint8).to(torch.int16)
    ordered = torch.where(bits >= 128, 128 - bits, bits)
    ordered = ordered + (up & (value < scaled)).to(torch.int16) - (~up & (value > scaled)).to(torch.int16)
    bits = torch.where(ordered < 0, 128 - ordered, ordered)
    return bits.to(torch.uint8).view(near.dtype)


def _index(scaled: Tensor, fmt: Format) -> Tensor:
    """Index of the nearest code."""
    bounds = _table(_bounds(fmt.name), scaled.device)
    if fmt.name == "nf4":
        return torch.bucketize(scaled, bounds).to(torch.uint8)
    return torch.bucketize(scaled.abs(), bounds).to(torch.uint8) + 8 * torch.signbit(scaled).to(torch.uint8)


def _index_of_neighbour(scaled: Tensor, fmt: Format, up: Tensor) -> Tensor:
    """Index of the code above or below; itself where it is one."""
    assert fmt.codes is not None  # noqa: S101 - a fact about the table for the type checker
    # -0 is the same number as 0 and has to be left out of a search for neighbours
    order = sorted({code: i for i, code in reversed(tuple(enumerate(fmt.codes)))}.items())
    values = _table(tuple(code for code, _ in order), scaled.device)
    indices = torch.tensor([i for _, i in order], dtype=torch.uint8, device=scaled.device)
    above = torch.bucketize(scaled, values)
    below = torch.bucketize(scaled, values, right=True) - 1
    return indices[torch.where(up, above, below)]


@lru_cache(maxsize=16)
def _bounds(name: str) -> tuple[float, ...]:
    """Largest values (of a magnitude, for E2M1) that still go to each code but the last; ties go to the even code."""
    codes = _NF4 if name == "nf4" else _E2M1
    bounds = []
    for i, (low, high) in enumerate(pairwise(codes)):
        middle = (low + high) / 2
        goes_up = i % 2 == 1 and name != "nf4"
        bounds.append(_just_below(middle) if goes_up else middle)
    return tuple(bounds)


def _just_below(value: float) -> float:
    """The float32 before a positive number that is one itself."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(mantissa - 2.0**-25 if mantissa == 0.5 else mantissa - 2.0**-24, exponent)


def _values(codes: Tensor, fmt: Format) -> Tensor:
    """Float32 values of codes."""
    if fmt.kind != "codes":
        return codes.to(torch.float32)
    assert fmt.codes is not None  # noqa: S101 - a fact about the table for the type checker
    return _table(fmt.codes, codes.device)[codes.to(torch.int32)]


def _table(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def average_bits(
    weight_shape: Sequence[int], fmt: Format | str, *, scales: str = "default", rank: int = 0, base_bits: int = 16
) -> float:
    """Returns the bits per element that a weight of `(out, in)` takes in storage, scales and low-rank branch included.

    Args:
        weight_shape: `(out, in)`.
        fmt: the format, or its name.
        scales: the granularity, one of `SCALES`.
        rank: rank of the branch that is kept beside the low-bit weight.
        base_bits: bits of one element of that branch.

    >>> average_bits((256, 256), "int4", scales="default", rank=0)
    4.5
    """
    fmt = format_of(fmt)
    n_out, n_in = weight_shape
    block = block_of(fmt, scales)
    n_scales = 1 if block is None else n_out * (math.ceil(n_in / block) if block else 1)
    scale_bits = 0 if fmt.is_cast else n_scales * fmt.scale_bits + (32 if fmt.scale == "e4m3" else 0)
    return fmt.bits + (scale_bits + rank * (n_out + n_in) * base_bits) / (n_out * n_in)
