"""Bergstra & Bengio 2012, "Random search for hyper-parameter optimization" (JMLR 13): draws from the space, no memory.

The yardstick: a searcher that does not beat this one at equal cost is broken. A draw is a function of (seed, ask
number) and of what was drawn before, since nothing is proposed twice. This module does not know what makes a schedule
good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schedsearch.errors import UsageError
from schedsearch.search._turn import Turn
from schedsearch.space import SearchSpace
from schedsearch.study import Candidate, Evaluation, Objective, Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig:
    """Options of `RandomSearch`.

    Attributes:
        patience: draws that may repeat a known schedule before the space counts as exhausted.
    """

    patience: int = 200

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UsageError(f"patience: found {self.patience}, expected 1 or more.")


class RandomSearch:
    """Independent draws by `SearchSpace.sample`, each schedule once; finished when new ones cannot be found."""

    name = "random"
    Config = RandomConfig

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Sequence[Objective],  # noqa: ARG002 - every searcher is made the same way
        config: RandomConfig | None = None,
        probe: Probe | None = None,  # noqa: ARG002
    ) -> None:
        self._space = space
        self._seed = seed
        self._config = config or RandomConfig()
        self._seen: set[str] = set()
        self._turn = Turn(self.name)

    def ask(self, n: int) -> Sequence[Candidate]:
        """Up to ``n`` new draws; empty when the space is exhausted."""
        first = self._turn.next_ask
        proposals = []
        for ask in range(first, first + n):
            rng = np.random.default_rng((self._seed, ask))
            for _ in range(self._config.patience):
                schedule = self._space.sample(rng)
                if schedule.id not in self._seen:
                    self._seen.add(schedule.id)
                    proposals.append((schedule, ()))
                    break
            else:
                break
        return self._turn.asked(proposals)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Nothing is learnt."""
        self._turn.told(evaluations)
