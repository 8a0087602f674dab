"""Ozaki et al. 2022, "Multiobjective Tree-Structured Parzen Estimator" (JAIR 73): Bayesian search of a joint space.

A schedule is described by a few parameters, conditional on one another: the number of steps; how their noise levels are
spaced; the solver, its order and another order for the last steps; how many steps of the ``model`` row compute, where
they crowd, and what the others hold; an op for all blocks, or for one kind of their components, and the share of steps
at which they compute; two ranges of blocks and steps that differ from that; how many blocks are removed, those that do
least first where a probe tells. Optuna's samplers propose values for the parameters of the axes that the space leaves
open: ``tpe`` (multivariate, one model per group of parameters that occur together), ``gp`` (Gaussian processes; needs
torch, and half a second per proposal and more) or ``nsga2``. The last two know no conditions, so there every parameter
always has a value.

Many values stand for one schedule. What is repeated is not proposed again: values are drawn anew by chance, one at
first and more the longer it takes, so the search does not stall. Measurements that failed teach nothing; those stopped
as hopeless count as the worst seen. Optuna keeps its trials in memory, and only for this searcher: the study is
elsewhere. This module does not know how anything is measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import exp, isfinite, log
from typing import Any

import numpy as np
import numpy.typing as npt

from schedsearch.errors import UsageError
from schedsearch.schedule import COMPUTE, MODEL_ROW, OPS, Schedule, Solver
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Objective, Probe

SAMPLERS = ("tpe", "gp", "nsga2")
"""Optuna's samplers by their names here."""

MOST_DB = 100.0
"""What an infinite value in dB counts as."""

FINE = 2000
"""Points of the default spacing between which noise levels are interpolated."""

NONE = "none"
"""The op of a range that does not exist."""

Value = int | float | str
Values = dict[str, Value]
Given = tuple[str, Collection[Value]] | tuple[()]
Array = npt.NDArray[np.float64]


# ---- parameters and who proposes them


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A parameter: one of ``choices``, or a number from ``low`` to ``high``, whole if both are.

    Attributes:
        name: unique.
        low: lowest number.
        high: highest number.
        choices: texts to choose from; empty for a number.
        is_log: a number that is not whole is uniform in its logarithm.
        given: another parameter and the values of it with which this one exists; always, if empty.
    """

    name: str
    low: int | float = 0
    high: int | float = 1
    choices: tuple[str, ...] = ()
    is_log: bool = False
    given: Given = ()

    def exists(self, values: Mapping[str, Value]) -> bool:
        """Whether there is such a parameter where others have these values."""
        return not self.given or values.get(self.given[0]) in self.given[1]

    def suggested(self, trial: Any) -> Value:
        """The value that an Optuna trial suggests."""
        if self.choices:
            return str(trial.suggest_categorical(self.name, self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return int(trial.suggest_int(self.name, self.low, self.high))
        return float(trial.suggest_float(self.name, self.low, self.high, log=self.is_log))

    def drawn(self, rng: np.random.Generator) -> Value:
        """A value by chance."""
        if self.choices:
            return self.choices[rng.integers(len(self.choices))]
        if isinstance(self.low, int) and isinstance(self.high, int):
            return int(rng.integers(self.low, self.high + 1))
        if self.is_log:
            return exp(rng.uniform(log(self.low), log(self.high)))
        return float(rng.uniform(self.low, self.high))


class Proposer:
    """An Optuna sampler behind ask and tell, deterministic by seed, for losses to be minimised."""

    def __init__(self, params: Sequence[Param], *, n_losses: int, sampler: str, seed: int, startup: int) -> None:
        import optuna

        with _silent():
            made = _sampler(sampler, seed=seed, startup=startup)
            self._study = optuna.create_study(directions=["minimize"] * n_losses, sampler=made)
        self._fail = optuna.trial.TrialState.FAIL
        self._params = params
        self._is_flat = sampler != "tpe"

    def ask(self, fixed: Values | None = None) -> tuple[Any, Values]:
        """A trial and its values; those in ``fixed`` are taken from there."""
        with _silent():
            if fixed is not None:
                self._study.enqueue_trial(fixed)
            trial = self._study.ask()
            values: Values = {}
            for param in self._params:
                if self._is_flat or param.exists(values):
                    values[param.name] = param.suggested(trial)
        return trial, values

    def tell(self, trial: Any, losses: Sequence[float] | None) -> None:
        """What ``trial`` came to; ``None`` teaches nothing."""
        with _silent():
            self._study.tell(trial, losses, state=self._fail if losses is None else None)

    def redrawn(self, values: Values, share: float, rng: np.random.Generator) -> Values:
        """``values`` with one of them, and a ``share`` of the others, drawn by chance."""
        one, near = list(values)[rng.integers(len(values))], Values()
        for param in self._params:
            if self._is_flat or param.exists(near):
                keeps = param.name in values and param.name != one and rng.random() >= share
                near[param.name] = values[param.name] if keeps else param.drawn(rng)
        return near


def _sampler(name: str, *, seed: int, startup: int) -> Any:
    from optuna.samplers import GPSampler, NSGAIISampler, TPESampler

    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
    return NSGAIISampler(seed=seed, population_size=max(2, startup))


@contextmanager
def _silent() -> Iterator[None]:
    """Optuna neither logs inside, nor warns of what it calls experimental: that is chosen knowingly."""
    import optuna

    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


# ---- the searcher


@dataclass(frozen=True, slots=True, kw_only=True)
class BayesConfig:
    """Options of `Bayes`.

    Attributes:
        sampler: one of `SAMPLERS`.
        startup: first proposals, which are random, the default run among them; the population of ``nsga2``.
        ranges: ranges of blocks with an op of their own.
        knots: places between which densities are interpolated, those of free noise levels and of computed steps.
        patience: draws by chance that may repeat a known schedule before the space counts as exhausted.
    """

    sampler: str = "tpe"
    startup: int = 20
    ranges: int = 2
    knots: int = 4
    patience: int = 200

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UsageError(f"sampler: found {self.sampler!r}, expected one of {', '.join(SAMPLERS)}.")
        for name, low in (("startup", 1), ("ranges", 0), ("knots", 2), ("patience", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected {low} or more.")


class Bayes:
    """Bayesian optimisation of all objectives; finished when nothing new can be drawn."""

    name = "bayes"
    Config = BayesConfig

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],
        config: BayesConfig | None = None,
        probe: Probe | None = None,
    ) -> None:
        self._config = config or BayesConfig()
        self._plans = Plans(space, ranges=self._config.ranges, knots=self._config.knots, probe=probe)
        self._objectives = tuple(objectives)
        self._seed = seed
        self._proposer = Proposer(
            self._plans.params, n_losses=len(self._objectives), sampler=self._config.sampler, seed=seed,
            startup=self._config.startup,
        )  # fmt: skip
        self._losses: dict[str, tuple[float, ...] | None] = {}
        self._best: tuple[float, ...] = ()
        self._worst: tuple[float, ...] = ()
        self._trials: list[Any] = []
        self._turn = Turn(self.name)

    def ask(self, n: int) -> Sequence[Candidate]:
        """Up to ``n`` new schedules; empty when there are no more."""
        first, self._trials = self._turn.next_ask, []
        proposals: list[tuple[Schedule, tuple[str, ...]]] = []
        for ask in range(first, first + n):
            found = self._new(ask)
            if found is None:
                break
            trial, schedule = found
            self._losses[schedule.id] = None
            self._trials.append(trial)
            proposals.append((schedule, ()))
        return self._turn.asked(proposals)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Hand the losses to the sampler: failures teach nothing, what was stopped as hopeless is as bad as any."""
        self._turn.told(evaluations)
        for trial, evaluation in zip(self._trials, evaluations, strict=True):
            losses = self._losses_of(evaluation)
            self._losses[evaluation.candidate.schedule.id] = losses
            self._proposer.tell(trial, losses)

    def _new(self, ask: int) -> tuple[Any, Schedule] | None:
        """A trial whose schedule was not proposed before."""
        if ask == 0:
            trial, values = self._proposer.ask(self._plans.default)
            return trial, self._plans.schedule_of(values)
        if not self._plans.params:
            return None
        trial, values = self._proposer.ask()
        schedule = self._plans.schedule_of(values)
        if schedule.id not in self._losses:
            return trial, schedule
        # a Gaussian process would propose the same again if it did not learn; a Parzen estimator would crowd there
        self._proposer.tell(trial, self._losses[schedule.id] if self._config.sampler == "gp" else None)
        rng, patience = np.random.default_rng((self._seed, ask)), self._config.patience
        for i in range(patience):
            near = self._proposer.redrawn(values, (i + 1) / patience, rng)
            schedule = self._plans.schedule_of(near)
            if schedule.id not in self._losses:
                return self._proposer.ask(near)[0], schedule
        return None

    def _losses_of(self, evaluation: Evaluation) -> tuple[float, ...] | None:
        """Finite losses, less is better; infinite ones become the best or worst so far."""
        if evaluation.status == "pruned":
            return self._worst or None
        if evaluation.status != "ok":
            return None
        losses = []
        for i, (value, objective) in enumerate(zip(evaluation.values, self._objectives, strict=True)):
            loss = -value if objective.better == "max" else value
            if not isfinite(loss):
                known = self._best if loss < 0.0 else self._worst
                loss = (known[i] if known else 0.0) if objective.unit != "dB" else max(-MOST_DB, min(loss, 0.0))
            losses.append(loss)
        self._best = tuple(map(min, losses, self._best or losses))
        self._worst = tuple(map(max, losses, self._worst or losses))
        return tuple(losses)


# ---- from parameters to schedules


class Plans:
    """The parameters of a space, and the schedules that their values stand for.

    Attributes:
        params: parameters of the axes that are open, each after those its existence depends on.
        default: values of the plain run.
    """

    def __init__(self, space: SearchSpace, *, ranges: int = 2, knots: int = 4, probe: Probe | None = None) -> None:
        self._space = space
        self._knots = knots
        self._fine = np.array(space.grid(FINE))
        self._solvers = _families(space.solvers)
        self._idle = tuple(char for char in space.symbols_of(MODEL_ROW) if char != COMPUTE)
        self._parts = _parts(space)
        self._ops = "".join(
            char for char in OPS if any(char in space.symbols_of(row) for rows in self._parts.values() for row in rows)
        )
        self._ranges = tuple(f"range{r}" for r in range(1, ranges + 1))
        sizes = {block.name: block.size for block in probe.blocks} if probe is not None else {}
        self._removable = sorted(space.prunable, key=lambda name: sizes.get(name, 0.0))  # those that do least first
        self.default: Values = {}
        self.params = tuple(self._described()) if max(space.counts) > 1 or space.max_pruned else ()

    def schedule_of(self, values: Mapping[str, Value]) -> Schedule:
        """The schedule that ``values`` stand for, repaired; what has no value is as in the plain run."""
        known = {**self.default, **values}
        n_steps = self._space.counts[int(known.get("steps", -1))]
        rows = self._rows(known, n_steps)
        pruned = self._pruned(known)
        return self._space.build(
            sigma=self._sigma(known, n_steps), solver=self._solver(known, n_steps), ops=rows.items(), pruned=pruned
        )

    # ---- what there is to choose

    def _described(self) -> Iterator[Param]:
        """All parameters; their values in the plain run are noted on the way."""
        space = self._space
        if len(space.counts) > 1:
            self.default["steps"] = space.counts.index(space.n_steps)
            yield Param(name="steps", low=0, high=len(space.counts) - 1)
        if space.free_sigma:
            self.default |= {"spacing": "warp", "shift": 1.0, "curvature": 1.0}
            yield Param(name="spacing", choices=("warp", "density"))
            yield Param(name="shift", low=0.2, high=5.0, is_log=True, given=("spacing", ("warp",)))
            yield Param(name="curvature", low=1 / 3, high=3.0, is_log=True, given=("spacing", ("warp",)))
            yield from self._described_density("sigma", ("spacing", ("density",)))
        yield from self._described_solver()
        if self._idle:
            self.default["model_share"] = 1.0
            yield Param(name="model_share", low=0.0, high=1.0)
            yield Param(name="model_op", choices=self._idle)
            yield from self._described_density("model", ())
        if len(self._ops) > 1:
            self.default |= {"blocks_op": COMPUTE}
            yield Param(name="blocks_op", choices=tuple(self._ops))
            given = "blocks_op", self._ops.replace(COMPUTE, "")
            yield Param(name="blocks_share", low=0.0, high=1.0, given=given)
            if len(self._parts) > 1:
                yield Param(name="blocks_part", choices=tuple(self._parts), given=given)
            for name in self._ranges:
                yield from self._described_range(name)
        if most := min(space.max_pruned, len(self._removable)):
            self.default["pruned"] = 0
            yield Param(name="pruned", low=0, high=most)
            yield Param(name="pruned_from", low=0, high=len(self._removable) - 1, given=("pruned", range(1, most + 1)))

    def _described_density(self, name: str, given: Given) -> Iterator[Param]:
        return (Param(name=f"{name}_density{i}", low=-2.0, high=2.0, given=given) for i in range(self._knots))

    def _described_solver(self) -> Iterator[Param]:
        families = tuple(self._solvers)
        if len(families) > 1:
            self.default["solver"] = families[0]
            yield Param(name="solver", choices=families)
        orders = [solver.order for solvers in self._solvers.values() for solver in solvers]
        if len(set(orders)) > 1:
            # the range of a parameter must not depend on another, so orders are clipped to what the family has
            wide = tuple(family for family, solvers in self._solvers.items() if len(solvers) > 1)
            given: Given = ("solver", wide) if len(families) > 1 else ()
            self.default |= {"order": self._space.solvers[0].order, "tail": 0}
            yield Param(name="order", low=min(orders), high=max(orders), given=given)
            yield Param(name="tail", low=0, high=3, given=given)
            yield Param(name="tail_order", low=min(orders), high=max(orders), given=("tail", (1, 2, 3)))

    def _described_range(self, name: str) -> Iterator[Param]:
        """A range that differs from the other blocks, on some steps; none if it has no op."""
        self.default[f"{name}_op"] = NONE
        given, n_blocks = (f"{name}_op", self._ops), len(self._space.blocks)
        yield Param(name=f"{name}_op", choices=(NONE, *self._ops))
        if len(self._parts) > 1:
            yield Param(name=f"{name}_part", choices=tuple(self._parts), given=given)
        yield Param(name=f"{name}_first", low=0, high=n_blocks - 1, given=given)
        yield Param(name=f"{name}_length", low=1, high=n_blocks, given=given)
        yield Param(name=f"{name}_share", low=0.0, high=1.0, given=given)
        yield Param(name=f"{name}_begin", low=-0.5, high=0.9, given=given)
        yield Param(name=f"{name}_end", low=0.1, high=1.5, given=given)

    # ---- what the choices mean

    def _sigma(self, known: Mapping[str, Value], n_steps: int) -> tuple[float, ...]:
        """Noise levels, at places of the default spacing."""
        if not self._space.free_sigma:
            return self._space.grid(n_steps)
        u = np.arange(n_steps + 1) / n_steps
        if known["spacing"] == "warp":
            shift = float(known["shift"])
            u = (shift * u / (1.0 + (shift - 1.0) * u)) ** float(known["curvature"])
        else:
            u = self._crowded(known, "sigma", u)
        return tuple(float(level) for level in np.interp(u, np.arange(FINE + 1) / FINE, self._fine))

    def _crowded(self, known: Mapping[str, Value], name: str, u: Array) -> Array:
        """Places in [0, 1] for even places ``u``, dense where the piecewise linear log density is high."""
        fine = np.linspace(0.0, 1.0, 201)
        heights = [float(known[f"{name}_density{i}"]) for i in range(self._knots)]
        density = np.exp(np.interp(fine, np.linspace(0.0, 1.0, self._knots), heights))
        grown = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        return np.interp(u, grown / grown[-1], fine)

    def _solver(self, known: Mapping[str, Value], n_steps: int) -> tuple[Solver, ...]:
        """The solver of each step: one order, and another one for the last ``tail`` steps."""
        solvers = self._solvers[str(known.get("solver", next(iter(self._solvers))))]

        def of(order: Value) -> Solver:
            return max((s for s in solvers if s.order <= int(order)), key=lambda s: s.order, default=solvers[0])

        tail = min(int(known.get("tail", 0)), n_steps - 1)
        body = of(known.get("order", 1))
        return (body,) * (n_steps - tail) + (of(known.get("tail_order", 1)),) * tail

    def _rows(self, known: Mapping[str, Value], n_steps: int) -> dict[str, str]:
        """All rows: the model's, that of all blocks, then the ranges that differ."""
        model = COMPUTE * n_steps
        budget = max(1, round(float(known.get("model_share", 1.0)) * n_steps))
        if budget < n_steps:
            even = self._crowded(known, "model", np.arange(budget) / budget)
            model = _computing(n_steps, [int(place * n_steps) for place in even], str(known["model_op"]))
        rows = {MODEL_ROW: model}
        steps = [step for step, symbol in enumerate(model) if symbol == COMPUTE]
        if known.get("blocks_op", COMPUTE) != COMPUTE:
            part = self._parts[str(known.get("blocks_part", next(iter(self._parts))))]
            row = _thinned(COMPUTE * n_steps, steps, float(known["blocks_share"]), str(known["blocks_op"]))
            rows |= dict.fromkeys(part, row)
        for name in self._ranges:
            if known.get(f"{name}_op", NONE) == NONE:
                continue
            part = self._parts[str(known.get(f"{name}_part", next(iter(self._parts))))]
            first, last = int(known[f"{name}_first"]), int(known[f"{name}_first"]) + int(known[f"{name}_length"])
            begin, end = float(known[f"{name}_begin"]) * n_steps, float(known[f"{name}_end"]) * n_steps
            window = [step for step in steps if begin <= step < end]
            for row_name, block in part.items():
                if first <= block < last:
                    before = rows.get(row_name, COMPUTE * n_steps)
                    rows[row_name] = _thinned(before, window, float(known[f"{name}_share"]), str(known[f"{name}_op"]))
        return rows

    def _pruned(self, known: Mapping[str, Value]) -> tuple[str, ...]:
        names, first = self._removable, int(known.get("pruned_from", 0))
        return tuple(names[(first + i) % len(names)] for i in range(int(known.get("pruned", 0))))


def _computing(n_steps: int, places: Sequence[int], op: str) -> str:
    """A row that computes at distinct steps near ``places``, the first at step 0, and holds ``op`` elsewhere.

    >>> _computing(6, [0, 0, 5], "R")
    'CCRRRC'
    """
    chosen: list[int] = []
    for i, place in enumerate(places):
        lowest = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(place, lowest), n_steps - len(places) + i))
    computes = {0, *chosen[1:]}
    return "".join(COMPUTE if step in computes else op for step in range(n_steps))


def _thinned(row: str, steps: Sequence[int], share: float, op: str) -> str:
    """``row`` with an even ``share`` of ``steps`` computing, if any the first, and ``op`` at the others.

    >>> _thinned("CCCCCC", [0, 2, 3, 5], 0.5, "R")
    'CCRCCR'
    """
    chars = list(row)
    budget = round(share * len(steps))
    for i, step in enumerate(steps):
        chars[step] = COMPUTE if i * budget % len(steps) < budget else op
    return "".join(chars)


def _families(solvers: Sequence[Solver]) -> dict[str, tuple[Solver, ...]]:
    """Solvers that differ in their order only, by a name, orders ascending."""
    families: dict[str, list[Solver]] = {}
    for solver in solvers:
        families.setdefault(repr(replace(solver, order=1)), []).append(solver)
    return {
        f"{i} {found[0].family}": tuple(sorted(found, key=lambda solver: solver.order))
        for i, found in enumerate(families.values())
    }


def _parts(space: SearchSpace) -> dict[str, dict[str, int]]:
    """What ops may be about: whole blocks, all their components, or one kind of these; each with its rows by block."""
    parts: dict[str, dict[str, int]] = {}
    for name in space.row_names:
        level = space.level_of(name)
        block = name if level == "block" else name.rpartition(".")[0]
        if level == "model" or space.symbols_of(name) == COMPUTE:
            continue
        place = next(i for i, known in enumerate(space.blocks) if known.name == block)
        kinds = ("blocks",) if level == "block" else ("components", name.removeprefix(block))
        for kind in kinds:
            parts.setdefault(kind, {})[name] = place
    return parts
