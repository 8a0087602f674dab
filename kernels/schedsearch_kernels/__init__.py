"""Operations with a kernel of their own: a readable torch twin and a Triton kernel for each.

    codes, scale = rowwise_quantise(x, "int8")
    y = w8a8_linear(codes, scale, weight, weight_scale, bias=bias, dtype=torch.bfloat16)

On CUDA tensors the kernel runs where Triton is installed, elsewhere its twin; ``implementation="triton"`` or
``"reference"`` forces one, and `why_not_triton` says what stands against the first. The two agree to rounding; the
forecast to the bit in bfloat16. Importing this package loads neither torch nor Triton. Knows nothing of schedsearch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schedsearch_kernels._checks import KernelInputError
    from schedsearch_kernels._dispatch import KernelUnavailableError, why_not_triton
    from schedsearch_kernels._forecast import forecast, forecast_keep
    from schedsearch_kernels._lowrank_linear import lowrank_linear
    from schedsearch_kernels._rowwise_quantise import rowwise_quantise
    from schedsearch_kernels._w4a16_linear import pack_w4, w4a16_linear
    from schedsearch_kernels._w8a8_linear import w8a8_linear

__all__ = [
    "KernelInputError",
    "KernelUnavailableError",
    "forecast",
    "forecast_keep",
    "lowrank_linear",
    "pack_w4",
    "rowwise_quantise",
    "w4a16_linear",
    "w8a8_linear",
    "why_not_triton",
]

# The folders have an underscore because importing a submodule sets its name here, in place of the function.
_HOMES = {
    "KernelInputError": "_checks",
    "KernelUnavailableError": "_dispatch",
    "forecast": "_forecast",
    "forecast_keep": "_forecast",
    "lowrank_linear": "_lowrank_linear",
    "pack_w4": "_w4a16_linear",
    "rowwise_quantise": "_rowwise_quantise",
    "w4a16_linear": "_w4a16_linear",
    "w8a8_linear": "_w8a8_linear",
    "why_not_triton": "_dispatch",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
