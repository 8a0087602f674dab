"""Liu et al. 2024, "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models" (S^3, USF).

arXiv 2312.07243, ICLR 2024. Every step has its own noise level, solver order, prediction type, corrector and estimate
of derivatives; the budget is a number of denoiser calls (NFE), each with a population of its own. Stages: sample by
evolution, measure truly, train a predictor on all that was measured, let it rank a large pool of evolved schedules, and
measure the best of them.

As in the released code: parents are drawn from the best 15 of a population; crossover with probability 0.5, deep (each
gene of all steps from either parent) or step by step; a step is inserted or deleted with probability 0.2 each; each
noise level moves with probability 0.4 by a Gaussian of 0.05; order with 0.3 from {1: .2, 2: .4, 3: .3, 4: .1},
prediction with 0.25, corrector with 0.25, a fair draw between none and others. That code has no predictor and no
stages: ``predictor="none"`` is its steady-state evolution. The paper's sizes of stages, pools and populations are not
known to us, so those here are ours, and the predictor is that of OMS-DPM by the same group (`LstmRanker`). Ours too:
the first population holds known spacings besides the default one, and half of the children (``local``) mutate less.

What differs by design: a position in time is a position on the space's default grid, 0 at its start and 1 at its end;
the published prediction type that needs statistics of a model is left out, and solver families are a gene; the space
says which solvers are legal. Ops other than compute are not searched. This module does not know how anything is
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log

import numpy as np

from schedsearch.errors import SpaceError, UsageError
from schedsearch.schedule import Schedule, Solver
from schedsearch.search._autodiffusion import quality_place
from schedsearch.search._surrogate import KernelRanker, LstmConfig, LstmRanker, Quality, Ranker, quality
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace, warp
from schedsearch.study import Candidate, Evaluation, Objective, Probe

PREDICTORS = ("lstm", "lstm-small", "ridge", "none")

Proposals = dict[Schedule, tuple[str, ...]]
"""Schedules to measure, each with the ids of its parents."""

_NEAREST = 1e-4
"""Least distance between two positions in time."""


_RATES = ("insert", "delete", "time", "order", "kind", "corrector", "estimate")
"""Options that are probabilities of a mutation."""

_SPACINGS: dict[str, Callable[[np.random.Generator], dict[str, float]]] = {
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


class S3:
    """Multi-stage search of timesteps and solvers, with a population per number of denoiser calls."""

    name = "s3"
    Config = S3Config

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],
        config: S3Config | None = None,
        probe: Probe | None = None,  # noqa: ARG002 - every searcher is made the same way
    ) -> None:
        """Prepare the populations.

        Raises:
            UsageError: if the space has no schedule of a number of calls asked for, or the objective is unknown.
        """
        self._config = config or S3Config()
        self._space = space
        self._place = quality_place(objectives, self._config.objective)
        self._objective = objectives[self._place]
        self._breed = Breeding(space, self._config)
        self._calls = self._breed.budgets()
        self._rng = np.random.default_rng((seed, 3))
        self._ranker = made_ranker(self._config, seed)
        self._losses: dict[int, dict[Schedule, float]] = {calls: {} for calls in self._calls}
        self._asked: set[str] = set()
        self._qualities: list[Quality] = []
        self._turn = Turn(self.name)
        self._run = self._search()
        self._wanted = next(self._run, None)

    @property
    def predictor_quality(self) -> tuple[Quality, ...]:
        """Agreement of predicted and measured order, one record per stage and population, before it learnt of them."""
        return tuple(self._qualities)

    # ---- ask and tell

    def ask(self, n: int) -> Sequence[Candidate]:  # noqa: ARG002 - the protocol asks for it
        """All of a stage, or one schedule per population without a predictor; empty after the last stage."""
        return self._turn.asked(self._wanted.items()) if self._wanted else ()

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the outcomes in and go on to the next stage."""
        self._turn.told(evaluations)
        for evaluation in evaluations:
            schedule = evaluation.candidate.schedule
            self._losses[n_calls(schedule)][schedule] = self.loss_of(evaluation)
        self._wanted = next(self._run, None)

    def loss_of(self, evaluation: Evaluation) -> float:
        """What an evaluation lost, less is better: the logarithm of an error, minus a score; infinite for failures."""
        if evaluation.status != "ok":
            return inf
        value = evaluation.values[self._place]
        if self._objective.better == "max":
            return -value
        return log(value) if value > 0.0 else -inf

    # ---- the search, written as it runs; ``yield`` asks for measurements

    def _search(self) -> Generator[Proposals, None, None]:
        first: Proposals = {}
        for calls in self._calls:
            first.update(self._new(self._breed.first(calls, self._config.first, self._rng), self._config.first))
        if first:
            yield first
        if self._ranker is None:
            for _ in range(self._config.stages * self._config.measured):
                children: Proposals = {}
                for calls in self._calls:
                    children.update(self._children(calls, self._population(calls), 1))
                if not children:
                    return
                self._asked.update(child.id for child in children)
                yield children
            return
        for _ in range(self._config.stages):
            fitted_on = self._fit(self._ranker)
            chosen = {calls: self._chosen(calls, self._ranker) for calls in self._calls}
            if not any(chosen.values()):
                return
            wanted = {child: parents for some in chosen.values() for child, parents in some.items()}
            predicted = {calls: self._ranker.rank(list(some)) for calls, some in chosen.items() if some and fitted_on}
            self._asked.update(child.id for child in wanted)
            yield wanted
            for calls, scores in predicted.items():
                true = np.array([self._losses[calls][child] for child in chosen[calls]])
                self._qualities.append(quality(scores, true, n_fitted=fitted_on, group=calls))

    def _new(self, schedules: Sequence[Schedule], most: int) -> Proposals:
        """Those not asked for before, without parents; they count as asked for from now on."""
        new = list(dict.fromkeys(schedule for schedule in schedules if schedule.id not in self._asked))[:most]
        self._asked.update(schedule.id for schedule in new)
        return dict.fromkeys(new, ())

    def _population(self, calls: int) -> list[Schedule]:
        """The best schedules measured so far."""
        losses = self._losses[calls]
        return sorted(losses, key=lambda schedule: losses[schedule])[: self._config.parents]

    def _children(self, calls: int, parents: Sequence[Schedule], n: int, known: Sequence[Schedule] = ()) -> Proposals:
        """Up to ``n`` children of ``parents`` that were not asked for and are not ``known``."""
        children: Proposals = {}
        barred = {schedule.id for schedule in known}
        for _ in range(20 * n + 20 if parents else 0):
            if len(children) >= n:
                break
            first, second = (parents[int(i)] for i in self._rng.integers(len(parents), size=2))
            child = self._breed.child(first, second, calls, self._rng)
            if child is not None and child.id not in self._asked and child.id not in barred:
                children.setdefault(child, (first.id,) if first is second else (first.id, second.id))
        return children

    # ---- the predictor's part

    def _fit(self, ranker: Ranker) -> int:
        """Train on everything measured; how many schedules that were, 0 if there is nothing to learn from.

        Losses are taken relative to the median of their population: between populations there is nothing to choose.
        """
        schedules: list[Schedule] = []
        scores: list[float] = []
        for losses in self._losses.values():
            finite = [loss for loss in losses.values() if isfinite(loss)]
            if finite:
                middle = float(np.median(finite))
                schedules += losses
                scores += [loss - middle for loss in losses.values()]
        if len(schedules) < 2:
            return 0
        ranker.fit(schedules, np.array(scores))
        return len(schedules)

    def _chosen(self, calls: int, ranker: Ranker) -> Proposals:
        """What to measure next: the best of an evolved pool as the predictor ranks it, and a few others of it."""
        config = self._config
        best = self._population(calls)
        pool: Proposals = {}
        ranked: list[Schedule] = []
        for _ in range(config.generations):
            parents = [*best, *ranked[: config.parents]]
            pool.update(self._children(calls, parents, max(1, config.pool // config.generations), ranked))
            if not pool:
                return {}
            children = list(pool)
            scores = ranker.rank(children) if len(best) > 1 else np.zeros(len(children))
            ranked = [children[i] for i in np.argsort(scores, kind="stable")]
        n_unguided = int(config.measured * config.unguided + self._rng.random())
        chosen = ranked[: max(0, config.measured - n_unguided)]
        others = ranked[len(chosen) :]
        picked = self._rng.permutation(len(others))[: config.measured - len(chosen)]
        return {child: pool[child] for child in [*chosen, *(others[i] for i in picked)]}


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

    def budgets(self) -> tuple[int, ...]:
        """The numbers of calls to search, as the options and the space have them.

        Raises:
            UsageError: if the space has no schedule of a number asked for.
        """
        legal = sorted({n_calls(self.schedule(self._plain(n, s))) for n in self._space.counts for s in self._solvers})
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
        counts = [n for n in self._space.counts if n_calls(self.schedule(self._plain(n, solver))) == calls]
        if not counts:
            plain = self._plain(min(self._space.counts, key=lambda n: abs(n - calls)), solver)
            return self.fitted(plain, calls, rng)
        n_steps = counts[0]
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
        places = np.interp(-np.asarray(schedule.sigma[1:-1]), -self._grid, np.linspace(0.0, 1.0, len(self._grid)))
        return Genes(tuple(float(place) for place in places), schedule.solver)

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

    def _plain(self, n_steps: int, solver: Solver) -> Genes:
        return Genes(tuple(i / n_steps for i in range(1, n_steps)), (solver,) * n_steps)

    # ---- variation

    def crossed(self, a: Genes, b: Genes, rng: np.random.Generator) -> Genes:
        """Deep: times of one parent, each solver gene of one parent; else every step of either parent."""
        n_steps = len(a.solvers)
        other = [b.solvers[min(len(b.solvers) - 1, i * len(b.solvers) // n_steps)] for i in range(n_steps)]
        if rng.random() < self._config.deep:
            taken = [gene for gene in self._values if rng.random() < 0.5]
            solvers = [
                self.nearest(replace(mine, **{gene: getattr(theirs, gene) for gene in taken}), "")
                for mine, theirs in zip(a.solvers, other, strict=True)
            ]
            times = b.times if len(a.times) == len(b.times) and rng.random() < 0.5 else a.times
            return Genes(times, tuple(solvers))
        pick = rng.random(n_steps) < 0.5
        solvers = [theirs if p else mine for mine, theirs, p in zip(a.solvers, other, pick, strict=True)]
        if len(a.times) != len(b.times):
            return Genes(a.times, tuple(solvers))
        times = [theirs if p else mine for mine, theirs, p in zip(a.times, b.times, pick[1:], strict=True)]
        return Genes(spread(times), tuple(solvers))

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

    def _drawn(self, gene: str, rng: np.random.Generator) -> object:
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


def made_ranker(config: S3Config, seed: int) -> Ranker | None:
    """The predictor that the options name, ``None`` for ``none``."""
    if config.predictor == "none":
        return None
    if config.predictor == "ridge":
        return KernelRanker(optimism=config.optimism)
    return LstmRanker(seed=seed, config=LstmConfig() if config.predictor == "lstm" else LstmConfig.small())


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
