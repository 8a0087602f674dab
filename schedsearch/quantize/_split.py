"""Separate scales for segments of a layer: Li 2023 (Q-Diffusion, arXiv 2302.04304), Zhang 2025 (SegQuant, arXiv
2507.14811).

A linear layer whose input is a concatenation, ``cat(attention, mlp)``, has columns of two kinds, often of quite
different range; a layer whose output is cut into chunks, the six of an adaptive norm or query, key and value, has rows
of several kinds. One scale for all of a row or tensor then fits one kind only, so each segment gets its own.

Where the segments of a module are, `find_segments` tells (`_segments.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schedsearch.errors import UsageError
from schedsearch.quantize._formats import Format, block_of, fake, format_of, scale_of


def segment_scale(
    x: Tensor,
    fmt: Format | str,
    *,
    columns: Sequence[int] = (),
    rows: Sequence[int] = (),
    scales: str = "row",
) -> Tensor:
    """Returns a scale for every element of ``x``, `x.shape`, made from each segment alone.

    Args:
        x: `(out, in)` weight, or `(..., in)` activations.
        fmt: the format, or its name.
        columns: sizes of the segments along the last dimension; none for one.
        rows: sizes of the segments along the first dimension; none for one. They matter for ``scales="tensor"``.
        scales: granularity within a segment.

    Raises:
        UsageError: the sizes do not add up, or the format has no scales of its own choosing.
    """
    fmt = format_of(fmt)
    if fmt.is_cast or fmt.scale != "float32":
        raise UsageError(f"segments: found format {fmt.name}, expected one whose scales can be chosen")
    columns, rows = _sizes(columns, x.shape[-1], "columns"), _sizes(rows, x.shape[0], "rows")
    bands = [
        torch.cat([_spread(part, fmt, scales) for part in torch.split(band, columns, dim=-1)], dim=-1)
        for band in torch.split(x, rows, dim=0)
    ]
    return torch.cat(bands)


def split_fake(
    x: Tensor,
    fmt: Format | str,
    *,
    columns: Sequence[int] = (),
    rows: Sequence[int] = (),
    scales: str = "row",
) -> Tensor:
    """Returns ``x`` as the format holds it with scales of their own for its segments; arguments as `segment_scale`.

    >>> x = torch.tensor([[100.0, -127.0, 0.5, 1.27]])
    >>> split_fake(x, "int8", columns=(2, 2))[0, :2].tolist()
    [100.0, -127.0]
    """
    return fake(x, fmt, scale=segment_scale(x, fmt, columns=columns, rows=rows, scales=scales))


def _spread(part: Tensor, fmt: Format, scales: str) -> Tensor:
    scale = scale_of(part, fmt, scales=scales)
    if scale.shape[-1] > 1:
        block = block_of(fmt, scales) or 1
        scale = scale.repeat_interleave(block, dim=-1)[..., : part.shape[-1]]
    return scale.expand(part.shape)


def _sizes(sizes: Sequence[int], total: int, what: str) -> list[int]:
    if sizes and (sum(sizes) != total or min(sizes) < 1):
        raise UsageError(f"segments: found {what} {tuple(sizes)}, expected positive sizes that add up to {total}")
    return list(sizes) or [total]
