"""Aggarwal et al. 2025, "Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model" (arXiv 2506.15682).

NSGA-II over which block components recompute at which step, as released. A genome is a boolean tensor steps x blocks x
components, true = recompute, flattened with the step outermost, blocks in order of execution (double-stream, then
single-stream) and the component innermost; crossover cuts that order. Operators are pymoo's: binary tournament on
dominance then crowding, 4-point crossover with probability 0.9, bit-flip mutation with ``prob=0.05``, elimination of
duplicates, survival by rank and crowding; at least one gene must differ from the plain run.

Two things are easily mistaken. pymoo's ``prob`` of a mutation is per individual, and its rate per bit then defaults to
``min(0.5, 1 / n)``: about 5 % of the children are handed to a mutation that flips one bit on average, and all else is
crossover. And a component whose cache is empty recomputes, so what the genome says of step 0 costs nothing to ignore:
`SearchSpace.repair` writes it as computed. The frontier over all generations is the study's. This module does not know
how anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schedsearch.errors import UsageError
from schedsearch.schedule import OPS, REUSE, Schedule
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Objective, Probe

Genomes = npt.NDArray[np.bool_]

FORA_INTERVALS = (2, 3, 4, 5, 6, 7)
"""Sources of the first population besides the plain run: recompute every N steps (FORA, arXiv 2407.01425)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EcadConfig:
    """Options of `Ecad`; the defaults are those published for FLUX.1-dev.

    Attributes:
        population: schedules per generation.
        generations: generations, the first population included.
        crossover_points: cuts per crossover.
        crossover: probability that two parents are crossed.
        mutation: probability that a child is handed to the mutation, which flips one bit on average.
    """

    population: int = 24
    generations: int = 250
    crossover_points: int = 4
    crossover: float = 0.9
    mutation: float = 0.05

    def __post_init__(self) -> None:
        for name, low in (("population", 4), ("generations", 1), ("crossover_points", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected {low} or more.")
        for name in ("crossover", "mutation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name}: found {getattr(self, name)}, expected a probability.")


class Ecad:
    """NSGA-II in generations: `ask` gives a whole one, whatever number was asked for."""

    name = "ecad"
    Config = EcadConfig

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],
        config: EcadConfig | None = None,
        probe: Probe | None = None,  # noqa: ARG002 - every searcher is made the same way
    ) -> None:
        """Prepare the first population.

        Raises:
            UsageError: if the space has no component that may reuse.
        """
        self._space = space
        self._config = config or EcadConfig()
        self._signs = np.array([-1.0 if objective.better == "max" else 1.0 for objective in objectives])
        self._rows = [
            i
            for i, row in enumerate(space.row_names)
            if space.level_of(row) == "component" and REUSE in space.symbols_of(row)
        ]
        if not self._rows:
            raise UsageError(
                f"search ecad: found no component row that may hold {REUSE} in space {space.name}, "
                "expected at least one. Use another search, or a space with the level component."
            )
        self._shape = (space.n_steps, len(self._rows))
        self._best = np.full(len(objectives), np.inf)
        self._worst = np.full(len(objectives), -np.inf)
        self._is_single = space.cardinality() == 1
        self._generation = 0
        self._infills: Any = None
        self._algorithm = self._nsga2(seed)
        self._turn = Turn(self.name)

    def ask(self, n: int) -> Sequence[Candidate]:  # noqa: ARG002 - the protocol asks for it
        """The next generation; empty after the last one, or when crossover finds nothing new."""
        limit = 1 if self._is_single else self._config.generations
        if self._generation >= limit:
            return ()
        infills = self._algorithm.ask()
        if infills is None or len(infills) == 0:
            self._generation = limit
            return ()
        schedules = [self.schedule_of(genome) for genome in infills.get("X")]
        candidates = self._turn.asked((schedule, ()) for schedule in schedules)
        self._infills = infills
        return candidates

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Let the generation compete. What failed counts as the worst seen, and as breaking the constraint."""
        self._turn.told(evaluations)
        ok = np.array([evaluation.status == "ok" for evaluation in evaluations])
        losses = np.full((len(evaluations), len(self._signs)), np.inf)
        for i in np.flatnonzero(ok):
            losses[i] = self._signs * evaluations[int(i)].values
        genomes = self._infills.get("X")
        self._infills.set("F", self._finite(losses))
        # one inequality constraint, satisfied at 0 or below: 1 - (genes that differ from the plain run)
        self._infills.set("G", np.where(ok, 1.0 - np.sum(~genomes, axis=1), 1.0)[:, None])
        for individual in self._infills:
            individual.evaluated.update({"F", "G"})
        self._algorithm.tell(infills=self._infills)
        self._generation += 1

    def schedule_of(self, genome: Genomes) -> Schedule:
        """The schedule of a genome `(n_steps * n_components,)`; components without a cache recompute."""
        codes = np.zeros((len(self._space.row_names), self._shape[0]), dtype=np.int8)
        codes[self._rows] = np.where(genome.reshape(self._shape).T, 0, OPS.index(REUSE))
        return self._space.decode(codes)

    def first_population(self, rng: np.random.Generator) -> Genomes:
        """`(population, n_genes)`: the sources, then one-point crossovers of two of them, all different.

        A cut inside a step leaves one partial row, as every one of the released first population has at most one.
        """
        steps = np.arange(self._shape[0])
        sources = [np.ones(self._shape, dtype=bool)]
        sources += [np.repeat((steps % every == 0)[:, None], self._shape[1], axis=1) for every in FORA_INTERVALS]
        genomes = list({source.tobytes(): source.ravel() for source in sources}.values())
        known = {genome.tobytes() for genome in genomes}
        distinct = len(genomes)
        for _ in range(100 * self._config.population):
            if len(genomes) >= self._config.population or distinct < 2:
                break
            head, tail = rng.choice(distinct, size=2, replace=False)
            cut = rng.integers(1, genomes[0].size)
            child = np.concatenate([genomes[head][:cut], genomes[tail][cut:]])
            if child.tobytes() not in known:
                known.add(child.tobytes())
                genomes.append(child)
        return np.array(genomes[: self._config.population])

    def _nsga2(self, seed: int) -> Any:
        """NSGA-II of pymoo with a random state of its own."""
        from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination
        from pymoo.operators.crossover.pntx import PointCrossover
        from pymoo.operators.mutation.bitflip import BitflipMutation
        from pymoo.operators.selection.tournament import TournamentSelection
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        n_genes = self._shape[0] * self._shape[1]
        points = min(self._config.crossover_points, max(1, n_genes - 1))
        algorithm = NSGA2(
            pop_size=self._config.population,
            sampling=self.first_population(np.random.default_rng((seed, 0))),
            selection=TournamentSelection(func_comp=binary_tournament),
            crossover=PointCrossover(n_points=points, prob=self._config.crossover),
            mutation=BitflipMutation(prob=self._config.mutation),
            survival=RankAndCrowding(),
            eliminate_duplicates=True,
        )
        problem = Problem(n_var=n_genes, n_obj=len(self._signs), n_ieq_constr=1, xl=0, xu=1, vtype=bool)
        algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)
        return algorithm

    def _finite(self, losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``losses`` `(n, n_objectives)` with infinite ones set to the best or worst finite one told so far.

        Crowding distances need finite spans, and the plain run's PSNR against itself is infinite.
        """
        for i, column in enumerate(losses.T):
            finite = column[np.isfinite(column)]
            if len(finite):
                self._best[i] = min(self._best[i], finite.min())
                self._worst[i] = max(self._worst[i], finite.max())
        low = np.where(np.isfinite(self._best), self._best, 0.0)
        high = np.where(np.isfinite(self._worst), self._worst, 0.0)
        return np.clip(losses, low, high)
