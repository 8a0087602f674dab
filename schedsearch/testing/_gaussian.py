"""A diffusion model in closed form: data from a mixture of Gaussians, so its outputs are known exactly.

With ``x = a x0 + b eps`` (``a``, ``b`` of flow or variance-preserving `Levels`) and ``x0`` from components of weight
``w_k``, mean ``m_k`` and variance ``s**2``, each component of the marginal is normal with mean ``a m_k`` and variance
``v = a**2 s**2 + b**2``; ``E[x0 | x]``, ``E[eps | x]`` and the velocity are posterior-weighted sums of linear terms.
For one component the flow itself has a closed form (`GaussianMixture.flowed`), for mixtures it is followed with many
tiny steps of high order (`GaussianMixture.truth`), so solvers can be tested against truth.

`GaussianEvaluator` replays noise levels, solvers and the ``model`` row of a schedule on this field and scores the
samples against the full run. What it does with block and component rows, and with removed blocks, is synthetic: an
additive error that grows with staleness and a share of a call's cost, made so that good schedules exist and are known.
This module does not know torch, nor any searcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schedsearch.runtime._solver import (
    FLOW,
    Call,
    History,
    Levels,
    Prediction,
    advance,
    columns,
    fit,
    fitted,
    program,
)
from schedsearch.schedule import COMPUTE, MODEL_ROW, REUSE, SKIP, ModelRef, Schedule, solver_table
from schedsearch.study import Candidate, Evaluation, Objective
from schedsearch.types import BlockSpec

Array = npt.NDArray[np.float64]
Network = Callable[[Array, float], Array]
"""What a model outputs for points `(n, n_dims)` at a noise level."""

TOY_OBJECTIVES = (
    Objective(name="latent_error", unit="", better="min"),
    Objective(name="cost", unit="calls", better="min"),
)
"""Relative error of the final samples against the full run, and cost in calls of the whole model."""

_PROGRAMS = 4096
"""Programs an evaluator remembers."""


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


def toy_linears(blocks: Sequence[BlockSpec]) -> tuple[str, ...]:
    """Names of linear layers inside such blocks, like those of FLUX but fewer, and of two around them."""
    double = ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_out.0", "ff.net.0.proj", "ff.net.2",
              "ff_context.net.0.proj", "ff_context.net.2")  # fmt: skip
    single = ("norm.linear", "proj_mlp", "proj_out", "attn.to_q", "attn.to_k")
    inside = [
        f"{block.name}.{part}" for block in blocks for part in (single if block.name.startswith("single") else double)
    ]
    return ("x_embedder", *inside, "proj_out")


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

    def velocity(self, x: Array, sigma: float, levels: Levels = FLOW) -> Array:
        """The velocity at noise level ``sigma`` above 0 for points ``x`` `(n, n_dims)`: ``E[eps - x0 | x]`` in flow
        levels, ``E[a eps - b x0 | x]`` in variance-preserving ones.
        """
        a, b = levels.alpha(sigma), levels.std(sigma)
        mean, offset, variance = self._posterior(x, a, b)
        of_noise, of_data = (1.0, 1.0) if levels.name == "flow" else (a, b)
        out: Array = ((of_noise * b - of_data * a * self.scale**2) / variance) * offset - of_data * mean
        return out

    def noise(self, x: Array, sigma: float, levels: Levels = FLOW) -> Array:
        """``E[eps | x]`` at noise level ``sigma`` for points ``x`` `(n, n_dims)`."""
        b = levels.std(sigma)
        _, offset, variance = self._posterior(x, levels.alpha(sigma), b)
        return (b / variance) * offset

    def data(self, x: Array, sigma: float, levels: Levels = FLOW) -> Array:
        """``E[x0 | x]`` at noise level ``sigma`` for points ``x`` `(n, n_dims)`."""
        a = levels.alpha(sigma)
        mean, offset, variance = self._posterior(x, a, levels.std(sigma))
        return mean + (a * self.scale**2 / variance) * offset

    def network(self, output: Prediction = "velocity", levels: Levels = FLOW) -> Network:
        """A network with this output, exactly."""
        method = {"velocity": self.velocity, "noise": self.noise, "data": self.data}[output]
        return lambda x, sigma: method(x, sigma, levels)

    def _posterior(self, x: Array, a: float, b: float) -> tuple[Array, Array, float]:
        """The mean of the components' means given ``x``, ``x`` less its share ``a`` of that, and the variance."""
        variance = a * a * self.scale**2 + b * b
        offset = x[:, None, :] - a * self.means  # (n, n_components, n_dims)
        logits = np.log(self.weights) - (0.5 / variance) * np.einsum("nkd,nkd->nk", offset, offset)
        posterior = np.exp(logits - logits.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        mean = posterior @ self.means
        return mean, x - a * mean, variance

    def flowed(self, x: Array, sigma_from: float, sigma_to: float, levels: Levels = FLOW) -> Array:
        """Where the flow takes ``x`` `(n, n_dims)`, exactly; for a mixture of one component.

        Raises:
            ValueError: if there are more components.
        """
        if len(self.means) != 1:
            raise ValueError(f"means: found {len(self.means)} components, expected 1: only then the flow is closed")

        def spread(sigma: float) -> float:
            return float(np.hypot(levels.alpha(sigma) * self.scale, levels.std(sigma)))

        centred = x - levels.alpha(sigma_from) * self.means
        return levels.alpha(sigma_to) * self.means + centred * spread(sigma_to) / spread(sigma_from)

    def truth(
        self, x: Array, sigma_from: float, sigma_to: float, levels: Levels = FLOW, *, n_steps: int = 1000
    ) -> Array:
        """Where the flow takes ``x`` `(n, n_dims)`, by ``n_steps`` equal Runge-Kutta steps of order 4 in the time of
        the velocity; good to about 1e-10 for mixtures of `random` and whole runs.
        """
        begin, end = levels.time(sigma_from), levels.time(sigma_to)
        dt = (end - begin) / n_steps

        def slope(x: Array, t: float) -> Array:
            return self.velocity(x, max(0.0, t if levels.name == "flow" else float(np.tan(t))), levels)

        for i in range(n_steps):
            t = begin + i * dt
            k1 = slope(x, t)
            k2 = slope(x + 0.5 * dt * k1, t + 0.5 * dt)
            k3 = slope(x + 0.5 * dt * k2, t + 0.5 * dt)
            k4 = slope(x + dt * k3, t + dt)
            x = x + (dt / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return x


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


class Run:
    """One run in progress: the sample, the solver's history, and the outputs that the ``model`` row predicts from."""

    def __init__(self, row: str, network: Network, noise: Array) -> None:
        """Start at ``noise`` `(n, n_dims)`; ``row`` is the schedule's ``model`` row."""
        self.sample = noise.copy()
        self._row = row
        self._network = network
        self._history: History = ()
        self._sigmas: list[float] = []
        self._values: list[Array] = []

    def output(self, call: Call) -> Array:
        """What the denoiser gives at ``call``, or what the row makes of earlier outputs."""
        if call.computes:
            value = self._network(self.sample, call.sigma)
            if not call.extra:
                self._sigmas.append(call.sigma)
                self._values.append(value)
            return value
        symbol = self._row[call.step]
        if symbol == REUSE:
            return self._values[-1]
        return forecast(self._sigmas, self._values, call.sigma, min(int(symbol), len(self._values) - 1))

    def columns(self, call: Call, output: Array) -> Array:
        """`(n * n_dims, 1 + order)`: what the scalars of the table step ``call`` multiply."""
        return np.stack([part.ravel() for part in columns(call, self._history, self.sample, output)], axis=1)

    def advance(self, call: Call, output: Array) -> None:
        """Takes the sample to where ``call`` leads."""
        self.sample, self._history = advance(call, self._history, self.sample, output)


def replayed(
    schedule: Schedule,
    network: Network,
    noise: Array,
    *,
    levels: Levels = FLOW,
    output: Prediction = "velocity",
    begin: int = 0,
    weights: Sequence[Sequence[float]] | None = None,
) -> Array:
    """Samples `(n, n_dims)` of a run from ``noise`` that obeys the schedule's levels, solvers and ``model`` row.

    Args:
        schedule: what to replay.
        network: the model.
        noise: `(n, n_dims)`, the sample at level ``sigma[begin]``.
        levels: what noise levels mean.
        output: what the network predicts.
        begin: first step.
        weights: scalars of the ``table`` steps, by step.
    """
    run = Run(schedule.row(MODEL_ROW), network, noise)
    for call in program(schedule, levels=levels, output=output, begin=begin, weights=weights):
        run.advance(call, run.output(call))
    return run.sample


def fitted_table(
    calls: Sequence[Call], runs: Sequence[Run], targets: Callable[[float], Sequence[Array]]
) -> dict[int, tuple[float, ...]]:
    """Takes ``runs`` to their ends side by side; a table step that is not fitted takes the scalars that bring all of
    them nearest to ``targets`` there (least squares, on the states the runs themselves are in).

    Returns:
        The scalars, by step.
    """
    table: dict[int, tuple[float, ...]] = {}
    for call in calls:
        outputs = [run.output(call) for run in runs]
        taken = call
        if call.unfitted:
            parts = np.concatenate([run.columns(call, value) for run, value in zip(runs, outputs, strict=True)])
            goal = np.concatenate([target.ravel() for target in targets(call.target)])
            table[call.step] = fit((parts.T @ parts).tolist(), (parts.T @ goal).tolist())
            taken = fitted(call, table[call.step])
        for run, value in zip(runs, outputs, strict=True):
            run.advance(taken, value)
    return table


@dataclass(kw_only=True)
class GaussianEvaluator:
    """Evaluates schedules on closed-form models, one per prompt; about a millisecond each, and bit-stable.

    Steps of family ``table`` that come without scalars are fitted to the full run (between its levels: linear in
    sigma) on the very prompts that are evaluated.

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
        self._teachers = [self._trajectory(m, e) for m, e in zip(self._mixtures, self._noise, strict=True)]
        self._programs: dict[object, tuple[Call, ...]] = {}
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
        calls = self._calls(schedule)
        extra, cost = self._synthetic(schedule, calls)
        prompts = range(min(fidelity, self.n_prompts))
        runs = [Run(schedule.row(MODEL_ROW), self._mixtures[i].velocity, self._noise[i]) for i in prompts]
        fitted_table(calls, runs, lambda sigma: [self._target(i, sigma) for i in prompts])
        full = [self._teachers[i][-1] for i in prompts]
        errors = [
            float(np.linalg.norm(run.sample - goal) / np.linalg.norm(goal)) + extra
            for run, goal in zip(runs, full, strict=True)
        ]
        evaluations = sum(call.computes for call in calls)
        return Evaluation(
            candidate=candidate,
            status="ok",
            values=(float(np.mean(errors)), cost),
            metrics=(("calls", float(evaluations)),),
            samples=(("latent_error", tuple(errors)),),
            fidelity=fidelity,
            device="closed form",
            seconds=time.perf_counter() - started,
            denoiser_evals=len(errors) * evaluations,
        )

    def _trajectory(self, mixture: GaussianMixture, noise: Array) -> Array:
        """`(n_steps + 1, n, n_dims)`: the states of the full run."""
        run = Run(self.full.row(MODEL_ROW), mixture.velocity, noise)
        states = np.stack([run.sample] * (self.full.n_steps + 1))
        for call in program(self.full):
            run.advance(call, run.output(call))
            states[call.step + 1] = run.sample  # a step's second call has the last word
        return states

    def _target(self, prompt: int, sigma: float) -> Array:
        """The full run's state at ``sigma``, linear in sigma between its levels."""
        levels, states = self.full.sigma, self._teachers[prompt]
        i = next((k for k in range(1, len(levels) - 1) if levels[k] <= sigma), len(levels) - 1)
        share = (sigma - levels[i]) / (levels[i - 1] - levels[i])
        target: Array = states[i] if share == 0.0 else states[i] + share * (states[i - 1] - states[i])
        return target

    def _calls(self, schedule: Schedule) -> tuple[Call, ...]:
        """The program of a schedule; block rows do not change it, so it is often one of the last ones."""
        table = solver_table(schedule)
        key = (schedule.sigma, schedule.solver, schedule.row(MODEL_ROW), table)
        if key not in self._programs:
            if len(self._programs) >= _PROGRAMS:
                self._programs.clear()
            self._programs[key] = program(schedule, weights=table)
        return self._programs[key]

    def _synthetic(self, schedule: Schedule, calls: Sequence[Call]) -> tuple[float, float]:
        """Synthetic error of the finer rows, and the cost in calls of the whole model."""
        evaluations = [0] * schedule.n_steps
        for call in calls:
            evaluations[call.step] += call.computes
        error = 0.0
        cost = 0.1 * sum(evaluations)  # a tenth of a call is outside the blocks
        for block in self.blocks:
            whole = schedule.row(block.name)
            removed = block.name in schedule.pruned
            for part in block.components:
                name = f"{block.name}.{part}"
                row = schedule.row(name)
                stale = 0.0
                for step, times in enumerate(evaluations):
                    if not times:
                        continue
                    span = schedule.sigma[step] - schedule.sigma[step + 1]
                    effective = SKIP if removed else row[step] if whole[step] == COMPUTE else whole[step]
                    if effective == COMPUTE:
                        stale = 0.0
                        cost += 0.9 * times * self._share[name]
                    else:
                        stale = 1.0 if effective == SKIP else stale + span
                        relief = 0.5 if effective.isdigit() else 1.0
                        error += relief * self._weight[name] * span * stale
        return error, float(cost)
