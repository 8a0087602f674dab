"""The space: canonical forms, arrays, legality, counting."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import SpaceError
from schedsearch.schedule import ModelRef, Provenance, Schedule, Solver
from schedsearch.space import Forbidden, SearchSpace
from schedsearch.testing import toy_blocks, toy_model_ref, toy_sigmas
from schedsearch.types import BlockSpec

LEVELS = (("model", "CR123"), ("block", "CR123S"), ("component", "CRS"))


def make_space(**changes) -> SearchSpace:
    fields = {
        "name": "test", "model": toy_model_ref(), "blocks": toy_blocks(), "sigma": toy_sigmas(6), "levels": LEVELS,
        "counts": (3, 4, 5, 6), "prunable": tuple(block.name for block in toy_blocks()), "max_pruned": 2,
        "forbidden": (Forbidden(rows="transformer_blocks.0", symbols="S", reason="it mixes text in"),),
    }  # fmt: skip
    return SearchSpace(**{**fields, **changes})


SPACE = make_space()


def with_ops(space: SearchSpace, **rows: str) -> Schedule:
    return replace(space.base, ops=tuple((name.replace("__", "."), row) for name, row in rows.items()))


@st.composite
def any_schedule(draw):
    """Schedules of the right model or another, with rows that break any rule a file does not."""
    n_steps = draw(st.integers(1, 8))
    names = draw(st.lists(st.sampled_from([*SPACE.row_names, "other.block", "transformer_blocks.0.norm"]), unique=True))
    rows = []
    for name in names:
        symbols = "CR123" if name == "model" else "CR123S"
        first = "C" if name == "model" else draw(st.sampled_from("CS"))
        rows.append((name, first + draw(st.text(symbols, min_size=n_steps - 1, max_size=n_steps - 1))))
    pruned = draw(st.lists(st.sampled_from([*(b.name for b in SPACE.blocks), "other.block"]), unique=True))
    rows = [(name, row) for name, row in rows if not name.startswith(tuple(pruned))]  # else the format refuses it
    return Schedule(
        sigma=toy_sigmas(n_steps, shift=draw(st.sampled_from([1.0, 3.0]))),
        solver=(draw(st.sampled_from([Solver(), Solver(family="dpm", order=2)])),) * n_steps,
        model=toy_model_ref(), ops=tuple(rows), pruned=tuple(pruned), provenance=Provenance(searcher="elsewhere"),
    )  # fmt: skip


@st.composite
def any_codes(draw):
    n_steps = draw(st.sampled_from(SPACE.counts))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(-1, 6, size=(len(SPACE.row_names), n_steps)).astype(np.int8)


class TestRepair:
    """Idempotent, lands in the space; encode and decode are inverses on what it returns."""

    @given(any_schedule())
    @settings(max_examples=80, deadline=None)
    def test_any_schedule_lands_in_the_space_and_stays(self, schedule):
        repaired = SPACE.repair(schedule)
        assert SPACE.repair(repaired) == repaired
        assert SPACE.check(repaired) is None
        assert SPACE.decode(SPACE.encode(repaired)) == repaired

    @given(any_codes())
    @settings(max_examples=50, deadline=None)
    def test_any_codes_land_in_the_space(self, codes):
        schedule = SPACE.decode(codes)
        assert SPACE.check(schedule) is None
        assert np.array_equal(SPACE.encode(SPACE.decode(SPACE.encode(schedule))), SPACE.encode(schedule))

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=50, deadline=None)
    def test_samples_are_legal_and_a_function_of_the_generator(self, seed):
        schedule = SPACE.sample(np.random.default_rng(seed))
        assert SPACE.check(schedule) is None
        assert SPACE.sample(np.random.default_rng(seed)) == schedule

    def test_the_base_is_legal_and_repairs_to_itself(self):
        assert SPACE.repair(SPACE.base) == SPACE.base
        assert SPACE.base.ops == ()
        assert SPACE.base.sigma == toy_sigmas(6)

    @pytest.mark.parametrize(
        ("row", "repaired"),
        [
            ("C3C3C3", "CRC1C2"),  # order o needs o + 1 earlier computes
            ("C33333", "CRRRRR"),
            ("CCCC33", "CCCC33"),
            ("CRRRR1", "CRRRRR"),  # reused steps are no history
            ("CCR2C2", "CCR1C2"),
        ],
    )
    def test_forecasts_are_lowered_to_their_history(self, row, repaired):
        assert SPACE.repair(with_ops(SPACE, model=row)).row("model") == repaired

    def test_finer_rows_say_compute_where_a_coarser_one_does_not(self):
        schedule = SPACE.repair(
            with_ops(SPACE, model="CCRCCC", transformer_blocks__1="CRRCSC", transformer_blocks__1__attn="CRRRRR")
        )
        assert dict(schedule.ops) == {
            "model": "CCRCCC", "transformer_blocks.1": "CRCCSC", "transformer_blocks.1.attn": "CCCRCR",
        }  # fmt: skip

    def test_history_of_a_row_counts_only_steps_at_which_everything_above_computes(self):
        schedule = SPACE.repair(with_ops(SPACE, model="CRRCCC", transformer_blocks__1="CCC1C2"))
        assert schedule.row("transformer_blocks.1") == "CCCRC1"  # it had computed once, at step 0

    def test_the_first_step_computes(self):
        assert SPACE.repair(with_ops(SPACE, transformer_blocks__1="SSSSSS")).row("transformer_blocks.1") == "CSSSSS"

    def test_removed_blocks_have_no_rows_and_there_are_not_too_many(self):
        names = tuple(block.name for block in SPACE.blocks)
        schedule = replace(SPACE.base, pruned=names)
        repaired = SPACE.repair(schedule)
        # the first ones in running order; transformer_blocks.0 must not be skipped, so it is not removed either
        assert repaired.pruned == ("single_transformer_blocks.0", "transformer_blocks.1")
        assert repaired.ops == ()

    def test_a_block_that_must_not_be_skipped_is_never_removed(self):
        space = make_space(max_pruned=4)
        schedules = [space.sample(np.random.default_rng(seed)) for seed in range(60)]
        assert any(schedule.pruned for schedule in schedules)
        assert not [schedule for schedule in schedules if "transformer_blocks.0" in schedule.pruned]
        assert space.check(replace(space.base, pruned=("transformer_blocks.0",))) == (
            "pruned: found ('transformer_blocks.0',), expected () (it mixes text in)"
        )

    @pytest.mark.parametrize(
        ("symbols", "row", "repaired"),
        [
            ("C12", "C22222", "CC1111"),  # one compute cannot carry order 1, two can
            ("C12", "C2C222", "CCC222"),
            ("C2", "C22222", "CCC222"),
            ("C2", "C2CC22", "CCCC22"),
        ],
    )
    def test_without_reuse_a_forecast_computes_only_until_its_history_carries_it(self, symbols, row, repaired):
        space = make_space(levels=(("model", symbols),))
        assert space.repair(with_ops(space, model=row)).row("model") == repaired
        assert space.check(with_ops(space, model=repaired)) is None

    def test_another_number_of_steps_is_resampled_to_the_nearest(self):
        long = Schedule(
            sigma=toy_sigmas(12), solver=(Solver(),) * 12, model=toy_model_ref(), ops=(("model", "CCRR" * 3),)
        )
        repaired = SPACE.repair(long)
        assert (repaired.n_steps, repaired.row("model")) == (6, "CRCRCR")
        assert repaired.sigma == toy_sigmas(6)

    def test_other_numbers_of_steps_use_the_same_shift(self):
        short = SPACE.decode(np.zeros((len(SPACE.row_names), 4), dtype=np.int8))
        assert short.sigma == pytest.approx(toy_sigmas(4), abs=1e-15)  # the toy's grid is a shifted one, as FLUX's is

    def test_thousands_per_second_at_the_size_of_flux(self):
        blocks = [BlockSpec(name=f"transformer_blocks.{i}", components=("attn", "ff", "ff_context")) for i in range(19)]
        blocks += [
            BlockSpec(name=f"single_transformer_blocks.{i}", components=("attn", "proj_mlp", "proj_out"))
            for i in range(38)
        ]
        space = make_space(blocks=tuple(blocks), sigma=toy_sigmas(28), counts=(28,), forbidden=())
        rng = np.random.default_rng(0)
        schedules = [space.sample(rng) for _ in range(100)]
        started = time.process_time()
        assert [space.repair(schedule) for schedule in schedules] == schedules
        assert (time.process_time() - started) / 100 < 0.003  # about 0.5 ms on an idle core; slack for busy machines


class TestCheck:
    """Every way to be illegal has its reason."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (
                {"model": ModelRef(pipeline="Other", config="c" * 64, blocks="b" * 64, height=8, width=8)},
                "model: found",
            ),
            (
                {"sigma": toy_sigmas(6, shift=1.0)},
                r"steps.sigma\[1\]: found 0.8\d*, expected 0.9\d*: noise levels are frozen",
            ),
            (
                {"solver": (Solver(family="heun", order=2),) * 6},
                r"steps.solver\[0\]: found heun, expected euler: this step may have euler$",
            ),
            ({"guidance": (1.0,) * 6}, "guidance: found"),
            ({"pruned": ("nothing.0",)}, r"at most 2 prunable blocks"),
            ({"ops": (("nothing.0", "CRRRRR"),)}, r"ops.nothing.0: found a row, expected none"),
            ({"ops": (("transformer_blocks.0", "CCSCCC"),)}, r"\[2\]: found S, expected C: it mixes text in"),
            ({"ops": (("transformer_blocks.1.attn", "C1CCCC"),)}, r"\[1\]: found 1, expected R: row .* may hold CRS"),
            ({"ops": (("transformer_blocks.1", "SCCCCC"),)}, r"\[0\]: found S, expected C: the first step computes"),
            ({"ops": (("model", "C1CCCC"),)}, r"model\[1\]: found 1, expected R: a forecast of order o needs o \+ 1"),
            (
                {"ops": (("model", "CRCCCC"), ("transformer_blocks.1", "CRCCCC"))},
                r"transformer_blocks.1\[1\]: found R, expected C: row model does not compute",
            ),
        ],
    )
    def test_reason(self, change, reason):
        schedule = replace(SPACE.base, **change)
        with pytest.raises(SpaceError, match=reason):
            raise SpaceError(SPACE.check(schedule))

    def test_number_of_steps(self):
        schedule = Schedule(sigma=toy_sigmas(9), solver=(Solver(),) * 9, model=toy_model_ref())
        assert SPACE.check(schedule) == "steps: found 9 steps, expected one of 3..6"

    def test_results_and_origin_do_not_matter(self):
        assert SPACE.check(replace(SPACE.base, provenance=Provenance(searcher="me"))) is None


def enumerated(space: SearchSpace) -> set[Schedule]:
    """All members of a tiny space, by decoding every array there is."""
    members = set()
    codes = sorted({"CR123S".index(char) for _, symbols in space.levels for char in symbols})
    codes += [-1] if space.max_pruned else []
    for n_steps in space.counts:
        for cells in itertools.product(codes, repeat=len(space.row_names) * n_steps):
            members.add(space.decode(np.array(cells, dtype=np.int8).reshape(-1, n_steps)))
    return members


BLOCK = (BlockSpec(name="b.0", components=("x",)),)


class TestCardinality:
    """Exact, against enumeration."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"levels": (("model", "CR123"),), "counts": (1, 2, 5), "blocks": ()},
            {"levels": (("block", "CRS"),), "counts": (1, 3), "blocks": (BlockSpec(name="b.0", components=()),) * 1},
            {"levels": (("model", "CR"), ("block", "C1S")), "counts": (3,), "blocks": BLOCK},
            {"levels": (("model", "C12"), ("block", "C2")), "counts": (4,), "blocks": BLOCK},
            {"levels": (("block", "CRS"),), "counts": (2, 3), "blocks": ()},
            {
                "levels": (("block", "CR"), ("component", "CS")), "counts": (3,),
                "blocks": (BlockSpec(name="b.0", components=("x",)),), "prunable": ("b.0",), "max_pruned": 1,
            },
        ],
    )  # fmt: skip
    def test_equals_enumeration(self, changes):
        space = make_space(**{"prunable": (), "max_pruned": 0, "forbidden": (), **changes})
        assert space.cardinality() == len(enumerated(space))

    def test_known_powers(self):
        row = make_space(levels=(("model", "CR"),), counts=(6,), max_pruned=0)
        assert row.cardinality() == 2**5
        parts = make_space(levels=(("component", "CR"),), counts=(6,), max_pruned=0)
        assert parts.cardinality() == 2 ** (5 * 12)
        assert (
            make_space(levels=(("component", "CR"),), counts=(1,), sigma=toy_sigmas(1), max_pruned=0).cardinality() == 1
        )


class TestRestrictAndNeighbours:
    def test_neighbours_are_distinct_legal_and_exclude_the_start(self):
        space = SPACE.restrict(levels=["model"], symbols="CR", counts=[5])
        around = list(space.neighbours(space.base))
        assert sorted(schedule.row("model") for schedule in around) == ["CCCCR", "CCCRC", "CCRCC", "CRCCC"]
        full = list(SPACE.neighbours(SPACE.base))
        assert len(set(full)) == len(full) > 100
        assert all(SPACE.check(schedule) is None for schedule in full[:50])

    def test_parts_are_subsets(self):
        part = SPACE.restrict(levels=["model", "component"], symbols={"model": "CR"}, counts=[4, 6], max_pruned=0)
        assert part.levels == (("model", "CR"), ("component", "CRS"))
        rng = np.random.default_rng(0)
        for _ in range(30):
            assert SPACE.check(part.sample(rng)) is None
        assert part.cardinality() < SPACE.cardinality()

    def test_a_part_without_the_default_number_of_steps_has_a_base_of_its_own(self):
        part = SPACE.restrict(counts=[3, 4])
        assert part.n_steps == 4
        assert SPACE.check(part.base) is None

    @pytest.mark.parametrize(
        ("wish", "text"),
        [
            ({"levels": ["step"]}, "levels: found 'step', expected one of model, block, component"),
            ({"symbols": {"model": "CS"}}, r"symbols.model: found 'S', expected one of C, R, 1, 2, 3"),
            ({"counts": [7]}, "counts: found '7', expected one of 3, 4, 5, 6"),
            ({"counts": []}, "counts: found none"),
        ],
    )
    def test_more_than_there_is_is_an_error(self, wish, text):
        with pytest.raises(SpaceError, match=text):
            SPACE.restrict(**wish)

    def test_codes_of_a_wrong_shape_or_value_are_errors(self):
        with pytest.raises(SpaceError, match=r"codes: found shape \(2, 6\), expected \(17, n\) with n in 3..6"):
            SPACE.decode(np.zeros((2, 6), dtype=np.int8))
        with pytest.raises(SpaceError, match=r"codes: found 0..9, expected -1..5"):
            SPACE.decode(np.full((17, 6), [0, 0, 0, 0, 0, 9], dtype=np.int8))

    def test_a_space_without_rows_has_one_schedule_per_number_of_steps(self):
        space = make_space(levels=(("block", "CR"),), blocks=(), prunable=(), counts=(5, 6))
        assert space.encode(space.base).shape == (0, 6)
        assert space.repair(space.base) == space.base
        assert list(space.neighbours(space.base)) == []
        assert space.cardinality() == 2
        assert SPACE.check(space.sample(np.random.default_rng(0))) is None

    def test_unknown_row(self):
        with pytest.raises(SpaceError, match=r"nothing\.0: found a row this model does not have"):
            SPACE.symbols_of("nothing.0")
