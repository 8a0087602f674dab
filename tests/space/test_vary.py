"""Operators: what each may and may not change, how often each is drawn, and that children stay in the space."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import SpaceError
from schedsearch.schedule import Schedule, Solver
from schedsearch.space import (
    OPERATORS,
    Forbidden,
    Range,
    SearchSpace,
    crossed,
    genome_of,
    mutated,
    operators_of,
    schedule_of,
)
from schedsearch.space._operators import ORDERS, change_order, late, relocate_compute
from schedsearch.testing import toy_blocks, toy_sigmas, toy_space

N = 10
LEVELS = (("model", "CR123"), ("block", "CR123S"), ("component", "CRS"))
ADAMS = tuple(Solver(family="adams", order=order) for order in (2, 3, 4))
SOLVERS = (
    Solver(), *ADAMS, Solver(family="dpm", order=2, prediction="data"),
    Solver(family="unipc", order=2, prediction="data", corrector="pseudo"),
    *(Solver(family="table", order=order) for order in (1, 2, 3)),
)  # fmt: skip


def make_space(**changes) -> SearchSpace:
    """Every axis frozen, unless opened by ``changes``."""
    first_stays = Forbidden(rows="transformer_blocks.0", symbols="S", reason="first")
    return replace(toy_space((), n_double=3, n_single=3), **{"forbidden": (first_stays,), **changes})


NAMES = tuple(block.name for block in toy_blocks(3, 3))
AXES = {
    "ops": {"levels": LEVELS},
    "sigma": {"free_sigma": True},
    "solver": {"solvers": SOLVERS},
    "pruned": {"levels": LEVELS, "prunable": NAMES, "max_pruned": 2},
    "counts": {"counts": tuple(range(4, N + 1))},
}
ALL = make_space(**{key: value for axis in AXES.values() for key, value in axis.items()})
SPACES = {
    "all": ALL,
    **{axis: make_space(**changes) for axis, changes in AXES.items()},
    "model": make_space(levels=LEVELS[:1]),
    "block": make_space(levels=LEVELS[1:2]),
    "component": make_space(levels=LEVELS[2:]),
    "few steps": make_space(levels=LEVELS[:1], counts=(2, 5, N)),
    "only reuse": make_space(levels=(("model", "CR"),)),
    "model and solver": make_space(levels=LEVELS[:1], solvers=SOLVERS),
    "frozen solver": make_space(levels=LEVELS[:1], solvers=ADAMS[:1]),
}  # fmt: skip
OPEN = {
    "ops": {"ops"}, "model": {"ops"}, "block": {"ops"}, "component": {"ops"}, "only reuse": {"ops"}, "sigma": {"sigma"},
    "solver": {"solver"}, "pruned": {"pruned", "ops"}, "counts": {"sigma", "solver"},
    "few steps": {"ops", "sigma", "solver"}, "model and solver": {"ops", "solver"},
    # the steps at the start are clipped to their history, which the rows make
    "frozen solver": {"ops", "solver"},
}  # fmt: skip
PARTS = tuple(field.name for field in fields(Schedule))
SEEDS = st.integers(0, 2**32 - 1)


def with_rows(space: SearchSpace, **rows: str) -> Schedule:
    return space.repair(replace(space.base, ops=tuple((name.replace("__", "."), row) for name, row in rows.items())))


def children(name: str, schedule: Schedule, *, space: SearchSpace = ALL, tries: int = 200) -> list[Schedule]:
    """Canonical children by one operator; where it found nothing to change there is none."""
    operator = next(operator for operator in OPERATORS if operator.name == name)
    found = []
    for seed in range(tries):
        genome = operator.vary(genome_of(schedule, space), space, np.random.default_rng(seed))
        if genome is not None:
            found.append(schedule_of(genome, space))
    return found


def changed_parts(parent: Schedule, child: Schedule) -> set[str]:
    return {part for part in PARTS if getattr(parent, part) != getattr(child, part)}


class TestChildren:
    """Every child is canonical, differs from its parents, and is what the generator makes of them."""

    @given(st.sampled_from(sorted(SPACES)), SEEDS)
    @settings(max_examples=100)
    def test_mutated(self, name, seed):
        space, rng = SPACES[name], np.random.default_rng(seed)
        parent = space.sample(rng)
        child = mutated(parent, space, rng)
        assert space.check(child) is None
        assert child != parent
        assert mutated(parent, space, np.random.default_rng(seed)) == mutated(
            parent, space, np.random.default_rng(seed)
        )

    @given(st.sampled_from(sorted(SPACES)), SEEDS)
    @settings(max_examples=100)
    def test_crossed(self, name, seed):
        space, rng = SPACES[name], np.random.default_rng(seed)
        a, b = space.sample(rng), space.sample(rng)
        child = crossed(a, b, space, rng)
        assert space.check(child) is None
        assert name == "counts" or child not in (a, b)  # seven schedules: two parents can be among few

    @given(st.sampled_from(sorted(OPEN)), SEEDS)
    @settings(max_examples=100)
    def test_frozen_axes_never_change(self, name, seed):
        space, rng = SPACES[name], np.random.default_rng(seed)
        a, b = space.sample(rng), space.sample(rng)
        for child in (mutated(a, space, rng, rate=4.0), crossed(a, b, space, rng)):
            assert changed_parts(space.base, child) <= OPEN[name]
            if len(space.counts) > 1:
                assert child.sigma == space.grid(child.n_steps)

    @given(SEEDS)
    @settings(max_examples=30)
    def test_symbols_a_level_may_not_hold_never_appear(self, seed):
        space, rng = SPACES["ops"], np.random.default_rng(seed)
        child = space.base
        for _ in range(5):
            child = mutated(child, space, rng)
        assert "S" not in child.row("transformer_blocks.0")
        assert not set("123") & set("".join(row for name, row in child.ops if space.level_of(name) == "component"))

    def test_a_parent_from_elsewhere_is_repaired_first(self):
        space = SPACES["model"]
        foreign = replace(ALL.base, pruned=("transformer_blocks.1",), ops=(("model", "CRCCCCCCCC"),))
        for seed in range(20):
            child = mutated(foreign, space, np.random.default_rng(seed))
            assert child != with_rows(space, model="CRCCCCCCCC")
            assert space.check(child) is None

    def test_alike_parents_have_a_mutated_child(self):
        child = crossed(ALL.base, ALL.base, ALL, np.random.default_rng(0))
        assert child != ALL.base

    def test_a_space_of_one_schedule_has_only_that(self):
        space = make_space()
        assert operators_of(space) == ()
        assert mutated(space.base, space, np.random.default_rng(0)) == space.base
        assert crossed(space.base, space.base, space, np.random.default_rng(0)) == space.base

    def test_every_schedule_of_a_small_space_is_reached(self):
        space = make_space(levels=(("model", "CR"),), sigma=toy_sigmas(5), counts=(5,))
        rng, schedule, seen = np.random.default_rng(0), space.base, set()
        for _ in range(400):
            schedule = mutated(schedule, space, rng)
            seen.add(schedule)
        assert len(seen) == space.cardinality() == 16

    def test_rate_below_one_is_refused(self):
        with pytest.raises(SpaceError, match=r"rate: found 0\.5, expected 1 or more changes per child\."):
            mutated(ALL.base, ALL, np.random.default_rng(0), rate=0.5)


class TestTable:
    def test_shares_sum_to_one_and_steps_are_inserted_or_deleted_with_a_fifth(self):
        shares = {operator.name: operator.share for operator in OPERATORS}
        assert len(shares) == len(OPERATORS)
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares["insert_step"] + shares["delete_step"] == pytest.approx(0.2)

    @pytest.mark.parametrize(
        ("name", "applying"),
        [
            ("sigma", "jitter_sigma nudge_sigma move_sigma respace"),
            ("solver", "change_order change_family"),
            ("counts", "insert_step delete_step"),
            ("only reuse", "relocate_compute flip_step change_op"),
            ("block", "relocate_compute change_op resize_range insert_range delete_range copy_ranges"),
            ("all", " ".join(operator.name for operator in OPERATORS)),
        ],
    )
    def test_operators_apply_where_their_axis_is_open(self, name, applying):
        assert [operator.name for operator in operators_of(SPACES[name])] == applying.split()

    def test_shares_are_those_of_the_changes(self):
        parent = with_rows(make_space(levels=LEVELS[:1], free_sigma=True), model="CCRRCCRRCC")
        space = make_space(levels=LEVELS[:1], free_sigma=True)
        rng = np.random.default_rng(0)
        sigma_moved = sum(mutated(parent, space, rng, rate=1.0).sigma != parent.sigma for _ in range(600))
        shares = {operator.name: operator.share for operator in operators_of(space)}
        moving = ("jitter_sigma", "nudge_sigma", "move_sigma", "respace")
        wanted = sum(shares[name] for name in moving) / sum(shares.values())
        assert sigma_moved / 600 == pytest.approx(wanted, abs=0.07)

    def test_refining_leaves_what_is_computed(self):
        space = SPACES["all"]
        for seed in range(60):
            rng = np.random.default_rng(seed)
            parent = space.sample(rng)
            child = mutated(parent, space, rng, rate=2.0, refining=True)
            assert child != parent
            if child.n_steps == parent.n_steps and "table" not in {s.family for s in (*child.solver, *parent.solver)}:
                assert {"ops", "pruned", "precision"}.isdisjoint(changed_parts(parent, child))

    def test_refining_a_space_without_such_axes_changes_what_there_is(self):
        space = SPACES["only reuse"]
        assert mutated(space.base, space, np.random.default_rng(0), refining=True) != space.base

    def test_rate_is_the_mean_number_of_changes(self):
        space = make_space(free_sigma=True, levels=LEVELS[:1], counts=(6,), sigma=toy_sigmas(6))
        few = [mutated(space.base, space, np.random.default_rng(i), rate=1.0) for i in range(150)]
        many = [mutated(space.base, space, np.random.default_rng(i), rate=6.0) for i in range(150)]
        both = [sum(len(changed_parts(space.base, child)) == 2 for child in group) for group in (few, many)]
        assert both[0] == 0  # one change cannot move a noise level and a symbol
        assert both[1] > 75

    def test_late_steps_are_likelier(self):
        rng = np.random.default_rng(0)
        drawn = np.bincount([late(rng, range(10)) for _ in range(20000)], minlength=10) / 20000
        assert drawn == pytest.approx((2 / 3 + 2 / 3 * (np.arange(10) + 0.5) / 10) / 10, abs=0.01)


class TestPlans:
    def test_relocation_keeps_what_is_computed_and_moves_it(self):
        parent = with_rows(ALL, model="CRRRCRRRRR", transformer_blocks__1="CCCCRCCCCC")
        for child in children("relocate_compute", parent):
            assert changed_parts(parent, child) == {"ops"}
            assert sorted(child.row("model")) == sorted(parent.row("model"))
            moved = child.row("model").rindex("C")
            assert child.row("transformer_blocks.1")[moved] == "R"  # its ranges go with it

    def test_relocation_is_mostly_near(self):
        space = make_space(levels=LEVELS[:1], sigma=toy_sigmas(28), counts=(28,))
        genome = genome_of(with_rows(space, model="C" + "R" * 13 + "C" + "R" * 13), space)
        distances = []
        for seed in range(600):
            moved = relocate_compute(genome, space, np.random.default_rng(seed))
            distances.append(abs([step.op for step in moved.steps].index("C", 1) - 14))
        near = 0.7 + 0.3 * 6 / 26  # those drawn from anywhere can be near too
        assert np.mean(np.array(distances) <= 3) == pytest.approx(near, abs=0.06)

    def test_without_idle_steps_other_plans_are_swapped(self):
        parent = with_rows(ALL, transformer_blocks__1="CCRCCCCCCC")
        rows = {child.row("transformer_blocks.1") for child in children("relocate_compute", parent)}
        assert len(rows) > 5
        assert all(sorted(row) == sorted("CCRCCCCCCC") for row in rows)
        assert children("relocate_compute", ALL.base) == []

    def test_flipping_changes_whether_a_step_computes(self):
        parent = with_rows(SPACES["only reuse"], model="CCCRRCCRRC")
        for child in children("flip_step", parent, space=SPACES["only reuse"]):
            pairs = zip(child.row("model"), parent.row("model"), strict=True)
            assert sum(ours != theirs for ours, theirs in pairs) == 1

    def test_other_symbols_go_where_nothing_computes(self):
        parent = with_rows(ALL, model="CCCCRCCCCC", single_transformer_blocks__0="CCCCCCRCCC")
        seen = set()
        for child in children("change_op", parent):
            seen |= {child.row("model")[4], child.row("single_transformer_blocks.0")[6]}
            assert [char == "C" for char in child.row("model")] == [char == "C" for char in parent.row("model")]
            assert child.row("single_transformer_blocks.0").replace("C", "") != ""
        assert seen == set("R123S")
        assert children("change_op", ALL.base) == []
        assert children("change_op", with_rows(SPACES["only reuse"], model="CR" * 5), space=SPACES["only reuse"]) == []

    def test_resizing_moves_one_end_by_at_most_four_blocks(self):
        space = make_space(levels=LEVELS[1:2], blocks=toy_blocks(10, 10))
        parent = with_rows(space, **{f"transformer_blocks__{i}": "CCCRCCCCCC" for i in range(3, 10)})
        assert genome_of(parent, space).steps[3].ranges == (Range(3, 10, "R"),)
        moves = Counter()
        for child in children("resize_range", parent, space=space, tries=400):
            (span,) = genome_of(child, space).steps[3].ranges
            moves[span.first - 3, span.stop - 10] += 1
        assert set(moves) == {(-1, 0), (-2, 0), (-3, 0), *((k, 0) for k in range(1, 5))} | {
            (0, k) for k in range(-4, 5) if k
        }

    def test_resizing_can_end_inside_a_block_and_wins_over_its_neighbour(self):
        rows = {"transformer_blocks__1": "CCCRCCCCCC", "transformer_blocks__2": "CCCSCCCCCC"}
        ends = {
            span.stop
            for child in children("resize_range", with_rows(ALL, **rows), tries=400)
            for span in genome_of(child, ALL).steps[3].ranges
            if span.op == "R"
        }
        assert {4, 5, 7, 8, 9, 12} <= ends  # places: three to a block
        assert children("resize_range", ALL.base) == []

    def test_inserting_and_deleting_ranges(self):
        for child in children("insert_range", ALL.base):
            assert changed_parts(ALL.base, child) <= {"ops"}
            assert sum(len(step.ranges) for step in genome_of(child, ALL).steps) <= 2  # one, less what may not skip
        spans = [
            span
            for child in children("insert_range", SPACES["block"].base, space=SPACES["block"])
            for step in genome_of(child, SPACES["block"]).steps
            for span in step.ranges
        ]
        anchored = np.mean([span.first <= 1 or span.stop == 6 for span in spans])
        assert anchored > 0.6
        assert {span.op for span in spans} >= set("RS")
        full = {f"{stem}transformer_blocks__{i}": "CRCCCCCCCC" for stem, i in (("", 0), ("", 2), ("single_", 1))}
        crowded = with_rows(ALL.restrict(counts=[N]), model="CCRRRRRRRR", **full)
        assert children("insert_range", crowded) == []
        for child in children("delete_range", crowded):
            assert len(genome_of(child, ALL).steps[1].ranges) == 2
        assert children("delete_range", ALL.base) == []

    def test_copying_ranges(self):
        parent = with_rows(ALL, transformer_blocks__1="CCRCCCCCCC", transformer_blocks__2__attn="CCSCCCCCCC")
        for child in children("copy_ranges", parent):
            one, other = child.row("transformer_blocks.1"), child.row("transformer_blocks.2.attn")
            assert [char == "R" for char in one] == [char == "S" for char in other]
        assert children("copy_ranges", ALL.base) == []

    def test_flipping_a_component_changes_one_cell(self):
        parent = with_rows(ALL, model="CCCCCRRRRR", transformer_blocks__1="CRRRRCCCCC")
        for child in children("flip_component", parent):
            rows = {name: row for name, row in child.ops if name not in dict(parent.ops)}
            ((name, row),) = rows.items()
            assert ALL.level_of(name) == "component"
            assert not name.startswith("transformer_blocks.1.")  # its block computes nowhere it could be flipped
            assert sum(char != "C" for char in row) == 1


class TestNoiseLevels:
    def test_jitter_is_small_ordered_and_leaves_the_start_alone(self):
        space, moves = SPACES["sigma"], []
        for child in children("jitter_sigma", space.base, space=space):
            assert changed_parts(space.base, child) <= {"sigma"}
            sigma, old = np.array(child.sigma), np.array(space.base.sigma)
            assert (np.diff(sigma) < 0).all()
            moved = np.flatnonzero(sigma != old)
            if len(moved):
                gap = np.where(sigma > old, np.roll(old, 1) - old, old - np.roll(old, -1))
                moves.append(np.abs((sigma - old) / gap)[moved[0] : -1])
        spread = np.concatenate(moves)
        assert np.quantile(spread, 0.5) < 0.2
        assert spread.max() < 0.5
        starts = Counter(N - len(move) for move in moves)
        assert sum(starts[i] for i in range(5, N)) > sum(starts[i] for i in range(1, 5))

    def test_one_level_moves_between_its_neighbours(self):
        space = SPACES["sigma"]
        for child in children("move_sigma", space.base, space=space):
            moved = [i for i, (a, b) in enumerate(zip(child.sigma, space.base.sigma, strict=True)) if a != b]
            assert len(moved) <= 1
            for i in moved:
                assert space.base.sigma[i + 1] < child.sigma[i] < space.base.sigma[i - 1]

    def test_respacing_changes_all_and_keeps_the_ends(self):
        space = SPACES["sigma"]
        found = children("respace", space.base, space=space)
        assert len({child.sigma for child in found}) > 50
        for child in found:
            assert (child.sigma[0], child.sigma[-1]) == (1.0, 0.0)
            assert changed_parts(space.base, child) <= {"sigma"}


class TestNumberOfSteps:
    def test_inserting_divides_a_step(self):
        space = make_space(levels=LEVELS[:1], counts=(N, N + 1), free_sigma=True)
        parent = with_rows(space, model="CRCRCRCRCR")
        for child in children("insert_step", parent, space=space):
            assert child.n_steps == N + 1
            assert set(parent.sigma) < set(child.sigma)
            new = next(i for i, level in enumerate(child.sigma) if level not in parent.sigma)
            assert child.row("model")[:new] + child.row("model")[new + 1 :] == parent.row("model")

    def test_deleting_joins_two_steps(self):
        parent = with_rows(ALL, model="CCRRCCRRCC")
        for child in children("delete_step", parent):
            assert child.n_steps == N - 1
            assert set(child.sigma) < set(parent.sigma)
            assert child.sigma[0] == 1.0

    def test_where_noise_levels_are_frozen_they_are_the_default_ones(self):
        space = make_space(levels=LEVELS[:1], counts=tuple(range(4, N + 1)))
        for child in children("delete_step", with_rows(space, model="CCRRCCRRCC"), space=space):
            assert child.sigma == space.grid(N - 1)
            assert child.row("model") != "C" * (N - 1)

    def test_the_next_legal_number_is_taken(self):
        space = SPACES["few steps"]
        assert {child.n_steps for child in children("delete_step", space.base, space=space)} == {5}
        assert children("insert_step", space.base, space=space) == []
        short = space.build(sigma=space.grid(2), solver=(Solver(),) * 2)
        assert {child.n_steps for child in children("insert_step", short, space=space)} == {5}
        assert children("delete_step", short, space=space) == []


class TestSolvers:
    def test_orders_are_drawn_as_stated(self):
        space = make_space(solvers=(Solver(), *ADAMS))
        drawn = Counter()
        for seed in range(800):
            genome = change_order(genome_of(space.base, space), space, np.random.default_rng(seed))
            taken = {step.solver.order for step in genome.steps}
            drawn[max(taken)] += 1
        assert [drawn[order] / 800 for order in (1, 2, 3, 4)] == pytest.approx(ORDERS, abs=0.05)

    def test_the_family_stays_when_the_order_changes(self):
        space = SPACES["solver"]
        parent = space.build(sigma=space.sigma, solver=(Solver(family="table", order=2),) * N)
        for child in children("change_order", parent, space=space):
            assert changed_parts(parent, child) <= {"solver"}
            assert {solver.family for solver in child.solver} == {"table"}

    def test_the_order_stays_about_when_the_family_changes(self):
        space = SPACES["solver"]
        parent = space.build(sigma=space.sigma, solver=(Solver(family="table", order=2),) * N)
        families = Counter()
        for child in children("change_family", parent, space=space):
            assert changed_parts(parent, child) <= {"solver"}
            families.update({solver.family for solver in child.solver[3:-1]} - {"table"})
            assert max(solver.order for solver in child.solver) <= 2
        assert set(families) == {"euler", "adams", "dpm", "unipc"}


class TestRemovedBlocks:
    def test_blocks_come_and_go_one_at_a_time(self):
        space = SPACES["pruned"]
        for child in children("remove_block", space.base, space=space):
            assert len(child.pruned) <= 1  # none where the drawn one must stay
        two = space.repair(replace(space.base, pruned=NAMES[1:3]))
        assert {len(child.pruned) for child in children("remove_block", two, space=space)} == {1, 2}
        assert {len(child.pruned) for child in children("restore_block", two, space=space)} == {1}
        assert children("restore_block", space.base, space=space) == []


class TestSpeed:
    def test_a_child_takes_about_a_millisecond_at_the_size_of_flux(self):
        blocks = toy_blocks(19, 38)
        space = make_space(
            blocks=blocks, sigma=toy_sigmas(28), levels=LEVELS, counts=tuple(range(4, 29)), solvers=SOLVERS,
            free_sigma=True, prunable=tuple(block.name for block in blocks), max_pruned=5,
        )  # fmt: skip
        rng, grown = np.random.default_rng(0), [space.base]
        for _ in range(150):
            grown.append(mutated(grown[rng.integers(len(grown))], space, rng))
        for make in (
            lambda a, b: mutated(a, space, rng),
            lambda a, b: crossed(a, b, space, rng),
        ):
            spent = []
            for _ in range(150):
                a, b = rng.choice(len(grown), size=2)
                started = time.process_time()
                make(grown[a], grown[b])
                spent.append(time.process_time() - started)
            assert np.median(spent) < 0.004  # 1.0 and 1.5 ms on a busy core; slack for busier ones
