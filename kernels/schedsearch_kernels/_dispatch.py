"""Which implementation runs: the one place where that is decided. Knows no operation."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import torch

Implementation = Literal["triton", "reference"]
"""The Triton kernel, or its torch twin."""

IMPLEMENTATIONS = ("triton", "reference")

# Read once, as Triton does when its kernels are defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}
"""Whether Triton's kernels run in its interpreter, on the CPU; far too slow for anything but tests."""

_HAS_TRITON = find_spec("triton") is not None
_LEAST, _LEAST_FP8 = (8, 0), (8, 9)


class KernelUnavailableError(RuntimeError):
    """The Triton kernel was asked for by name where it cannot run."""


def why_not_triton(device: torch.device, *, fp8: bool = False) -> str | None:
    """Returns why the Triton kernels cannot run on tensors of ``device``, or ``None`` where they can.

    Args:
        device: where the tensors are.
        fp8: whether they hold float8 codes, which older devices cannot multiply.
    """
    if not _HAS_TRITON:
        return "triton is not installed (pip install 'schedsearch[gpu]')"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and the Triton kernels need a CUDA device"
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and the kernels are written for NVIDIA devices"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here"
    least = _LEAST_FP8 if fp8 else _LEAST
    found = torch.cuda.get_device_capability(device)
    if found < least:
        return f"the device has compute capability {found[0]}.{found[1]}, and {least[0]}.{least[1]} is needed"
    return None


def chosen(operation: str, device: torch.device, implementation: str | None, *, fp8: bool = False) -> Implementation:
    """Returns the implementation to run: the one that is named, else Triton on CUDA tensors, else the reference.

    Args:
        operation: its name, for messages.
        device: where the tensors are.
        implementation: one of `IMPLEMENTATIONS`, or ``None`` for the rule.
        fp8: whether there are float8 codes.

    Raises:
        ValueError: there is no such implementation.
        KernelUnavailableError: ``triton`` is named and cannot run.
    """
    if implementation is None:
        return "triton" if device.type == "cuda" and why_not_triton(device, fp8=fp8) is None else "reference"
    if implementation == "reference":
        return "reference"
    if implementation != "triton":
        raise ValueError(
            f"{operation}: implementation: found {implementation!r}, expected one of {', '.join(IMPLEMENTATIONS)}, "
            "or None to have it chosen."
        )
    reason = why_not_triton(device, fp8=fp8)
    if reason is not None:
        raise KernelUnavailableError(
            f"{operation}: found that {reason}, expected a machine that runs implementation='triton'. "
            "Leave implementation out to use the torch twin here."
        )
    return "triton"
