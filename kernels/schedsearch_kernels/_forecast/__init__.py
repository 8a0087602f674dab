"""Reuse and forecast of kept values, and the update of what is kept: Newton's divided differences over uneven noise
levels (TaylorSeer, Liu 2025, arXiv 2503.06923, has them at equal gaps).

``levels[j]`` is the ``j``-th divided difference of one stream, newest values first, in buffers that a run writes in
place. Scales and weights are 0-dimensional float32 tensors on the device, which no operation here reads back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schedsearch_kernels._checks import FLOATS, check_devices, check_dtype, check_output, check_shape, wrong
from schedsearch_kernels._dispatch import chosen

MAX_ORDER = 3
"""Highest forecast order."""


def forecast(
    levels: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    stream: Tensor | None = None,
    out: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Returns ``levels[0] + sum of weights[k] * levels[k + 1]``, added to ``stream`` if there is one.

    Rounding is that of the torch operations in turn (every partial sum in the dtype of its level, the weight too), so
    that a run does not change with the implementation. Without weights and stream it is ``levels[0]`` itself.

    Args:
        levels: buffers of one shape; the first in the dtype of the values, the others in that or float32.
        weights: the products ``(s - s_0)(s - s_1) ...``, one per order, at most 3; there may be more levels than
            that.
        stream: of the shape and dtype of the first level.
        out: tensor to write to, contiguous; not one of the levels.
        implementation: ``triton`` or ``reference``; chosen by the device if ``None``.

    Raises:
        KernelInputError: an argument of another kind.
        KernelUnavailableError: ``triton`` is asked for and cannot run here.
    """
    _checked("forecast", levels, weights)
    first = levels[0]
    if stream is not None:
        check_shape("forecast: stream", stream, first.shape)
        check_dtype("forecast: stream", stream, (first.dtype,))
    check_devices("forecast", first, (*levels, *weights, stream, out))
    check_output("forecast: out", out, first.shape, (first.dtype,))
    if out is None and stream is None and not weights:
        return first
    levels = levels[: len(weights) + 1]
    if _chosen("forecast", levels, implementation) == "triton":
        from schedsearch_kernels._forecast import triton

        return triton.forecast(levels, weights, stream, out)
    from schedsearch_kernels._forecast import reference

    return reference.forecast(levels, weights, stream, out)


def forecast_keep(
    value: Tensor, levels: Sequence[Tensor], scales: Sequence[Tensor], *, implementation: str | None = None
) -> None:
    """Takes a newly computed ``value`` into ``levels``, in place: one pass for all divided differences.

    ``levels[0]`` becomes the value, ``levels[j + 1]`` the difference of the new and the old ``levels[j]`` times
    ``scales[j]``; levels above the number of scales stay.

    Args:
        value: what was computed; copied.
        levels: the buffers; the first in the dtype of ``value``.
        scales: ``1 / (s_new - s_j)`` for the newest, second newest, ... kept noise level; fewer than levels.
        implementation: ``triton`` or ``reference``; chosen by the device if ``None``.

    Raises:
        KernelInputError: an argument of another kind.
        KernelUnavailableError: ``triton`` is asked for and cannot run here.
    """
    _checked("forecast_keep", levels, scales)
    check_shape("forecast_keep: value", value, levels[0].shape)
    check_dtype("forecast_keep: value", value, (levels[0].dtype,))
    check_devices("forecast_keep", value, (*levels, *scales))
    levels = levels[: len(scales) + 1]
    if _chosen("forecast_keep", levels, implementation) == "triton":
        from schedsearch_kernels._forecast import triton

        triton.forecast_keep(value, levels, scales)
    else:
        from schedsearch_kernels._forecast import reference

        reference.forecast_keep(value, levels, scales)


def _checked(operation: str, levels: Sequence[Tensor], scalars: Sequence[Tensor]) -> None:
    if len(scalars) > MAX_ORDER or len(levels) <= len(scalars):
        raise wrong(
            operation,
            f"{len(levels)} levels and {len(scalars)} scalars",
            f"0 to {MAX_ORDER} scalars, and more levels than those",
        )
    check_dtype(f"{operation}: levels[0]", levels[0], FLOATS)
    for i, level in enumerate(levels):
        check_shape(f"{operation}: levels[{i}]", level, levels[0].shape)
        check_dtype(f"{operation}: levels[{i}]", level, (levels[0].dtype, torch.float32))
    for i, scalar in enumerate(scalars):
        check_shape(f"{operation}: scalars[{i}]", scalar, (), "Keep the plan's numbers as 0-dimensional tensors.")
        check_dtype(f"{operation}: scalars[{i}]", scalar, (torch.float32,))


def _chosen(operation: str, levels: Sequence[Tensor], implementation: str | None) -> str:
    """The kernels walk memory in order, so buffers laid out otherwise are the twin's."""
    scattered = next((i for i, level in enumerate(levels) if not level.is_contiguous()), None)
    if scattered is None:
        return chosen(operation, levels[0].device, implementation)
    if implementation == "triton":
        found = f"strides {levels[scattered].stride()}"
        raise wrong(f"{operation}: levels[{scattered}]", found, "contiguous buffers", "Or leave implementation out.")
    return "reference"
