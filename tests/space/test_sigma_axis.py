"""Noise levels as an axis: the lattice, snapping, legality, draws, counting."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import comb, inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import SpaceError
from schedsearch.schedule import Schedule, Solver
from schedsearch.space import SearchSpace, warp
from schedsearch.space._grid import Lattice, resampled, stretched
from schedsearch.testing import toy_blocks, toy_model_ref, toy_sigmas


def make_space(**changes) -> SearchSpace:
    fields = {
        "name": "test", "model": toy_model_ref(), "blocks": toy_blocks(1, 1), "sigma": toy_sigmas(8),
        "levels": (("model", "CR1"),), "counts": (2, 3, 4, 8), "free_sigma": True,
    }  # fmt: skip
    return SearchSpace(**{**fields, **changes})


SPACE = make_space()


def schedule_at(sigma, space: SearchSpace = SPACE) -> Schedule:
    return Schedule(sigma=tuple(sigma), solver=(Solver(),) * (len(sigma) - 1), model=space.model)


levels = st.floats(0.0, 3.0, allow_nan=False)


class TestGrid:
    def test_levels_that_two_default_grids_share_are_the_same_numbers(self):
        full = toy_sigmas(28)
        assert resampled(full, 14) == full[::2]
        assert resampled(full, 7) == full[::4]
        assert resampled(full, 4) == full[::7]

    def test_stretched(self):
        assert stretched((1.0, 0.4, 0.0), 4) == (1.0, 0.7, 0.4, 0.2, 0.0)
        assert stretched((1.0, 0.4, 0.0), 2) == (1.0, 0.4, 0.0)


class TestLattice:
    def test_multiples_and_default_levels(self):
        lattice = Lattice((1.0, 0.6, 0.0), (1.0, 0.9, 0.6, 0.25, 0.0), 8)
        assert lattice.levels == (0.9, 0.875, 0.75, 0.625, 0.6, 0.5, 0.375, 0.25, 0.125)

    def test_other_ends(self):
        lattice = Lattice((9.0, 4.0, 1.0), (9.0, 4.0, 1.0), 4)
        assert lattice.levels == (7.0, 5.0, 4.0, 3.0)
        assert lattice.snapped((12.0, 6.2, 0.0)) == (9.0, 7.0, 1.0)

    def test_a_default_level_replaces_points_beside_it(self):
        beside = 0.5 + 4e-7
        lattice = Lattice((1.0, beside, 0.0), (1.0, beside, 0.0), 4)
        assert lattice.levels == (0.75, beside, 0.25)
        for level in (0.5, beside + 9e-7, 0.5 + 1e-9):
            assert lattice.snapped((1.0, level, 0.0)) == (1.0, beside, 0.0)

    def test_default_levels_that_are_close_to_each_other_stay_apart(self):
        grid = (1.0, 0.5, 0.5 - 3e-7, 0.0)
        lattice = Lattice(grid, grid, 2)
        assert lattice.snapped(grid) == grid

    def test_a_lattice_finer_than_the_distance_that_counts_as_near(self):
        grid = (0.02, 0.01, 0.0)
        lattice = Lattice(grid, grid, 65_536)
        gaps = [a - b for a, b in pairwise(lattice.levels)]
        assert min(gaps) > 1e-7
        assert sum(abs(level - 0.01) <= 1e-6 for level in lattice.levels) == 1

    @pytest.mark.parametrize(
        ("sigma", "snapped"),
        [
            ((1.0, 0.51, 0.5, 0.49, 0.0), (1.0, 0.5, 0.375, 0.25, 0.0)),  # moved down
            ((1.0, 0.02, 0.01, 0.001, 0.0), (1.0, 0.375, 0.25, 0.125, 0.0)),  # and up where there is no room
            ((1.0, 0.2, 0.7, 0.4, 0.0), (1.0, 0.75, 0.375, 0.25, 0.0)),  # in order
            ((1.0, inf, 5.0, nan, 0.0), (1.0, 0.875, 0.75, 0.125, 0.0)),
        ],
    )
    def test_levels_that_coincide_are_moved_apart(self, sigma, snapped):
        assert Lattice((1.0, 0.75, 0.5, 0.25, 0.0), (1.0, 0.0), 8).snapped(sigma) == snapped

    @given(st.lists(levels, min_size=1, max_size=7))
    def test_snapping_twice_changes_nothing_more(self, inner):
        lattice = Lattice(toy_sigmas(len(inner) + 1), toy_sigmas(8), 16)
        once = lattice.snapped((1.0, *inner, 0.0))
        assert all(a > b for a, b in pairwise(once))
        assert lattice.snapped(once) == once
        assert set(once[1:-1]) <= set(lattice.levels)

    @given(st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3, unique=True))
    def test_levels_with_room_go_to_the_nearest_point(self, inner):
        lattice = Lattice(toy_sigmas(4), toy_sigmas(8), 2048)
        sigma = (1.0, *sorted(inner, reverse=True), 0.0)
        if min(a - b for a, b in pairwise(sigma)) > 0.002:
            for found, wished in zip(lattice.snapped(sigma)[1:-1], sigma[1:-1], strict=True):
                assert abs(found - wished) <= 0.5 / 2048 + 1e-12


class TestRepair:
    @given(st.lists(levels, min_size=2, max_size=12, unique=True))
    @settings(max_examples=150)
    def test_any_levels_land_in_the_space_and_stay(self, sigma):
        repaired = SPACE.repair(schedule_at(sorted(sigma, reverse=True)))
        assert SPACE.check(repaired) is None
        assert SPACE.repair(repaired) is repaired
        assert repaired.n_steps in SPACE.counts
        assert (repaired.sigma[0], repaired.sigma[-1]) == (1.0, 0.0)

    def test_default_levels_of_either_grid_are_kept(self):
        for sigma in (SPACE.grid(3), SPACE.grid(8), (1.0, *SPACE.grid(8)[2:4], 0.0)):
            assert SPACE.repair(schedule_at(sigma)).sigma == sigma

    def test_too_many_steps(self):
        sigma = toy_sigmas(16, shift=1.0)
        repaired = SPACE.repair(schedule_at(sigma))
        assert repaired.sigma == pytest.approx(toy_sigmas(8, shift=1.0))
        assert SPACE.repair(schedule_at(toy_sigmas(6, shift=1.0))).n_steps == 4

    def test_a_warp_lies_within_half_a_lattice_step(self):
        for name in ("shift", "quadratic", "cosine"):
            sigma = warp(name, 4, first=1.0, last=0.0)
            assert SPACE.repair(schedule_at(sigma)).sigma == pytest.approx(sigma, abs=0.5 / 2048)

    def test_rows_go_along_with_levels(self):
        schedule = replace(schedule_at(toy_sigmas(4, shift=1.0)), ops=(("model", "C1CR"),))
        assert SPACE.repair(schedule).row("model") == "CRCR"
        assert SPACE.repair(schedule).sigma == toy_sigmas(4, shift=1.0)
        assert SPACE.decode(SPACE.encode(schedule)).sigma == SPACE.grid(4)
        assert SPACE.decode(SPACE.encode(schedule), like=schedule).sigma == toy_sigmas(4, shift=1.0)

    def test_build_takes_levels_in_any_order(self):
        built = SPACE.build(sigma=(0.3, 0.2, 0.9, 0.0, 5.0), solver=(Solver(),) * 4, ops=[("model", "C3RR")])
        assert built.row("model") == "CRRR"
        assert SPACE.check(built) is None


class TestCheck:
    @pytest.mark.parametrize(
        ("sigma", "reason"),
        [
            (
                (1.0, 0.31, 0.0),
                r"steps.sigma\[1\]: found 0.31, expected 0.31005859375: .* is a multiple of 1/2048 of the range or a ",
            ),
            ((2.0, 0.5, 0.0), r"\[0\]: found 2.0, expected 1.0: the first and the last noise level are those of the "),
            ((1.0, 0.5, 0.1), r"\[2\]: found 0.1, expected 0.0: the first and the last"),
            ((3.0, 2.0, 0.5, 0.0), r"\[0\]: found 3.0"),
        ],
    )  # fmt: skip
    def test_reason(self, sigma, reason):
        with pytest.raises(SpaceError, match=reason):
            raise SpaceError(SPACE.check(schedule_at(sigma)))

    def test_frozen(self):
        frozen = make_space(free_sigma=False)
        assert frozen.check(schedule_at(toy_sigmas(4, shift=1.0))).endswith("noise levels are frozen in this space")
        assert frozen.check(schedule_at(frozen.grid(4))) is None

    @pytest.mark.parametrize("lattice", [1, 65_537])
    def test_lattices_of_no_use(self, lattice):
        with pytest.raises(SpaceError, match=rf"lattice: found {lattice}, expected 2\.\.65536"):
            make_space(lattice=lattice)


class TestSampleAndNeighbours:
    def test_draws_are_wide(self):
        rng = np.random.default_rng(0)
        drawn = [SPACE.sample(rng) for _ in range(400)]
        assert all(SPACE.check(schedule) is None for schedule in drawn)
        of_four = Counter(schedule.sigma for schedule in drawn if schedule.n_steps == 4)
        assert of_four[SPACE.grid(4)] > 5  # the default grid
        assert len(of_four) > 40  # and many others
        highest = [sigma[1] for sigma in of_four]
        assert min(highest) < 0.55
        assert max(highest) > 0.95

    def test_a_draw_is_a_function_of_the_generator(self):
        assert SPACE.sample(np.random.default_rng(5)) == SPACE.sample(np.random.default_rng(5))

    def test_models_of_another_kind(self):
        sigma = (14.6, 6.0, 2.5, 1.0, 0.3, 0.0)
        space = make_space(sigma=sigma, counts=(1, 3, 5))
        rng = np.random.default_rng(3)
        for _ in range(60):
            schedule = space.sample(rng)
            assert space.check(schedule) is None
            assert (schedule.sigma[0], schedule.sigma[-1]) == (14.6, 0.0)

    def test_neighbours_move_one_level_by_one_step_of_the_lattice(self):
        space = make_space(levels=(("model", "C"),), counts=(3,), lattice=4, sigma=(1.0, 0.6, 0.3, 0.0))
        assert space.sigma_lattice(3).levels == (0.75, 0.6, 0.5, 0.3, 0.25)
        around = {schedule.sigma[1:-1] for schedule in space.neighbours(space.base)}
        assert around == {(0.75, 0.3), (0.5, 0.3), (0.6, 0.5), (0.6, 0.25)}
        crowded = space.repair(schedule_at((1.0, 0.75, 0.6, 0.0), space))
        assert {s.sigma[1:-1] for s in space.neighbours(crowded)} == {(0.75, 0.5)}


class TestCardinality:
    @pytest.mark.parametrize("counts", [(1,), (2,), (3,), (1, 2, 3)])
    def test_equals_enumeration(self, counts):
        space = make_space(sigma=(1.0, 0.55, 0.3, 0.0), lattice=5, counts=counts, levels=(("model", "CR"),))
        points = np.linspace(0.01, 0.99, 197)
        members = {
            space.build(sigma=(1.0, *inner, 0.0), solver=(Solver(),) * n, ops=[("model", "C" + "".join(row))])
            for n in counts
            for inner in itertools.combinations(points if n < 3 else points[::6], n - 1)
            for row in itertools.product("CR", repeat=n - 1)
        }
        members |= {space.repair(replace(member, sigma=space.grid(member.n_steps))) for member in members}
        for n in counts:
            for numbers in itertools.combinations(range(len(space.sigma_lattice(n).levels)), n - 1):
                sigma = space.sigma_lattice(n).sigma(numbers)
                members |= {replace(m, sigma=sigma) for m in members if m.n_steps == n}
        assert all(space.check(member) is None for member in members)
        assert space.cardinality() == len(members)

    def test_the_choices_of_levels_are_a_factor(self):
        free, frozen = make_space(counts=(4,)), make_space(counts=(4,), free_sigma=False)
        n_levels = len(free.sigma_lattice(4).levels)
        assert n_levels == 2047 + 5  # of the seven default levels, 3/4 and 1/2 are on the lattice
        assert free.cardinality() == comb(n_levels, 3) * frozen.cardinality()

    def test_at_the_size_of_flux_it_takes_no_time(self):
        import time

        from schedsearch.space import load_space
        from schedsearch.types import BlockSpec

        blocks = [BlockSpec(name=f"transformer_blocks.{i}", components=("attn", "ff", "ff_context")) for i in range(19)]
        blocks += [
            BlockSpec(name=f"single_transformer_blocks.{i}", components=("attn", "proj_mlp", "proj_out"))
            for i in range(38)
        ]
        space = load_space("flux", model=toy_model_ref(), blocks=blocks, sigma=toy_sigmas(28))
        started = time.process_time()
        assert space.cardinality() > 10**2000
        assert time.process_time() - started < 1.0  # about 0.2 s on an idle core
        rng = np.random.default_rng(0)
        drawn = [space.restrict(counts=(10,)).sample(rng) for _ in range(100)]
        wished = [replace(s, sigma=(1.0, *(level * 0.9995 for level in s.sigma[1:-1]), 0.0)) for s in drawn]
        started = time.process_time()
        repaired = [space.repair(schedule) for schedule in wished]
        assert (time.process_time() - started) / 100 < 0.002  # about 0.4 ms on an idle core; slack for busy machines
        assert all(space.repair(schedule) is schedule for schedule in repaired)
