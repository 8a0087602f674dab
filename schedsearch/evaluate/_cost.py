"""What a schedule will cost on this device, predicted from parts measured here.

    predicted = sum over features of (coefficient x amount)

The amounts follow from the schedule alone: one ``floor`` per image (text encoders, VAE, set-up), one ``loop`` per call
of the sampler (one or two per step), the milliseconds of the modules that run, what a solver of higher order sums, and
how often each kind of cache keeps or predicts. The coefficients come from `measure_cost`; here they are only used, so a
model that was stored predicts the same numbers after a restart. It holds for batch 1 at the resolution and dtype it was
measured at. Precision rules are priced from a latency table, where the model was given one (`CostModel.with_table`):
each linear layer that a rule changes makes the modules around it cheaper by what it saves. Without a table a rule saves
nothing, because a speed that was not timed does not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._latency_table import LatencyTable, Mode
from schedsearch.evaluate._prices import LinearPrices
from schedsearch.evaluate._work import StepWork, step_work
from schedsearch.schedule import Schedule
from schedsearch.types import BlockSpec

KINDS = ("model", "segment", "component")
FEATURES = (
    "floor",
    "loop",
    "compute",
    "saved",
    "solver.term",
    "segment.pass",
    *(f"{kind}.{what}" for kind in KINDS for what in ("keep", "keep_order", "predict", "predict_order")),
)
"""Names of all amounts, in the order of `CostModel.coefficients`.

``compute`` counts the milliseconds of the blocks that run and of what surrounds them, ``saved`` (negative) those of the
components left out inside them; their coefficients are plain factors near 1. All others count occurrences and their
coefficients are milliseconds. ``keep`` is paid per site and call, ``keep_order`` per divided difference on top;
``predict`` and ``predict_order`` likewise; ``segment.pass`` per block that hands its input on; ``solver.term`` per
tensor that a step sums beyond its sample and its output. The second call of a two-call step keeps nothing.
"""

_JSON_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTimes:
    """Milliseconds of one denoiser call at batch 1, measured in place.

    Attributes:
        block_lists: the denoiser's blocks.
        branches: calls per step under the pipeline's own guidance.
        rest_ms: everything outside the blocks.
        modules: ``(dotted name, milliseconds)`` of every block and component.
    """

    block_lists: tuple[tuple[BlockSpec, ...], ...]
    branches: int
    rest_ms: float
    modules: tuple[tuple[str, float], ...]

    def compute_ms(self, work: StepWork) -> tuple[float, float]:
        """Return the milliseconds of what runs in one denoiser call of ``work``, and those its components save."""
        if not work.runs_denoiser:
            return 0.0, 0.0
        times = dict(self.modules)
        blocks = sum(times[name] for name in work.blocks)
        return self.rest_ms + blocks, sum(times[name] for name in work.left_out)

    def cheaper(self, saved: Mapping[str, float]) -> ModuleTimes:
        """Return these times with layers that take less, by dotted name, inside the modules or around the blocks.

        A module is never below 0: what a layer saves was timed alone, and cannot be more than what it is part of.
        """
        blocks = {block.name for each in self.block_lists for block in each}
        less = dict.fromkeys(dict(self.modules), 0.0)
        rest_ms = self.rest_ms
        for layer, ms in saved.items():
            around = [layer, *(layer[:i] for i, letter in enumerate(layer) if letter == ".")]
            for name in around:
                if name in less:
                    less[name] += ms
            if not blocks.intersection(around):
                rest_ms -= ms
        modules = tuple((name, max(0.0, ms - less[name])) for name, ms in self.modules)
        return replace(self, rest_ms=max(0.0, rest_ms), modules=modules)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Predicts the wall time of ``pipe(...)`` under a schedule.

    Attributes:
        device: the machine in words.
        full_ms: measured median of the plain run.
        times: module times.
        coefficients: `(len(FEATURES),)` see `FEATURES`.
        residual: largest relative error on the schedules it was calibrated with.
        prices: what linear layers cost in other formats; ``None`` if that was not measured.
    """

    device: str
    full_ms: float
    times: ModuleTimes
    coefficients: tuple[float, ...]
    residual: float
    prices: LinearPrices | None = None

    @property
    def floor_ms(self) -> float:
        """The part of a call that no schedule can change."""
        return self.coefficients[FEATURES.index("floor")]

    def predict_ms(self, schedule: Schedule) -> float:
        """Return the predicted wall time of one call, one image."""
        amounts = feature_amounts(schedule, self.times_under(schedule))
        return sum(c * amount for c, amount in zip(self.coefficients, amounts, strict=True))

    def times_under(self, schedule: Schedule) -> ModuleTimes:
        """Return the module times with what the schedule's precision rules save taken off."""
        if not schedule.precision or self.prices is None:
            return self.times
        return self.times.cheaper(self.prices.saved_ms(schedule))

    def with_table(self, table: LatencyTable, mode: Mode = "eager") -> CostModel:
        """Return this model with the table's prices of precision rules.

        Args:
            table: measured on the same device in the same dtype.
            mode: the column to use: that of how pipelines are run, and this model was measured.

        Raises:
            EvaluationError: if the table was measured elsewhere, or is not complete.
        """
        if table.header.device != self.device:
            raise EvaluationError(
                f"latency table: found one of {table.header.device}, expected {self.device}, where the cost model was "
                "measured. Run `schedsearch profile` there."
            )
        return replace(self, prices=LinearPrices.of(table, mode))

    def speedup(self, schedule: Schedule) -> float:
        """Return the measured plain time over the predicted one. A prediction: quote measured speedups only."""
        return self.full_ms / self.predict_ms(schedule)

    def to_json(self) -> str:
        """Return the model as JSON text that `from_json` reads back exactly."""
        content = {
            "version": _JSON_VERSION,
            "device": self.device,
            "full_ms": self.full_ms,
            "residual": self.residual,
            "coefficients": dict(zip(FEATURES, self.coefficients, strict=True)),
            "branches": self.times.branches,
            "rest_ms": self.times.rest_ms,
            "modules": dict(self.times.modules),
            "blocks": [[[block.name, list(block.components)] for block in blocks] for blocks in self.times.block_lists],
        }
        if self.prices is not None:
            # A reader that does not know this key prices rules as the base, which is on the safe side: same version.
            content["linears"] = self.prices.as_content()
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        """Return the model that `to_json` wrote.

        Raises:
            EvaluationError: if ``text`` is not such a model, or one of another version.
        """
        try:
            content = json.loads(text)
            if content["version"] != _JSON_VERSION:
                raise EvaluationError(
                    f"cost model: found version {content['version']!r}, expected {_JSON_VERSION}. Measure it again."
                )
            return cls._from_content(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"cost model: found damaged text ({error!r}). Measure it again.") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> CostModel:
        blocks = tuple(
            tuple(BlockSpec(name=name, components=tuple(parts)) for name, parts in each) for each in content["blocks"]
        )
        modules = tuple((str(name), float(ms)) for name, ms in content["modules"].items())
        linears = content.get("linears")
        return cls(
            device=str(content["device"]),
            full_ms=float(content["full_ms"]),
            times=ModuleTimes(
                block_lists=blocks,
                branches=int(content["branches"]),
                rest_ms=float(content["rest_ms"]),
                modules=modules,
            ),
            coefficients=tuple(float(content["coefficients"][name]) for name in FEATURES),
            residual=float(content["residual"]),
            prices=None if linears is None else LinearPrices.from_content(linears),
        )


def feature_amounts(schedule: Schedule, times: ModuleTimes) -> tuple[float, ...]:
    """Return how much of every feature ``schedule`` has, in the order of `FEATURES`."""
    amounts = dict.fromkeys(FEATURES, 0.0)
    amounts["floor"] = 1.0
    for work in step_work(schedule, times.block_lists, branches=times.branches):
        amounts["loop"] += work.calls / work.passes
        amounts["solver.term"] += work.terms
        compute_ms, saved_ms = times.compute_ms(work)
        amounts["compute"] += work.calls * compute_ms
        amounts["saved"] -= work.calls * saved_ms
        amounts["segment.pass"] += work.calls * work.passed
        for kind, order in work.kept:
            amounts[f"{kind}.keep"] += work.passes
            amounts[f"{kind}.keep_order"] += work.passes * order
        for kind, order in work.predicted:
            amounts[f"{kind}.predict"] += work.calls
            amounts[f"{kind}.predict_order"] += work.calls * order
    return tuple(amounts[name] for name in FEATURES)


def computed_ms(schedule: Schedule, times: ModuleTimes) -> float:
    """Return the milliseconds of all modules that ``schedule`` runs, with everything around the denoiser free."""
    total = 0.0
    for work in step_work(schedule, times.block_lists, branches=times.branches):
        compute_ms, saved_ms = times.compute_ms(work)
        total += work.calls * (compute_ms - saved_ms)
    return total
