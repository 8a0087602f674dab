"""Every rule of FORMAT.md that a schedule in memory can break, with the text the user reads."""

from __future__ import annotations

import timeit
from dataclasses import replace

import pytest

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule import (
    Measurement,
    ModelRef,
    PrecisionRule,
    Provenance,
    Schedule,
    Solver,
    Tables,
    TableTensor,
    canonical_bytes,
)

NAN = float("nan")
INF = float("inf")
TENSOR = TableTensor(name="a", shape=(1,), dtype="F32", role="r")
SIDE = Tables(sha256="c" * 64, tensors=(TENSOR,))
RESULT = Measurement(metric="psnr", unit="dB", better="max", value=30.0, low=29.0, high=31.0, n=8)


def table(**changes) -> dict:
    return {"tables": replace(SIDE, **changes)}


def tensor(**changes) -> dict:
    return table(tensors=(replace(TENSOR, **changes),))


def result(**changes) -> dict:
    return {"measured": (replace(RESULT, **changes),)}


def rule(**changes) -> dict:
    return {"precision": (replace(PrecisionRule(pattern="a.*", weight="int8", activation="bf16"), **changes),)}


def solver(**changes) -> dict:
    return {"solver": (Solver(), replace(Solver(), **changes), Solver(), Solver())}


BROKEN = [
    # what to change, path, rule, part of the text
    ({"sigma": (1.0,)}, "steps.sigma", "R7", "1 items, expected 2 to 1001 items"),
    ({"sigma": [1.0, 0.0]}, "steps.sigma", "R7", "expected a list (in Python, a tuple)"),
    ({"sigma": tuple(range(2000, 0, -1))}, "steps.sigma", "R7", "2000 items"),
    ({"sigma": (1.0, 0.5, 0.5, 0.2, 0.0)}, "steps.sigma[2]", "R7", "expected a value below 0.5"),
    ({"sigma": (1.0, 0.5, NAN, 0.2, 0.0)}, "steps.sigma[2]", "R7", "found nan, expected a finite number"),
    ({"sigma": (INF, 0.5, 0.3, 0.2, 0.0)}, "steps.sigma[0]", "R7", "found inf"),
    ({"sigma": (1.0, 0.5, 0.3, 0.2, -0.1)}, "steps.sigma[4]", "R7", "expected 0 or more"),
    ({"sigma": (True, 0.5, 0.3, 0.2, 0.0)}, "steps.sigma[0]", "R7", "found true"),
    ({"sigma": (10**400, 0.5, 0.3, 0.2, 0.0)}, "steps.sigma[0]", "R7", "an integer of over 30 digits"),
    ({"sigma": ("1.0", 0.5, 0.3, 0.2, 0.0)}, "steps.sigma[0]", "R7", "found '1.0'"),
    ({"solver": (Solver(),) * 3}, "steps.solver", "R8", "3 solvers, expected 4, one per step"),
    ({"solver": ("euler",) * 4}, "steps.solver[0]", "R8", "expected a Solver"),
    (solver(family="ddim"), "steps.solver[1].family", "R8", "one of euler, heun"),
    (solver(family=["euler"]), "steps.solver[1].family", "R8", "a list of 1"),
    (solver(family="adams", order=5), "steps.solver[1].order", "R8", "a whole number in 1..4"),
    (solver(order=True), "steps.solver[1].order", "R8", "found true"),
    (solver(order=2), "steps.solver[1].order", "R8", "expected 1, the only order of family euler"),
    (solver(family="heun"), "steps.solver[1].order", "R8", "expected 2, the only order of family heun"),
    (solver(prediction="x0"), "steps.solver[1].prediction", "R8", "one of velocity, noise, data"),
    (solver(corrector=None), "steps.solver[1].corrector", "R8", "found null"),
    (solver(estimate="exact"), "steps.solver[1].estimate", "R8", "one of default, taylor, midpoint"),
    (solver(family="adams", estimate="bh1"), "steps.solver[1].estimate", "R8", "the only estimate of family adams"),
    ({"ops": (("model", "CCRC"), ("model", "CRRC"))}, "ops.model", "R9", "a second row of that name"),
    ({"ops": (("a..b", "CCRC"),)}, "ops.a..b", "R9", "a dotted module name"),
    ({"ops": (("a\nb", "CCRC"),)}, "ops.'a\\nb'", "R9", "a dotted module name"),
    ({"ops": (("a" * 257, "CCRC"),)}, "ops.'" + "a" * 40 + "'... (257 characters)", "R9", "at most 256"),
    ({"ops": ((3, "CCRC"),)}, "ops[0]", "R9", "a dotted module name"),
    ({"ops": ("model",)}, "ops[0]", "R9", "a pair (name, row)"),
    ({"ops": (("a", "CCR"),)}, "ops.a", "R10", "3 characters, expected 4, one per step"),
    ({"ops": (("a", ("C", "C", "R", "C")),)}, "ops.a", "R10", "expected text, one character per step"),
    ({"ops": (("a", "CC4C"),)}, "ops.a[2]", "R10", "found '4', expected one of C R 1 2 3 S"),
    ({"ops": (("model", "CCSC"),)}, "ops.model[2]", "R10", "expected one of C R 1 2 3."),
    ({"ops": (("a", "RCCC"),)}, "ops.a[0]", "R11", "expected C or S"),
    ({"ops": (("model", "1CCC"),)}, "ops.model[0]", "R11", "expected C."),
    ({"guidance": (1.0,)}, "guidance", "R12", "1 values, expected 4, one per step"),
    ({"guidance": (1.0, NAN, None, 1.0)}, "guidance[1]", "R12", "found nan"),
    ({"guidance": (1.0, "-", None, 1.0)}, "guidance[1]", "R12", "found '-'"),
    (rule(weight="int7"), "precision[0].weight", "R13", "one of fp32, bf16"),
    (rule(activation=8), "precision[0].activation", "R13", "found 8"),
    (rule(pattern="a b"), "precision[0].pattern", "R13", "a glob"),
    (rule(pattern="a*" * 9), "precision[0].pattern", "R13", "9 times '*', expected at most 8"),
    (rule(scales="column"), "precision[0].scales", "R13", "found 'column', expected one of default, row, tensor"),
    (rule(rank=1025), "precision[0].rank", "R13", "found 1025, expected a whole number in 0..1024"),
    (rule(rank=True), "precision[0].rank", "R13", "found true"),
    ({"precision": ("a",)}, "precision[0]", "R13", "expected a PrecisionRule"),
    ({"pruned": ("a", "a")}, "pruned[1]", "R14", "'a' a second time"),
    ({"pruned": ("model",)}, "pruned[0]", "R14", "expected a module inside it"),
    ({"pruned": ("b", "a"), "ops": (("a.attn", "CCRC"),)}, "pruned[1]", "R14", "while ops has a row 'a.attn'"),
    ({"pruned": ("a-b",)}, "pruned[0]", "R14", "a dotted module name"),
    (table(sha256="C" * 64), "tables.sha256", "R15", "64 hexadecimal digits in lower case"),
    (table(tensors=()), "tables.tensors", "R15", "0 items"),
    (table(tensors=(TENSOR, TENSOR)), "tables.tensors[1]", "R15", "'a' a second time"),
    (tensor(shape=(2**31,)), "tables.tensors[0].shape[0]", "R15", "0..2147483647"),
    (tensor(shape=(1,) * 9), "tables.tensors[0].shape", "R15", "9 items"),
    (tensor(dtype="float32"), "tables.tensors[0].dtype", "R15", "one of F64"),
    ({"tables": "a.safetensors"}, "tables", "R15", "expected a Tables"),
    (table(data="x"), "tables.data", "R15", "expected bytes, or nothing"),
    (table(data=b"x"), "tables.sha256", "R15", "cccccccccccc..., as the schedule says. The two files do not belong"),
    ({"model": None}, "model", "R16", "expected a ModelRef"),
    ({"measured": (1,)}, "measured[0]", "R17", "expected a Measurement"),
    (result(value=NAN), "measured[0].value", "R17", "found nan"),
    (result(low=32.0), "measured[0].low", "R17", "expected at most 31.0"),
    (result(n=0), "measured[0].n", "R17", "a whole number of 1 or more"),
    (result(better="up"), "measured[0].better", "R17", "one of min, max"),
    (result(metric=""), "measured[0].metric", "R17", "text of 1 to 256 characters"),
    (result(device="a\nb"), "measured[0].device", "R17", "text without control characters"),
    (result(date="2026"), "measured[0].date", "R17", "a day such as"),
    ({"provenance": Provenance(note="x" * 2001)}, "provenance.note", "R18", "at most 2000 characters"),
    ({"provenance": Provenance(parents=("abc",))}, "provenance.parents[0]", "R18", "the id of a schedule"),
    ({"provenance": Provenance(ask=-1)}, "provenance.ask", "R18", "0 or more"),
    ({"provenance": Provenance(seed=1.0)}, "provenance.seed", "R18", "a whole number"),
    ({"provenance": None}, "provenance", "R18", "expected a Provenance"),
]


@pytest.mark.parametrize(("changes", "path", "cited", "text"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_broken_rule_is_an_error_that_says_where_and_what(plain, changes, path, cited, text):
    with pytest.raises(ScheduleFormatError) as caught:
        replace(plain, **changes)
    error = caught.value
    assert (error.path, error.rule) == (path, cited)
    assert text in str(error)
    assert str(error).startswith(f"{path}: found ")
    assert str(error).endswith(f"(FORMAT.md {cited})")
    assert "\n" not in str(error)
    assert str(error).isascii()


@pytest.mark.parametrize(
    ("field", "value"),
    [("pipeline", "a b"), ("config", "x"), ("blocks", 3), ("height", 0), ("width", 64.0), ("batch", True),
     ("adapters", ("a", "a")), ("adapters", ("",))],
)  # fmt: skip
def test_a_model_reference_is_checked_field_by_field(plain, model, field, value):
    with pytest.raises(ScheduleFormatError, match=rf"^model\.{field}.*FORMAT.md R16"):
        replace(plain, model=replace(model, **{field: value}))


def test_at_most_52_distinct_solvers(model):
    kinds = [
        Solver(family=family, order=order, prediction=prediction, corrector=corrector)
        for family in ("adams", "dpm", "unipc")
        for order in (1, 2, 3, 4)
        for prediction in ("velocity", "noise", "data")
        for corrector in ("none", "pseudo")
    ]
    sigma = tuple(float(i) for i in range(53, -1, -1))
    Schedule(sigma=sigma[1:], solver=tuple(kinds[:52]), model=model)
    with pytest.raises(ScheduleFormatError, match=r"53 distinct solvers, expected at most 52"):
        Schedule(sigma=sigma, solver=tuple(kinds[:53]), model=model)


def test_too_many_rows_are_refused_before_any_is_looked_at(plain):
    rows = tuple((f"b{i}", "CCRC") for i in range(20_001))
    with pytest.raises(ScheduleFormatError, match="20001 items, expected 0 to 20000 items"):
        replace(plain, ops=rows)


class TestCanonicalForm:
    """R9: "In canonical form `model` comes first, then the others in natural order"."""

    def test_rows_are_ordered_and_rows_that_only_compute_left_out(self, plain):
        rows = (
            ("blocks.10", "CCRC"),
            ("blocks.9", "CCCC"),
            ("blocks.2", "CRRC"),
            ("model", "CCCR"),
            ("blocks", "CRCR"),
        )
        schedule = replace(plain, ops=rows)
        assert [name for name, _ in schedule.ops] == ["model", "blocks", "blocks.2", "blocks.10"]
        assert schedule.row("blocks.9") == "CCCC"
        assert schedule.row("blocks.2") == "CRRC"

    def test_numbers_have_one_form(self, plain):
        """R5: "minus zero becomes zero; whole numbers given as noise levels or scales become floating point"."""
        schedule = replace(plain, sigma=(1, 0.75, 0.5, 0.25, -0.0), guidance=(3, 1.0, None, -0.0))
        assert repr(schedule.sigma) == "(1.0, 0.75, 0.5, 0.25, 0.0)"
        assert repr(schedule.guidance) == "(3.0, 1.0, None, 0.0)"
        assert schedule.id != plain.id
        assert replace(schedule, guidance=None).id == plain.id

    def test_sets_are_sorted(self, plain, model):
        schedule = replace(
            plain,
            model=replace(model, adapters=("b", "a")),
            pruned=("blocks.10", "blocks.9"),
            tables=replace(SIDE, tensors=(replace(TENSOR, name="t10"), replace(TENSOR, name="t9"))),
        )
        assert schedule.model.adapters == ("a", "b")
        assert schedule.pruned == ("blocks.9", "blocks.10")
        assert [tensor.name for tensor in schedule.tables.tensors] == ["t9", "t10"]

    def test_what_lies_inside_a_pruned_module_goes_with_it(self, plain):
        """R14: "a pruned module inside another pruned module is left out"."""
        outer = replace(plain, pruned=("a", "ab.c"))
        assert replace(plain, pruned=("a.attn", "a", "a.b.c", "ab.c")) == outer
        assert replace(plain, pruned=("a.attn", "a", "a.b.c", "ab.c")).id == outer.id

    def test_a_row_of_nothing_but_compute_is_left_out_before_pruning_looks(self, plain):
        """R14: "a row of nothing but `C` is left out by R9 before this rule looks"."""
        assert replace(plain, pruned=("a",), ops=(("a.attn", "CCCC"),)).ops == ()

    @pytest.mark.parametrize(
        ("said", "kept"),
        [
            (("int8", "int8", "row", 0), ("default", 0)),
            (("int8", "int8", "tensor", 4), ("tensor", 4)),
            (("int8", "int4", "row", 0), ("default", 0)),
            (("int4", "int8", "row", 0), ("row", 0)),
            (("nf4", "bf16", "row", 0), ("row", 0)),
            (("bf16", "int8", "tensor", 8), ("tensor", 0)),
            (("mxfp8", "nvfp4", "tensor", 8), ("default", 8)),
            (("fp16", "fp16", "row", 8), ("default", 0)),
        ],
    )
    def test_a_rule_says_only_what_its_formats_leave_open(self, plain, said, kept):
        """R13: "In canonical form `scales` is `default` where it chooses nothing"."""
        changes = rule(**dict(zip(("weight", "activation", "scales", "rank"), said, strict=True)))
        (found,) = replace(plain, **changes).precision
        assert (found.scales, found.rank) == kept

    def test_a_rule_without_the_newer_keys_has_the_id_it_had(self, plain):
        """R13: "a writer MUST leave out what means that"."""
        schedule = replace(plain, **rule())
        assert b'"precision":[{"activation":"bf16","pattern":"a.*","weight":"int8"}]' in canonical_bytes(schedule)
        chosen = replace(plain, **rule(weight="int4", scales="row", rank=3))
        assert b'"pattern":"a.*","rank":3,"scales":"row","weight":"int4"' in canonical_bytes(chosen)

    def test_equal_content_is_equal_and_hashes_equal(self, plain):
        one = replace(plain, ops=(("a", "CCRC"), ("b", "CCCC")))
        two = replace(plain, ops=(("a", "CCRC"),))
        assert one == two
        assert hash(one) == hash(two)


def test_building_a_schedule_is_cheap(model: ModelRef):
    """A search builds thousands: 28 steps and 40 rows stay well under a millisecond."""
    sigma = tuple(1 - i / 28 for i in range(29))
    rows = tuple((f"transformer_blocks.{i}.attn", "C" + "RC" * 13 + "R") for i in range(40))

    def build() -> Schedule:
        return Schedule(sigma=sigma, solver=tuple(Solver() for _ in range(28)), model=model, ops=rows)

    assert min(timeit.repeat(build, number=20, repeat=5)) / 20 < 1e-3
