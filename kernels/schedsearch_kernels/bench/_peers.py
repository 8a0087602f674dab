"""What torch and torchao have for the same work."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from schedsearch_kernels.bench._timing import Call


def copy(moved: float, device: torch.device) -> Call:
    """Returns a copy that reads and writes ``moved`` bytes in all."""
    source = torch.zeros(int(moved) // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def int8_products(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> dict[str, Call]:
    """Returns torch's int8 product, alone and with what has to follow it."""

    def whole() -> object:
        total = torch._int_mm(codes, weight.T)
        return (total * scale[:, None] * weight_scale + bias).to(torch.bfloat16)

    return {"torch._int_mm": lambda: torch._int_mm(codes, weight.T), "torch._int_mm, dequantised": whole}


def float8_products(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor
) -> dict[str, Call]:
    """Returns torch's float8 product with scales by row and channel, with and without the fast sums of tensor cores."""

    def scaled(*, fast: bool) -> Call:
        return lambda: torch._scaled_mm(
            codes,
            weight.T,
            scale_a=scale[:, None],
            scale_b=weight_scale[None],
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=fast,
        )

    return {"torch._scaled_mm": scaled(fast=True), "torch._scaled_mm, exact sums": scaled(fast=False)}


_TORCHAO = {
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "fp8_e4m3": "Float8DynamicActivationFloat8WeightConfig",
    "int4": "Int4WeightOnlyConfig",
}


def torchao_linear(x: Tensor, w: Tensor, bias: Tensor, fmt: str) -> dict[str, Call]:
    """Returns torchao's linear layer in this format, eager and compiled; empty where torchao is not installed.

    The layer is made at its first call, so that what torchao cannot do here is reported like any other peer's failure.
    """
    if find_spec("torchao") is None:
        return {}
    made: dict[str, Callable[[Tensor], object]] = {}

    def layer() -> Callable[[Tensor], object]:
        if "layer" not in made:
            made["layer"] = _torchao_layer(w, bias, fmt)
        return made["layer"]

    def compiled() -> object:
        if "compiled" not in made:
            made["compiled"] = torch.compile(layer())
        return made["compiled"](x)

    return {"torchao": torch.no_grad()(lambda: layer()(x)), "torchao, compiled": torch.no_grad()(compiled)}


def _torchao_layer(w: Tensor, bias: Tensor, fmt: str) -> nn.Module:
    torchao = import_module("torchao.quantization")
    layer = nn.Linear(w.shape[1], w.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(w, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    config = getattr(torchao, _TORCHAO[fmt])
    if fmt == "fp8_e4m3":
        torchao.quantize_(layer, config(granularity=torchao.PerRow()))
    elif fmt == "int4":
        torchao.quantize_(layer, config(group_size=64))
    else:
        torchao.quantize_(layer, config())
    return layer
