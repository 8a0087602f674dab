"""Measures candidates on a live pipeline: quality against the full run with the same noise, cost from the cost model.

A candidate's wall time is predicted, not measured, while a search runs: a measurement takes ten times as long as an
image and blurs the ranking it should inform. What a search hands over is measured again, see ``_held_out.py``. Scores
do not depend on how prompts are spread over batches beyond the rounding of the matrix products (below 1e-3 dB in
float32), and the same machine gives the same scores again. Does not know who proposed a candidate, or why.
"""

from __future__ import annotations

import time
from typing import Literal

import torch

from schedsearch.errors import UsageError
from schedsearch.evaluate._cost import CostModel
from schedsearch.evaluate._latency import device_name, synchroniser
from schedsearch.evaluate._macs import MacTable, schedule_macs
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._quality import METRICS, QualityMetric, find_metric, score_pictures
from schedsearch.evaluate._reference import PairedRuns, Reference
from schedsearch.evaluate._trace import Count, capture_call, counting_calls
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import apply, denoiser_of
from schedsearch.schedule import Schedule
from schedsearch.study import Candidate, Evaluation, Objective

Cost = Literal["latency_ms", "macs"]

Samples = dict[str, tuple[float, ...]]


class PipelineEvaluator:
    """Runs candidates on calibration prompts; an `Evaluator`.

    Args:
        pipe: the pipeline, without a schedule applied, without progress bars.
        card: how it is called.
        prompts: calibration prompts.
        metric: name of the quality objective, see `METRICS`; the other metrics are recorded beside it.
        cost_model: predicts wall time.
        mac_table: counts multiply-accumulates.
        cost: the first objective: predicted wall time or MACs.
        seed: of the noise; prompt i starts from the same latents in every run.
        device: where the pipeline is.
        batch: images per call.

    Raises:
        UsageError: if there are no prompts, ``batch`` is less than 1, or the metric or cost is unknown.
    """

    def __init__(
        self,
        pipe: Pipeline,
        card: ModelCard,
        prompts: tuple[str, ...],
        *,
        cost_model: CostModel,
        mac_table: MacTable,
        metric: str = "psnr",
        cost: Cost = "latency_ms",
        seed: int = 0,
        device: torch.device | str = "cpu",
        batch: int = 8,
    ) -> None:
        if not prompts or batch < 1:
            raise UsageError(
                f"PipelineEvaluator: found {len(prompts)} prompts and batch={batch}, expected at least one of each."
            )
        if cost not in ("latency_ms", "macs"):
            raise UsageError(f"PipelineEvaluator: found cost {cost!r}, expected latency_ms or macs.")
        self._metric = find_metric(metric)
        self._metrics: tuple[QualityMetric, ...] = tuple(METRICS.values())
        self._pipe = pipe
        self._cost = cost
        self._cost_model = cost_model
        self._mac_table = mac_table
        self._lists = cost_model.times.block_lists
        self._workload = Workload.from_card(card)
        self._drain = synchroniser(device)
        self._device = device_name(device)
        self._runs = PairedRuns(pipe, self._workload, tuple(prompts), seed=seed, batch=batch)
        self._reference = Reference(self._runs)
        self._sentinel = capture_call(pipe, self._workload, prompts[0]).sentinel
        self.objectives: tuple[Objective, ...] = (
            Objective(name=cost, unit="ms" if cost == "latency_ms" else "MAC", better="min"),
            Objective(name=self._metric.name, unit=self._metric.unit, better=self._metric.better),
        )

    @property
    def n_prompts(self) -> int:
        """The highest fidelity."""
        return len(self._runs)

    def prepare(self, fidelity: int) -> int:
        """Make the full runs that ``fidelity`` prompts are compared with; return the denoiser evaluations spent."""
        with counting_calls(denoiser_of(self._pipe), self._sentinel) as calls:
            spent = _Spent(calls)
            self._reference.prepare(fidelity, on_images=spent.add_images)
        return spent.evaluations

    def evaluate(self, candidate: Candidate, *, fidelity: int) -> Evaluation:
        """Return the measurement of ``candidate`` on the first ``fidelity`` prompts (at most all of them).

        A schedule that cannot be applied, fails, or ends in pixels that are no numbers gives a ``failed`` record. The
        full runs it is compared with are made on first use, and their time and denoiser evaluations are not part of
        the record.

        Raises:
            UsageError: if ``fidelity`` is less than 1, which is the caller's error and not the candidate's.
        """
        if fidelity < 1:
            raise UsageError(f"fidelity: found {fidelity}, expected at least 1 prompt.")
        n = min(fidelity, self.n_prompts)
        self._reference.prepare(n)
        started = time.perf_counter()
        with counting_calls(denoiser_of(self._pipe), self._sentinel) as calls:
            spent = _Spent(calls)
            # Whatever a schedule breaks (shapes, memory, numbers) is a property of the schedule: a record, not a crash.
            try:
                samples = self._samples(candidate.schedule, n, spent)
                values, metrics = self._numbers(candidate.schedule, samples, spent)
                reason = ""
            except Exception as error:  # noqa: BLE001
                samples, values, metrics = {}, (), ()
                reason = f"{type(error).__name__}: {error}"
        self._drain()
        return Evaluation(
            candidate=candidate,
            status="failed" if reason else "ok",
            reason=reason,
            values=values,
            metrics=metrics,
            samples=tuple(samples.items()),
            fidelity=n,
            device=self._device,
            seconds=time.perf_counter() - started,
            denoiser_evals=spent.evaluations,
        )

    def _samples(self, schedule: Schedule, n: int, spent: _Spent) -> Samples:
        """Return each metric's numbers on the first ``n`` prompts."""
        parts: list[Samples] = []
        with apply(self._pipe, schedule):
            for start, stop in self._runs.batches(n):
                try:
                    pictures = self._runs.run(start, stop, steps=schedule.n_steps)
                finally:
                    spent.add_images(stop - start)
                if not bool(torch.isfinite(pictures.latents).all() and torch.isfinite(pictures.images).all()):
                    raise FloatingPointError(f"a picture of prompts {start} to {stop - 1} holds NaN or infinity")
                parts.append(score_pictures(self._metrics, pictures, self._reference.pictures(start, stop)))
        return {name: tuple(value for part in parts for value in part[name]) for name in parts[0]}

    def _numbers(
        self, schedule: Schedule, samples: Samples, spent: _Spent
    ) -> tuple[tuple[float, ...], tuple[tuple[str, float], ...]]:
        """Return objective values and further metrics."""
        costs = {
            "latency_ms": self._cost_model.predict_ms(schedule),
            "macs": schedule_macs(schedule, self._mac_table, self._lists, branches=self._workload.branches),
        }
        means = {name: sum(values) / len(values) for name, values in samples.items()}
        metrics = {
            "predicted_ms": costs["latency_ms"],
            "macs": costs["macs"],
            "denoiser_calls": spent.evaluations / max(spent.images, 1),
            **means,
        }
        return (costs[self._cost], means[self._metric.name]), tuple(metrics.items())


class _Spent:
    """Images made, and denoiser evaluations (images times real denoiser calls) spent on them."""

    def __init__(self, calls: Count) -> None:
        self.images = 0
        self.evaluations = 0
        self._calls = calls
        self._seen = 0

    def add_images(self, n: int) -> None:
        """Book the denoiser calls since the last booking on ``n`` images that were made together."""
        self.images += n
        self.evaluations += n * (self._calls.value - self._seen)
        self._seen = self._calls.value
