"""A diffusion model in closed form: data from a mixture of Gaussians, so its velocity field is known exactly.

With ``x = (1 - sigma) x0 + sigma eps`` and ``x0`` from components of weight ``w_k``, mean ``m_k`` and variance
``s**2``, each component of the marginal is normal with mean ``(1 - sigma) m_k`` and variance ``v = (1 - sigma)**2 s**2
+ sigma**2``, and the velocity is ``E[eps - x0 | x]``, a posterior-weighted sum of linear terms. For one component the
flow itself has a closed form (`flowed`), so solvers can be tested against truth.

`GaussianEvaluator` replays a schedule's ``model`` row on this field with Euler steps and scores the samples against the
full run. What it does with block and component rows, and with removed blocks, is synthetic: an additive error that
grows with staleness and a share of a call's cost, made so that good schedules exist and are known. This module does
not know torch, nor any searcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import COMPUTE, MODEL_ROW, REUSE, SKIP, ModelRef, Schedule
from schedsearch.study import Candidate, Evaluation, Objective
from schedsearch.types import BlockSpec

Array = npt.NDArray[np.float64]

TOY_OBJECTIVES = (
    Objective(name="latent_error", unit="", better="min"),
    Objective(name="cost", unit="calls", better="min"),
)
"""Relative error of the final samples against the full run, and cost in calls of the whole model."""


def toy_model_ref() -> ModelRef:
    """A reference to no real pipeline."""
    return ModelRef(pipeline="ToyPipeline", config="c" * 64, blocks="b" * 64, height=8, width=8)


def toy_blocks(n_double: int = 2, n_single: int = 2) -> tuple[BlockSpec, ...]:
    """Blocks named like FLUX's: double-stream ones first, then single-stream ones."""
    double = [
        BlockSpec(name=f"transformer_blocks.{i}", components=("attn", "ff", "ff_context")) for i in range(n_double)
    ]
    single = [
        BlockSpec(name=f"single_transformer_blocks.{i}", components=("attn", "proj_mlp", "proj_out"))
        for i in range(n_single)
    ]
    return (*double, *single)


def toy_sigmas(n_steps: int, shift: float = 3.0) -> tuple[float, ...]:
    """`(n_steps + 1,)` noise levels from 1 to 0, shifted the way flow models are."""
    s = 1.0 - np.arange(n_steps + 1) / n_steps
    return tuple(float(level) for level in shift * s / (1.0 + (shift - 1.0) * s))


@dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """Data: components of equal variance.

    Attributes:
        means: `(n_components, n_dims)`.
        weights: `(n_components,)`, summing to 1.
        scale: standard deviation of each component in each dimension.
    """

    means: Array
    weights: Array
    scale: float

    @classmethod
    def random(cls, seed: int, *, n_components: int = 4, n_dims: int = 4) -> GaussianMixture:
        """A mixture with means about 1 apart, drawn from ``seed``."""
        rng = np.random.default_rng(seed)
        return cls(
            means=rng.normal(size=(n_components, n_dims)),
            weights=rng.dirichlet(np.full(n_components, 5.0)),
            scale=0.3,
        )

    def velocity(self, x: Array, sigma: float) -> Array:
        """``E[eps - x0 | x]`` at noise level ``sigma`` in (0, 1], for points ``x`` `(n, n_dims)`."""
        keep = 1.0 - sigma
        variance = keep**2 * self.scale**2 + sigma**2
        offset = x[:, None, :] - keep * self.means  # (n, n_components, n_dims)
        logits = np.log(self.weights) - 0.5 * np.einsum("nkd,nkd->nk", offset, offset) / variance
        posterior = np.exp(logits - logits.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        # given the component: E[eps] = sigma / v * offset and E[x0] = m + (1 - sigma) s^2 / v * offset
        slope = (sigma - keep * self.scale**2) / variance
        out: Array = slope * np.einsum("nk,nkd->nd", posterior, offset) - posterior @ self.means
        return out

    def flowed(self, x: Array, sigma_from: float, sigma_to: float) -> Array:
        """Where the flow takes ``x`` `(n, n_dims)`, exactly; for a mixture of one component.

        Raises:
            ValueError: if there are more components.
        """
        if len(self.means) != 1:
            raise ValueError(f"means: found {len(self.means)} components, expected 1: only then the flow is closed")

        def spread(sigma: float) -> float:
            return float(np.hypot((1.0 - sigma) * self.scale, sigma))

        centred = x - (1.0 - sigma_from) * self.means
        return (1.0 - sigma_to) * self.means + centred * spread(sigma_to) / spread(sigma_from)


def forecast(sigmas: Sequence[float], values: Sequence[Array], sigma: float, order: int) -> Array:
    """The polynomial through the last ``order + 1`` of ``values`` at ``sigmas``, read at ``sigma``."""
    known, points = list(sigmas[-order - 1 :]), list(values[-order - 1 :])
    total = np.zeros_like(points[0])
    for i, point in enumerate(points):
        weight = 1.0
        for j, level in enumerate(known):
            if j != i:
                weight *= (sigma - level) / (known[i] - level)
        total += weight * point
    return total


def replayed(schedule: Schedule, velocity: Callable[[Array, float], Array], noise: Array) -> Array:
    """Samples `(n, n_dims)` of an Euler run from ``noise`` that obeys the schedule's noise levels and ``model`` row."""
    x = noise.copy()
    sigmas: list[float] = []
    values: list[Array] = []
    for step, symbol in enumerate(schedule.row(MODEL_ROW)):
        sigma, following = schedule.sigma[step], schedule.sigma[step + 1]
        if symbol == COMPUTE:
            v = velocity(x, sigma)
            sigmas.append(sigma)
            values.append(v)
        elif symbol == REUSE:
            v = values[-1]
        else:
            v = forecast(sigmas, values, sigma, min(int(symbol), len(values) - 1))
        x = x + (following - sigma) * v
    return x


@dataclass(kw_only=True)
class GaussianEvaluator:
    """Evaluates schedules on closed-form models, one per prompt; about a millisecond each, and bit-stable.

    Attributes:
        blocks: what the synthetic part of error and cost is spread over.
        full: the run that errors are relative to.
        n_prompts: number of mixtures; the fidelity is how many of them are used.
        n_samples: points per prompt.
        seed: of mixtures and noise.
        fails: candidates for which this is true come back as failed.
        objectives: `TOY_OBJECTIVES`.
        calls: evaluations made so far.
    """

    blocks: Sequence[BlockSpec]
    full: Schedule
    n_prompts: int = 2
    n_samples: int = 16
    seed: int = 0
    fails: Callable[[Candidate], bool] = field(default=lambda _: False)
    objectives: tuple[Objective, ...] = TOY_OBJECTIVES
    calls: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng((self.seed, 1))
        self._mixtures = [GaussianMixture.random(self.seed + 1000 * (i + 1)) for i in range(self.n_prompts)]
        self._noise = [rng.normal(size=(self.n_samples, m.means.shape[1])) for m in self._mixtures]
        self._reference = [replayed(self.full, m.velocity, e) for m, e in zip(self._mixtures, self._noise, strict=True)]
        parts = [f"{block.name}.{part}" for block in self.blocks for part in block.components]
        shares = rng.dirichlet(np.full(max(1, len(parts)), 2.0))
        weights = rng.lognormal(sigma=1.5, size=max(1, len(parts)))
        self._share = dict(zip(parts, shares, strict=False))
        self._weight = dict(zip(parts, weights / weights.sum(), strict=False))

    def evaluate(self, candidate: Candidate, *, fidelity: int) -> Evaluation:
        """Errors on the first ``fidelity`` prompts and the cost, as an ``ok`` evaluation unless ``fails`` says so."""
        started = time.perf_counter()
        self.calls += 1
        schedule = candidate.schedule
        if self.fails(candidate):
            return Evaluation(candidate=candidate, status="failed", reason="asked to fail", fidelity=fidelity)
        extra, cost = self._synthetic(schedule)
        errors = []
        for i in range(min(fidelity, self.n_prompts)):
            out = replayed(schedule, self._mixtures[i].velocity, self._noise[i])
            full = self._reference[i]
            errors.append(float(np.linalg.norm(out - full) / np.linalg.norm(full)) + extra)
        return Evaluation(
            candidate=candidate,
            status="ok",
            values=(float(np.mean(errors)), cost),
            metrics=(("calls", float(schedule.row(MODEL_ROW).count(COMPUTE))),),
            samples=(("latent_error", tuple(errors)),),
            fidelity=fidelity,
            device="closed form",
            seconds=time.perf_counter() - started,
            denoiser_evals=len(errors) * schedule.row(MODEL_ROW).count(COMPUTE),
        )

    def _synthetic(self, schedule: Schedule) -> tuple[float, float]:
        """Synthetic error of the finer rows, and the cost in calls of the whole model."""
        model = schedule.row(MODEL_ROW)
        error = 0.0
        cost = 0.1 * model.count(COMPUTE)  # a tenth of a call is outside the blocks
        for block in self.blocks:
            whole = schedule.row(block.name)
            removed = block.name in schedule.pruned
            for part in block.components:
                name = f"{block.name}.{part}"
                row = schedule.row(name)
                stale = 0.0
                for step, symbol in enumerate(model):
                    if symbol != COMPUTE:
                        continue
                    span = schedule.sigma[step] - schedule.sigma[step + 1]
                    effective = SKIP if removed else row[step] if whole[step] == COMPUTE else whole[step]
                    if effective == COMPUTE:
                        stale = 0.0
                        cost += 0.9 * self._share[name]
                    else:
                        stale = 1.0 if effective == SKIP else stale + span
                        relief = 0.5 if effective.isdigit() else 1.0
                        error += relief * self._weight[name] * span * stale
        return error, float(cost)
