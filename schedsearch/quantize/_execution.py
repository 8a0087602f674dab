"""How a low-bit product is carried out on a device, and why not otherwise.

A rule says what is computed (`_layer`); here stand the ways to compute it:

* ``base``: the layer's own product, in formats it has anyway;
* ``torch``: torch's product of the codes themselves (``_int_mm``; ``_scaled_mm``), or in the floating dtype that the
  activation's format is, where that is not the layer's own;
* ``torchao``: torchao's linear layer, where it rounds exactly as the format says;
* ``kernel``: our Triton kernels;
* ``simulated``: rounded values multiplied in the layer's dtype; right everywhere, and never faster than the layer.

All agree with ``simulated`` up to the rounding of the output (`tolerance_of`). Which of several is the fastest is not
known here; `ORDER` says which one is taken, and a caller may name another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

import torch

from schedsearch.errors import UnsupportedFeatureError
from schedsearch.quantize._formats import activation_scales, block_of, format_of
from schedsearch.schedule import PrecisionRule

EXECUTIONS = ("base", "kernel", "torchao", "torch", "simulated")
"""All words, in the order in which they are tried on CUDA devices."""

ORDER: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "cuda": EXECUTIONS,
    "cpu": ("base", "torch", "kernel", "torchao", "simulated"),
})  # fmt: skip
"""The order in which they are tried, by kind of device; other devices go by the CPU's."""

_TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType({
    torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2,
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a layer is carried out.

    Attributes:
        execution: the word.
        reasons: every other word, and why it is not that one.
    """

    execution: str
    reasons: tuple[tuple[str, str], ...]


def is_base(rule: PrecisionRule, dtype: torch.dtype) -> bool:
    """Returns whether a rule leaves a layer of this dtype as it is."""
    weight, activation = format_of(rule.weight), format_of(rule.activation)
    return weight.is_cast and activation.is_cast and weight.dtype == activation.dtype == dtype


def tolerance_of(rule: PrecisionRule, dtype: torch.dtype) -> float:
    """Returns how far two executions may be apart in the output, relative to its largest magnitude.

    1e-5 in float32, whose sums are taken in another order (products of whole numbers are exact). 4e-3 in float16 and
    2e-2 in bfloat16, where dequantised weights and outputs are rounded once more or less; so too for a float32 layer
    that a 16-bit format rounds, or float8 by row, which torch gives out in bfloat16.
    """
    formats = [format_of(rule.weight), format_of(rule.activation)]
    rounds_in = [dtype, *(fmt.dtype for fmt in formats if fmt.is_cast)]
    if any(fmt.kind == "float" for fmt in formats):
        rounds_in.append(torch.bfloat16)
    return max(_TOLERANCE[one] for one in rounds_in)


@cache
def execution_of(
    rule: PrecisionRule,
    layer_shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    static: bool = False,
) -> Choice:
    """Returns how a layer is carried out on a device.

    Args:
        rule: formats, granularity and rank.
        layer_shape: `(out, in)` of its weight.
        dtype: dtype of its weight.
        device: where it runs.
        static: whether the scales of its input are given, and not got from each input.
    """
    order = ORDER.get(device.type, ORDER["cpu"])
    against = {word: why_not(word, rule, layer_shape, dtype, device, static=static) for word in order}
    chosen = next(word for word in order if not against[word])
    others = tuple(word for word in order if word != chosen)
    return Choice(execution=chosen, reasons=tuple((word, against[word] or f"{chosen} comes first") for word in others))


def why_not(
    execution: str,
    rule: PrecisionRule,
    layer_shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    static: bool = False,
) -> str:
    """Returns what stands against one way of execution; nothing if it can be taken. Arguments as in `execution_of`.

    Raises:
        UnsupportedFeatureError: there is no such way.
    """
    if execution == "simulated":
        return ""
    if execution == "base":
        return "" if is_base(rule, dtype) else f"the formats are not the layer's {_word(dtype)}"
    if execution not in EXECUTIONS:
        raise UnsupportedFeatureError(f"execution: found {execution!r}, expected one of {', '.join(EXECUTIONS)}.")
    if is_base(rule, dtype):
        return "nothing is to be done"
    if execution == "kernel":
        return _why_not_kernel(rule, dtype, device)
    if execution == "torchao":
        return "torchao has no static scales here" if static else _why_not_torchao(rule, layer_shape, dtype, device)
    return _why_not_torch(rule, layer_shape, dtype, device)


def _why_not_torch(rule: PrecisionRule, layer_shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> str:
    weight, activation = format_of(rule.weight), format_of(rule.activation)
    if activation.is_cast and activation.dtype != dtype and (weight == activation or not weight.is_cast):
        return ""
    if weight.kind == activation.kind == "int":
        if block_of(weight, rule.scales):
            return f"_int_mm has no scales by groups of {weight.block}"
        if device.type == "cuda" and any(side % 8 for side in layer_shape):
            return f"_int_mm needs multiples of 8, and the layer is {layer_shape[0]} x {layer_shape[1]}"
        return "" if device.type in {"cpu", "cuda"} else f"_int_mm is not known on {device.type}"
    if weight.name == activation.name == "fp8_e4m3":
        return _why_not_scaled_mm(layer_shape, device)
    return f"torch has no product of {weight.name} and {activation.name}"


def _why_not_scaled_mm(layer_shape: tuple[int, int], device: torch.device) -> str:
    if device.type != "cuda":
        return f"_scaled_mm on {device.type} is slower than the layer's own product"
    if any(side % 16 for side in layer_shape):
        return f"_scaled_mm needs multiples of 16, and the layer is {layer_shape[0]} x {layer_shape[1]}"
    capability = torch.cuda.get_device_capability(device)
    return "" if capability >= (8, 9) else f"_scaled_mm needs compute capability 8.9, found {_dotted(capability)}"


def _why_not_torchao(
    rule: PrecisionRule, layer_shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> str:
    if rule.weight == rule.activation == "int8":
        return "torchao divides by 127.5 for int8 scales, which is another result"
    if not rule.weight == rule.activation == "fp8_e4m3":
        return f"torchao has no {rule.weight} x {rule.activation} with these scales"
    if device.type != "cuda":
        return f"torchao has no fp8 product on {device.type}"
    if find_spec("torchao") is None:
        return "torchao is not installed"
    if rule.scales == "default" and dtype != torch.bfloat16:
        return f"torchao's float8 by row is for bfloat16, and the layer is {_word(dtype)}"
    return _why_not_scaled_mm(layer_shape, device)


def _why_not_kernel(rule: PrecisionRule, dtype: torch.dtype, device: torch.device) -> str:
    name = kernel_of(rule, dtype)
    if not name:
        return f"there is no kernel for {rule.weight} x {rule.activation} with these scales"
    if device.type != "cuda":
        return "the kernels need a CUDA device"
    is_fp8 = name == "w8a8_linear" and rule.weight != "int8"
    return str(import_module("schedsearch_kernels").why_not_triton(device, fp8=is_fp8) or "")


def kernel_of(rule: PrecisionRule, dtype: torch.dtype) -> str:
    """Returns the name of our kernel for a rule on layers of this dtype; nothing if there is none."""
    weight, activation = format_of(rule.weight), format_of(rule.activation)
    by_row = block_of(activation, activation_scales(activation, rule.scales)) == 0
    if weight.name == activation.name and weight.name in {"int8", "fp8_e4m3"}:
        return "w8a8_linear" if by_row and block_of(weight, rule.scales) == 0 else ""
    if weight.name in {"int4", "fp4_e2m1"} and activation.is_cast and activation.dtype == dtype:
        return "w4a16_linear" if block_of(weight, rule.scales) == weight.block else ""
    return ""


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
