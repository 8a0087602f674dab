"""Solvers as an axis: canonical forms against what a run really does, legality, nearest records, counting."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import SpaceError
from schedsearch.runtime._solver import FLOW, VP, program
from schedsearch.schedule import ESTIMATES, Schedule, Solver
from schedsearch.space import Forbidden, SearchSpace
from schedsearch.space._solvers import EULER, Place, named, settled
from schedsearch.testing import toy_blocks, toy_model_ref, toy_sigmas

HEUN = Solver(family="heun", order=2)
DPM = Solver(family="dpm", order=3, prediction="data")
UNIPC = Solver(family="unipc", order=3, prediction="data", corrector="pseudo")
TABLE = Solver(family="table", order=3)
ADAMS = Solver(family="adams", order=4)
WASTED = (
    Forbidden(rows="model", symbols="R123", reason="wasted", solver=(("family", "heun"),)),
    Forbidden(rows="model", symbols="R123", reason="wasted too", solver=(("corrector", "implicit"),)),
)


def every_record() -> tuple[Solver, ...]:
    """All records the format knows."""
    records = []
    for family, prediction, corrector, estimate in itertools.product(
        ("euler", "heun", "adams", "plms", "dpm", "unipc", "table"), ("velocity", "noise", "data"),
        ("none", "pseudo", "implicit"), ESTIMATES,
    ):  # fmt: skip
        if estimate != "default" and family not in ("dpm", "unipc"):
            continue
        orders = {"euler": (1,), "heun": (2,)}.get(family, (1, 2, 3, 4))
        records += [
            Solver(family=family, order=order, prediction=prediction, corrector=corrector, estimate=estimate)
            for order in orders
        ]
    return tuple(records)


EVERY = every_record()


def make_space(**changes) -> SearchSpace:
    fields = {
        "name": "test", "model": toy_model_ref(), "blocks": toy_blocks(1, 1), "sigma": toy_sigmas(6),
        "levels": (("model", "CR1"),), "counts": (6,), "solvers": (EULER, HEUN, ADAMS, DPM, UNIPC, TABLE),
        "forbidden": WASTED,
    }  # fmt: skip
    return SearchSpace(**{**fields, **changes})


FLOW_SPACE = make_space(solvers=EVERY, forbidden=(), levels=(("model", "CR123"),))
VP_SPACE = make_space(solvers=EVERY, forbidden=(), sigma=(9.0, 5.0, 3.0, 1.5, 0.7, 0.2, 0.0))


def plan(space: SearchSpace, row: str, *records: Solver) -> Schedule:
    ops = (("model", row),) if set(row) != {"C"} else ()
    return Schedule(sigma=space.grid(len(row)), solver=records, model=space.model, ops=ops)


def terms(schedule: Schedule, levels, output: str) -> list[dict]:
    """What every computed or predicted call is made of; an unfitted table step shows what it is fitted on."""
    calls = program(schedule, levels=levels, output=output)
    return [
        {
            "step": call.step, "sigma": call.sigma, "table": call.order if call.family == "table" else 0,
            **{("base", t.source, t.lag): t.weight for t in call.base if abs(t.weight) > 1e-12},
            **_of_sample(call),
        }
        for call in calls
    ]  # fmt: skip


def _of_sample(call) -> dict:
    """The next sample's terms; where no corrector moved the base it is the sample, so one stands for both."""
    out: dict = {}
    for t in call.nxt:
        source = "sample" if t.source == "base" and not call.base and not call.extra else t.source
        out[(source, t.lag)] = out.get((source, t.lag), 0.0) + t.weight
    return {key: weight for key, weight in out.items() if abs(weight) > 1e-12}


PLACES = tuple(
    Place(history, symbol, ends_at_zero=ends and not followed, is_followed=followed, is_moved=moved)
    for history, symbol, ends, followed, moved in itertools.product(
        range(4), "CR123", (False, True), (False, True), (False, True)
    )
)


def is_lowered_table(wished: Schedule, repaired: Schedule, step: int) -> bool:
    """A run cannot use coefficients for more outputs than there are and falls back; the plan becomes one it can use."""
    return wished.solver[step].family == "table" and wished.solver[step].order > repaired.solver[step].order


class TestCanonicalForms:
    """Equal plans have equal records, and a record's canonical form takes the same step."""

    @given(st.lists(st.sampled_from(EVERY), min_size=6, max_size=6), st.sampled_from(["CCCCCC", "CCCRCC", "CRCCRC"]))
    @settings(max_examples=120, deadline=None)
    def test_the_run_is_the_same(self, records, row):
        wished = plan(FLOW_SPACE, row, *records)
        repaired = FLOW_SPACE.repair(wished)
        for found, legal in zip(terms(wished, FLOW, "velocity"), terms(repaired, FLOW, "velocity"), strict=True):
            step = legal["step"]
            if is_lowered_table(wished, repaired, step):
                continue
            if row[step] == "R" and repaired.solver[step] == EULER:
                continue  # the same only because the output repeats an older one; below
            assert found == pytest.approx(legal, rel=1e-9, abs=1e-12)

    @given(st.lists(st.sampled_from(EVERY), min_size=6, max_size=6))
    @settings(max_examples=60, deadline=None)
    def test_so_it_is_with_a_model_of_another_kind(self, records):
        wished = plan(VP_SPACE, "CCCCCC", *records)
        found, legal = (terms(schedule, VP, "noise") for schedule in (wished, VP_SPACE.repair(wished)))
        for one, other in zip(found, legal, strict=True):
            if not is_lowered_table(wished, VP_SPACE.repair(wished), one["step"]):
                assert one == pytest.approx(other, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("order", [2, 3, 4])
    def test_a_higher_order_than_the_forecast_knows_nothing_more(self, order):
        """Outputs on a polynomial: a forecast of order ``order - 2`` and Adams of ``order`` or one less agree."""
        place = Place(3, "R123"[order - 2])
        assert settled(Solver(family="adams", order=order), place) == (
            Solver(family="adams", order=order - 1) if order > 2 else EULER
        )
        assert settled(Solver(family="table", order=order), place).order == order - 1
        assert settled(Solver(family="table", order=order), Place(3, "C")).order == order
        assert settled(Solver(family="adams", order=order), place, flow=False).order == order
        sigma, outputs = toy_sigmas(6), np.random.default_rng(order).normal(size=7)
        row = "CCCC" + "R123"[order - 2] + "C"
        schedule = Schedule(
            sigma=sigma, solver=(EULER,) * 4 + (Solver(family="adams", order=order),) + (EULER,),
            model=toy_model_ref(), ops=(("model", row),),
        )  # fmt: skip
        known = np.polyfit(sigma[4 - (order - 1) : 4], outputs[4 - (order - 1) : 4], order - 2)
        outputs[4] = np.polyval(known, sigma[4])  # the forecast
        lower = Solver(family="adams", order=order - 1) if order > 2 else EULER
        moves = []
        for solver in (schedule.solver, (EULER,) * 4 + (lower, EULER)):
            call = program(replace(schedule, solver=solver))[4]
            moves.append(sum(t.weight * outputs[4 - t.lag] for t in call.nxt if t.source == "output"))
        assert moves[0] == pytest.approx(moves[1], rel=1e-9)

    @pytest.mark.parametrize(
        ("record", "place", "canonical"),
        [
            (ADAMS, Place(0, "C"), EULER),
            (ADAMS, Place(2, "C"), replace(ADAMS, order=3)),
            (DPM, Place(3, "C", ends_at_zero=True, is_followed=False), EULER),
            (HEUN, Place(3, "C", ends_at_zero=True, is_followed=False), EULER),
            (HEUN, Place(0, "C"), HEUN),
            (TABLE, Place(0, "C"), replace(TABLE, order=1)),
            (UNIPC, Place(3, "C", is_followed=False), replace(UNIPC, corrector="none")),
            (UNIPC, Place(3, "R"), replace(UNIPC, corrector="none")),
            (UNIPC, Place(3, "C"), UNIPC),
            (replace(UNIPC, order=2, corrector="none"), Place(3, "C"), replace(DPM, order=2)),
            (replace(DPM, order=2, corrector="pseudo"), Place(3, "C"), replace(UNIPC, order=2)),
            (replace(DPM, estimate="bh2"), Place(3, "C"), replace(UNIPC, corrector="none")),
            (replace(EULER, corrector="implicit"), Place(0, "C"), HEUN),
            (replace(ADAMS, corrector="pseudo", order=1), Place(0, "C"), replace(EULER, corrector="pseudo")),
            (replace(TABLE, prediction="data", corrector="pseudo"), Place(3, "C"), TABLE),
        ],
    )
    def test_each_rule(self, record, place, canonical):
        assert settled(record, place) == canonical

    @given(st.sampled_from(EVERY), st.sampled_from(PLACES), st.booleans())
    def test_a_canonical_record_is_its_own(self, record, place, flow):
        once = settled(record, place, flow=flow)
        assert settled(once, place, flow=flow) == once


class TestRepair:
    """Any solvers land in the space; the nearest legal ones."""

    @given(st.lists(st.sampled_from(EVERY), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
    @settings(max_examples=150, deadline=None)
    def test_any_schedule_lands_in_the_space_and_stays(self, records, seed):
        space = make_space(counts=(4, 6), free_sigma=True)
        n = len(records)
        row = "C" + "".join(np.random.default_rng(seed).choice(list("CR123"), n - 1))
        inner = np.sort(np.random.default_rng(seed).random(n - 1))[::-1] * 1.9 + 1e-3
        repaired = space.repair(
            Schedule(
                sigma=(2.0, *map(float, inner), 1e-4), solver=tuple(records), model=space.model, ops=(("model", row),)
            )
        )
        assert space.repair(repaired) is repaired
        assert space.check(repaired) is None
        assert space.decode(space.encode(repaired), like=repaired) == repaired
        for step, record in enumerate(repaired.solver):
            assert record in space.solvers_at(repaired, step)

    @pytest.mark.parametrize(
        ("row", "wish", "step", "nearest"),
        [
            ("CCCCCC", replace(ADAMS, order=3), 4, ADAMS),  # only order 4 is there; same family
            ("CCCCCC", replace(DPM, prediction="noise"), 4, DPM),
            ("CCCCCC", Solver(family="plms", order=3), 4, EULER),  # the space's first
            ("CCCCCC", Solver(family="table", order=4), 5, TABLE),
            ("CCRCCC", HEUN, 2, EULER),
            ("CC1CCC", replace(UNIPC, corrector="implicit"), 2, replace(UNIPC, corrector="none")),
            ("CRRRCC", ADAMS, 4, replace(ADAMS, order=2)),  # one output was computed before
        ],
    )
    def test_nearest(self, row, wish, step, nearest):
        space = make_space()
        records = [EULER] * 6
        records[step] = wish
        assert space.repair(plan(space, row, *records)).solver[step] == nearest

    def test_another_number_of_steps_takes_the_solvers_along(self):
        space = make_space(counts=(3,))
        schedule = plan(make_space(counts=(6,)), "CCCCCC", EULER, EULER, HEUN, HEUN, TABLE, TABLE)
        assert [record.family for record in space.repair(schedule).solver] == ["euler", "heun", "table"]

    def test_a_frozen_space_has_its_first_solver(self):
        space = make_space(solvers=(EULER,), forbidden=())
        schedule = plan(space, "CCCCCC", *[TABLE] * 6)
        assert space.repair(schedule) == space.base
        assert space.base.solver == (EULER,) * 6

    def test_the_base_of_another_first_solver(self):
        assert make_space(solvers=(TABLE, EULER)).base.solver[:3] == tuple(replace(TABLE, order=o) for o in (1, 2, 3))

    def test_fitted_coefficients_are_left_out(self):
        schedule = make_space().repair(plan(make_space(), "CCCCCC", *[TABLE] * 6))
        assert schedule.tables is None
        assert make_space().check(schedule) is None


class TestCheck:
    @pytest.mark.parametrize(
        ("row", "step", "record", "reason"),
        [
            (
                "CCCCCC", 3, replace(DPM, prediction="noise"),
                r"^steps.solver\[3\]: .*\(noise\), .*\(data\): this step may have euler, heun, adams of order 4, dpm ",
            ),
            (
                "CCCCCC", 1, ADAMS,
                r": found adams of order 4, expected adams of order 2: .* more than the computed outputs .*, 1 here$",
            ),
            ("CCRCCC", 2, HEUN, r"\[2\]: found heun, expected euler: wasted$"),
            ("CC1CCC", 2, replace(UNIPC, order=2, corrector="implicit"), r"\[2\]: found .*: wasted too$"),
            ("CCCCCC", 5, HEUN, r"\[5\]: found heun, expected euler: nothing can be evaluated at noise level 0"),
            ("CCCCRC", 3, UNIPC, r"\[3\]: .*: a pseudo corrector takes the output computed at the next step"),
            ("CCCC1C", 4, TABLE, r"\[4\]: .*, expected table of order 2: the forecast 1 is made of the same outputs"),
            ("CCCCCC", 0, replace(DPM, order=1), r"\[0\]: found dpm of order 1 \(data\), .*: it takes the step as eu"),
        ],
    )  # fmt: skip
    def test_reason(self, row, step, record, reason):
        space = make_space(solvers=(*make_space().solvers, replace(UNIPC, corrector="none")))
        records = [EULER] * 6
        records[step] = record
        with pytest.raises(SpaceError, match=reason):
            raise SpaceError(space.check(plan(space, row, *records)))

    def test_tables(self):
        from schedsearch.schedule import with_solver_table

        space = make_space()
        schedule = space.repair(plan(space, "CCCCCC", *[TABLE] * 6))
        fitted = with_solver_table(
            schedule, [[1.0, *[0.1] * record.order, *[0.0] * (3 - record.order)] for record in schedule.solver]
        )
        assert space.check(fitted).startswith("tables: found some, expected none: a space holds plans")
        assert space.repair(fitted) == schedule

    def test_names(self):
        assert named(replace(UNIPC, estimate="bh1")) == "unipc of order 3 (data, corrector pseudo, estimate bh1)"
        assert named(HEUN) == "heun"

    def test_a_rule_about_solvers_is_about_the_model_row(self):
        with pytest.raises(SpaceError, match=r"forbidden.rows: found 'x' beside a solver, expected 'model'"):
            Forbidden(rows="x", symbols="R", reason="y", solver=(("family", "heun"),))

    def test_no_solver_at_all(self):
        with pytest.raises(SpaceError, match="solvers: found none, expected at least one"):
            make_space(solvers=())


def enumerated(space: SearchSpace) -> set[Schedule]:
    """All members of a tiny space with one row: every row under every sequence of any records there are."""
    wishes = {settled(s, Place(h, "C")) for s in space.solvers for h in range(4)} | {EULER} | set(space.solvers)
    members = set()
    for n in space.counts:
        for row in itertools.product(dict(space.levels)["model"], repeat=n - 1):
            for records in itertools.product(wishes, repeat=n):
                members.add(space.build(sigma=space.grid(n), solver=records, ops=[("model", "C" + "".join(row))]))
    return members


class TestCardinality:
    @pytest.mark.parametrize(
        "changes",
        [
            {"solvers": (EULER, HEUN), "counts": (1, 2, 4)},
            {"solvers": (EULER, ADAMS), "counts": (5,), "levels": (("model", "CR"),)},
            {"solvers": (TABLE, HEUN), "counts": (2, 4)},
            {"solvers": (HEUN,), "counts": (3, 4)},
            {"solvers": (EULER, UNIPC, replace(UNIPC, order=2, corrector="none")), "counts": (4,)},
            {"solvers": (EULER, replace(UNIPC, corrector="implicit")), "counts": (4,), "sigma": (1.0, 0.6, 0.3, 0.1)},
            {"solvers": (EULER, UNIPC), "counts": (4,), "levels": (("model", "C1"),)},
        ],
    )
    def test_equals_enumeration(self, changes):
        space = make_space(**changes)
        members = enumerated(space)
        assert all(space.check(member) is None for member in members)
        assert space.cardinality() == len(members)

    def test_a_frozen_axis_counts_once(self):
        row = make_space(solvers=(EULER,), levels=(("model", "CR"),))
        assert row.cardinality() == 2**5
        plain = make_space(solvers=(EULER, ADAMS), levels=(("model", "C"),))
        assert plain.cardinality() == 2**5  # at the first step both are Euler's


class TestSmallerSpaces:
    def test_parts_are_subsets(self):
        space = make_space(counts=(2, 3, 4, 5, 6), free_sigma=True)
        rng = np.random.default_rng(0)
        for part in (
            space.restrict(solvers=(HEUN, TABLE)),
            space.restrict(solvers=(EULER,), free_sigma=False),
            space.restrict(counts=(3, 5), solvers=(TABLE, ADAMS)),
        ):
            assert part.cardinality() < space.cardinality()
            for _ in range(40):
                schedule = part.sample(rng)
                assert part.check(schedule) is None
                assert space.check(schedule) is None

    def test_ecads_own_space(self):
        space = make_space(
            levels=(("model", "CR"), ("component", "CRS")), free_sigma=True, counts=(4, 5, 6), max_pruned=1,
            prunable=("transformer_blocks.0",),
        )  # fmt: skip
        own = space.restrict(levels=("component",), counts=(6,), solvers=(EULER,), free_sigma=False, max_pruned=0)
        assert own.cardinality() == 3 ** (5 * len(own.row_names))
        assert (own.free_sigma, own.solvers, own.levels) == (False, (EULER,), (("component", "CRS"),))

    @pytest.mark.parametrize(
        ("wish", "text"),
        [
            (
                {"solvers": (Solver(family="plms", order=2),)},
                "solvers: found 'plms of order 2', expected one of euler, ",
            ),
            ({"solvers": ()}, "solvers: found none"),
            ({"free_sigma": True}, "free_sigma: found True, expected False"),
        ],
    )
    def test_more_than_there_is_is_an_error(self, wish, text):
        with pytest.raises(SpaceError, match=text):
            make_space().restrict(**wish)

    def test_neighbours_change_one_solver(self):
        space = make_space(solvers=(EULER, HEUN, ADAMS), levels=(("model", "C"),), counts=(3,))
        around = list(space.neighbours(space.base))
        assert len(around) == len(set(around)) == 1 + 2 + 1  # heun; heun or adams; adams
        assert all(space.check(schedule) is None for schedule in around)
        assert {sum(a != b for a, b in zip(s.solver, space.base.solver, strict=True)) for s in around} == {1}

    def test_samples_reach_every_solver(self):
        space = make_space()
        rng = np.random.default_rng(1)
        drawn = {record for _ in range(300) for record in space.sample(rng).solver}
        assert drawn >= {EULER, HEUN, ADAMS, DPM, UNIPC, TABLE}
