"""All tables of one low-bit layer, fitted one after the other on sample inputs, each kept only if it helps.

Smoothing comes first, because it changes what is rounded; then learned rounding of what is left beside the low-rank
branch; last the bias, which takes up the mean error of each output: ``b' = b + mean(y - y_q)`` (Nagel 2019, arXiv
1906.04721, section 4.2). Knows a layer and its inputs; not where in a model it stands, nor any step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schedsearch.errors import UsageError
from schedsearch.quantize._error import output_error
from schedsearch.quantize._formats import activation_scales, fake, format_of
from schedsearch.quantize._layer import QuantLinear
from schedsearch.quantize._lowrank import branch_of
from schedsearch.quantize._rounding import Gram, learned_rounding, shifted
from schedsearch.quantize._smooth import searched_smoothing
from schedsearch.schedule import PrecisionRule

TOOLS = ("smooth", "rounding", "bias")
"""What `fit_tables` can fit, in its order; the names of the tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTables:
    """A layer's tables and what each of them brought.

    Attributes:
        tables: tensors by the last part of their name in the side file, as `QuantLinear.of` takes them.
        errors: mean squared output error on the inputs that judge: ``plain`` first, then after each tool that was
            tried. Lower is better; it never rises.
    """

    tables: Mapping[str, Tensor]
    errors: tuple[tuple[str, float], ...]


@torch.no_grad()
def fit_tables(
    linear: nn.Linear,
    rule: PrecisionRule,
    x: Tensor,
    *,
    largest: Tensor | None = None,
    judge: Tensor | None = None,
    tools: Sequence[str] = TOOLS,
) -> LayerTables:
    """Returns the tables under which the layer, in the formats of ``rule``, is nearest to itself.

    Args:
        linear: the layer; not changed.
        rule: formats, granularity and rank.
        x: `(..., in)` sample inputs, of all timesteps.
        largest: `(in,)` largest absolute activations (`ChannelStatistics.largest`); those of ``x`` where left out.
        judge: `(..., in)` inputs on which a tool has to help; ``x`` where left out. Others than ``x`` guard against
            fitting too few samples too well.
        tools: which of `TOOLS` to try.

    Raises:
        UsageError: an unknown tool, or inputs that do not fit the layer.
    """
    _check(linear, x, tools)
    x = x.reshape(-1, x.shape[-1])
    judge = x if judge is None else judge.reshape(-1, judge.shape[-1])
    makers: dict[str, Callable[[Mapping[str, Tensor]], Tensor | None]] = {
        "smooth": lambda _: _smooth(linear, rule, x, x.abs().amax(0) if largest is None else largest),
        "rounding": lambda tables: _rounding(linear, rule, x, tables),
        "bias": lambda tables: _bias(linear, rule, x, tables),
    }
    exact = _exact(linear, judge)
    tables: dict[str, Tensor] = {}
    errors = [("plain", output_error(exact, _low_bit(linear, rule, tables, judge)))]
    for tool in TOOLS:
        made = makers[tool](tables) if tool in tools else None
        if made is None:
            continue
        tried = {**tables, tool: made}
        error = output_error(exact, _low_bit(linear, rule, tried, judge))
        if error < errors[-1][1]:
            tables = tried
        errors.append((tool, min(error, errors[-1][1])))
    return LayerTables(tables=tables, errors=tuple(errors))


def corrected_bias(exact: Tensor, seen: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `(out,)` float32: the bias under which the mean of every output is right, on these inputs; no bias has
    less squared error there.

    Args:
        exact: `(..., out)` outputs of the layer.
        seen: `(..., out)` outputs of the low-bit layer, with ``bias``.
        bias: `(out,)`, or none.
    """
    missing = (exact.double() - seen.double()).reshape(-1, exact.shape[-1]).mean(0)
    return (missing if bias is None else missing + bias.double()).float()


def _exact(linear: nn.Linear, x: Tensor) -> Tensor:
    bias = None if linear.bias is None else linear.bias.double()
    return nn.functional.linear(x.double(), linear.weight.double(), bias)


def _low_bit(linear: nn.Linear, rule: PrecisionRule, tables: Mapping[str, Tensor], x: Tensor) -> Tensor:
    layer = QuantLinear.of(linear, rule, tables, execution="simulated")
    y: Tensor = layer(x.to(linear.weight.dtype))
    return y


def _smooth(linear: nn.Linear, rule: PrecisionRule, x: Tensor, largest: Tensor) -> Tensor | None:
    if format_of(rule.weight).is_cast and format_of(rule.activation).is_cast:
        return None
    found = searched_smoothing(
        largest,
        linear.weight.float(),
        x.float(),
        weight_fmt=rule.weight,
        activation_fmt=rule.activation,
        scales=rule.scales,
        rank=rule.rank,
    )
    return None if found.alpha is None else found.vector


def _rounding(linear: nn.Linear, rule: PrecisionRule, x: Tensor, tables: Mapping[str, Tensor]) -> Tensor | None:
    if format_of(rule.weight).is_cast:
        return None
    smooth = tables.get("smooth", torch.ones(linear.in_features)).to(linear.weight.device)
    weight = linear.weight.float() * smooth
    if rule.rank:
        weight = branch_of(weight, rule.rank, linear.weight.dtype).residual
    x = x.float() / smooth
    seen = fake(x, rule.activation, scales=activation_scales(rule.activation, rule.scales))
    gram = Gram(linear.in_features, device=x.device)
    gram.update(seen)
    target = shifted(weight, x, seen)
    return learned_rounding(weight, gram.matrix, rule.weight, scales=rule.scales, target=target).bits


def _bias(linear: nn.Linear, rule: PrecisionRule, x: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    return corrected_bias(_exact(linear, x), _low_bit(linear, rule, tables, x), linear.bias)


def _check(linear: nn.Linear, x: Tensor, tools: Sequence[str]) -> None:
    unknown = [tool for tool in tools if tool not in TOOLS]
    if unknown:
        raise UsageError(f"tables: found tools {', '.join(unknown)}, expected some of {', '.join(TOOLS)}")
    if x.shape[-1] != linear.in_features or not x.numel():
        raise UsageError(
            f"tables: found inputs of shape {tuple(x.shape)}, expected one or more rows of {linear.in_features} "
            "channels"
        )
