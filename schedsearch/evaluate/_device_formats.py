"""Which number formats a device carries out on a denoiser's linear layers, and which of them gained when timed there.

A format that is only simulated is not among them: simulation exists to judge quality, and says nothing about speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from schedsearch.evaluate._cost import CostModel
from schedsearch.evaluate._linears import base_word
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._prices import LinearPrices
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.quantize import average_bits, execution_of, is_base
from schedsearch.runtime import denoiser_of
from schedsearch.runtime._precision import linears_of
from schedsearch.schedule import PrecisionRule, rule_of_word

WORDS = ("int8", "fp8_e4m3", "bf16", "int4/base", "int4/base+16")
"""Formats that are looked at, as words: the ones that devices have products for."""

GAIN = 0.05
"""Share of the time of all linear layers that a format must be able to save; less may be noise."""

REPEATS = 10
"""Timed rounds per shape."""


def device_formats(denoiser: nn.Module) -> tuple[PrecisionRule, ...]:
    """Return those of `WORDS` that the device the denoiser is on carries out on some of its linear layers."""
    base = base_word(denoiser)
    layers = [linear for linear in linears_of(denoiser).values() if not linear.weight.is_meta]
    places = {((x.out_features, x.in_features), x.weight.dtype, x.weight.device) for x in layers}
    rules = [rule for word in WORDS if (rule := rule_of_word(word, base=base)) is not None]
    return tuple(
        rule
        for rule in rules
        if any(
            not is_base(rule, p[1]) and execution_of(rule, *p).execution not in {"base", "simulated"} for p in places
        )
    )


def with_linear_prices(
    cost: CostModel, pipe: Pipeline, card: ModelCard, formats: Sequence[PrecisionRule], *, repeats: int = REPEATS
) -> CostModel:
    """Return the cost model with the times, measured now, of every distinct linear shape in the base and ``formats``.

    Args:
        cost: measured on the same device.
        pipe: the pipeline, without a schedule applied.
        card: how it is called.
        formats: what to time; patterns do not matter.
        repeats: timed rounds per shape.
    """
    from schedsearch.evaluate.profile import measure_table, table_header

    table = measure_table(
        pipe,
        Workload.from_card(card),
        table_header(pipe, card, weights="loaded"),
        rules=formats,
        modes=("eager",),
        ops=("linear",),
        repeats=repeats,
    )
    return cost.with_table(table)


def worthwhile(prices: LinearPrices, rule: PrecisionRule, layers: Iterable[str], *, for_memory: bool = False) -> bool:
    """Return whether searching ``rule`` on ``layers`` can gain anything.

    It is executed on all of them, and where it was faster than the base it saves at least `GAIN` of what all of them
    take together; or it takes fewer bits, if that is wanted.
    """
    shapes = dict(prices.layers)
    found = [(shapes[name], prices.price(shapes[name], rule)) for name in layers if name in shapes]
    if not found or any(price.basis != "executed" for _, price in found):
        return False
    base = [prices.price(shape, None).ms for shape, _ in found]
    saved = sum(max(0.0, plain - price.ms) for plain, (_, price) in zip(base, found, strict=True))
    if saved >= GAIN * sum(base):
        return True
    base_bits = {"fp32": 32, "bf16": 16, "fp16": 16}[prices.base]
    return for_memory and all(
        average_bits((out, into), rule.weight, scales=rule.scales, rank=rule.rank, base_bits=base_bits) < base_bits
        for (_, into, out), _ in found
    )


def denoiser_formats(pipe: Pipeline) -> tuple[tuple[str, ...], str, tuple[PrecisionRule, ...]]:
    """Return the names of the denoiser's linear layers, the word of their dtype, and `device_formats`."""
    denoiser = denoiser_of(pipe)
    return tuple(linears_of(denoiser)), base_word(denoiser), device_formats(denoiser)
