"""What every space file must be, as a test class to inherit from.

    class TestMine(SpaceContract):
        source = "mine.yaml"

The file is bound to a toy model with blocks named like FLUX's; `blocks` and `linears` say others. This module does not
know any space.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from schedsearch.schedule import PrecisionRule, Schedule, dumps, loads
from schedsearch.space import LinearLayers, SearchSpace, crossed, genome_of, load_space, mutated, schedule_of
from schedsearch.testing._gaussian import toy_blocks, toy_linears, toy_model_ref, toy_sigmas
from schedsearch.types import BlockSpec


class SpaceContract:
    """Inherit, and say which file it is.

    Attributes:
        source: path of the file, or the name of a shipped space.
        n_steps: steps of the plain run.
        draws: schedules that are drawn.
    """

    source: str | Path
    n_steps = 12
    draws = 40

    def blocks(self) -> tuple[BlockSpec, ...]:
        """The model's blocks."""
        return toy_blocks(6, 10)

    def linears(self) -> LinearLayers:
        """The model's linear layers, and a format that its device carries out."""
        rule = PrecisionRule(pattern="*", weight="int8", activation="int8")
        return LinearLayers(names=toy_linears(self.blocks()), base="bf16", formats=(rule,))

    def space(self) -> SearchSpace:
        """The file, bound to that model."""
        return load_space(
            self.source,
            model=toy_model_ref(),
            blocks=self.blocks(),
            sigma=toy_sigmas(self.n_steps),
            linears=self.linears(),
        )

    def drawn(self) -> Iterator[tuple[SearchSpace, Schedule]]:
        """Draws from the space."""
        space, rng = self.space(), np.random.default_rng(0)
        return ((space, space.sample(rng)) for _ in range(self.draws))

    def test_the_plain_run_is_in_it(self) -> None:
        """A search begins there."""
        space = self.space()
        assert space.check(space.base) is None

    def test_there_is_something_to_search(self) -> None:
        """More than the plain run, and random draws find it."""
        assert self.space().cardinality() > 1
        assert len({schedule.id for _, schedule in self.drawn()}) > 1

    def test_draws_are_legal_and_canonical(self) -> None:
        """Repair leaves them alone, and they survive a file."""
        for space, schedule in self.drawn():
            assert space.check(schedule) is None
            assert space.repair(schedule).id == schedule.id
            assert loads(dumps(schedule)).id == schedule.id

    def test_draws_come_back_from_their_genome(self) -> None:
        """What searchers vary says everything."""
        for space, schedule in self.drawn():
            assert schedule_of(genome_of(schedule, space), space).id == schedule.id

    def test_children_are_legal(self) -> None:
        """Mutated, and of two parents."""
        rng, previous = np.random.default_rng(1), self.space().base
        for space, schedule in self.drawn():
            for child in (mutated(schedule, space, rng), crossed(previous, schedule, space, rng)):
                assert space.check(child) is None
            previous = schedule

    def test_every_pattern_means_something(self) -> None:
        """A glob that matches no row of the model forbids nothing, so it is a slip."""
        space = self.space()
        idle = [
            rule.rows for rule in space.forbidden if not any(fnmatchcase(row, rule.rows) for row in space.row_names)
        ]
        assert idle == []
