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

from collections.abc import Generator, Sequence
from math import inf, isfinite, log

import numpy as np

from schedsearch.schedule import Schedule
from schedsearch.search._objectives import quality_place
from schedsearch.search._s3_genes import Breeding, S3Config, n_calls
from schedsearch.search._surrogate import KernelRanker, LstmConfig, LstmRanker, Quality, Ranker, quality
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Objective, Probe

Proposals = dict[Schedule, tuple[str, ...]]
"""Schedules to measure, each with the ids of its parents."""


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


def made_ranker(config: S3Config, seed: int) -> Ranker | None:
    """The predictor that the options name, ``None`` for ``none``."""
    if config.predictor == "none":
        return None
    if config.predictor == "ridge":
        return KernelRanker(optimism=config.optimism)
    return LstmRanker(seed=seed, config=LstmConfig() if config.predictor == "lstm" else LstmConfig.small())
