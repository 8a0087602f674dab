"""The twin in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from schedsearch_kernels._checks import ByteFormat


def rowwise_quantise(x: Tensor, fmt: ByteFormat, codes: Tensor, scale: Tensor) -> None:
    """Writes `(rows, in)` codes and `(rows,)` scales."""
    wide = x.to(torch.float32)
    largest = wide.abs().amax(dim=-1)
    # Divided by a tensor: on CUDA torch multiplies by the reciprocal of a Python number, which may be an ulp off.
    scale.copy_((largest / torch.full_like(largest, fmt.maximum)).clamp(min=torch.finfo(torch.float32).tiny))
    scaled = (wide / scale[:, None]).clamp(-fmt.maximum, fmt.maximum)
    codes.copy_(scaled.round() if fmt.dtype == torch.int8 else scaled)
