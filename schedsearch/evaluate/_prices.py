"""What a precision rule saves, in milliseconds per linear layer, from a latency table.

    saved = time in the base dtype - time in the rule's format, both of the same shape, from the same rounds

A format that this device only simulates is never cheaper than the base: simulation exists to judge quality, and what
it takes says nothing about a device that has the format. Where it was measured, the larger of the two counts, because
that is what a run here takes. A format without a row costs the base: nothing unmeasured claims a speed. Does not know
steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._latency_table import LatencyTable, Mode
from schedsearch.evaluate._linears import LinearLayer, LinearShape, protects
from schedsearch.schedule import PrecisionRule, Schedule, rule_of, rule_word

Basis = Literal["base", "executed", "simulated", "unmeasured"]
"""Why a layer has its price: left in the base dtype; executed and timed here; only simulated here; no such row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Milliseconds of one layer in one denoiser call, and what they rest on."""

    ms: float
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedLinear:
    """One linear shape in one format: milliseconds, and how it was executed."""

    shape: LinearShape
    format: str
    execution: str
    ms: float


@dataclass(frozen=True, kw_only=True)
class LinearPrices:
    """The part of a latency table that prices precision rules.

    Attributes:
        base: word of the denoiser's dtype.
        layers: ``(dotted name, shape)`` of the denoiser's linear layers.
        times: what was timed.
    """

    base: str
    layers: tuple[tuple[str, LinearShape], ...]
    times: tuple[TimedLinear, ...]

    @classmethod
    def of(cls, table: LatencyTable, mode: Mode = "eager") -> LinearPrices:
        """Return the prices in ``table``, as measured in ``mode``.

        Raises:
            EvaluationError: if the table lacks the base time of a layer in that mode.
        """
        times = tuple(
            TimedLinear(
                shape=(row.shape[0], row.shape[1], row.shape[2]), format=row.format, execution=row.execution, ms=ms
            )
            for row in table.rows
            if row.op == "linear" and (ms := row.ms(mode)) is not None
        )
        layers = tuple((layer.name, layer.shape) for layer in table.linears.layers if layer.tokens)
        prices = cls(base=table.header.dtype, layers=layers, times=times)
        for name, shape in layers:
            if (shape, prices.base) not in prices._known:
                raise EvaluationError(
                    f"latency table: found no {mode} time of {name} {shape} in {prices.base}, expected one per linear "
                    "shape. Let `schedsearch profile` finish the table."
                )
        return prices

    def price(self, shape: LinearShape, rule: PrecisionRule | None) -> Price:
        """Return what a layer of this shape costs under ``rule``; ``None`` is the base."""
        base = self._known[shape, self.base].ms
        if rule is None or protects(rule, self.base):
            return Price(ms=base, basis="base")
        row = self._known.get((shape, rule_word(rule)))
        if row is None:
            return Price(ms=base, basis="unmeasured")
        if row.execution == "simulated":
            return Price(ms=max(base, row.ms), basis="simulated")
        return Price(ms=row.ms, basis="executed")

    def executes(self, rule: PrecisionRule, layer: LinearLayer) -> bool:
        """Return whether the table shows that this device carries ``rule`` out on ``layer``, not simulating it."""
        return self.price(layer.shape, rule).basis in {"base", "executed"}

    def prices(self, schedule: Schedule) -> dict[str, Price]:
        """Return the price of every linear layer under ``schedule``, by dotted name."""
        return {name: self.price(shape, rule_of(schedule.precision, name)) for name, shape in self.layers}

    def saved_ms(self, schedule: Schedule) -> dict[str, float]:
        """Return what each layer that a rule changes saves per denoiser call; negative where it costs more."""
        shapes = dict(self.layers)
        return {
            name: self._known[shapes[name], self.base].ms - price.ms
            for name, price in self.prices(schedule).items()
            if price.basis in {"executed", "simulated"}
        }

    def as_content(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "base": self.base,
            "layers": [[name, *shape] for name, shape in self.layers],
            "times": [[*time.shape, time.format, time.execution, time.ms] for time in self.times],
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> LinearPrices:
        """Return the prices that `as_content` gave; any other data raises ValueError, KeyError or TypeError."""
        layers = tuple((str(name), (int(t), int(i), int(o))) for name, t, i, o in content["layers"])
        times = tuple(
            TimedLinear(shape=(int(t), int(i), int(o)), format=str(fmt), execution=str(how), ms=float(ms))
            for t, i, o, fmt, how, ms in content["times"]
        )
        return cls(base=str(content["base"]), layers=layers, times=times)

    @cached_property
    def _known(self) -> dict[tuple[LinearShape, str], TimedLinear]:
        # The first of several executions is the one a schedule gets.
        return {(time.shape, time.format): time for time in reversed(self.times)}


def unmeasured(prices: LinearPrices, schedule: Schedule) -> tuple[str, ...]:
    """Return the format words of ``schedule`` that some layer asks for and the table does not have, sorted."""
    shapes = dict(prices.layers)
    found = set()
    for name, shape in shapes.items():
        rule = rule_of(schedule.precision, name)
        if rule is not None and prices.price(shape, rule).basis == "unmeasured":
            found.add(rule_word(rule))
    return tuple(sorted(found))
