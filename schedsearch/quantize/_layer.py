"""A linear layer as a precision rule has it: smoothing, low-rank branch, low-bit product, bias.

With ``Qw`` and ``Qa`` rounding to the formats of weight and activation (FORMAT.md M15), ``s`` the smoothing vector and
``L1 L2`` the branch of a given rank,

    W s = L1 L2 + R
    y   = Qa(x / s) Qw(R)^T + bias + ((x / s) L2^T) L1^T

An affine correction ``scale * y + shift`` per output channel (Liu et al. 2025, "CacheQuant", arXiv 2503.01323) that
holds for all steps costs nothing: it is folded into the scales of the weight's rows, the branch and the bias. One per
step is one fused multiply-add.

The layer it is made of stays as it is and is needed again: for `QuantLinear.base`, and when the input comes to another
device than that the product was made for. So a low-bit layer takes memory on top of it (`QuantLinear.n_bytes`), unless
`QuantLinear.release` gives that up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from schedsearch.errors import UnsupportedFeatureError, UsageError
from schedsearch.quantize._execution import Choice, execution_of, why_not
from schedsearch.quantize._formats import Quantized, activation_scales, block_of, format_of, quantized
from schedsearch.quantize._lowrank import branch_of
from schedsearch.quantize._products import Product, product_of
from schedsearch.quantize._rounding import unpacked
from schedsearch.schedule import PrecisionRule

TABLES = ("smooth", "activation_scale", "rounding", "bias", "affine")
"""What a side file may hold for a layer, by the last part of the tensor's name."""


class QuantLinear(nn.Module):
    """A linear layer in the formats of a rule; made by `of`.

    Attributes:
        rule: the rule.
        base: the layer it is made of, as it was.
        choice: how the product is carried out, and why not otherwise.
        activation_scale: `(1,)` or `(n_steps,)` float32 scales of the input; ``None`` if they follow from it.
        affine: `(1, 2, out)` or `(n_steps, 2, out)` float32 scale and shift of the output; ``None`` without.
    """

    choice: Choice
    smooth: Tensor | None
    activation_scale: Tensor | None
    affine: Tensor | None
    left: Tensor | None
    right: Tensor | None
    bias: Tensor | None

    def __init__(
        self, linear: nn.Linear, rule: PrecisionRule, tables: Mapping[str, Tensor], execution: str | None
    ) -> None:
        super().__init__()
        self.rule = rule
        self._made_of = (linear, dict(tables), execution)  # in a tuple, so that it is no submodule
        self._product: Product | None = None
        self._is_folded = False
        for name in ("smooth", "activation_scale", "affine", "left", "right", "bias"):
            self.register_buffer(name, None, persistent=False)

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        rule: PrecisionRule,
        tables: Mapping[str, Tensor] | None = None,
        *,
        execution: str | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Returns the layer in the formats of a rule.

        Args:
            linear: what it is made of; not changed.
            rule: formats, granularity and rank; its pattern plays no part.
            tables: tensors of the side file by one of `TABLES`, as FORMAT.md M16 says.
            execution: one of `EXECUTIONS`, in place of the choice by `execution_of`.
            device: where it will run; where its weight is, if left out.

        Raises:
            UsageError: a table of another shape or for a format that cannot have it; the dotted path is the name.
            UnsupportedFeatureError: the weight is stored in some other library's form, or the execution named is not
                possible.
        """
        tables = tables or {}
        _check_layer(linear, rule)
        check_tables(tables, rule, (linear.out_features, linear.in_features))
        layer = cls(linear, rule, tables, execution)
        layer.make(torch.device(device) if device is not None else linear.weight.device)
        return layer

    @property
    def base(self) -> nn.Linear:
        """The layer it is made of, as it was."""
        return self._made_of[0]

    @property
    def n_bytes(self) -> int:
        """Bytes that it holds beside the layer it is made of."""
        held = [t for t in (*self.buffers(), *self.parameters()) if t is not self.base.bias]
        return sum(t.numel() * t.element_size() for t in held)

    @torch.no_grad()
    def release(self) -> bool:
        """Frees the weight of the layer it is made of, which cannot run any more; returns whether it did.

        From then on this layer stays on its device. A layer whose own product is used keeps its weight.
        """
        if self.choice.execution == "base":
            return False
        weight = self.base.weight
        weight.data = weight.data.new_empty(0)  # still of its dtype and on its device, which others ask it for
        return True

    @torch.no_grad()
    def make(self, device: torch.device) -> None:
        """Makes everything anew, for inputs on ``device``."""
        linear, tables, execution = self._made_of
        _check_there(linear)
        dtype, shape = linear.weight.dtype, (linear.out_features, linear.in_features)
        device = self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", as inputs say
        self.choice = _choice(execution, self.rule, shape, dtype, device, static="activation_scale" in tables)
        bias = tables.get("bias", linear.bias)
        self.bias = None if bias is None else bias.detach().to(device, dtype)
        self._product = None
        if "affine" in tables:
            self.affine = tables["affine"].to(device, torch.float32)
        self._is_folded = False
        if self.choice.execution == "base":
            return
        weight = linear.weight.detach().to(device)
        if "smooth" in tables:
            self.smooth = tables["smooth"].to(device, torch.float32)
            weight = weight.to(torch.float32) * self.smooth
        if self.rule.rank:
            branch = branch_of(weight.to(torch.float32), self.rule.rank, dtype)
            self.left, self.right, weight = branch.left, branch.right, branch.residual
        if "activation_scale" in tables:
            self.activation_scale = tables["activation_scale"].to(device, torch.float32)
        up = unpacked(tables["rounding"].to(device), shape[1]) if "rounding" in tables else None
        codes = quantized(weight, self.rule.weight, scales=self.rule.scales, up=up)
        has_row_scales = codes.fmt.scale == "float32" and not codes.fmt.is_cast and codes.scale.shape[0] == shape[0]
        if self.affine is not None and len(self.affine) == 1 and has_row_scales:
            codes = self._folded(codes, self.affine[0])
        self._product = product_of(self.choice.execution, codes, self.bias, self.rule, dtype)

    def _folded(self, codes: Quantized, affine: Tensor) -> Quantized:
        """Takes a correction into the bias and the branch; returns the weight with it in the scales of its rows."""
        scale, shift = affine
        bias = shift if self.bias is None else torch.addcmul(shift, self.bias.to(torch.float32), scale)
        self.bias = bias.to(self.base.weight.dtype)
        if self.left is not None:
            self.left = (self.left.to(torch.float32) * scale[:, None]).to(self.left.dtype)
        self._is_folded = True
        return codes._replace(scale=codes.scale * scale[:, None])

    def forward(self, x: Tensor, activation_scale: Tensor | None = None, affine: Tensor | None = None) -> Tensor:
        """Returns `(..., out)` in the dtype of ``x``.

        Args:
            x: `(..., in)`.
            activation_scale: the scale of the input at this step, of one element; without it, the one table entry, or
                a scale that follows from ``x`` if there is none or one per step.
            affine: `(2, out)` the correction at this step; without it, the one table entry, or none.
        """
        if x.device != self.device:
            self.make(x.device)
        if self._product is None:
            return self._corrected(functional.linear(x, self.base.weight, self.bias), affine)
        if self.smooth is not None:
            x = (x / self.smooth).to(x.dtype)
        if activation_scale is None and self.activation_scale is not None and self.activation_scale.numel() == 1:
            activation_scale = self.activation_scale
        y = cast("Tensor", self._product(x, activation_scale))
        if self.left is not None and self.right is not None:
            y = y + functional.linear(functional.linear(x, self.right), self.left)
        return self._corrected(y, affine)

    def _corrected(self, y: Tensor, affine: Tensor | None) -> Tensor:
        if affine is None and self.affine is not None and len(self.affine) == 1 and not self._is_folded:
            affine = self.affine[0]
        return y if affine is None else torch.addcmul(affine[1], y.to(torch.float32), affine[0]).to(y.dtype)

    def extra_repr(self) -> str:
        """Returns shape, formats and execution."""
        rule = self.rule
        return f"{self.base.in_features}, {self.base.out_features}, {words_of(rule)}, {self.choice.execution}"


def words_of(rule: PrecisionRule) -> str:
    """Returns a rule's formats in words: ``int4 x int8, scales by row, rank 16``."""
    scales = "" if rule.scales == "default" else f", scales by {rule.scales}"
    return f"{rule.weight} x {rule.activation}{scales}{f', rank {rule.rank}' if rule.rank else ''}"


def _choice(
    execution: str | None,
    rule: PrecisionRule,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    static: bool,
) -> Choice:
    """The execution that is named, if it is possible; else the first that is."""
    if execution is None:
        return execution_of(rule, shape, dtype, device, static=static)
    reason = why_not(execution, rule, shape, dtype, device, static=static)
    if reason:
        raise UnsupportedFeatureError(
            f"execution: found {execution!r} for {words_of(rule)}, expected one that is possible here: {reason}. Leave "
            "it out to have one chosen."
        )
    return Choice(execution=execution, reasons=(("others", "it was asked for"),))


def _check_there(linear: nn.Linear) -> None:
    if not linear.weight.numel() and linear.in_features * linear.out_features:
        raise UnsupportedFeatureError(
            "precision: found a layer whose own weight was let go by keep_base=False, expected its weight. Load the "
            "model again, on the device where it is to run."
        )


def _check_layer(linear: nn.Linear, rule: PrecisionRule) -> None:
    _check_there(linear)
    weight = linear.weight
    if not weight.is_floating_point() or tuple(weight.shape) != (linear.out_features, linear.in_features):
        raise UnsupportedFeatureError(
            f"precision: found a {type(linear).__name__} with a {weight.dtype} weight of shape {tuple(weight.shape)}, "
            "expected floating numbers of (out, in): the model is quantised by another library already. Load it "
            "without that, or drop the rule."
        )
    if rule.activation == "nf4":
        raise UnsupportedFeatureError(
            "precision: found activation nf4, expected another format: nf4 is for weights. Use fp4_e2m1 or int4."
        )


def check_tables(tables: Mapping[str, Tensor], rule: PrecisionRule, shape: tuple[int, int], n_steps: int = 0) -> None:
    """Checks a layer's tables, by one of `TABLES`.

    Args:
        tables: the tensors.
        rule: the layer's rule.
        shape: `(out, in)` of its weight.
        n_steps: steps of the schedule; 0 if not known.

    Raises:
        UsageError: an unknown table, another shape or dtype than the layer needs, scales that are not positive, or one
            that the rule's formats have no use for.
    """
    n_out, n_in = shape
    expected = {"smooth": (n_in,), "bias": (n_out,), "rounding": (n_out, math.ceil(n_in / 8))}
    weight, activation = format_of(rule.weight), format_of(rule.activation)
    for name, tensor in tables.items():
        if name not in TABLES:
            raise UsageError(f"{name}: found a table of that name, expected one of {', '.join(TABLES)}.")
        dtype = torch.uint8 if name == "rounding" else torch.float32
        if tensor.dtype != dtype:
            raise UsageError(f"{name}: found {tensor.dtype}, expected {dtype}.")
        if name == "activation_scale":
            lengths = {1, n_steps} if n_steps else {1, tensor.numel()}
            fits, wanted = tensor.ndim == 1 and len(tensor) in lengths, f"(1,) or ({n_steps or 'n_steps'},)"
        elif name == "affine":
            lengths = {1, n_steps} if n_steps else {1, len(tensor) if tensor.ndim else 1}
            fits = tensor.ndim == 3 and len(tensor) in lengths and tuple(tensor.shape[1:]) == (2, n_out)
            wanted = f"(1, 2, {n_out}) or ({n_steps or 'n_steps'}, 2, {n_out})"
        else:
            fits, wanted = tuple(tensor.shape) == expected[name], f"{expected[name]}"
        if not fits:
            raise UsageError(f"{name}: found shape {tuple(tensor.shape)}, expected {wanted}.")
        if name in {"smooth", "activation_scale"} and not bool((tensor.isfinite() & (tensor > 0)).all()):
            raise UsageError(f"{name}: found values that are not above 0 and finite, expected divisors.")
        if name in {"affine", "bias"} and not bool(tensor.isfinite().all()):
            raise UsageError(f"{name}: found values that are not finite, expected numbers.")
    if "activation_scale" in tables and (
        activation.is_cast or block_of(activation, activation_scales(activation, rule.scales))
    ):
        raise UsageError(
            f"activation_scale: found scales for {activation.name}, expected a format with one scale per token or "
            "tensor."
        )
    if "rounding" in tables and weight.is_cast:
        raise UsageError(f"rounding: found bits for {weight.name}, expected a low-bit weight format.")
    if "smooth" in tables and weight.is_cast and activation.is_cast:
        raise UsageError(f"smooth: found a vector for {words_of(rule)}, expected a low-bit format.")
