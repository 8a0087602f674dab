"""Measures candidates on a live pipeline: quality against reference runs with the same noise, cost from the cost model.

A candidate's wall time is predicted, not measured, while a search runs: a measurement takes ten times as long as an
image and blurs the ranking it should inform. What a search hands over is measured again, see ``_held_out.py``. Scores
do not depend on how prompts are spread over batches beyond the rounding of the matrix products (below 1e-3 dB in
float32), and the same machine gives the same scores again. Does not know who proposed a candidate, or why.

Where the time goes on flux-mini (5 calls, 8 prompts, one thread of a server CPU): 335 ms in the denoiser, 120 ms in the
VAE, 1 ms in PSNR and latent error against both references, 1 ms in putting the schedule on and off. SSIM takes 50 ms
per reference and is therefore scored only where it is the objective. Several candidates in one call of the denoiser
would save nothing there: 16 images take 629 ms and 286 ms (VAE) where twice 8 take 668 ms and 245 ms.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from schedsearch.errors import EvaluationError, UsageError
from schedsearch.evaluate._cost import CostModel
from schedsearch.evaluate._latency import device_name, synchroniser
from schedsearch.evaluate._macs import MacTable, schedule_macs
from schedsearch.evaluate._memory import MemoryModel
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._polish import polished
from schedsearch.evaluate._quality import METRICS, REFERENCES, ReferenceName, find_metrics
from schedsearch.evaluate._reference import PairedRuns, Reference
from schedsearch.evaluate._rollout import HopelessError, Rolled, Runner
from schedsearch.evaluate._scoring import Samples, Scoring, Tally
from schedsearch.evaluate._trace import Count, Spent, capture_call, counting_calls
from schedsearch.evaluate._tree import PrefixTree, room_on
from schedsearch.evaluate._work import step_work
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import LowBitCache, denoiser_of
from schedsearch.runtime._precision import CACHE_BYTES
from schedsearch.schedule import Schedule, with_solver_table
from schedsearch.study import Candidate, Evaluation, Objective

Cost = Literal["latency_ms", "macs"]

STRAY = 0.5
"""Relative latent error after a step above which a run ends."""

POLISH = 2
"""Prompts on which the numbers of a candidate that asks for it are fitted together: it is measured on more."""

CHEAP_METRICS = ("psnr", "latent_error")
"""Metrics that are always scored."""


class _TooLargeError(EvaluationError):
    """A schedule takes more memory than allowed; the text says how much."""


class PipelineEvaluator:
    """Runs candidates on calibration prompts; an `Evaluator`.

    Candidates that begin alike share those denoiser calls (see ``_tree.py``), with the scores they would have without.
    ``table`` steps of a schedule that is not fitted are fitted to the reference on the prompts it is measured on. A run
    that strays too far from the reference ends early, as a ``pruned`` record. A candidate that asks to be polished is
    polished on the first `POLISH` of its prompts before.

    Args:
        pipe: the pipeline, without a schedule applied, without progress bars.
        card: how it is called.
        prompts: calibration prompts.
        metric: names of the quality objectives separated by commas, see `METRICS`. PSNR and latent error are always
            recorded beside them.
        cost_model: predicts wall time.
        mac_table: counts multiply-accumulates.
        cost: the first objective: predicted wall time or MACs.
        reference: what quality is measured against: the plain run, or the converged one, see `Reference`. The numbers
            against both are recorded; those against the converged run are called ``converged_psnr`` and so on, the
            objective as well.
        both: make both reference runs and record the numbers against both; else only the chosen one.
        seed: of the noise; prompt i starts from the same latents in every run.
        device: where the pipeline is.
        batch: images per call.
        tree_bytes: memory for shared calls; by default what the device can spare, at most 1 GiB; 0 shares none.
        stray: relative latent error after a step above which a run ends as hopeless; infinity lets all runs end.
        memory: predicts bytes, which are recorded then.
        max_bytes: predicted peak above which a candidate is not run, as a ``pruned`` record; needs ``memory``.

    Raises:
        UsageError: if there are no prompts, ``batch`` is less than 1, or the metric, cost or reference is unknown.
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
        reference: ReferenceName = "default",
        both: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
        batch: int = 8,
        tree_bytes: int | None = None,
        stray: float = STRAY,
        memory: MemoryModel | None = None,
        max_bytes: int | None = None,
    ) -> None:
        if not prompts or batch < 1:
            raise UsageError(
                f"PipelineEvaluator: found {len(prompts)} prompts and batch={batch}, expected at least one of each."
            )
        if cost not in ("latency_ms", "macs"):
            raise UsageError(f"PipelineEvaluator: found cost {cost!r}, expected latency_ms or macs.")
        wanted = find_metrics(metric, weights=card.metric_weights, device=device)
        qualities = find_metrics(metric, reference, weights=card.metric_weights, device=device)
        self._qualities = tuple(found.name for found in qualities)
        self._pipe = pipe
        self._cost = cost
        self._cost_model = cost_model
        self._mac_table = mac_table
        self._memory = memory
        self._max_bytes = max_bytes
        self._lists = cost_model.times.block_lists
        self._workload = Workload.from_card(card)
        self._drain = synchroniser(device)
        self._device = device_name(device)
        self._runs = PairedRuns(pipe, self._workload, tuple(prompts), seed=seed, batch=batch)
        self._references = {name: Reference(self._runs, name=name) for name in REFERENCES if both or name == reference}
        metrics = {found.name: found for found in (*(METRICS[name] for name in CHEAP_METRICS), *wanted)}
        self._scoring = Scoring(tuple(metrics.values()), tuple(self._references), prompts)
        self._sentinel = capture_call(pipe, self._workload, prompts[0]).sentinel
        self._spent = Spent(Count())
        self._runner = Runner(
            self._runs,
            self._references[reference],
            tree=PrefixTree(room_on(torch.device(device)) if tree_bytes is None else tree_bytes),
            stray=stray,
            on_images=self._book,
            layers=LowBitCache(_room_for_layers(torch.device(device))),
        )
        self.objectives: tuple[Objective, ...] = (
            Objective(name=cost, unit="ms" if cost == "latency_ms" else "MAC", better="min"),
            *(Objective(name=found.name, unit=found.unit, better=found.better) for found in qualities),
        )

    @property
    def n_prompts(self) -> int:
        """The highest fidelity."""
        return len(self._runs)

    def prepare(self, fidelity: int) -> int:
        """Make both reference runs of ``fidelity`` prompts, unless made; return the denoiser evaluations spent."""
        with self._counting() as spent:
            for reference in self._references.values():
                reference.prepare(fidelity, on_images=spent.add_images)
        return spent.evaluations

    def evaluate(self, candidate: Candidate, *, fidelity: int) -> Evaluation:
        """Return the measurement of ``candidate`` on the first ``fidelity`` prompts (at most all of them).

        A schedule that cannot be applied, fails, or ends in pixels that are no numbers gives a ``failed`` record, one
        that strays from the reference a ``pruned`` one. The reference runs are made on first use, and their time and
        denoiser evaluations are not part of the record; nor are calls that an earlier candidate has made.

        Raises:
            UsageError: if ``fidelity`` is less than 1, which is the caller's error and not the candidate's.
        """
        n = self._prompts(fidelity)
        started = time.perf_counter()
        samples: Samples = {}
        numbers: tuple[tuple[float, ...], tuple[tuple[str, float], ...]] = (), ()
        status: Literal["ok", "failed", "pruned"] = "ok"
        reason = ""
        with self._counting() as spent:
            # Whatever a schedule breaks (shapes, memory, numbers) is a property of the schedule: a record, not a crash.
            try:
                self._require_room(candidate.schedule)
                tally = self._scored(self._runner.roll(self._polished(candidate, n), n))
                numbers = self._numbers(candidate.schedule, tally.means())
                samples = tally.samples
            except (HopelessError, _TooLargeError) as error:
                status, reason = "pruned", str(error)
            except Exception as error:  # noqa: BLE001
                samples = {}
                status, reason = "failed", f"{type(error).__name__}: {error}"
        self._drain()
        return Evaluation(
            candidate=candidate,
            status=status,
            reason=reason,
            values=numbers[0],
            metrics=numbers[1],
            samples=tuple(samples.items()),
            fidelity=n,
            device=self._device,
            seconds=time.perf_counter() - started,
            denoiser_evals=spent.evaluations,
        )

    def ready(self, candidate: Candidate, *, fidelity: int) -> Schedule:
        """Return the schedule of ``candidate`` with the numbers that `evaluate` measures it with. Raises as `fit`."""
        n = self._prompts(fidelity)
        with self._counting():
            schedule = self._polished(candidate, n)
        return self.fit(schedule, n)

    def _polished(self, candidate: Candidate, n: int) -> Schedule:
        """The candidate's schedule, polished on a few of its ``n`` prompts if it asks for that."""
        if not candidate.polish:
            return candidate.schedule
        levels = candidate.polish == "levels"
        return polished(self._runner, candidate.schedule, min(POLISH, n), rounds=1, levels=levels)

    def fit(self, schedule: Schedule, n_prompts: int) -> Schedule:
        """Return ``schedule`` with the scalars of its ``table`` steps, fitted on the first ``n_prompts`` prompts.

        On all of them if there are fewer; a schedule that needs no scalars comes back as it is. `spent` says what it
        took.

        Raises:
            UsageError: if ``n_prompts`` is less than 1.
            ApplyError: the schedule cannot be put on this pipeline.
            EvaluationError: it strays too far from the reference to be worth it.
            FloatingPointError: the denoiser gave values that are no numbers.
        """
        n = self._prompts(n_prompts)
        if not schedule.unfitted:
            return schedule
        with self._counting():
            rolled = self._runner.roll(schedule, n)
        return with_solver_table(schedule, rolled.scalars)

    def polish(self, schedule: Schedule, n_prompts: int, *, rounds: int = 2, levels: bool = False) -> Schedule:
        """Return ``schedule`` with the scalars of all its ``table`` steps fitted together to the final latents, with
        ``levels`` their noise levels too, on the first ``n_prompts`` prompts, on all of them if there are fewer, in so
        many rounds at most; see `_polish.py`. `spent` says what it took. Raises what `fit` raises.
        """
        n = self._prompts(n_prompts)
        with self._counting():
            return polished(self._runner, schedule, n, rounds=rounds, levels=levels)

    @property
    def spent(self) -> int:
        """Denoiser evaluations of the last `prepare`, `evaluate`, `fit` or `polish`."""
        return self._spent.evaluations

    @property
    def layers_made(self) -> int:
        """Low-bit layers made so far; those that were at hand are not among them."""
        return self._runner.layers.made

    def _require_room(self, schedule: Schedule) -> None:
        """Refuse a schedule whose predicted peak is above the limit, before anything is run."""
        if self._memory is None or self._max_bytes is None:
            return
        if reason := self._memory.why_not(schedule, self._max_bytes):
            raise _TooLargeError(reason)

    def _book(self, images: int) -> None:
        self._spent.add_images(images)

    def _prompts(self, fidelity: int) -> int:
        if fidelity < 1:
            raise UsageError(f"fidelity: found {fidelity}, expected at least 1 prompt.")
        n = min(fidelity, self.n_prompts)
        self.prepare(n)
        return n

    @contextmanager
    def _counting(self) -> Iterator[Spent]:
        with counting_calls(denoiser_of(self._pipe), self._sentinel) as calls:
            self._spent = Spent(calls)
            yield self._spent

    def _scored(self, rolled: Rolled) -> Tally:
        """Return each metric's numbers on all prompts, against both references."""
        tally = self._scoring.tally(rolled.batches)
        for (start, stop), latents in zip(rolled.batches, rolled.latents, strict=True):
            pictures = self._runs.pictures(latents)
            if not bool(torch.isfinite(pictures.latents).all() and torch.isfinite(pictures.images).all()):
                raise FloatingPointError(f"a picture of prompts {start} to {stop - 1} holds NaN or infinity")
            references = {name: reference.pictures(start, stop) for name, reference in self._references.items()}
            tally.add((start, stop), pictures, references)
        return tally

    def _numbers(
        self, schedule: Schedule, means: dict[str, float]
    ) -> tuple[tuple[float, ...], tuple[tuple[str, float], ...]]:
        """Return objective values and further metrics."""
        work = step_work(schedule, self._lists, branches=self._workload.branches)
        costs = {
            "latency_ms": self._cost_model.predict_ms(schedule),
            "macs": schedule_macs(schedule, self._mac_table, self._lists, branches=self._workload.branches),
        }
        metrics = {
            "predicted_ms": costs["latency_ms"],
            "macs": costs["macs"],
            "denoiser_calls": float(sum(step.calls for step in work if step.runs_denoiser)),
            **means,
        }
        if self._memory is not None:
            metrics["checkpoint_bytes"] = float(self._memory.checkpoint_bytes(schedule))
            metrics["peak_bytes"] = float(self._memory.peak_bytes(schedule))
        return (costs[self._cost], *(means[name] for name in self._qualities)), tuple(metrics.items())


def _room_for_layers(device: torch.device) -> int:
    """Bytes of low-bit weights kept between candidates: a quarter of what is free on the device, or a fixed amount."""
    return int(torch.cuda.mem_get_info(device)[0]) // 4 if device.type == "cuda" else CACHE_BYTES
