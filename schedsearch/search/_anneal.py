"""BudCache 2026 (ICML; arXiv 2606.13496): simulated annealing of the computed steps under a hard budget.

Published form (``ops="R"``, one budget, ``relative=False``, ``spacings=(1.0,)``, ``pinned=0``): which B of n steps
compute is a mask with B ones, and the others reuse the last output. The first ``max(1, B // 4)`` steps are pinned.
Annealing with a geometric temperature moves one computed step (90 %; 70 % of these within 3 steps) or two at once
(10 %); then steepest descent tries, for every computed step that is not pinned, all moves within 3 steps and 2 random
jumps, until nothing improves or 20 rounds are over. What was measured is remembered and not measured again.

Ours, each switched by its own option: a step that does not compute may hold any symbol of ``ops`` (forecasts too), with
moves that change one such symbol or a whole gap of them; ``budgets`` is a ladder, the first one the target, and a later
chain may start from the mask found for the nearest budget done before; spaced masks are measured first and the best
starts the chain; temperatures may be relative to the energy at the start. This module does not know costs: the budget
stands for them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isfinite

import numpy as np

from schedsearch.errors import UsageError
from schedsearch.schedule import COMPUTE, MODEL_ROW, Schedule
from schedsearch.search._masks import freedom, gap, spaced, swapped
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Objective, Probe

NEAR = 3
"""Steps within which a move counts as near."""

Rows = Generator[list[str], list[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealConfig:
    """Options of `Anneal`.

    Attributes:
        budgets: computed steps, the target first; empty is a quarter of all steps.
        ops: symbols a step that does not compute may hold; empty is all the space allows.
        iterations: annealing iterations for the first budget.
        ladder_share: share of ``iterations`` and ``hill_climb_rounds`` each further budget gets.
        hill_climb_rounds: most rounds of descent after each chain.
        temperature_start: of the first iteration.
        temperature_end: of the last iteration.
        spacings: how the first masks are spaced, powers for `_masks.spaced`; all for the target, the first for
            others.
        relative: temperatures are multiples of the energy at the start of the chain.
        op_moves: share of the moves that change symbols instead of places, where there is more than one symbol.
        objective: name of the objective to improve; empty is the first.
        pinned: steps at the start that always compute; 0 is the published ``max(1, B // 4)``.
        restarts: how often the whole ladder is annealed; each time from the best mask known for the budget.
    """

    budgets: tuple[int, ...] = ()
    ops: str = ""
    iterations: int = 200
    ladder_share: float = 0.5
    hill_climb_rounds: int = 20
    temperature_start: float = 0.05
    temperature_end: float = 1e-5
    spacings: tuple[float, ...] = (1.0, 1.6, 0.6)
    relative: bool = True
    op_moves: float = 0.3
    objective: str = ""
    pinned: int = 0
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("iterations", "hill_climb_rounds", "ladder_share", "op_moves", "pinned"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected 0 or more.")
        if not 0.0 < self.temperature_end <= self.temperature_start:
            found = f"{self.temperature_start} to {self.temperature_end}"
            raise UsageError(f"temperature: found {found}, expected a fall that stays above 0.")


class Anneal:
    """One annealed chain per budget over the ``model`` row; it improves one objective."""

    name = "anneal"
    Config = AnnealConfig

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],
        config: AnnealConfig | None = None,
        probe: Probe | None = None,  # noqa: ARG002 - every searcher is made the same way
    ) -> None:
        """Prepare the chains.

        Raises:
            UsageError: if the space has no ``model`` row, or a budget or a symbol is not one of the space.
        """
        if MODEL_ROW not in space.row_names:
            raise UsageError(
                f"search anneal: found no {MODEL_ROW} row in space {space.name}, expected one. Use another search, "
                "or a space with the level model."
            )
        self._config = config or AnnealConfig()
        self._space = space.restrict(levels=["model"], counts=[space.n_steps])
        self._place = _place(objectives, self._config.objective)
        self._objective = objectives[self._place]
        n_steps = space.n_steps
        legal = space.symbols_of(MODEL_ROW).replace(COMPUTE, "")
        self._ops = self._config.ops.replace(COMPUTE, "") or legal
        for symbol in self._ops:
            if symbol not in legal:
                raise UsageError(f"ops: found {symbol!r}, expected symbols of the model row, {legal or 'none'}.")
        self._budgets = tuple(dict.fromkeys(self._config.budgets)) or (max(1, round(n_steps / 4)),)
        for i, budget in enumerate(self._budgets):
            if not 1 <= budget <= n_steps:
                raise UsageError(f"budgets[{i}]: found {budget}, expected 1 to {n_steps} computed steps.")
        self._rng = np.random.default_rng(seed)
        self._energy: dict[str, float] = {}
        self._keys: dict[str, str] = {}
        self._schedules: dict[str, Schedule] = {}
        self._parent = ""
        self._turn = Turn(self.name)
        self._chains = self._search()
        self._wanted = next(self._chains, None)

    # ---- ask and tell

    def ask(self, n: int) -> Sequence[Candidate]:  # noqa: ARG002 - the protocol asks for it
        """One schedule while annealing, a whole neighbourhood while descending; empty when all chains are done."""
        if self._wanted is None:
            return ()
        parents = (self._schedules[self._parent].id,) if self._parent else ()
        return self._turn.asked((self._schedules[row], parents) for row in self._wanted)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the energies in and go on to the next question."""
        self._turn.told(evaluations)
        try:
            self._wanted = self._chains.send([self.energy_of(evaluation) for evaluation in evaluations])
        except StopIteration:
            self._wanted = None

    def energy_of(self, evaluation: Evaluation) -> float:
        """Error of an evaluation, less is better: ``10^(-dB/10)``, one minus a similarity, or the value itself."""
        if evaluation.status != "ok":
            return inf
        value = evaluation.values[self._place]
        if self._objective.unit == "dB":
            return float(10.0 ** (-value / 10.0))
        if self._objective.better == "max":
            return 1.0 - value
        return value

    # ---- the search, written as it runs; ``yield`` asks for energies

    def _search(self) -> Rows:
        if not self._ops:
            yield from self._measure([COMPUTE * self._space.n_steps])
            return
        seeds = {
            budget: [
                spaced(self._space.n_steps, budget, op, pinned=self.pinned(budget), power=power)
                for power in (self._config.spacings if budget == self._budgets[0] else self._config.spacings[:1])
                for op in self._ops
            ]
            for budget in self._budgets
        }
        yield from self._measure([row for rows in seeds.values() for row in rows])
        done: dict[int, str] = {}
        ladder = list(enumerate(self._budgets))
        for place, budget in ladder * self._config.restarts:
            starts = list(seeds[budget])
            if budget in done:
                starts.append(done[budget])
            elif done:
                nearest = min(done, key=lambda other: (abs(other - budget), other))
                starts.append(self.adapted(done[nearest], budget))
                yield from self._measure(starts[-1:])
            row = min(starts, key=self._known)
            share = 1.0 if place == 0 else self._config.ladder_share
            row = yield from self._annealed(row, budget, round(self._config.iterations * share))
            done[budget] = yield from self._descended(row, budget, round(self._config.hill_climb_rounds * share))

    def _annealed(self, row: str, budget: int, iterations: int) -> Generator[list[str], list[float], str]:
        """The best row of a chain from ``row``."""
        start, end = self._config.temperature_start, self._config.temperature_end
        scale = self._known(row) if self._config.relative and isfinite(self._known(row)) else 1.0
        best = row
        for k in range(iterations):
            temperature = scale * start * (end / start) ** (k / max(1, iterations - 1))
            move = self.moved(row, budget)
            self._parent = self._key(row)
            yield from self._measure([move])
            worse = self._known(move) - self._known(row)
            # nan (both failed) and below 0 are accepted: there is nothing to lose
            if not worse > 0.0 or (temperature > 0.0 and self._rng.random() < exp(-worse / temperature)):
                row = move
            if self._known(row) < self._known(best):
                best = row
        return best

    def _descended(self, row: str, budget: int, rounds: int) -> Generator[list[str], list[float], str]:
        """The row at the foot of the steepest descent from ``row``."""
        for _ in range(rounds):
            around = list(dict.fromkeys(self.neighbourhood(row, budget)))
            if not around:
                break
            self._parent = self._key(row)
            yield from self._measure(around)
            best = min(around, key=self._known)
            if not self._known(best) < self._known(row):
                break
            row = best
        return row

    def _measure(self, rows: Sequence[str]) -> Rows:
        """Ask for the energies of those ``rows`` that are not known yet."""
        unknown = [key for key in dict.fromkeys(map(self._key, rows)) if key not in self._energy]
        if unknown:
            energies = yield unknown
            self._energy.update(zip(unknown, energies, strict=True))

    def _known(self, row: str) -> float:
        return self._energy[self._key(row)]

    def _key(self, row: str) -> str:
        """The canonical row that ``row`` runs as: its forecasts lowered to the history they have."""
        if row not in self._keys:
            schedule = self._space.repair(replace(self._space.base, ops=((MODEL_ROW, row),)))
            self._keys[row] = schedule.row(MODEL_ROW)
            self._schedules[schedule.row(MODEL_ROW)] = schedule
        return self._keys[row]

    # ---- masks and moves

    def pinned(self, budget: int) -> int:
        """How many of the first steps always compute."""
        return min(budget, self._config.pinned or max(1, budget // 4))

    def moved(self, row: str, budget: int) -> str:
        """A random neighbour: one computed step elsewhere, two of them, or other symbols between them."""
        if len(self._ops) > 1 and self._rng.random() < self._config.op_moves:
            return self._other_symbols(row)
        if self._rng.random() < 0.9:
            return self._relocated(row, budget)
        return self._relocated(self._relocated(row, budget), budget)

    def _relocated(self, row: str, budget: int) -> str:
        computed = self._movable(row, budget)
        free = [step for step, char in enumerate(row) if char != COMPUTE]
        if not computed or not free:
            return row
        origin = computed[self._rng.integers(len(computed))]
        near = [step for step in free if abs(step - origin) <= NEAR]
        pool = near if near and self._rng.random() < 0.7 else free
        return swapped(row, origin, pool[self._rng.integers(len(pool))])

    def _other_symbols(self, row: str) -> str:
        """One step, or the whole gap around it, with another symbol."""
        free = [step for step, char in enumerate(row) if char != COMPUTE]
        if not free:
            return row
        step = free[self._rng.integers(len(free))]
        others = self._ops.replace(row[step], "")
        op = others[self._rng.integers(len(others))]
        low, high = (step, step + 1) if self._rng.random() < 0.5 else gap(row, step)
        return row[:low] + op * (high - low) + row[high:]

    def neighbourhood(self, row: str, budget: int) -> Iterator[str]:
        """Near moves and two random jumps of every computed step that may move; every gap with every other symbol."""
        free = [step for step, char in enumerate(row) if char != COMPUTE]
        for origin in self._movable(row, budget) if free else ():
            for step in free:
                if abs(step - origin) <= NEAR:
                    yield swapped(row, origin, step)
            for _ in range(2):
                yield swapped(row, origin, free[self._rng.integers(len(free))])
        for low, high in sorted({gap(row, step) for step in free}) if len(self._ops) > 1 else ():
            for op in self._ops:
                if row[low:high] != op * (high - low):
                    yield row[:low] + op * (high - low) + row[high:]

    def adapted(self, row: str, budget: int) -> str:
        """``row`` with as many computed steps as ``budget`` says: put into the widest gaps, or taken where crowded."""
        first = self.pinned(budget)
        row = COMPUTE * first + row[first:]
        while row.count(COMPUTE) < budget:
            low, high = max(
                (gap(row, s) for s, c in enumerate(row) if c != COMPUTE), key=lambda g: (g[1] - g[0], -g[0])
            )
            middle = (low + high) // 2
            row = row[:middle] + COMPUTE + row[middle + 1 :]
        while row.count(COMPUTE) > budget:
            step = min(self._movable(row, budget), key=lambda s: (freedom(row, s), s))
            beside = (row[step - 1] + row[step + 1 : step + 2]).replace(COMPUTE, "")
            row = row[:step] + (beside or self._ops)[0] + row[step + 1 :]
        return row

    def _movable(self, row: str, budget: int) -> list[int]:
        first = self.pinned(budget)
        return [step for step, char in enumerate(row) if char == COMPUTE and step >= first]


def _place(objectives: Sequence[Objective], name: str) -> int:
    """Position of the objective called ``name``, the first if ``name`` is empty."""
    names = [objective.name for objective in objectives]
    if name and name not in names:
        raise UsageError(f"objective: found {name!r}, expected one of {', '.join(names)}.")
    return names.index(name) if name else 0
