"""The genes of S^3 and how they vary: first populations, crossover and mutation in one space.

`_s3.py` cites the paper and says what is published and what is ours. This module does not know losses nor predictors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schedsearch.errors import SpaceError, UsageError
from schedsearch.schedule import Schedule, Solver
from schedsearch.space import SearchSpace, warp

PREDICTORS = ("lstm", "lstm-small", "ridge", "none")

_NEAREST = 1e-4
"""Least distance between two positions in time."""


_RATES = ("insert", "delete", "time", "order", "kind", "corrector", "estimate")
"""Options that are probabilities of a mutation."""

_SPACINGS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "uniform": lambda _: {},
    "shift": lambda rng: {"shift": float(np.exp(rng.uniform(-1.5, 2.0)))},
    "logsnr": lambda rng: {"floor": float(np.exp(rng.uniform(-4.6, -2.0)))},
    "karras": lambda rng: {"rho": float(rng.uniform(1.5, 7.0)), "floor": float(np.exp(rng.uniform(-4.6, -2.0)))},
    "quadratic": lambda rng: {"power": float(rng.uniform(1.0, 3.0))},
}
"""Spacings of the first population, each with random parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """Options of `S3`; probabilities are the published ones.

    Attributes:
        calls: budgets in denoiser calls, one population each; empty is 3 to 12 as far as the space has them.
        predictor: ``lstm`` as in OMS-DPM, at its size and minutes of training per stage; ``lstm-small``, seconds;
            ``ridge`` for regression on features, a fraction of one; ``none`` for plain evolution.
        first: schedules per population measured before the first stage.
        stages: stages after that.
        measured: schedules per population and stage.
        pool: schedules per population and stage that the predictor chooses from.
        generations: in which the pool is evolved, each ranked by the predictor.
        unguided: share of the measured schedules taken from the pool at random.
        optimism: standard deviations by which ``ridge`` puts a schedule forward; the other predictors are never unsure.
        parents: how many of the best of a population breed.
        crossover: probability that a child has two parents.
        deep: share of the crossovers that exchange genes of all steps, not steps.
        insert: probability that a step is inserted.
        delete: probability that a step is deleted.
        time: probability per step that its position moves.
        time_spread: standard deviation of that move.
        order: probability per step of a new order.
        order_weights: of the orders 1 to 4.
        kind: probability per step of a new family, and of a new prediction type.
        corrector: probability per step of a new corrector.
        estimate: probability per step of a new estimate of derivatives.
        local: share of the children all of whose mutation probabilities and moves are scaled down by one factor, drawn
            between 0.1 and 1; 0 is as published.
        objective: name of the objective to improve; empty is the first that is not a cost.
    """

    calls: tuple[int, ...] = ()
    predictor: str = "lstm-small"
    first: int = 30
    stages: int = 30
    measured: int = 5
    pool: int = 80
    generations: int = 2
    unguided: float = 0.1
    optimism: float = 1.0
    parents: int = 15
    crossover: float = 0.5
    deep: float = 0.65
    insert: float = 0.2
    delete: float = 0.2
    time: float = 0.4
    time_spread: float = 0.05
    order: float = 0.3
    order_weights: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1)
    kind: float = 0.25
    corrector: float = 0.25
    estimate: float = 0.25
    local: float = 0.5
    objective: str = ""

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise UsageError(f"predictor: found {self.predictor!r}, expected one of {', '.join(PREDICTORS)}.")
        for name in ("first", "measured", "pool", "generations", "parents"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected 1 or more.")
        if self.stages < 0:
            raise UsageError(f"stages: found {self.stages}, expected 0 or more.")
        for name in ("unguided", "crossover", "deep", "local", *_RATES):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected a probability.")
        for name in ("time_spread", "optimism"):
            if getattr(self, name) < 0.0:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected 0 or more.")
        if len(self.order_weights) != 4 or min(self.order_weights) < 0.0 or not sum(self.order_weights) > 0.0:
            raise UsageError(f"order_weights: found {self.order_weights}, expected four weights, one above 0.")


@dataclass(frozen=True, slots=True)
class Genes:
    """A schedule as S^3 sees it: ``times`` between the first and the last level, rising, and a solver per step."""

    times: tuple[float, ...]
    solvers: tuple[Solver, ...]


class Breeding:
    """First populations, crossover and mutation in one space. Knows nothing of losses."""

    def __init__(self, space: SearchSpace, config: S3Config) -> None:
        self._space = space
        self._config = config
        self._grid = np.asarray(space.sigma)
        self._solvers = space.solvers
        self._values = {
            gene: tuple(dict.fromkeys(getattr(solver, gene) for solver in self._solvers))
            for gene in ("family", "prediction", "corrector", "estimate", "order")
        }
        self._nearest: dict[tuple[Solver, str], Solver] = {}
        self._steps_of = {
            solver: {n_calls(self.schedule(self._plain(n, solver))): n for n in reversed(space.counts)}
            for solver in self._solvers
        }

    def budgets(self) -> tuple[int, ...]:
        """The numbers of calls to search, as the options and the space have them.

        Raises:
            UsageError: if the space has no schedule of a number asked for.
        """
        legal = sorted({calls for steps in self._steps_of.values() for calls in steps})
        if not self._config.calls:
            return tuple(calls for calls in legal if 3 <= calls <= 12) or tuple(legal)
        for i, calls in enumerate(self._config.calls):
            if calls not in legal:
                raise UsageError(f"calls[{i}]: found {calls}, expected denoiser calls of this space, {_brief(legal)}.")
        return tuple(dict.fromkeys(self._config.calls))

    def first(self, calls: int, n: int, rng: np.random.Generator) -> list[Schedule]:
        """Up to ``n`` different schedules: each solver on the default spacing, each spacing, then children of these."""
        found: dict[Schedule, None] = {}
        wishes = [("", solver) for solver in self._solvers]
        if self._space.free_sigma:
            wishes += [(name, self._solvers[i % len(self._solvers)]) for i, name in enumerate([*_SPACINGS] * 4, 1)]
        for name, solver in wishes:
            if len(found) < (2 * n + 2) // 3:
                source = self._spaced(name, solver, calls, rng)
                if source is not None:
                    found[source] = None
        sources = list(found)
        for _ in range(20 * n if sources else 0):
            if len(found) >= n:
                break
            a, b = (sources[int(i)] for i in rng.integers(len(sources), size=2))
            child = self.child(a, b, calls, rng)
            if child is not None:
                found[child] = None
        return list(found)

    def _spaced(self, name: str, solver: Solver, calls: int, rng: np.random.Generator) -> Schedule | None:
        """A schedule with one solver and the spacing of that name, of a random parameter; the default one if none."""
        n_steps = self._steps_of[solver].get(calls)
        if n_steps is None:
            plain = self._plain(min(self._space.counts, key=lambda n: abs(n - calls)), solver)
            return self.fitted(plain, calls, rng)
        if not name:
            return self.schedule(self._plain(n_steps, solver))
        parameters = _SPACINGS[name](rng)
        try:
            sigma = warp(name, n_steps, first=float(self._grid[0]), last=float(self._grid[-1]), **parameters)
        except SpaceError:  # its floor or parameter does not suit these levels
            return None
        return self._space.repair(Schedule(sigma=sigma, solver=(solver,) * n_steps, model=self._space.model))

    def child(self, a: Schedule, b: Schedule, calls: int, rng: np.random.Generator) -> Schedule | None:
        """A mutated child of ``a``, or of both; ``None`` if it cannot be brought to ``calls``."""
        genes = self.genes(a)
        if a is not b and rng.random() < self._config.crossover:
            genes = self.crossed(genes, self.genes(b), rng)
        return self.fitted(self.mutated(genes, rng), calls, rng)

    # ---- genes and schedules

    def genes(self, schedule: Schedule) -> Genes:
        """The genes of a schedule."""
        return Genes(self._times(schedule.sigma), schedule.solver)

    def _times(self, sigma: Sequence[float]) -> tuple[float, ...]:
        """Positions of the inner noise levels on the default grid."""
        places = np.interp(-np.asarray(sigma[1:-1]), -self._grid, np.linspace(0.0, 1.0, len(self._grid)))
        return tuple(float(place) for place in places)

    def _plain(self, n_steps: int, solver: Solver) -> Genes:
        return Genes(self._times(self._space.grid(n_steps)), (solver,) * n_steps)

    def schedule(self, genes: Genes) -> Schedule:
        """The canonical schedule of ``genes``."""
        inner = np.interp(genes.times, np.linspace(0.0, 1.0, len(self._grid)), self._grid)
        sigma = (float(self._grid[0]), *(float(level) for level in inner), float(self._grid[-1]))
        return self._space.repair(Schedule(sigma=sigma, solver=genes.solvers, model=self._space.model))

    def fitted(self, genes: Genes, calls: int, rng: np.random.Generator) -> Schedule | None:
        """The schedule of ``genes`` with steps inserted or deleted until it makes ``calls``; ``None`` if none does."""
        for _ in range(2 * calls + 4):
            schedule = self.schedule(genes)
            excess = n_calls(schedule) - calls
            if excess == 0:
                return schedule
            before = genes
            genes = deleted(genes, rng) if excess > 0 else inserted(genes, rng)
            if genes is before:
                return None
        return None

    # ---- variation

    def crossed(self, a: Genes, b: Genes, rng: np.random.Generator) -> Genes:
        """Deep: times of one parent, each solver gene of one parent; else every step of either parent."""
        n_steps = len(a.solvers)
        other = [b.solvers[min(len(b.solvers) - 1, i * len(b.solvers) // n_steps)] for i in range(n_steps)]
        if rng.random() < self._config.deep:
            taken = [gene for gene in self._values if rng.random() < 0.5]
            solvers = []
            for mine, theirs in zip(a.solvers, other, strict=True):
                genes: dict[str, Any] = {gene: getattr(theirs, gene) for gene in taken}
                solvers.append(self.nearest(replace(mine, **genes), ""))
            times = b.times if len(a.times) == len(b.times) and rng.random() < 0.5 else a.times
            return Genes(times, tuple(solvers))
        pick = rng.random(n_steps) < 0.5
        solvers = [theirs if p else mine for mine, theirs, p in zip(a.solvers, other, pick, strict=True)]
        if len(a.times) != len(b.times):
            return Genes(a.times, tuple(solvers))
        mixed = [theirs if p else mine for mine, theirs, p in zip(a.times, b.times, pick[1:], strict=True)]
        return Genes(spread(mixed), tuple(solvers))

    def mutated(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Steps inserted and deleted, positions moved, solver genes drawn anew."""
        config = self._config
        if rng.random() < config.local:
            scale = float(10.0 ** -rng.random())
            config = replace(config, **{name: scale * getattr(config, name) for name in (*_RATES, "time_spread")})
        if rng.random() < config.insert:
            genes = inserted(genes, rng)
        if rng.random() < config.delete:
            genes = deleted(genes, rng)
        moves = (rng.random(len(genes.times)) < config.time) * rng.normal(
            scale=config.time_spread, size=len(genes.times)
        )
        times = spread([time + float(move) for time, move in zip(genes.times, moves, strict=True)])
        return Genes(times, tuple(self._redrawn(solver, config, rng) for solver in genes.solvers))

    def _redrawn(self, solver: Solver, config: S3Config, rng: np.random.Generator) -> Solver:
        chances = (
            ("family", config.kind), ("prediction", config.kind), ("order", config.order),
            ("corrector", config.corrector), ("estimate", config.estimate),
        )  # fmt: skip
        for gene, chance in chances:
            if rng.random() < chance and len(self._values[gene]) > 1:
                solver = self.nearest(replace(solver, **{gene: self._drawn(gene, rng)}), gene)
        return solver

    def _drawn(self, gene: str, rng: np.random.Generator) -> Any:
        """A value of a gene: orders by their weights, a corrector or none by a fair coin, others alike."""
        values = self._values[gene]
        weights = np.ones(len(values))
        if gene == "order":
            weights = np.array([self._config.order_weights[int(order) - 1] for order in values])
        elif gene == "corrector" and "none" in values:
            weights = np.array([1.0 if value == "none" else 1.0 / (len(values) - 1) for value in values])
        if not weights.sum() > 0.0:
            weights = np.ones(len(values))
        return values[int(rng.choice(len(values), p=weights / weights.sum()))]

    def nearest(self, wish: Solver, gene: str) -> Solver:
        """The legal solver most like ``wish``; one with its ``gene`` goes before all others."""
        key = (wish, gene)
        if key not in self._nearest:
            self._nearest[key] = min(self._solvers, key=lambda solver: _distance(wish, solver, gene))
        return self._nearest[key]


def inserted(genes: Genes, rng: np.random.Generator) -> Genes:
    """One more step, at a random place inside a random step, with that step's solver."""
    edges = (0.0, *genes.times, 1.0)
    step = int(rng.integers(len(genes.solvers)))
    time = edges[step] + (edges[step + 1] - edges[step]) * rng.uniform(0.2, 0.8)
    return Genes(
        spread([*genes.times[:step], float(time), *genes.times[step:]]),
        (*genes.solvers[: step + 1], *genes.solvers[step:]),
    )


def deleted(genes: Genes, rng: np.random.Generator) -> Genes:
    """One step less, a random one; ``genes`` itself if it is the only one."""
    if not genes.times:
        return genes
    place = int(rng.integers(len(genes.times)))
    return Genes(
        (*genes.times[:place], *genes.times[place + 1 :]), (*genes.solvers[: place + 1], *genes.solvers[place + 2 :])
    )


def spread(times: Sequence[float]) -> tuple[float, ...]:
    """``times`` in order, inside (0, 1), no two closer than a hair.

    >>> spread([0.5, -0.2, 0.5])
    (0.0001, 0.5, 0.5001)
    """
    out: list[float] = []
    for i, time in enumerate(sorted(times)):
        low = out[-1] + _NEAREST if out else _NEAREST
        out.append(round(min(max(time, low), 1.0 - (len(times) - i) * _NEAREST), 12))
    return tuple(out)


def n_calls(schedule: Schedule) -> int:
    """Denoiser calls of a schedule that computes everywhere: two for heun and for an implicit corrector."""
    return sum(1 + (solver.family == "heun" or solver.corrector == "implicit") for solver in schedule.solver)


def _distance(wish: Solver, solver: Solver, gene: str) -> tuple[bool, int, bool, int]:
    unlike = sum(getattr(wish, name) != getattr(solver, name) for name in ("prediction", "corrector", "estimate"))
    has_not = bool(gene) and getattr(wish, gene) != getattr(solver, gene)
    return (
        has_not,
        2 * unlike + 3 * (wish.family != solver.family),
        wish.order < solver.order,
        abs(wish.order - solver.order),
    )


def _brief(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
