"""The linear layers of a denoiser as plain data: their shapes, which rule of a schedule each follows, and their bytes.

Shapes are taken from one call, so they hold for one resolution; they can be had on the ``meta`` device, where neither
weights nor activations take memory. Does not know time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schedsearch.errors import EvaluationError
from schedsearch.quantize import FORMATS, average_bits
from schedsearch.runtime import _precision
from schedsearch.schedule import PrecisionRule, Schedule, rule_of

_FLOATS = tuple(fmt for fmt in FORMATS.values() if fmt.is_cast)

FLOAT_WORDS: Mapping[torch.dtype, str] = {fmt.dtype: fmt.name for fmt in _FLOATS}
"""From a dtype to its word in a precision rule."""

FLOAT_BYTES: Mapping[str, int] = {fmt.name: fmt.dtype.itemsize for fmt in _FLOATS}

LinearShape = tuple[int, int, int]
"""``(tokens, in, out)``: what tells the cost of two linear layers apart."""

_SIDE_BYTES = 4
"""Bytes of one number of the side file's tables that a running layer needs: they are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """One `nn.Linear` inside the denoiser.

    Attributes:
        name: dotted name, as precision rules know it.
        tokens: rows of its input in one denoiser call, one image; 0 if the call does not reach it.
        in_features: width of its input.
        out_features: width of its output.
        bias: whether it adds one.
    """

    name: str
    tokens: int
    in_features: int
    out_features: int
    bias: bool

    @property
    def shape(self) -> LinearShape:
        """Tokens, input width, output width."""
        return self.tokens, self.in_features, self.out_features

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        return self.tokens * self.in_features * self.out_features

    @property
    def weights(self) -> int:
        """Number of elements of the weight matrix."""
        return self.in_features * self.out_features


@dataclass(frozen=True, slots=True, kw_only=True)
class Linears:
    """What a denoiser's weights consist of.

    Attributes:
        layers: its linear layers, in the order of its modules.
        others: ``(dotted parameter name, elements)`` of every parameter that belongs to none of them.
        base: word of the dtype all of them are in, such as ``bf16``.
    """

    layers: tuple[LinearLayer, ...]
    others: tuple[tuple[str, int], ...]
    base: str

    @property
    def parameters(self) -> int:
        """Number of all elements, biases included."""
        inside = sum(layer.weights + layer.bias * layer.out_features for layer in self.layers)
        return inside + sum(n for _, n in self.others)


def linears_of(denoiser: nn.Module, kwargs: Mapping[str, Any]) -> Linears:
    """Return the linear layers of ``denoiser``, with the tokens each sees in the call ``denoiser(**kwargs)``.

    Args:
        denoiser: the module to call; on any device, ``meta`` included.
        kwargs: its arguments for one image.

    Raises:
        EvaluationError: if the call is about more than one image, or the denoiser has no dtype a rule can name.
    """
    batch = int(kwargs["hidden_states"].shape[0])
    if batch != 1:
        raise EvaluationError(f"linears_of: found a call of {batch} images, expected one.")
    modules = _precision.linears_of(denoiser)
    tokens = _tokens_seen(denoiser, kwargs, modules)
    layers = tuple(
        LinearLayer(
            name=name,
            tokens=tokens[name],
            in_features=module.in_features,
            out_features=module.out_features,
            bias=module.bias is not None,
        )
        for name, module in modules.items()
    )
    inside = {id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False)}
    others = tuple(
        (name, parameter.numel()) for name, parameter in denoiser.named_parameters() if id(parameter) not in inside
    )
    return Linears(layers=layers, others=others, base=base_word(denoiser))


def base_word(denoiser: nn.Module) -> str:
    """Return the word of the dtype the denoiser's parameters are in.

    Raises:
        EvaluationError: if that is none of float32, bfloat16 and float16, or there are several.
    """
    found = {parameter.dtype for parameter in denoiser.parameters()}
    if len(found) != 1 or not found <= FLOAT_WORDS.keys():
        named = ", ".join(sorted(str(dtype) for dtype in found)) or "no parameters"
        raise EvaluationError(f"denoiser: found {named}, expected one of float32, bfloat16 and float16 throughout.")
    return FLOAT_WORDS[found.pop()]


def _tokens_seen(denoiser: nn.Module, kwargs: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> dict[str, int]:
    tokens = dict.fromkeys(modules, 0)

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(_module: nn.Module, args: tuple[Any, ...]) -> None:
            tokens[name] += args[0].numel() // int(args[0].shape[-1])

        return enter

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(note(name)).remove)
        stack.enter_context(torch.no_grad())
        denoiser(**kwargs)
    return tokens


def protects(rule: PrecisionRule, base: str) -> bool:
    """Return whether ``rule`` leaves a layer of a denoiser in ``base`` exactly as it is."""
    return rule.weight == rule.activation == base


def weight_bytes(schedule: Schedule, linears: Linears) -> int:
    """Return the bytes of a checkpoint of the denoiser as ``schedule`` runs it.

    Counted are low-bit codes with their scales, low-rank branches, biases, the smoothing factors, activation scales
    and replaced biases of the side file, and all parameters outside linear layers. Pruned modules need not be stored.
    The bits of learned rounding are not counted: they are in the codes.
    """
    side = _side_elements(schedule)
    kept = (layer for layer in linears.layers if not _inside(layer.name, schedule.pruned))
    others = sum(n for name, n in linears.others if not _inside(name, schedule.pruned))
    total = sum(_layer_bytes(layer, rule_of(schedule.precision, layer.name), linears.base, side) for layer in kept)
    return total + others * FLOAT_BYTES[linears.base]


def resident_bytes(
    schedule: Schedule,
    linears: Linears,
    *,
    executed: Callable[[PrecisionRule, LinearLayer], bool],
    base_stays: bool = True,
) -> int:
    """Return the bytes the denoiser's weights take on the device while ``schedule`` runs.

    Like `weight_bytes`, but for what is there at run time: a layer whose format is only simulated keeps its weight in
    the base dtype (with its low-rank branch beside it), and pruned modules stay loaded, since a schedule can be taken
    off again. Activations and caches are not counted.

    Args:
        schedule: what is run.
        linears: the denoiser's weights.
        executed: whether this device carries out a rule on a layer, rather than simulating it.
        base_stays: whether the layers that rules change are kept on the device as they were, beside the low-bit ones,
            so that the schedule can be taken off.
    """
    side = _side_elements(schedule)
    total = sum(n for _, n in linears.others) * FLOAT_BYTES[linears.base]
    for layer in linears.layers:
        rule = rule_of(schedule.precision, layer.name)
        if rule is None or protects(rule, linears.base):
            total += _layer_bytes(layer, None, linears.base, side)
            continue
        total += _layer_bytes(layer, rule, linears.base, side, stored=executed(rule, layer))
        if base_stays:
            total += _layer_bytes(layer, None, linears.base, side)
    return total


def _layer_bytes(
    layer: LinearLayer, rule: PrecisionRule | None, base: str, side: Mapping[str, int], *, stored: bool = True
) -> int:
    """Bytes of one layer; with ``stored=False`` its weight is kept in the base dtype."""
    base_bytes = FLOAT_BYTES[base]
    plain_bias = layer.bias * layer.out_features * base_bytes
    if rule is None or protects(rule, base):
        return layer.weights * base_bytes + plain_bias
    bits = average_bits(
        (layer.out_features, layer.in_features),
        rule.weight if stored else base,
        scales=rule.scales,
        rank=rule.rank,
        base_bits=8 * base_bytes,
    )
    bias = side.get(f"{layer.name}.bias", 0) * _SIDE_BYTES or plain_bias
    tables = sum(side.get(f"{layer.name}.{what}", 0) for what in ("smooth", "activation_scale"))
    return -(-round(bits * layer.weights) // 8) + bias + tables * _SIDE_BYTES


def _side_elements(schedule: Schedule) -> dict[str, int]:
    """Number of elements of every tensor of the side file."""
    tensors = schedule.tables.tensors if schedule.tables is not None else ()
    return {tensor.name: math.prod(tensor.shape) for tensor in tensors}


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
