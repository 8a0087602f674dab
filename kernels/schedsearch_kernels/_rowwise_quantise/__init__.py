"""Dynamic quantisation by row: codes of one byte, and the float32 scale each row turned out to need."""

from __future__ import annotations

import torch
from torch import Tensor

from schedsearch_kernels._checks import BYTE_FORMATS, FLOATS, check_dtype, check_matrix, check_output, wrong
from schedsearch_kernels._dispatch import chosen

_NAME = "rowwise_quantise"


def rowwise_quantise(
    x: Tensor, fmt: str, *, out: tuple[Tensor, Tensor] | None = None, implementation: str | None = None
) -> tuple[Tensor, Tensor]:
    """Returns codes `(..., in)` and scales `(...)` with ``x ~ codes * scale``.

    A row's scale is its largest magnitude over the format's maximum, at least the least normal float32. Codes are
    rounded to nearest, ties to even.

    Args:
        x: `(..., in)`, float32, float16 or bfloat16, finite.
        fmt: ``int8`` or ``fp8_e4m3``.
        out: codes and scales to write to, contiguous.
        implementation: ``triton`` or ``reference``; chosen by the device if ``None``.

    Raises:
        KernelInputError: an argument of another kind.
        KernelUnavailableError: ``triton`` is asked for and cannot run here.
    """
    if fmt not in BYTE_FORMATS:
        raise wrong(f"{_NAME}: fmt", repr(fmt), " or ".join(BYTE_FORMATS))
    check_matrix(f"{_NAME}: x", x)
    check_dtype(f"{_NAME}: x", x, FLOATS)
    kind = BYTE_FORMATS[fmt]
    if out is not None:
        check_output(f"{_NAME}: codes", out[0], x.shape, (kind.dtype,))
        check_output(f"{_NAME}: scale", out[1], x.shape[:-1], (torch.float32,))
    codes = torch.empty(x.shape, dtype=kind.dtype, device=x.device) if out is None else out[0]
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) if out is None else out[1]
    flat = x.reshape(scale.numel(), x.shape[-1])
    arguments = (flat if flat.stride(-1) == 1 else flat.contiguous(), kind, codes.view(flat.shape), scale.view(-1))
    if chosen(_NAME, x.device, implementation, fp8=fmt == "fp8_e4m3") == "triton":
        from schedsearch_kernels._rowwise_quantise import triton

        triton.rowwise_quantise(*arguments)
    else:
        from schedsearch_kernels._rowwise_quantise import reference

        reference.rowwise_quantise(*arguments)
    return codes, scale
