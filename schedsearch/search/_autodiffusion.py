"""Li et al. 2023, "AutoDiffusion: Training-Free Optimization of Time Steps and Architectures" (arXiv 2309.10438).

Two-stage evolution of one objective at a fixed budget. A plan is a list of steps, each with its place on a grid of
timesteps and the blocks it skips. Stage 1 searches the places with the whole network. Stage 2 begins when the best plan
is the same after two epochs, or after epoch 4, and searches skipped blocks too: the upper bound of their share grows by
a fifth of ``max_skip`` per epoch, the lower bound is ``min_skip`` from epoch 6 on. The budget is the number of blocks
computed in the whole run, ``steps x blocks``, so a plan that skips may take more steps. Every epoch has 25 mutations
and 15 crossovers of the ten best plans ever seen, and fresh random plans for the rest; the first one has the uniform
schedule, random plans (half) and light mutations of the uniform one. Nothing is measured twice.

Faults of the release that are mended: its mutation of skipped blocks compares where it should assign, so it changes
nothing; its crossover repairs lengths by comparing lists in alphabetical order; its mutation changes neither the number
of steps nor that of the blocks a step skips (here the first follows the budget, the second is redrawn at the same
rate); children may exceed the budget (here steps are dropped until they fit); two equal timesteps of a child silently
become one (here one of them moves); steps are unordered, so crossover mixes positions that do not correspond (here they
are sorted); its fitness is drawn with new noise each time (here noise is the evaluator's, and paired).

What differs on purpose: places are even in the parameter in which the default schedule is even, and the first noise
level is pinned. Where the space holds noise levels fixed, places are steps of the default grid: the ``model`` row
computes at the chosen ones and reuses between them, which under Euler is the schedule of those steps alone. Without
that row either, the grid of each number of steps is what it is. Without block rows that may skip there is no stage 2.
Several budgets advance in turn, each a run of its own. This module does not know how anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan

import numpy as np

from schedsearch.errors import UsageError
from schedsearch.schedule import COMPUTE, MODEL_ROW, REUSE, SKIP, Schedule, Solver
from schedsearch.search._objectives import quality_place
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Objective, Probe

TIMESTEPS = 1000
"""Places on the grid where noise levels are free, as published."""

TRIES = 10
"""Attempts per child wanted; those that repeat a known plan are lost."""

FIRST_MUTATION = 0.1
"""Rate at which timesteps of the uniform schedule change in the first population."""

Step = tuple[int, frozenset[int]]
"""Place on the grid of timesteps, and numbers of the blocks skipped."""

Plan = tuple[Step, ...]
"""Steps in order of places; the first is at place 0 and skips nothing, because the first step computes everything."""

NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoDiffusionConfig:
    """Options of `AutoDiffusion`; the defaults are the published ones.

    Attributes:
        steps: budgets in steps of the whole network, each a run of its own, advanced in turn; empty is a half, a third,
            a quarter, a sixth and an eighth of the default number, as far as the space has them.
        objective: name of the objective to improve; empty is the first that is not a cost.
        solver: family of the solver, in its highest order that the space has; empty is the space's first.
        population: plans per epoch.
        parents: best plans that children are made from.
        mutations: children by mutation per epoch.
        crossovers: children by crossover per epoch.
        mutation: probability that a timestep, or a skipped block, is replaced.
        reach: farthest a mutation moves a timestep on its grid; 0 is anywhere, as published.
        epochs: epochs of a run that searches timesteps only.
        joint_epochs: epochs of a run that searches skipped blocks too, both stages together.
        max_skip: highest share of blocks a step may skip; 0 leaves out stage 2.
        min_skip: lowest share from epoch 6 on.
    """

    steps: tuple[int, ...] = ()
    objective: str = ""
    solver: str = ""
    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 15
    mutation: float = 0.25
    reach: int = 0
    epochs: int = 10
    joint_epochs: int = 15
    max_skip: float = 0.1
    min_skip: float = 0.0

    def __post_init__(self) -> None:
        least = {"population": 1, "parents": 1, "epochs": 1, "joint_epochs": 1}
        for name in ("population", "parents", "epochs", "joint_epochs", "mutations", "crossovers", "reach"):
            if getattr(self, name) < least.get(name, 0):
                raise UsageError(f"{name}: found {getattr(self, name)}, expected {least.get(name, 0)} or more.")
        if self.mutations + self.crossovers > self.population:
            found = f"{self.mutations} + {self.crossovers}"
            raise UsageError(f"mutations + crossovers: found {found}, expected at most population, {self.population}.")
        if not 0.0 <= self.mutation <= 1.0:
            raise UsageError(f"mutation: found {self.mutation}, expected a probability.")
        if not 0.0 <= self.min_skip <= self.max_skip < 1.0:
            found = f"{self.min_skip} to {self.max_skip}"
            raise UsageError(f"min_skip, max_skip: found {found}, expected shares that rise and stay below 1.")


class AutoDiffusion:
    """One evolution per budget; `ask` gives a whole epoch of one of them, whatever number was asked for."""

    name = "autodiffusion"
    Config = AutoDiffusionConfig

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],
        config: AutoDiffusionConfig | None = None,
        probe: Probe | None = None,  # noqa: ARG002 - every searcher is made the same way
    ) -> None:
        """Prepare the runs.

        Raises:
            UsageError: if a budget, the objective or the solver is not one of the space.
        """
        self._config = config or AutoDiffusionConfig()
        self._place = quality_place(objectives, self._config.objective)
        self._sign = -1.0 if objectives[self._place].better == "max" else 1.0
        self._plans = _Plans(space, self._config.solver)
        self._energy: dict[str, float] = {}
        self._turn = Turn(self.name)
        self._runs = [
            _Run(self._plans, steps, config=self._config, rng=np.random.default_rng((seed, steps)), known=self._energy)
            for steps in self._budgets()
        ]
        self._asked: _Run | None = None

    def ask(self, n: int) -> Sequence[Candidate]:  # noqa: ARG002 - the protocol asks for it
        """The next epoch of the run whose turn it is; empty when all runs are done."""
        while self._runs:
            self._asked = self._runs[0]
            if proposals := self._asked.next_epoch():
                return self._turn.asked(proposals)
            self._runs.pop(0)
        return ()

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Merge the epoch into the archive of its run. What failed is worse than anything."""
        self._turn.told(evaluations)
        for evaluation in evaluations:
            value = self._sign * evaluation.values[self._place] if evaluation.status == "ok" else inf
            self._energy[evaluation.candidate.schedule.id] = inf if isnan(value) else value
        if self._asked is not None:
            self._asked.learn()
            self._runs.append(self._runs.pop(0))

    def _budgets(self) -> tuple[int, ...]:
        """Budgets in steps, each once."""
        lengths = self._plans.lengths
        if self._config.steps:
            for i, steps in enumerate(self._config.steps):
                if steps not in lengths:
                    raise UsageError(f"steps[{i}]: found {steps}, expected one of {', '.join(map(str, lengths))}.")
            return tuple(dict.fromkeys(self._config.steps))
        wanted = [lengths[-1] / speedup for speedup in (4, 3, 6, 2, 8)]
        return tuple(dict.fromkeys(min(lengths, key=lambda k: (abs(k - steps), k)) for steps in wanted))


class _Plans:
    """What plans there are in a space, and the schedules they stand for.

    Attributes:
        lengths: legal numbers of steps, ascending.
        n_places: places on the grid of timesteps; 0 if a number of steps leaves no choice.
        n_blocks: blocks of the network, the units of the budget.
        skippable: numbers of those that may be skipped.
    """

    def __init__(self, space: SearchSpace, solver: str) -> None:
        self._space = space
        self._solver = _chosen_solver(space, solver)
        self._is_free = space.free_sigma
        self._is_subset = not self._is_free and REUSE in space.symbols_of(MODEL_ROW)
        self._grid = space.grid(TIMESTEPS if self._is_free else space.n_steps)
        self.lengths = tuple(range(1, space.n_steps + 1)) if self._is_subset else tuple(space.counts)
        self.n_places = len(self._grid) - 1 if self._is_free or self._is_subset else 0
        self.n_blocks = max(1, len(space.blocks))
        has_rows = "block" in dict(space.levels)
        self.skippable = tuple(
            i for i, block in enumerate(space.blocks) if has_rows and SKIP in space.symbols_of(block.name)
        )

    def uniform(self, steps: int) -> Plan:
        """The uniform schedule of the whole network."""
        spacing = self.n_places / steps if self.n_places else 1.0
        return tuple((int(i * spacing), NOTHING) for i in range(steps))

    def schedule_of(self, plan: Plan) -> Schedule:
        """The schedule of a plan, repaired."""
        space, places = self._space, [place for place, _ in plan]
        sigma = self._grid
        if self._is_free:
            sigma = (*(self._grid[place] for place in places), self._grid[-1])
        elif not self._is_subset:
            sigma = space.grid(len(plan))
        n_steps = len(sigma) - 1
        at = places if self._is_subset else range(len(plan))
        rows: dict[str, list[str]] = {}
        if self._is_subset and len(plan) < n_steps:
            rows[MODEL_ROW] = [COMPUTE if step in set(places) else REUSE for step in range(n_steps)]
        for step, (_, skipped) in zip(at, plan, strict=True):
            for block in skipped:
                rows.setdefault(space.blocks[block].name, [COMPUTE] * n_steps)[step] = SKIP
        ops = [(name, "".join(row)) for name, row in rows.items()]
        return space.build(sigma=sigma, solver=(self._solver,) * n_steps, ops=ops)


def _chosen_solver(space: SearchSpace, family: str) -> Solver:
    """The solver of that family with the highest order in the space; its first one if no family is named."""
    if not family:
        return space.solvers[0]
    of_family = [solver for solver in space.solvers if solver.family == family]
    if not of_family:
        names = ", ".join(dict.fromkeys(solver.family for solver in space.solvers))
        raise UsageError(f"solver: found {family!r}, expected one of {names}.")
    return max(of_family, key=lambda solver: solver.order)


class _Run:
    """The evolution at one budget.

    Attributes:
        least: blocks a step after the first skips at least, in stage 2.
        most: blocks a step may skip; 0 in stage 1.
    """

    def __init__(
        self,
        plans: _Plans,
        steps: int,
        *,
        config: AutoDiffusionConfig,
        rng: np.random.Generator,
        known: dict[str, float],
    ) -> None:
        self._plans, self._steps, self._config, self._rng = plans, steps, config, rng
        self._known = known
        self._lengths = [length for length in plans.lengths if length >= steps]
        self._budget = steps * plans.n_blocks
        self._is_joint = bool(plans.skippable) and config.max_skip > 0.0 and steps > 1
        self._epoch = 0
        self._upper = self._lower = 0.0
        self._best: Plan = ()
        self._archive: list[Plan] = []
        self._population: list[Plan] = []
        self._schedules: dict[Plan, Schedule] = {}

    # ---- epochs

    def next_epoch(self) -> list[tuple[Schedule, tuple[str, ...]]]:
        """Schedules not measured yet, with their parents, of the next epoch that has any; empty when all are over."""
        limit = self._config.joint_epochs if self._is_joint else self._config.epochs
        proposals: list[tuple[Schedule, tuple[str, ...]]] = []
        while self._epoch < limit and not proposals:
            self._population = []
            fresh: set[str] = set()
            for plan, parents in self._first_epoch() if self._epoch == 0 else self._later_epoch():
                schedule = self._schedule_of(plan)
                self._population.append(plan)
                if schedule.id not in self._known and schedule.id not in fresh:
                    fresh.add(schedule.id)
                    proposals.append((schedule, tuple(dict.fromkeys(self._schedule_of(p).id for p in parents))))
            if not proposals:
                self.learn()
        return proposals

    def learn(self) -> None:
        """Merge the last epoch's plans, whose energies are known by now, into the archive; go on to the next epoch."""
        merged = dict.fromkeys((*self._archive, *self._population))
        self._archive = sorted(merged, key=self._energy)[: self._config.parents]
        best = self._archive[0]
        if self._is_joint:
            if self._upper == 0.0 and (best == self._best or self._epoch > 4):
                self._upper = self._config.max_skip / 5
            elif 0.0 < self._upper < self._config.max_skip:
                self._upper = min(self._upper + self._config.max_skip / 5, self._config.max_skip)
            if self._epoch > 5:
                self._lower = self._config.min_skip
        self._best = best
        self._epoch += 1

    def _first_epoch(self) -> Iterator[tuple[Plan, tuple[Plan, ...]]]:
        uniform, half = self._plans.uniform(self._steps), self._config.population // 2 + 1
        yield uniform, ()
        yield from self._new(min(half, self._config.population - 1), lambda: (self._drawn(), ()))
        rest = self._config.population - 1 - half
        yield from self._new(rest, lambda: (self._mutated(uniform, FIRST_MUTATION), (uniform,)))

    def _later_epoch(self) -> Iterator[tuple[Plan, tuple[Plan, ...]]]:
        def mutation() -> tuple[Plan, tuple[Plan, ...]]:
            parent = self._parent()
            return self._mutated(parent, self._config.mutation), (parent,)

        def crossover() -> tuple[Plan, tuple[Plan, ...]]:
            pair = self._parent(), self._parent()
            return self._crossed(*pair), pair

        made = 0
        for wanted, child in ((self._config.mutations, mutation), (self._config.crossovers, crossover)):
            for item in self._new(wanted, child):
                made += 1
                yield item
        yield from self._new(self._config.population - made, lambda: (self._drawn(), ()))

    def _new(
        self, wanted: int, child: Callable[[], tuple[Plan, tuple[Plan, ...]]]
    ) -> Iterator[tuple[Plan, tuple[Plan, ...]]]:
        """Up to ``wanted`` plans of this run that it has not had before."""
        found = 0
        for _ in range(TRIES * wanted):
            if found >= wanted:
                return
            plan, parents = child()
            if plan not in self._schedules:
                found += 1
                yield plan, parents

    def _parent(self) -> Plan:
        return self._archive[self._rng.integers(len(self._archive))]

    def _energy(self, plan: Plan) -> float:
        return self._known[self._schedule_of(plan).id]

    def _schedule_of(self, plan: Plan) -> Schedule:
        if plan not in self._schedules:
            self._schedules[plan] = self._plans.schedule_of(plan)
        return self._schedules[plan]

    # ---- plans

    @property
    def least(self) -> int:
        """Blocks that a step after the first skips at least."""
        return min(int(self._lower * self._plans.n_blocks), self.most)

    @property
    def most(self) -> int:
        """Blocks that a step after the first may skip; at least one in stage 2, however few there are."""
        if self._upper == 0.0:
            return 0
        return min(max(1, int(self._upper * self._plans.n_blocks)), len(self._plans.skippable))

    def _drawn(self) -> Plan:
        """A random plan that uses up the budget."""
        n_blocks, sizes = self._plans.n_blocks, [0]
        kept = n_blocks
        while kept + n_blocks - self.most <= self._budget and len(sizes) < self._lengths[-1]:
            size = int(self._rng.integers(max(self.least, kept + n_blocks - self._budget), self.most + 1))
            sizes.append(size)
            kept += n_blocks - size
        length = max(length for length in self._lengths if length <= len(sizes))
        places: Sequence[int] = range(length)
        if self._plans.n_places:
            inner = self._rng.choice(self._plans.n_places - 1, size=length - 1, replace=False) + 1
            places = [0, *sorted(int(place) for place in inner)]
        return tuple((place, self._skipped(size)) for place, size in zip(places, sizes[:length], strict=True))

    def _skipped(self, size: int) -> frozenset[int]:
        """That many blocks by chance."""
        if not size:
            return NOTHING
        return frozenset(int(block) for block in self._rng.choice(self._plans.skippable, size=size, replace=False))

    def _mutated(self, plan: Plan, rate: float) -> Plan:
        """``plan`` with timesteps and, in stage 2, skipped blocks replaced at ``rate``."""
        steps = list(plan)
        for i in range(1, len(steps)):
            place, skipped = steps[i]
            if self._plans.n_places and self._rng.random() < rate:
                place = self._moved(place, {taken for taken, _ in steps})
            if self.most:
                skipped = self._mutated_blocks(skipped, rate)
            steps[i] = place, skipped
        return self._fitted(steps)

    def _mutated_blocks(self, skipped: frozenset[int], rate: float) -> frozenset[int]:
        """Each skipped block replaced at ``rate``; at the same rate, another number of them."""
        if self._rng.random() < rate:
            return self._skipped(int(self._rng.integers(self.least, self.most + 1)))
        blocks = set(skipped)
        for block in sorted(skipped):
            others = [other for other in self._plans.skippable if other not in blocks]
            if others and self._rng.random() < rate:
                blocks.remove(block)
                blocks.add(others[self._rng.integers(len(others))])
        return frozenset(blocks)

    def _moved(self, place: int, taken: set[int]) -> int:
        """A place that is not ``taken``, within reach of ``place``; ``place`` itself if there is none."""
        reach = self._config.reach or self._plans.n_places
        near = range(max(1, place - reach), min(self._plans.n_places, place + reach + 1))
        return self._chosen(near, taken, place)

    def _chosen(self, places: range, taken: set[int], otherwise: int) -> int:
        free = [place for place in places if place not in taken]
        return free[self._rng.integers(len(free))] if free else otherwise

    def _crossed(self, a: Plan, b: Plan) -> Plan:
        """Each step from one of the two, position by position; as many steps as one of them has."""
        length = len(a) if self._rng.random() < 0.5 else len(b)
        longer = a if len(a) >= len(b) else b
        steps: list[Step] = []
        taken: set[int] = set()
        for i in range(length):
            both = i < min(len(a), len(b))
            place, skipped = (a if self._rng.random() < 0.5 else b)[i] if both else longer[i]
            if place in taken:
                place = self._moved(place, taken)
            if place not in taken:
                taken.add(place)
                steps.append((place, skipped))
        return self._fitted(steps)

    def _fitted(self, steps: list[Step]) -> Plan:
        """``steps`` in order, with steps dropped or added by chance until the budget is met and used."""
        n_blocks = self._plans.n_blocks
        steps = sorted(steps, key=lambda step: step[0])

        def kept() -> int:
            return sum(n_blocks - len(skipped) for _, skipped in steps)

        while kept() > self._budget or len(steps) not in self._lengths:
            if len(steps) < self._steps:  # a crossover of plans that fill the whole grid lost a step
                return self._drawn()
            steps.pop(int(self._rng.integers(1, len(steps))))
        while kept() + n_blocks - self.most <= self._budget and len(steps) + 1 in self._lengths:
            place = len(steps)
            if self._plans.n_places:
                place = self._chosen(range(1, self._plans.n_places), {taken for taken, _ in steps}, 0)
            if place == 0:
                break
            size = int(self._rng.integers(max(self.least, kept() + n_blocks - self._budget), self.most + 1))
            steps.append((place, self._skipped(size)))
        if not self._plans.n_places:
            return tuple((i, skipped) for i, (_, skipped) in enumerate(steps))
        return tuple(sorted(steps, key=lambda step: step[0]))
