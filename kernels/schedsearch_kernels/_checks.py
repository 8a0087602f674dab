"""What every operation checks of its arguments, with one wording. Nothing here reads a tensor's values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that values and outputs may have."""


class KernelInputError(ValueError):
    """An argument has the wrong dtype, shape, device or layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteFormat:
    """A format of one byte per code.

    Attributes:
        dtype: dtype of the codes.
        maximum: the magnitude the largest element of a row takes.
    """

    dtype: torch.dtype
    maximum: float


BYTE_FORMATS = {
    "int8": ByteFormat(dtype=torch.int8, maximum=127.0),
    "fp8_e4m3": ByteFormat(dtype=torch.float8_e4m3fn, maximum=448.0),
}
"""By the word a schedule has for them; the least int8 code is left unused."""

GROUP = 64
"""Neighbours along the input that share a scale in `NIBBLE_FORMATS`."""

NIBBLE_FORMATS = ("int4", "fp4_e2m1")
"""Formats of two codes per byte."""


def wrong(where: str, found: object, expected: object, fix: str = "") -> KernelInputError:
    """Returns the error: what, found, expected, what to do."""
    return KernelInputError(f"{where}: found {found}, expected {expected}.{f' {fix}' if fix else ''}")


def check_dtype(where: str, tensor: Tensor, allowed: Sequence[torch.dtype], fix: str = "") -> None:
    """Checks the dtype.

    Raises:
        KernelInputError: it is not one of ``allowed``.
    """
    if tensor.dtype not in allowed:
        raise wrong(where, tensor.dtype, " or ".join(str(dtype) for dtype in allowed), fix)


def check_shape(where: str, tensor: Tensor, shape: Sequence[int], fix: str = "") -> None:
    """Checks the shape.

    Raises:
        KernelInputError: it is not exactly ``shape``.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise wrong(where, f"shape {tuple(tensor.shape)}", tuple(shape), fix)


def check_devices(operation: str, first: Tensor, others: Sequence[Tensor | None]) -> None:
    """Checks that all tensors are where the first one is.

    Raises:
        KernelInputError: one is elsewhere.
    """
    for tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise wrong(operation, f"tensors on {first.device} and {tensor.device}", "all on one device", "Move them.")


def check_matrix(where: str, tensor: Tensor) -> None:
    """Checks that the last dimension exists and is not empty.

    Raises:
        KernelInputError: a number, or rows without elements.
    """
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise wrong(where, f"shape {tuple(tensor.shape)}", "(..., in) with in of 1 or more")


def check_contiguous(where: str, tensor: Tensor, fix: str = "Call contiguous().") -> None:
    """Checks that the elements lie in order.

    Raises:
        KernelInputError: they do not.
    """
    if not tensor.is_contiguous():
        raise wrong(where, f"strides {tensor.stride()}", "a contiguous tensor", fix)


def check_output(where: str, out: Tensor | None, shape: Sequence[int], allowed: Sequence[torch.dtype]) -> None:
    """Checks a tensor to write to, if there is one.

    Raises:
        KernelInputError: wrong shape, dtype, or not contiguous.
    """
    if out is None:
        return
    check_shape(where, out, shape)
    check_dtype(where, out, allowed)
    check_contiguous(where, out, "Pass one made by empty().")


Correction = tuple[Tensor, Tensor]
"""Scale and shift per output channel, each `(out,)` float32: ``y * scale + shift``."""


class After(NamedTuple):
    """What follows a product, per output channel: ``(y + bias) * scale + shift``. Scale and shift come together."""

    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


def check_channels(operation: str, channels: int, bias: Tensor | None, correction: Correction | None) -> After:
    """Checks what is applied per output channel and returns it, each contiguous.

    Raises:
        KernelInputError: wrong shape or dtype.
    """
    if bias is not None:
        bias = bias.contiguous()
        check_shape(f"{operation}: bias", bias, (channels,))
        check_dtype(f"{operation}: bias", bias, FLOATS)
    if correction is None:
        return After(bias, None, None)
    for name, tensor in zip(("scale", "shift"), correction, strict=True):
        check_shape(f"{operation}: correction {name}", tensor, (channels,))
        check_dtype(f"{operation}: correction {name}", tensor, (torch.float32,))
    return After(bias, *(tensor.contiguous() for tensor in correction))
