"""The interval-coded view of a schedule: exact both ways, short for schedules that are made of ranges."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.schedule import Schedule, Solver, from_ecad, to_ecad
from schedsearch.space import MAX_RANGES, Genome, Range, SearchSpace, StepGene, genome_of, runs_of, schedule_of
from schedsearch.testing import toy_blocks, toy_model_ref, toy_sigmas
from schedsearch.types import BlockSpec

SYMBOLS = {"model": "CR123", "block": "CR123S", "component": "CRS"}
SOLVERS = (
    Solver(), Solver(family="adams", order=3), Solver(family="dpm", order=2, prediction="data"),
    Solver(family="unipc", order=2, prediction="data", corrector="pseudo"), Solver(family="table", order=2),
)  # fmt: skip


def make_space(levels=("model", "block", "component"), **changes) -> SearchSpace:
    blocks = changes.pop("blocks", toy_blocks(4, 4))
    fields = {
        "name": "genome", "model": toy_model_ref(), "blocks": blocks, "sigma": toy_sigmas(8),
        "levels": tuple((level, SYMBOLS[level]) for level in levels), "counts": (8,),
    }  # fmt: skip
    return SearchSpace(**{**fields, **changes})


ODD_BLOCKS = (
    BlockSpec(name="b.0", components=()), BlockSpec(name="b.1", components=("x",)),
    BlockSpec(name="b.2", components=("x", "y")), BlockSpec(name="b.3", components=()),
)  # fmt: skip
SPACES = {
    "all levels": make_space(),
    "model": make_space(["model"]),
    "block": make_space(["block"]),
    "component": make_space(["component"]),
    "no model row": make_space(["block", "component"]),
    "no block row": make_space(["model", "component"]),
    "everything open": make_space(
        counts=(3, 5, 8), prunable=tuple(block.name for block in toy_blocks(4, 4)), max_pruned=3, solvers=SOLVERS,
        free_sigma=True,
    ),
    "odd blocks": make_space(blocks=ODD_BLOCKS, prunable=("b.0", "b.2"), max_pruned=2),
    "odd components": make_space(["component"], blocks=ODD_BLOCKS),
    "no blocks": make_space(blocks=()),
}  # fmt: skip


def with_rows(space: SearchSpace, **rows: str) -> Schedule:
    """The base with these rows; ``d`` and ``s`` stand for the two kinds of blocks."""
    long = {"d": "transformer_blocks.", "s": "single_transformer_blocks."}
    ops = [(long[key[0]] + key[1:].replace("_", ".", 1) if key != "model" else key, row) for key, row in rows.items()]
    return replace(space.base, ops=tuple(ops))


class TestRoundTrip:
    """`schedule_of` inverts `genome_of` on every canonical schedule, and read genomes have one form."""

    @given(st.sampled_from(sorted(SPACES)), st.integers(0, 2**32 - 1))
    @settings(max_examples=200)
    def test_exact(self, name, seed):
        space = SPACES[name]
        schedule = space.sample(np.random.default_rng(seed))
        genome = genome_of(schedule, space)
        assert schedule_of(genome, space) == schedule
        assert genome_of(schedule_of(genome, space), space) == genome

    @given(st.sampled_from(sorted(SPACES)), st.integers(0, 2**32 - 1))
    @settings(max_examples=100)
    def test_form(self, name, seed):
        genome = genome_of(SPACES[name].sample(np.random.default_rng(seed)), SPACES[name])
        for step in genome.steps:
            assert len(step.ranges) <= MAX_RANGES
            assert all(span.first < span.stop for span in step.ranges)
            assert all(left.stop <= right.first for left, right in pairwise(step.ranges))
            assert step.op == "C" or step.plan == (step.op, (), ())
        assert genome.steps[0].plan == ("C", (), ())

    @given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))
    @settings(max_examples=50)
    def test_any_genome_is_a_schedule_of_the_space(self, seeds):
        space, rng = SPACES["everything open"], np.random.default_rng(seeds)
        spans = [
            Range(int(first), int(first + rng.integers(1, 9)), str(rng.choice(list("R123S"))), str(level))
            for first, level in zip(rng.integers(0, 20, 8), rng.choice(["block", "component"], 8), strict=True)
        ]
        steps = [
            StepGene(sigma, SOLVERS[i % 5], "CR"[int(rng.random() < 0.2)], tuple(spans[i : i + 4]))
            for i, sigma in enumerate(toy_sigmas(6)[:-1])
        ]
        schedule = schedule_of(Genome(tuple(steps), 0.0, ("transformer_blocks.1",)), space)
        assert space.check(schedule) is None
        assert schedule_of(genome_of(schedule, space), space) == schedule


class TestWhatRangesSay:
    SPACE = SPACES["all levels"]
    """Places 0..23: three for each of four double and four single blocks."""

    def genes(self, **rows):
        return genome_of(with_rows(self.SPACE, **rows), self.SPACE).steps

    def test_whole_blocks_are_said_by_their_rows(self):
        step = self.genes(d0="CCRCCCCC", d1="CCRCCCCC", s3="CCSCCCCC")[2]
        assert step.ranges == (Range(0, 6, "R"), Range(21, 24, "S"))
        assert step.cells == ()

    def test_an_end_inside_a_block_is_said_by_components(self):
        step = self.genes(d0="CRCCCCCC", d1_attn="CRCCCCCC", d1_ff="CRCCCCCC")[1]
        assert step.ranges == (Range(0, 5, "R"),)
        rows = dict(schedule_of(Genome((StepGene(1.0), StepGene(0.9, ranges=step.ranges)), 0.0), self.two()).ops)
        assert rows == {f"transformer_blocks.{part}": "CR" for part in ("0", "1.attn", "1.ff")}

    def two(self):
        return make_space(counts=(2,), sigma=toy_sigmas(2))

    def test_components_of_whole_blocks_are_another_level(self):
        rows = {f"d{i}_{part}": "CRCCCCCC" for i in (1, 2) for part in ("attn", "ff", "ff_context")}
        assert self.genes(**rows)[1].ranges == (Range(3, 9, "R", "component"),)

    def test_ranges_pass_over_removed_blocks(self):
        space = SPACES["everything open"]
        rows = {f"d{i}": "CRRRRRRR" for i in (0, 1, 3)}
        schedule = replace(with_rows(space, **rows), pruned=("transformer_blocks.2",))
        genome = genome_of(space.repair(schedule), space)
        assert genome.steps[1].ranges == (Range(0, 12, "R"),)
        assert genome.pruned == ("transformer_blocks.2",)
        restored = schedule_of(replace(genome, pruned=()), space)
        assert restored.row("transformer_blocks.2") == "CRRRRRRR"

    def test_what_three_ranges_cannot_say_are_cells(self):
        rows = {"d0": "CRCCCCCC", "d1": "CRCCCCCC", "s0": "CRCCCCCC", "s1": "CRCCCCCC", "s3": "CRCCCCCC"}
        step = self.genes(**rows, d3_ff="CRCCCCCC")[1]
        assert step.ranges == (Range(0, 6, "R"), Range(12, 18, "R"), Range(21, 24, "R"))
        assert step.cells == (("transformer_blocks.3.ff", "R"),)

    def test_cells_as_rows(self):
        genome = Genome((StepGene(1.0), StepGene(0.5, cells=(("a.b", "R"),)), StepGene(0.2, cells=(("a.b", "S"),))), 0)
        assert genome.components == (("a.b", ".RS"),)

    def test_the_whole_model_needs_no_ranges(self):
        steps = self.genes(model="CCR1CCCC", d0="CRCCRCCC")
        assert [step.op for step in steps] == list("CCR1CCCC")
        assert [len(step.ranges) for step in steps] == [0, 1, 0, 0, 1, 0, 0, 0]

    def test_where_ranges_overlap_the_later_wins(self):
        spans = (Range(0, 12, "R"), Range(3, 6, "S"), Range(9, 10, "S", "component"))
        genome = Genome((StepGene(1.0), StepGene(0.9, ranges=spans)), 0.0)
        rows = dict(schedule_of(genome, self.two()).ops)
        assert rows == {
            "transformer_blocks.0": "CR", "transformer_blocks.1": "CS", "transformer_blocks.2": "CR",
            "transformer_blocks.3.attn": "CS", "transformer_blocks.3.ff": "CR", "transformer_blocks.3.ff_context": "CR",
        }  # fmt: skip


class TestOtherNoiseLevels:
    GENOME = Genome(
        tuple(StepGene(sigma, op=op) for sigma, op in zip(toy_sigmas(8)[:-1], "CRC1CRC2", strict=True)), 0.0
    )

    def test_a_level_takes_the_step_it_is_in(self):
        aligned = self.GENOME.aligned((1.0, toy_sigmas(8)[2], toy_sigmas(8)[3] - 1e-6, 1e-6, 0.0))
        assert [step.op for step in aligned.steps] == ["C", "C", "1", "2"]
        assert aligned.sigma == (1.0, toy_sigmas(8)[2], toy_sigmas(8)[3] - 1e-6, 1e-6, 0.0)

    def test_resampled(self):
        half = self.GENOME.resampled(4)
        assert half.sigma == pytest.approx(toy_sigmas(4))
        assert [step.op for step in half.steps] == ["C", "C", "C", "C"]
        assert [step.op for step in self.GENOME.resampled(16).steps] == list("CCRRCC11CCRRCC22")
        assert self.GENOME.resampled(8) is self.GENOME


class TestPublishedSchedule:
    """ECAD's ``ours_fast`` for FLUX.1-dev, 256 x 256, 20 steps.

    Known of the published file: how many of the 171 components are computed at each step; which ones at steps 2, 6,
    10, 15 and 16; that the cells are 32 constant runs in the order of the genes; that every step is up to three ranges.
    Not known here: where the computed ones of the other steps lie. They are laid at the head, but those of steps 11 and
    17 a little behind it, which makes the 32 runs.
    """

    COUNTS = (171, 0, 105, 0, 171, 0, 95, 0, 16, 0, 81, 72, 24, 0, 87, 9, 20, 106, 122, 1)
    SPANS: ClassVar = {
        2: ((0, 28), (35, 66), (125, 171)), 6: ((0, 95),), 10: ((90, 171),), 15: ((0, 9),), 16: ((151, 171),),
        11: ((10, 82),), 17: ((10, 116),),
    }  # fmt: skip
    BLOCKS = toy_blocks(19, 38)

    def masks(self):
        masks = np.zeros((20, 171), dtype=bool)
        for step, count in enumerate(self.COUNTS):
            for first, stop in self.SPANS.get(step, ((0, count),)):
                masks[step, first:stop] = True
        return masks

    def schedule(self, space):
        parts = [f"{block.name}.{part}" for block in self.BLOCKS for part in block.components]
        rows = ["".join("RC"[int(computed)] for computed in row) for row in self.masks().T]
        return replace(space.base, ops=tuple(zip(parts, rows, strict=True)))

    @pytest.fixture(params=[["component"], ["model", "block", "component"]], ids=["components only", "all levels"])
    def space(self, request):
        return make_space(request.param, blocks=self.BLOCKS, sigma=toy_sigmas(20), counts=(20,))

    def test_the_construction_has_the_published_counts_and_runs(self):
        masks = self.masks()
        assert tuple(masks.sum(axis=1)) == self.COUNTS
        along = masks.reshape(-1)
        assert 1 + np.count_nonzero(along[1:] != along[:-1]) == 32

    def test_the_genome_says_it_in_ranges_alone(self, space):
        genome = genome_of(self.schedule(space), space)
        assert genome.components == ()
        assert max(len(step.ranges) for step in genome.steps) <= MAX_RANGES
        assert runs_of(genome, space) == 32
        idle = [sum(span.stop - span.first for span in step.ranges) for step in genome.steps]
        assert tuple(171 - count for count in idle) == self.COUNTS
        assert genome.steps[2].ranges == (Range(28, 35, "R", "component"), Range(66, 125, "R", "component"))

    def test_it_comes_back_through_the_interchange_format(self, space):
        schedule = self.schedule(space)
        document = to_ecad(schedule, double_blocks=19, single_blocks=38, name="ours_fast")
        again = space.repair(from_ecad(document, model=space.model, sigma=space.sigma))
        assert again == schedule
        assert schedule_of(genome_of(again, space), space) == schedule

    def test_runs_go_on_from_step_to_step_and_over_the_whole_model(self):
        space = SPACES["all levels"]
        assert runs_of(genome_of(space.base, space), space) == 1
        assert runs_of(genome_of(with_rows(space, model="CCRRCCCC"), space), space) == 3
        assert runs_of(genome_of(with_rows(space, model="CCR1CCCC"), space), space) == 4
        head_and_tail = with_rows(space, d0="CCRCCCCC", s3="CRCCCCCC")
        assert (
            runs_of(genome_of(head_and_tail, space), space) == 3
        )  # the tail of step 1 runs on into the head of step 2
        assert runs_of(genome_of(SPACES["no blocks"].base, SPACES["no blocks"]), SPACES["no blocks"]) == 1
