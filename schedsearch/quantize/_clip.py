"""Clip-range search: Choukroun 2019 (OMSE, arXiv 1902.06822), Liu 2024 (HQ-DiT, arXiv 2405.19751).

A scale that takes the largest value to the end of the grid spends codes on a few outliers. Cutting those off makes all
other steps finer, and where the squared error is least is found by trying: the scale of each group is multiplied with
each of a few ratios. 1, the maximum itself, is among them, so no group is worse than with its maximum. On the uneven
grids of FP4 a ratio above 1 may win too, where the largest value then meets a lower code.

Also the static scales of activations: one number for a layer, or one per step (So 2023, temporal dynamic quantisation,
arXiv 2306.02316; CacheQuant keeps one per step, arXiv 2503.01323), the table ``NAME.activation_scale``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schedsearch.errors import UsageError
from schedsearch.quantize._formats import Format, _blocks, fake, format_of, in_e4m3, scale_of

RATIOS = (1.0, *(round(0.98 - 0.02 * i, 2) for i in range(35)), *(round(1.05 + 0.05 * i, 2) for i in range(11)))
"""Multiples of the largest-value scale that are tried: 1, then 0.98 down to 0.3, then 1.05 up to 1.55."""


def clipped_scale(
    x: Tensor,
    fmt: Format | str,
    *,
    scales: str = "default",
    ratios: Sequence[float] = RATIOS,
    importance: Tensor | None = None,
) -> Tensor:
    """Returns the scales of least squared error, of the shape that `scale_of` gives; in no group worse than its scales.

    Scales that are stored in few bits stay storable: powers of two for ``mxfp8``, E4M3 numbers for ``nvfp4``.

    Args:
        x: `(..., in)`.
        fmt: the format, or its name.
        scales: granularity.
        ratios: multiples of the scale to try beside 1. Equal errors go to 1, then to the first.
        importance: `(in,)` weights of the squared errors, such as the second moments of a layer's inputs where ``x`` is
            its weight: then it is the output's error that is least, if the inputs are uncorrelated.

    Raises:
        UsageError: the format has no scales, a ratio is not positive, or the importance is not one number per channel.
    """
    fmt = format_of(fmt)
    _check(x, fmt, ratios, importance)
    wide = x.detach().float()
    best = scale_of(wide, fmt, scales=scales)
    first, least = best, _errors(wide, fmt, best, importance)
    for ratio in ratios:
        scale = _storable(first * ratio, fmt, wide)
        error = _errors(wide, fmt, scale, importance)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def static_scale(samples: Sequence[Tensor], fmt: Format | str, *, ratios: Sequence[float] = RATIOS) -> Tensor:
    """Returns `(1,)` float32: the one scale of least squared error for all samples together.

    Args:
        samples: tensors of any shapes.
        fmt: the activations' format, or its name.
        ratios: as for `clipped_scale`; `(1.0,)` for the largest value.

    Raises:
        UsageError: no samples, or a format whose scales are part of it or that has none.
    """
    fmt = format_of(fmt)
    if not samples:
        raise UsageError("static scale: found no samples, expected one or more")
    if fmt.scale != "float32":
        raise UsageError(f"static scale: found format {fmt.name}, expected one that can have one scale for all")
    together = torch.cat([sample.detach().flatten() for sample in samples])
    return clipped_scale(together[None], fmt, scales="tensor", ratios=ratios).reshape(1)


def step_scales(samples: Sequence[Sequence[Tensor]], fmt: Format | str, *, ratios: Sequence[float] = RATIOS) -> Tensor:
    """Returns `(n_steps,)` float32: `static_scale` of each step's samples. A step that was never computed has none, and
    takes the scale of the nearest step that has, the earlier of two.

    Raises:
        UsageError: as `static_scale`; or no step has a sample.
    """
    known = [i for i, some in enumerate(samples) if some]
    if not known:
        raise UsageError(f"step scales: found no samples in {len(samples)} steps, expected some in one or more")
    found = {i: static_scale(samples[i], fmt, ratios=ratios) for i in known}
    nearest = (min((abs(i - step), i) for i in known)[1] for step in range(len(samples)))
    return torch.cat([found[i] for i in nearest])


def _errors(x: Tensor, fmt: Format, scale: Tensor, importance: Tensor | None) -> Tensor:
    """Squared errors, summed over what shares a scale; the shape of ``scale``."""
    error = (fake(x, fmt, scale=scale).double() - x.double()).square()
    if importance is not None:
        error = error * importance.to(error)
    if scale.numel() == 1:
        return error.sum().reshape(scale.shape)
    if scale.shape[-1] == 1:
        return error.sum(-1, keepdim=True)
    return _blocks(error, fmt.block).sum(-1)


def _storable(scale: Tensor, fmt: Format, x: Tensor) -> Tensor:
    """The scales as the format can store them."""
    if fmt.scale == "e8m0":
        return torch.exp2(torch.log2(scale).round().clamp(-126, 127))
    if fmt.scale == "e4m3":
        return in_e4m3(scale, fmt, x.abs().amax())
    return scale.clamp(min=torch.finfo(torch.float32).tiny)


def _check(x: Tensor, fmt: Format, ratios: Sequence[float], importance: Tensor | None) -> None:
    if fmt.is_cast:
        raise UsageError(f"clip search: found format {fmt.name}, which has no scales; expected one of few bits")
    if not all(ratio > 0.0 for ratio in ratios):
        raise UsageError(f"clip search: found ratios {tuple(ratios)}, expected positive ones")
    if importance is not None and importance.shape != x.shape[-1:]:
        raise UsageError(
            f"clip search: found {tuple(importance.shape)} importances, expected one for each of {x.shape[-1]} channels"
        )
