"""Liu et al. 2025, "CacheQuant: Comprehensively Accelerated Diffusion Models" (arXiv 2503.01323): its DP schedule.

Which steps of the default grid compute, exactly, for every budget. Steps are cut into consecutive groups; the first of
a group computes and the others reuse its output. ``D(i, j)`` is what the group i..j-1 loses and the sum over groups is
least. As published (section on DPS), ``D(i, j) = sum_{i <= t < j} |X_t - X_i|_1`` of features X of one plain run (from
the probe), and for an interval N there are ``ceil(T / N)`` groups of ``ceil(N / 2) .. 2 N`` steps. Where the probe also
knows the features ``Q X`` of the same run in low bits, it is ``D_q(i, j) = sum_{i <= t < j} |X_t - Q X_i|_1``: what
reuse and rounding lose together, as the schedule will run (the paper's own cost leaves rounding out).

Options. ``cost="final"`` measures ``D(i, j)`` as the error of the final image when only this group reuses; these runs
are candidates like any other, so their cost is counted. ``rule="minimax"`` makes the worst group as good as it can be,
then the second worst (Gao et al. 2025, "LeMiCa", arXiv 2511.00090), under a limit on the length of a group alone.

That losses of groups add up is a hypothesis; `CacheQuant.additivity` says how far it held. This module does not know
how anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, nan

import numpy as np
import numpy.typing as npt

from schedsearch.errors import UsageError
from schedsearch.schedule import COMPUTE, MODEL_ROW, REUSE, Schedule
from schedsearch.search._objectives import quality_place
from schedsearch.search._paths import Path, fisher, group_costs, minimax, partition, spearman, within
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Objective, Probe

Array = npt.NDArray[np.float64]

COSTS = ("", "l1", "final")
RULES = ("sum", "minimax")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheQuantConfig:
    """Options of `CacheQuant`.

    Attributes:
        cost: ``l1`` takes the loss of a group from the probe (its ``low_bit``, if it has that), ``final`` measures it;
            empty is ``l1`` with a probe and ``final`` without.
        rule: ``sum`` or ``minimax``.
        intervals: the paper's N, one schedule each; empty is all of them.
        budgets: numbers of computed steps, with bounds from the mean length of a group; empty is all of them.
        longest: longest group that is measured with ``cost="final"``; 0 is half of the steps.
        share: of the prompts that a group's loss is measured on.
        objective: name of the objective that is the error; empty is the first that is not a cost.
    """

    cost: str = ""
    rule: str = "sum"
    intervals: tuple[int, ...] = ()
    budgets: tuple[int, ...] = ()
    longest: int = 0
    share: float = 1.0
    objective: str = ""

    def __post_init__(self) -> None:
        for name, known in (("cost", COSTS), ("rule", RULES)):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(known).strip(', ')}."
                )
        for name in ("intervals", "budgets"):
            if min(getattr(self, name), default=1) < 1:
                raise UsageError(f"{name}: found {min(getattr(self, name))}, expected 1 or more.")
        if self.longest < 0 or self.longest == 1:
            raise UsageError(f"longest: found {self.longest}, expected 2 or more steps, or 0 for half of them.")
        if not 0.0 < self.share <= 1.0:
            raise UsageError(f"share: found {self.share}, expected a share above 0 and at most 1.")


class CacheQuant:
    """Measures groups if it must, then asks for the optimal schedule of every interval and budget, and is finished."""

    name = "cachequant"
    Config = CacheQuantConfig

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],
        config: CacheQuantConfig | None = None,
        probe: Probe | None = None,
    ) -> None:
        """Prepare the groups.

        Raises:
            UsageError: if the space's ``model`` row may not reuse on the default number of steps, the probe is missing
                or was recorded on another grid, an interval or a budget exceeds the steps, or the objective is unknown.
        """
        self._config = config or CacheQuantConfig()
        self._space = space
        self._objective, self._place = _error_of(objectives, self._config.objective)
        self._n = space.n_steps
        if self._n > 1 and (MODEL_ROW not in space.row_names or REUSE not in space.symbols_of(MODEL_ROW)):
            raise UsageError(
                f"search cachequant: found no {MODEL_ROW} row that may hold {REUSE} in space {space.name}, expected "
                "one. Use another search, or a space with the level model."
            )
        for name in ("intervals", "budgets"):
            if max(getattr(self._config, name), default=1) > self._n:
                found = max(getattr(self._config, name))
                raise UsageError(f"{name}: found {found}, expected 1 to {self._n}, the steps of the default run.")
        self._costs = np.full((self._n + 1, self._n + 1), inf)
        self._groups: list[tuple[int, int]] = []
        if (self._config.cost or ("l1" if probe is not None else "final")) == "l1":
            self._costs = group_costs(self._features(probe))
        else:
            self._groups = self._unmeasured(np.random.default_rng(seed))
        self._asked: list[tuple[int, int] | Path] = []
        self._plans: Iterator[Path] | None = None
        self._summed: list[float] = []
        self._errors: list[float] = []
        self._turn = Turn(self.name)

    # ---- ask and tell

    def ask(self, n: int) -> Sequence[Candidate]:
        """Up to ``n`` runs that reuse one group, in an order drawn from the seed; then the optimal schedules."""
        if self._groups:
            self._asked = list(self._groups[:n])
            runs = [(self.schedule_of(self._alone(i, j)), ()) for i, j in self._groups[:n]]
            candidates = self._turn.asked(runs, share=self._config.share)
            del self._groups[:n]
            return candidates
        if self._plans is None:
            self._plans = self.plans()
        chosen = list(islice(self._plans, n))
        candidates = self._turn.asked((self.schedule_of(path.mask()), ()) for path in chosen)
        self._asked = list(chosen)
        return candidates

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in what groups lose, and how far sums of that agree with what schedules lose."""
        self._turn.told(evaluations)
        for asked, evaluation in zip(self._asked, evaluations, strict=True):
            error = self.error_of(evaluation)
            if not isinstance(asked, Path):
                self._costs[asked] = error
            elif error < inf:
                self._summed.append(self._sum_of(asked))
                self._errors.append(error)

    @property
    def additivity(self) -> float:
        """Rank correlation of summed losses and measured errors over the schedules told so far; nan before the second.

        Near 1, the sum ranks schedules as the measurement does, and the optimum of the sum means something.
        """
        return spearman(self._summed, self._errors) if len(self._summed) > 1 else nan

    @property
    def losses(self) -> Array:
        """`(n_steps + 1, n_steps + 1)` what each group [i, j) loses; inf where that is unknown or cannot be."""
        return self._costs.copy()

    def error_of(self, evaluation: Evaluation) -> float:
        """Error of an evaluation, less is better: ``10^(-dB/20)``, one minus a similarity, or the value itself."""
        if evaluation.status != "ok":
            return inf
        value = evaluation.values[self._place]
        if self._objective.unit == "dB":
            return float(10.0 ** (-value / 20.0))
        return 1.0 - value if self._objective.better == "max" else value

    # ---- groups and schedules

    def plans(self) -> Iterator[Path]:
        """The optimal path of every interval, then of every budget, each mask once."""
        config, seen = self._config, set()
        intervals = config.intervals or (() if config.budgets else tuple(range(1, self._n + 1)))
        budgets = config.budgets or (() if config.intervals else tuple(range(1, self._n + 1)))
        by_budget = minimax(within(self._known(), 1, self._longest)) if config.rule == "minimax" else {}
        if config.rule == "minimax":
            found = [by_budget.get(-(-self._n // interval)) for interval in intervals]
            found += [by_budget.get(budget) for budget in budgets]
        else:
            found = [fisher(self._known(), interval) for interval in intervals]
            found += [partition(self._known(), budget) for budget in budgets]
        for path in found:
            if path is not None and path.nodes not in seen:
                seen.add(path.nodes)
                yield path

    def schedule_of(self, mask: str) -> Schedule:
        """The canonical schedule with this ``model`` row."""
        ops = ((MODEL_ROW, mask),) if REUSE in mask else ()
        return self._space.repair(replace(self._space.base, ops=ops))

    def _sum_of(self, path: Path) -> float:
        return float(sum(self._known()[i, j] for i, j in zip(path.nodes, path.nodes[1:], strict=False)))

    def _known(self) -> Array:
        """Losses of groups; 0 for a group of one step that was not measured: it reuses nothing."""
        steps = np.arange(self._n)
        costs = self._costs.copy()
        alone = costs[steps, steps + 1]
        costs[steps, steps + 1] = np.where(np.isfinite(alone), alone, 0.0)
        return costs

    @property
    def _longest(self) -> int:
        return self._config.longest or self._n

    def _alone(self, i: int, j: int) -> str:
        """The mask in which only the group [i, j) reuses."""
        return COMPUTE * (i + 1) + REUSE * (j - i - 1) + COMPUTE * (self._n - j)

    def _unmeasured(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Groups of two steps or more, in random order: a search cut short has then seen some of each kind."""
        longest = self._config.longest or max(2, self._n // 2)
        groups = [(i, j) for i in range(self._n) for j in range(i + 2, min(self._n, i + longest) + 1)]
        return [groups[place] for place in rng.permutation(len(groups))]

    def _features(self, probe: Probe | None) -> Array:
        if probe is None:
            raise UsageError(
                'search cachequant, cost: found "l1" without a probe, expected one. Measure a probe, or use "final".'
            )
        if probe.n_steps != self._n:
            raise UsageError(
                f"search cachequant, probe: found {probe.n_steps} steps, expected {self._n}, as the default run has. "
                "Measure the probe at this number of steps."
            )
        return probe.l1 if probe.low_bit is None else probe.low_bit


def _error_of(objectives: Sequence[Objective], name: str) -> tuple[Objective, int]:
    """The objective that is the error, and its place."""
    place = quality_place(objectives, name)
    return objectives[place], place
