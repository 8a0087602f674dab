"""Joint evolution on the interval genome with a ranking surrogate; ours, made of parts that others proved apart.

What is taken from whom: the first population holds the optimal paths of Watson 2021 (arXiv 2106.03802), GITS (Chen
2024, arXiv 2405.11326) and LeMiCa (arXiv 2511.00090) on a recorded run, fitted multistep solvers after OLSS (arXiv
2305.14677), and every hand-made mask; the variation operators are those of ECAD, BudCache and S^3 on one genome; a
surrogate chooses which of many children is worth a model call, as in S^3 (arXiv 2312.07243); the choice is by expected
gain in hypervolume.

What comes to lie on the frontier is tried as fitted steps as well, and what of it has few calls is polished
(`_fitted_steps.py`).

Every schedule is looked at on a share of the prompts first (the same noise for all) and measured on all of them only if
that look put it on the frontier or within a hair of it. Losses are compared on the prompts both were measured on, so
cheap looks and full measurements rank together. The search ends by itself when the hypervolume no longer grows.

This module does not know what a schedule costs, nor how it is measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from schedsearch.errors import UsageError
from schedsearch.schedule import Schedule
from schedsearch.search._archive import Archive
from schedsearch.search._fitted_steps import FittedPlan, FittedSteps
from schedsearch.search._prices import Prices
from schedsearch.search._rule_seeds import in_formats, in_turn, mixed, without
from schedsearch.search._seeds import seeds
from schedsearch.search._surrogate import KernelRanker
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace, crossed, mutated, trimmed
from schedsearch.study import Candidate, Evaluation, Objective, Probe

Floats = npt.NDArray[np.float64]

Birth: TypeAlias = tuple[str, tuple[str, ...]]
"""How a child came about, and the ids of its parents."""

Breed: TypeAlias = Callable[[np.random.Generator], "tuple[Schedule, Birth] | None"]
"""A way to make a child: it, and its birth."""

FIRST_ROUND = 5
"""Seeds after which the best are measured in full for the first time."""

SETTLED = 0.02
"""Relative error on known schedules up to which learnt prices are believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoConfig:
    """Options of `Auto`.

    Attributes:
        first_look: share of the prompts a schedule is looked at on first; 1 measures everything in full at once.
        n_seeds: most schedules in the first population.
        dressed: best schedules of the first population that are tried in the presets of number formats as well, where
            the space has such; at most a fifth of it.
        low_bit: whether the first population is in number formats from the start, because the weights as they are take
            too much memory.
        pool: children the surrogate chooses one from.
        optimism: standard deviations a prediction is improved by before it is judged.
        unguided: share of the children taken without asking the surrogate.
        crossover: share of the children with two parents.
        trimmed: share of the children made of a schedule that is too costly by computing less of some steps.
        refined: share of the children that differ from their parent in noise levels and solvers only.
        polished: most denoiser calls of a schedule on the frontier whose scalars and noise levels are fitted together,
            once; 0 polishes none.
        opening: evaluations after the first population that go to trimmed children at the wanted costs.
        focus: costs at which the best is wanted, the most important first.
        focus_share: share of the children whose parents are taken near one of them.
        slack: how far behind the frontier a first look may lie and still be measured in full, as a share of the
            frontier's extent.
        patience: evaluations without growth after which the search ends; ``0`` never ends it.
        tolerance: relative growth of the hypervolume that counts.
    """

    first_look: float = 0.25
    n_seeds: int = 120
    dressed: int = 8
    low_bit: bool = False
    mixed: tuple[tuple[int, ...], ...] = ()
    removals: tuple[tuple[str, ...], ...] = ()
    pool: int = 32
    optimism: float = 0.3
    unguided: float = 0.1
    crossover: float = 0.35
    trimmed: float = 0.35
    refined: float = 0.2
    polished: int = 6
    opening: int = 30
    focus: tuple[float, ...] = ()
    focus_share: float = 0.5
    slack: float = 0.01
    patience: int = 150
    tolerance: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("first_look", "unguided", "crossover", "trimmed", "refined", "focus_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected 0 to 1.")
        if self.first_look == 0.0:
            raise UsageError("first_look: found 0, expected a share above 0.")
        lowest = {"n_seeds": 1, "pool": 1, "patience": 0, "opening": 0, "dressed": 0, "polished": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected {low} or more.")
        for name in ("optimism", "slack", "tolerance"):
            if getattr(self, name) < 0.0:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected 0 or more.")


class Auto:
    """The default search: seeds, then steady-state joint evolution until the hypervolume stalls."""

    name = "auto"
    Config = AutoConfig

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],
        config: AutoConfig | None = None,
        probe: Probe | None = None,
    ) -> None:
        self._space = space
        self._seed = seed
        self._config = config or AutoConfig()
        self._archive = Archive(objectives, self._config.focus)
        self._turn = Turn(self.name)
        self._is_single = space.cardinality() == 1
        given = {
            "mixed": mixed(space, space.base, self._config.mixed),
            "removed": without(space, self._config.removals),
        }
        named = seeds(space, probe, given=given)
        self._names = {schedule.id: f"seed {name}" for name, schedule in named}
        first = list(dict.fromkeys([space.base, *(schedule for _, schedule in named)]))
        if self._config.low_bit:
            first = list(dict.fromkeys(in_turn(space, first)))
        self._seeds = deque(first[: 1 if self._is_single else self._config.n_seeds])
        self._n_looked = 0
        self._asked: set[str] = set()
        self._promoted: deque[Schedule] = deque()
        self._fitted = FittedSteps(space, self._config.polished)
        self._waiting: deque[FittedPlan] = deque()
        self._volumes: list[float] = []
        self._ranker = KernelRanker(axis=space.precision)
        self._is_dressed = not space.precision.is_open
        self._prices = Prices(space)

    def ask(self, n: int) -> Sequence[Candidate]:  # noqa: ARG002 - one at a time: the next depends on its outcome
        """The next candidate; empty when the hypervolume has stalled or nothing new can be found."""
        if self._promoted:
            return self._turn.asked([(self._promoted.popleft(), ())], origin="first look repeated in full")
        if self._waiting:
            schedule, parents, polish = self._waiting.popleft()
            if polish:
                return self._turn.asked([(schedule, parents)], polish=polish, origin="polished")
            self._asked.add(schedule.id)
            return self._turn.asked([(schedule, parents)], share=self._config.first_look, origin="fused")
        if self._seeds:
            schedule = self._seeds.popleft()
            self._asked.add(schedule.id)
            self._n_looked += 1
            share = 1.0 if schedule == self._space.base else self._config.first_look  # it is one end of the frontier
            return self._turn.asked([(schedule, ())], share=share, origin=self._names.get(schedule.id, "seed"))
        if self._is_single or self._has_stalled():
            return ()
        child, (origin, parents) = self._child(np.random.default_rng((self._seed, self._turn.next_ask)))
        if child is None:
            return ()
        self._asked.add(child.id)
        return self._turn.asked([(child, parents)], share=self._config.first_look, origin=origin)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the outcome in; a first look that is good enough is measured in full next."""
        self._turn.told(evaluations)
        for evaluation in evaluations:
            self._archive.add(evaluation)
        if not self._seeds and not self._volumes:
            self._archive.settle()
            self._dress()
            self._waiting.extend(self._fitted.spaced())
        if not self._seeds or self._is_round():
            known = {schedule.id for schedule in self._promoted}
            found = self._archive.worth_measuring(self._config.slack)
            self._promoted.extend(schedule for schedule in found if schedule.id not in known)
            self._waiting.extend(self._fitted.of(self._archive.front(), polishing=not self._seeds))
        if not self._seeds:
            self._volumes.append(self._archive.volume())

    def _dress(self) -> None:
        """Adds the best of the first population in the presets of number formats to it, once."""
        if self._is_dressed:
            return
        self._is_dressed = True
        known = set(self._asked)
        for schedule in self._archive.best(min(self._config.dressed, self._config.n_seeds // 5)):
            for word, made in in_formats(self._space, replace(schedule, precision=()), self._config.mixed):
                if made.id not in known:
                    known.add(made.id)
                    self._names[made.id] = f"seed formats/{word}"
                    self._seeds.append(made)

    def _is_round(self) -> bool:
        """Whether 5, 10, 20, ... seeds were looked at: the best of them are measured in full before the others."""
        looked, rest = divmod(self._n_looked, FIRST_ROUND)
        return rest == 0 and looked.bit_count() == 1

    def _has_stalled(self) -> bool:
        patience = self._config.patience
        if not patience or len(self._volumes) <= patience:
            return False
        before, now = self._volumes[-1 - patience], self._volumes[-1]
        return now <= before * (1.0 + self._config.tolerance)

    # ---- children

    def _child(self, rng: np.random.Generator) -> tuple[Schedule | None, Birth]:
        """A schedule that was not asked for before, and how it came about."""
        guided = rng.random() >= self._config.unguided
        pool = self._pool(rng, self._config.pool if guided else 1)
        if not pool:
            return None, ("", ())
        chosen = self._best(list(pool)) if guided and len(pool) > 1 else next(iter(pool))
        return chosen, pool[chosen]

    def _pool(self, rng: np.random.Generator, size: int) -> dict[Schedule, Birth]:
        """Children of one kind, so that those who keep a cost compete among themselves, with how they came about."""
        pool: dict[Schedule, Birth] = {}
        breed = self._breed(rng)
        for attempt in range(20 * size):
            made = breed(rng) or self._bred(rng)
            if made[0].id not in self._asked:
                pool.setdefault(*made)
            if len(pool) >= size:
                break
            if attempt == 10 * size:
                breed = self._bred
        return pool

    def _breed(self, rng: np.random.Generator) -> Breed:
        """One of the ways to make a child, drawn by their shares."""
        drawn = rng.random()
        if self._is_opening or drawn < self._config.trimmed:
            return self._trimmed
        return self._refined if drawn < self._config.trimmed + self._config.refined else self._bred

    @property
    def _is_opening(self) -> bool:
        """Whether the first population was measured only just now."""
        return len(self._volumes) <= self._config.opening

    def _trimmed(self, rng: np.random.Generator) -> tuple[Schedule, Birth] | None:
        found = self._archive.costlier(rng, focused=self._is_opening or rng.random() < self._config.focus_share)
        if found is None:
            return None
        parent, share = found
        child = trimmed(parent, self._space, rng, share=share)
        return None if child is None else (child, ("trimmed", (parent.id,)))

    def _refined(self, rng: np.random.Generator) -> tuple[Schedule, Birth] | None:
        parent = self._parent(rng)
        if parent is None:
            return None
        return mutated(parent, self._space, rng, rate=1.0, refining=True), ("refined", (parent.id,))

    def _bred(self, rng: np.random.Generator) -> tuple[Schedule, Birth]:
        first = self._parent(rng)
        if first is None or rng.random() < 0.03:
            return self._space.sample(rng), ("fresh draw", ())
        if rng.random() < self._config.crossover:
            second = self._parent(rng) or first
            child = crossed(first, second, self._space, rng)
            if rng.random() < 0.5:
                child = mutated(child, self._space, rng)
            return child, ("crossed", (first.id, second.id))
        return mutated(first, self._space, rng, rate=1.2), ("mutated", (first.id,))

    def _parent(self, rng: np.random.Generator) -> Schedule | None:
        return self._archive.parent(rng, focused=rng.random() < self._config.focus_share)

    def _best(self, pool: Sequence[Schedule]) -> Schedule:
        """The child whose optimistic prediction adds most to the hypervolume."""
        schedules, losses, costs = self._archive.lessons()
        if len(schedules) < 2:
            return pool[0]
        self._ranker.fit(schedules, losses)
        mean, spread = self._ranker.predict(pool)
        predicted = mean - self._config.optimism * spread
        if losses.shape[1] > 1 and (costs > 0.0).all():
            # A cost is a sum of prices; nothing is gained by optimism about it.
            self._prices.fit(schedules, costs)
            is_settled = self._prices.error <= SETTLED
            predicted[:, 0] = self._archive.scaled_costs(self._prices.predict(pool)) if is_settled else mean[:, 0]
        return pool[int(np.argmax(self._archive.gains(predicted)))]
