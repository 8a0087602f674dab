"""What a schedule will cost on this device, predicted from parts measured here.

    predicted = sum over features of (coefficient x amount)

The amounts follow from the schedule alone: one ``floor`` per image (text encoders, VAE, set-up), one ``loop`` per call
of the sampler (one or two per step), the milliseconds of the modules that run, what a solver of higher order sums, and
how often each kind of cache keeps or predicts. The coefficients come from `measure_cost`; here they are only used, so a
model that was stored predicts the same numbers after a restart. It holds for batch 1 at the resolution and dtype it was
measured at, and knows nothing of reduced precision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from schedsearch.errors import EvaluationError
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Predicts the wall time of ``pipe(...)`` under a schedule.

    Attributes:
        device: the machine in words.
        full_ms: measured median of the plain run.
        times: module times.
        coefficients: `(len(FEATURES),)` see `FEATURES`.
        residual: largest relative error on the schedules it was calibrated with.
    """

    device: str
    full_ms: float
    times: ModuleTimes
    coefficients: tuple[float, ...]
    residual: float

    @property
    def floor_ms(self) -> float:
        """The part of a call that no schedule can change."""
        return self.coefficients[FEATURES.index("floor")]

    def predict_ms(self, schedule: Schedule) -> float:
        """Return the predicted wall time of one call, one image."""
        amounts = feature_amounts(schedule, self.times)
        return sum(c * amount for c, amount in zip(self.coefficients, amounts, strict=True))

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
