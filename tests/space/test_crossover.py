"""Crossover: what a child has from which parent. Every step of the parents tells which of them it is from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np

from schedsearch.schedule import Schedule, Solver
from schedsearch.space import Forbidden, Range, SearchSpace, crossed, genome_of
from schedsearch.space._cross import _crossed
from schedsearch.testing import toy_blocks, toy_sigmas, toy_space

N = 10
BLOCKS = ("block", "CR123S")
ADAMS = Solver(family="adams", order=2)
NAMES = tuple(block.name for block in toy_blocks(3, 3))


def make_space(**changes) -> SearchSpace:
    """Every axis frozen, unless opened by ``changes``."""
    first_stays = Forbidden(rows="transformer_blocks.0", symbols="S", reason="first")
    return replace(toy_space((), n_double=3, n_single=3), **{"forbidden": (first_stays,), **changes})


def with_rows(space: SearchSpace, **rows: str) -> Schedule:
    return space.repair(replace(space.base, ops=tuple((name.replace("__", "."), row) for name, row in rows.items())))


def test_steps_are_one_parents_or_the_others_in_2_to_4_pieces_and_begin_like_the_first():
    space = make_space(levels=(("model", "CR"),), sigma=toy_sigmas(20), counts=(20,))
    a, b = with_rows(space, model="C" * 20), with_rows(space, model="C" + "R" * 19)
    pieces = Counter()
    for seed in range(300):
        genome = _crossed(genome_of(a, space), genome_of(b, space), space, np.random.default_rng(seed))
        row = "".join(step.op for step in genome.steps)
        pieces[1 + sum(x != y for x, y in pairwise(row))] += 1
    assert set(pieces) == {3, 4, 5}  # 2 to 4 cuts
    assert crossed(a, b, space, np.random.default_rng(1)).row("model") not in {a.row("model"), b.row("model")}


def test_parents_of_different_lengths_are_aligned_in_sigma():
    space = make_space(levels=(("model", "CR"),), counts=(5, N))
    a = with_rows(space, model="CCCCCCCCCC")
    b = space.build(sigma=space.grid(5), solver=(Solver(),) * 5, ops=(("model", "CRRRR"),))
    seen = Counter()
    for seed in range(200):
        child = crossed(a, b, space, np.random.default_rng(seed))
        assert child.sigma == space.grid(child.n_steps)
        seen[child.n_steps] += 1
    assert set(seen) == {5, N}


def test_free_noise_levels_come_with_their_steps_or_from_one_parent():
    space = make_space(free_sigma=True, counts=tuple(range(4, N + 1)))
    a, b = space.base, space.build(sigma=toy_sigmas(7, shift=1.3), solver=(Solver(),) * 7)
    mixed = 0
    for seed in range(200):
        genome = _crossed(genome_of(a, space), genome_of(b, space), space, np.random.default_rng(seed))
        assert set(genome.sigma) <= set(a.sigma) | set(b.sigma)
        assert genome.n_steps in space.counts
        mixed += not (set(genome.sigma) <= set(a.sigma) or set(genome.sigma) <= set(b.sigma))
    assert 50 < mixed < 150


def test_only_solvers_are_crossed_gene_by_gene():
    space = make_space(levels=(("model", "C1"),), solvers=(Solver(), ADAMS), sigma=toy_sigmas(20), counts=(20,))
    a = space.build(sigma=space.sigma, solver=(Solver(),) * 20)
    b = space.build(sigma=space.sigma, solver=(ADAMS,) * 20, ops=(("model", "CC" + "1" * 18),))
    assert Counter(b.solver)[ADAMS] >= 18  # Euler's at the first step
    changes = Counter()
    for seed in range(300):
        genome = _crossed(genome_of(a, space), genome_of(b, space), space, np.random.default_rng(seed))
        taken = [step.solver.family for step in genome.steps]
        apart = sum(x != y for x, y in pairwise(taken))
        plans = [step.op for step in genome.steps]
        assert sum(x != y for x, y in pairwise(plans)) <= 4
        changes[apart > 4] += 1
    assert 100 < changes[True] < 200


def test_ranges_can_change_hands_inside_a_step():
    space = make_space(levels=(BLOCKS,))
    a = with_rows(space, **{name.replace(".", "__"): "C" + "R" * 9 for name in NAMES})
    b = with_rows(space, **{name.replace(".", "__"): "C" + "S" * 9 for name in NAMES})
    spliced = 0
    for seed in range(200):
        child = crossed(a, b, space, np.random.default_rng(seed))
        ranges = [step.ranges for step in genome_of(child, space).steps]
        both = [spans for spans in ranges if [span.op for span in spans] == ["R", "S"]]
        assert len(both) <= 1 or all(spans[0] == Range(0, 1, "R") for spans in both)  # block 0 may not skip
        spliced += any(spans[0].stop > 1 for spans in both)
    assert 10 < spliced < 80


def test_blocks_removed_in_both_stay_removed_and_in_one_by_chance():
    space = make_space(levels=(("model", "CR123"), BLOCKS), prunable=NAMES, max_pruned=3)
    a = space.repair(replace(with_rows(space, model="C" + "R" * 9), pruned=NAMES[1:3]))
    b = space.repair(replace(space.base, pruned=NAMES[2:4]))
    found = Counter(crossed(a, b, space, np.random.default_rng(seed)).pruned for seed in range(200))
    assert all(NAMES[2] in pruned for pruned in found)
    assert len(found) == 4
