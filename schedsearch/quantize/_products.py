"""The product of a low-bit layer, one class per way of execution: input and bias in, output in the input's dtype.

Each holds what it needs of the weight as buffers and computes ``x W^T + bias`` for ``x`` rounded to the activation's
format, under scales that are given (static) or follow from ``x`` (dynamic). See `_execution` for which is taken when.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from schedsearch.quantize._execution import kernel_of
from schedsearch.quantize._formats import Quantized, activation_scales, block_of, fake, format_of, quantized
from schedsearch.schedule import PrecisionRule

_LEAST_ROWS = 17
"""Rows that ``_int_mm`` needs on CUDA devices."""


class Product(nn.Module):
    """What all have in common: the activation's format, and the bias."""

    def __init__(self, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype) -> None:  # noqa: ARG002
        super().__init__()
        self.activation = format_of(rule.activation)
        self.scales = activation_scales(self.activation, rule.scales)
        self.hold("bias", bias)

    def hold(self, name: str, tensor: Tensor | None) -> None:
        """Keeps a tensor that moves with the module and is in no checkpoint."""
        self.register_buffer(name, tensor, persistent=False)

    def rounded(self, x: Tensor, scale: Tensor | None) -> Quantized:
        """Returns the input's codes and scales."""
        return quantized(x, self.activation, scales=self.scales, scale=scale)


class Simulated(Product):
    """Rounded values multiplied in the layer's dtype."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, rule, dtype)
        self.hold("weight", weight.dequantized(dtype))

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Returns `(..., out)`."""
        near = fake(x, self.activation, scales=self.scales, scale=scale)
        return functional.linear(near, self.weight, self.bias)


class Cast(Product):
    """Torch's product in another floating dtype, that of the activation's format; low-bit weights are rounded to it."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype) -> None:
        other = format_of(rule.activation).dtype
        super().__init__(weight, None if bias is None else bias.to(other), rule, dtype)
        self.hold("weight", weight.dequantized(other))

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:  # noqa: ARG002 - casts have no scales
        """Returns `(..., out)`."""
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class Whole(Product):
    """Torch's exact product of whole numbers, ``_int_mm``, for up to 8 bits on both sides."""

    codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype) -> None:
        super().__init__(weight, None if bias is None else bias.to(torch.float32), rule, dtype)
        self.hold("codes", weight.codes)
        self.hold("weight_scale", weight.scale.reshape(-1))

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Returns `(..., out)`."""
        codes, scale = self.input_codes(x.reshape(-1, x.shape[-1]), scale)
        y = self.summed(codes).to(torch.float32).mul_(scale)
        y = y.mul_(self.weight_scale) if self.bias is None else torch.addcmul(self.bias, y, self.weight_scale)
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)

    def input_codes(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns what `rounded` does, bit for bit, in the fewest passes: small layers wait for nothing else."""
        wide = rows.to(torch.float32)
        if scale is not None:
            near = self.rounded(wide, scale)
            return near.codes, near.scale
        by_row = block_of(self.activation, self.scales) is not None
        magnitude = wide.abs()
        largest = magnitude.amax(dim=-1, keepdim=True) if by_row else magnitude.amax().reshape(1, 1)
        scale = largest.div_(self.activation.maximum).clamp_(min=torch.finfo(torch.float32).tiny)
        return wide.div(scale).round_().to(torch.int8), scale  # nothing lies beyond the largest code

    def summed(self, codes: Tensor) -> Tensor:
        """Returns the product of `(rows, in)` codes with those of the weight, in whole numbers or float32."""
        n_rows = codes.shape[0]
        if codes.is_cuda and n_rows < _LEAST_ROWS:
            codes = functional.pad(codes, (0, 0, 0, _LEAST_ROWS - n_rows))
        return torch._int_mm(codes, self.codes.t())[:n_rows]


class SimulatedWhole(Whole):
    """The same in float32, which holds the sums exactly too: always up to 1040 inputs of 8 bits, mostly far beyond."""

    def summed(self, codes: Tensor) -> Tensor:
        """Returns the product of `(rows, in)` codes with those of the weight, in float32."""
        return functional.linear(codes.to(torch.float32), self.codes.to(torch.float32))


class Scaled(Product):
    """Torch's product of float8 codes, ``_scaled_mm``."""

    codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, rule, dtype)
        self.hold("codes", weight.codes)
        self.hold("weight_scale", weight.scale.reshape(1, -1).contiguous())

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Returns `(..., out)`."""
        near = self.rounded(x.reshape(-1, x.shape[-1]), scale)
        by_row = self.weight_scale.numel() > 1
        scales = near.scale.expand(near.codes.shape[0], 1).contiguous() if by_row else near.scale.reshape(1, 1)
        # Scales by row exist for outputs in bfloat16 alone.
        dtype = torch.bfloat16 if by_row else x.dtype
        y = torch._scaled_mm(near.codes, self.codes.t(), scales, self.weight_scale, out_dtype=dtype)
        y = y.to(x.dtype)
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], -1)


class Kernel(Product):
    """Our kernels of `schedsearch_kernels`, imported on first use."""

    codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, rule, dtype)
        self._kernels: Any = import_module("schedsearch_kernels")
        self._format = weight.fmt.name
        self._is_w8a8 = kernel_of(rule, dtype) == "w8a8_linear"
        self.hold("codes", weight.codes if self._is_w8a8 else self._kernels.pack_w4(weight.codes))
        self.hold("weight_scale", weight.scale.reshape(-1) if self._is_w8a8 else weight.scale)

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Returns `(..., out)`."""
        if not self._is_w8a8:
            y = self._kernels.w4a16_linear(x, self.codes, self.weight_scale, fmt=self._format, bias=self.bias)
            return cast("Tensor", y)
        if scale is None:
            codes, by_row = self._kernels.rowwise_quantise(x, self.activation.name)
        else:
            near = self.rounded(x, scale)
            codes, by_row = near.codes, near.scale.expand(*x.shape[:-1], 1).squeeze(-1).contiguous()
        y = self._kernels.w8a8_linear(codes, by_row, self.codes, self.weight_scale, bias=self.bias, dtype=x.dtype)
        return cast("Tensor", y)


class TorchAO(Product):
    """A linear layer of torchao on CUDA devices: float8 by row or by tensor, dynamic."""

    def __init__(self, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype) -> None:
        super().__init__(weight, None, rule, dtype)
        ao: Any = import_module("torchao.quantization")
        n_out, n_in = weight.shape
        layer = nn.Linear(n_in, n_out, bias=bias is not None, device="meta")
        # Already on the grid, so torchao finds the same scales and codes in it.
        layer.weight = nn.Parameter(weight.dequantized(dtype), requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        by_row = block_of(self.activation, self.scales) is not None
        granularity = ao.PerRow() if by_row else ao.PerTensor()
        config = ao.Float8DynamicActivationFloat8WeightConfig(granularity=granularity, set_inductor_config=False)
        ao.quantize_(layer, config)
        self.layer = layer

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:  # noqa: ARG002 - it is not chosen for static scales
        """Returns `(..., out)`."""
        return cast("Tensor", self.layer(x))


def product_of(
    execution: str, weight: Quantized, bias: Tensor | None, rule: PrecisionRule, dtype: torch.dtype
) -> Product:
    """Returns the product carried out in the way named: any of `EXECUTIONS` but ``base``."""
    is_cast, is_whole = format_of(rule.activation).is_cast, weight.fmt.kind == "int" == format_of(rule.activation).kind
    by_group = bool(block_of(weight.fmt, rule.scales))
    kinds: dict[str, type[Product]] = {
        "torch": Cast if is_cast else Whole if is_whole else Scaled,
        "simulated": SimulatedWhole if is_whole and not by_group else Simulated,
        "kernel": Kernel,
        "torchao": TorchAO,
    }
    return kinds[execution](weight, bias, rule, dtype)
