"""The precision axis: canonical rules, legality, counting, reading, narrowing, operators."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import SpaceError
from schedsearch.schedule import PrecisionRule, Schedule, rule_of_word, rule_word
from schedsearch.space import (
    FORMAT_OPERATORS,
    GROUPINGS,
    LinearLayers,
    PrecisionAxis,
    SearchSpace,
    crossed,
    genome_of,
    load_space,
    mutated,
    operators_of,
    schedule_of,
)
from schedsearch.space._index_globs import index_globs
from schedsearch.testing import toy_blocks, toy_linears, toy_model_ref, toy_sigmas

INT8 = PrecisionRule(pattern="*", weight="int8", activation="int8")
INT4 = PrecisionRule(pattern="*", weight="int4", activation="bf16", rank=16)
FP32 = PrecisionRule(pattern="*", weight="fp32", activation="fp32")
LAYERS = ("transformer_blocks.*", "single_transformer_blocks.*")
N = 4


def make_axis(blocks=None, formats=(INT8, INT4), groups="layer", protected=("*.norm*",), layers=LAYERS):
    blocks = toy_blocks(3, 12) if blocks is None else blocks
    return PrecisionAxis.of(
        toy_linears(blocks), [b.name for b in blocks], formats, layers=layers, protected=protected, groups=groups
    )


def make_space(blocks=None, **changes) -> SearchSpace:
    blocks = toy_blocks(3, 3) if blocks is None else blocks
    given_ = {
        "name": "formats", "model": toy_model_ref(), "blocks": blocks, "sigma": toy_sigmas(N), "levels": (),
        "counts": (N,), "precision": make_axis(blocks),
    }  # fmt: skip
    return SearchSpace(**{**given_, **changes})


AXES = {groups: make_axis(groups=groups) for groups in GROUPINGS}
SPACE = make_space()
PRUNABLE = make_space(
    levels=(("block", "CS"),), prunable=tuple(b.name for b in toy_blocks(3, 3)), max_pruned=2, counts=(3, N)
)
seeds = st.integers(0, 2**32 - 1)


def drawn(axis: PrecisionAxis, seed: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """A choice and removed blocks, neither canonical."""
    rng = np.random.default_rng(seed)
    pruned = tuple(rng.choice(axis.blocks, size=int(rng.integers(0, 4)), replace=False).tolist())
    share = rng.random()
    choice = np.where(rng.random(len(axis.groups)) < share, rng.integers(1, 3, len(axis.groups)), 0)
    return tuple(choice.tolist()), pruned


def first_rules(rules, names) -> dict[str, tuple[str, str, int]]:
    """What every layer gets, by the words of FORMAT.md M9: the first rule whose pattern matches."""
    found = {}
    for name in names:
        for rule in rules:
            if fnmatchcase(name, rule.pattern):
                found[name] = (rule.weight, rule.activation, rule.rank)
                break
    return found


class TestRules:
    """A choice and its rules say the same, in one form."""

    @pytest.mark.parametrize("groups", GROUPINGS)
    @given(seed=seeds)
    @settings(max_examples=25, deadline=None)
    def test_the_inverse_of_coding_is_decoding(self, groups, seed):
        axis = AXES[groups]
        choice, pruned = drawn(axis, seed)
        alive = axis.alive(pruned)
        canonical = tuple(number if there else 0 for number, there in zip(choice, alive, strict=True))
        rules = axis.rules(choice, pruned)
        assert axis.rules(canonical, pruned) == rules
        assert axis.choice(rules, pruned) == canonical
        assert axis.canonical(rules, pruned) == rules

    @given(seed=seeds)
    @settings(max_examples=25, deadline=None)
    def test_every_layer_that_runs_gets_the_format_of_its_group_and_no_other_any(self, seed):
        axis = AXES["layer"]
        choice, pruned = drawn(axis, seed)
        rules = axis.rules(choice, pruned)
        running = [name for name in axis.linears if not name.startswith(tuple(f"{block}." for block in pruned))]
        words = [(rule.weight, rule.activation, rule.rank) for rule in axis.formats]
        expected = {n: words[k - 1] for n, k in axis.by_layer(choice).items() if n in running}
        assert first_rules(rules, running) == expected
        assert first_rules(tuple(reversed(rules)), running) == expected  # no layer is matched twice
        assert all(any(fnmatchcase(name, rule.pattern) for name in running) for rule in rules)

    @given(seed=seeds)
    @settings(max_examples=25, deadline=None)
    def test_coarser_groups_say_the_same_in_the_same_words(self, seed):
        coarse, fine = AXES["kind"], AXES["layer"]
        choice, pruned = drawn(coarse, seed)
        rules = coarse.rules(choice, pruned)
        assert fine.canonical(rules, pruned) == rules

    def test_equal_groups_are_merged(self):
        axis = AXES["layer"]
        patterns = [rule.pattern for rule in axis.rules(axis.preset("all", 1))]
        assert patterns == [
            "transformer_blocks.*.attn.*", "transformer_blocks.*.ff.*", "transformer_blocks.*.ff_context.*",
            "single_transformer_blocks.*.proj_mlp", "single_transformer_blocks.*.proj_out",
            "single_transformer_blocks.*.attn.*",
        ]  # fmt: skip

    def test_runs_of_blocks_are_classes_of_digits(self):
        axis = AXES["block"]
        choice = [int(2 <= g.blocks[0] <= 12) for g in axis.groups]  # the last double block, single ones 0 to 9
        patterns = [rule.pattern for rule in axis.rules(tuple(choice))]
        assert patterns[0] == "transformer_blocks.2.attn.*"
        assert "single_transformer_blocks.[0-9].attn.*" in patterns

    def test_a_whole_model_without_protection_is_one_pattern_per_list(self):
        axis = make_axis(protected=())
        assert [rule.pattern for rule in axis.rules(axis.preset("all", 1))] == [
            "transformer_blocks.*.*", "single_transformer_blocks.*.*",
        ]  # fmt: skip

    def test_removed_blocks_do_not_matter_and_may_make_patterns_shorter(self):
        axis = make_axis(toy_blocks(3, 3), groups="block")
        without_last = tuple(int(group.blocks[0] < 5) for group in axis.groups)
        assert any("[01]" in rule.pattern for rule in axis.rules(without_last))
        rules = axis.rules(without_last, ("single_transformer_blocks.2",))
        assert rules == axis.rules(axis.preset("all", 1), ("single_transformer_blocks.2",))
        assert not any("[" in rule.pattern for rule in rules)
        assert axis.choice(rules, ("single_transformer_blocks.2",)) == without_last

    def test_layers_outside_blocks_go_by_their_names(self):
        axis = make_axis(toy_blocks(1, 1), layers=("*",), protected=())
        choice = tuple(int(not group.blocks) for group in axis.groups)
        assert {rule.pattern for rule in axis.rules(choice)} == {"x_embedder", "proj_out"}

    def test_groups_have_what_most_of_their_layers_have(self):
        axis = make_axis(toy_blocks(1, 0), groups="component")
        few = replace(INT8, pattern="transformer_blocks.0.attn.to_q")
        most = replace(INT8, pattern="transformer_blocks.0.attn.to_*")
        assert axis.canonical((few,)) == ()
        assert [rule.pattern for rule in axis.canonical((most,))] == ["transformer_blocks.0.attn.*"]

    def test_the_first_rule_counts_and_formats_that_are_not_open_leave_a_layer_as_it_is(self):
        axis = make_axis(toy_blocks(1, 1), formats=(INT8,))
        protect = replace(FP32, pattern="transformer_blocks.*.ff*")
        kept = axis.canonical((protect, replace(INT8, pattern="transformer_blocks.*")))
        assert [rule.pattern for rule in kept] == ["transformer_blocks.0.attn.*"]
        assert axis.canonical((replace(INT4, pattern="*"),)) == ()

    @given(st.sets(st.integers(0, 130), min_size=1))
    @settings(max_examples=60, deadline=None)
    def test_globs_of_numbers_match_exactly_these(self, numbers):
        globs = index_globs(map(str, numbers))
        assert {n for n in range(200) if any(fnmatchcase(str(n), glob) for glob in globs)} == numbers
        assert len(globs) <= len(numbers)


class TestSpace:
    """Legality, and everything a space offers, with the axis open."""

    @pytest.mark.parametrize("space", [SPACE, PRUNABLE])
    @given(seed=seeds)
    @settings(max_examples=25, deadline=None)
    def test_samples_children_and_genomes_are_canonical(self, space, seed):
        rng = np.random.default_rng(seed)
        one, other = space.sample(rng), space.sample(rng)
        for schedule in (one, mutated(one, space, rng), crossed(one, other, space, rng)):
            assert space.check(schedule) is None
            assert schedule_of(genome_of(schedule, space), space) == schedule
            assert space.decode(space.encode(schedule), like=schedule) == schedule

    @given(seed=seeds)
    @settings(max_examples=20, deadline=None)
    def test_repair_lands_in_the_space_and_stays(self, seed):
        rng = np.random.default_rng(seed)
        patterns = ["*", "transformer_blocks.*", "*.attn.*", "single_transformer_blocks.[01].*", "*.1.*", "proj_out"]
        rules = tuple(
            PrecisionRule(pattern=str(rng.choice(patterns)), weight=w, activation=a, rank=16 if w == "int4" else 0)
            for w, a in (("int8", "int8"), ("int4", "bf16"), ("fp8_e4m3", "fp8_e4m3"), ("fp32", "fp32"))
            if rng.random() < 0.7
        )
        pruned = tuple(rng.choice([b.name for b in PRUNABLE.blocks], size=2, replace=False).tolist())
        schedule = replace(PRUNABLE.base, precision=rules, pruned=pruned)
        repaired = PRUNABLE.repair(schedule)
        assert PRUNABLE.repair(repaired) is repaired
        assert PRUNABLE.check(repaired) is None
        assert repaired.pruned == schedule.pruned

    def test_rules_that_say_the_same_are_one_schedule(self):
        names = [rule.pattern for rule in SPACE.precision.rules(SPACE.precision.preset("all", 1))]
        one = replace(SPACE.base, precision=tuple(replace(INT8, pattern=name) for name in reversed(names)))
        layers = [layer for group in SPACE.precision.groups for layer in group.layers]
        other = replace(SPACE.base, precision=tuple(replace(INT8, pattern=layer) for layer in layers))
        assert one.id != other.id
        assert SPACE.repair(one).id == SPACE.repair(other).id
        assert "rules have one form" in SPACE.check(other)

    def test_what_is_wrong_is_said(self):
        fp8 = PrecisionRule(pattern="*.attn.*", weight="fp8_e4m3", activation="fp8_e4m3")
        assert SPACE.check(replace(SPACE.base, precision=(fp8,))) == (
            "precision[0]: found fp8_e4m3, expected one of int8, int4/bf16+16, which this space opens"
        )
        frozen = SPACE.restrict(precision="frozen")
        assert frozen.check(replace(SPACE.base, precision=(fp8,))).endswith("(frozen in this space)")

    def test_neighbours_change_one_group(self):
        space = make_space(toy_blocks(1, 1), precision=make_axis(toy_blocks(1, 1), groups="component"))
        axis = space.precision
        found = list(space.neighbours(space.base))
        assert len(found) == len(axis.groups) * len(axis.formats)
        assert all(np.count_nonzero(axis.choice(s.precision)) == 1 and not space.check(s) for s in found)

    def test_narrowing(self):
        only = SPACE.restrict(precision=[INT8])
        assert only.precision.formats == (INT8,)
        frozen = SPACE.restrict(precision="frozen")
        assert not frozen.precision.is_open
        assert frozen.cardinality() == 1
        assert not operators_of(frozen)
        assert frozen.repair(SPACE.build(sigma=SPACE.sigma, solver=SPACE.base.solver, precision=(INT8,))) == SPACE.base
        with pytest.raises(SpaceError, match="a part cannot be larger"):
            only.restrict(precision=[INT4])
        with pytest.raises(SpaceError, match="precision: found 'open', expected 'frozen'"):
            SPACE.restrict(precision="open")

    def test_all_samples_of_a_frozen_axis_are_what_they_were_without_one(self):
        closed = make_space(precision=PrecisionAxis())
        for seed in range(5):
            drawn_ = [s.sample(np.random.default_rng(seed)) for s in (closed, SPACE.restrict(precision="frozen"))]
            assert drawn_[0] == drawn_[1]


class TestCount:
    """The number of canonical schedules is exact."""

    @pytest.mark.parametrize("groups", GROUPINGS)
    @pytest.mark.parametrize("max_pruned", [0, 1, 2])
    def test_against_enumeration(self, groups, max_pruned):
        blocks = toy_blocks(2, 1)
        axis = make_axis(
            blocks, groups=groups, formats=(INT8,),
            layers=("transformer_blocks.*.ff.*", "single_transformer_blocks.*.proj_*", "proj_out"), protected=(),
        )  # fmt: skip
        space = make_space(
            blocks, precision=axis, levels=(("block", "CS"),), sigma=toy_sigmas(2), counts=(2,),
            prunable=tuple(b.name for b in blocks), max_pruned=max_pruned,
        )  # fmt: skip
        found: set[Schedule] = set()
        rows = ["CC", "CS"]
        for choice in product(range(2), repeat=len(axis.groups)):
            for said in product([*rows, "pruned"], repeat=len(blocks)):
                pruned = [b.name for b, row in zip(blocks, said, strict=True) if row == "pruned"]
                ops = [(b.name, row) for b, row in zip(blocks, said, strict=True) if row != "pruned"]
                found.add(
                    space.build(
                        sigma=space.sigma,
                        solver=space.base.solver,
                        ops=ops,
                        pruned=pruned,
                        precision=axis.rules(choice, pruned),
                    )
                )
        assert space.cardinality() == len(found)
        assert all(space.check(schedule) is None for schedule in found)

    def test_without_removal_every_group_is_a_factor(self):
        assert SPACE.cardinality() == 3 ** len(SPACE.precision.groups)


class TestOperators:
    """Each changes formats only, and all of them are drawn only where the axis is open."""

    def test_they_apply_where_the_axis_is_open(self):
        assert {operator.name for operator in operators_of(SPACE)} == {operator.name for operator in FORMAT_OPERATORS}

    @pytest.mark.parametrize("operator", FORMAT_OPERATORS, ids=lambda operator: operator.name)
    def test_they_change_formats_and_nothing_else(self, operator):
        changed = 0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            start = genome_of(PRUNABLE.sample(rng), PRUNABLE)
            after = operator.vary(start, PRUNABLE, rng)
            if after is None:
                continue
            assert replace(after, formats=start.formats) == start
            changed += after.formats != start.formats
            alive = PRUNABLE.precision.alive(start.pruned)
            assert not any(n for n, is_there in zip(after.formats, alive, strict=True) if not is_there)
            if operator.name == "restore_format":
                assert np.count_nonzero(after.formats) < np.count_nonzero(start.formats)
        assert changed > 5

    def test_a_child_of_two_has_each_group_from_either_parent(self):
        a = SPACE.build(sigma=SPACE.sigma, solver=SPACE.base.solver, precision=(INT8,))
        b = SPACE.build(sigma=SPACE.sigma, solver=SPACE.base.solver, precision=(INT4,))
        axis = SPACE.precision
        for seed in range(10):
            child = crossed(a, b, SPACE, np.random.default_rng(seed))
            assert child not in (a, b)
            assert set(axis.choice(child.precision)) == {1, 2}


class TestFile:
    """``precision`` of a space file."""

    def read(self, tmp_path, linears=None, **parts):
        document = {
            "format": "schedsearch.space", "version": 1, "name": "mine", "levels": {"model": "CR"}, **parts,
        }  # fmt: skip
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(document))
        blocks = toy_blocks()
        linears = linears or LinearLayers(names=toy_linears(blocks), base="fp32", formats=(INT8,))
        return load_space(path, model=toy_model_ref(), blocks=blocks, sigma=toy_sigmas(N), linears=linears)

    def test_default_formats_are_those_of_the_device(self, tmp_path):
        axis = self.read(tmp_path, precision={"formats": "default", "layers": ["*.attn.*"]}).precision
        assert axis.formats == (INT8,)
        assert all(".attn." in layer for group in axis.groups for layer in group.layers)

    def test_formats_groups_and_protected_layers(self, tmp_path):
        axis = self.read(
            tmp_path,
            precision={
                "formats": ["int8", "fp8_e4m3@row", "int4/base+16"], "groups": "kind", "layers": ["*"],
                "protected": ["*norm*", "x_embedder"],
            },
        ).precision  # fmt: skip
        assert [rule_word(rule) for rule in axis.formats] == ["int8", "fp8_e4m3", "int4/fp32+16"]
        assert "transformer_blocks.*.attn.to_q" in axis.kinds
        assert "proj_out" in axis.kinds
        assert not any("norm" in kind or kind == "x_embedder" for kind in axis.kinds)

    def test_a_model_whose_layers_are_not_known_keeps_its_formats(self, tmp_path):
        unknown = LinearLayers(names=(), base="fp32")
        assert not self.read(tmp_path, unknown, precision={"formats": ["int8"], "layers": ["*"]}).precision.is_open
        shipped = load_space("flux", model=toy_model_ref(), blocks=toy_blocks(), sigma=toy_sigmas(N))
        assert not shipped.precision.is_open

    def test_the_shipped_space_protects_modulations_and_what_is_outside_blocks(self):
        blocks = toy_blocks()
        linears = LinearLayers(names=toy_linears(blocks), base="fp32", formats=(INT8,))
        space = load_space("flux", model=toy_model_ref(), blocks=blocks, sigma=toy_sigmas(N), linears=linears)
        found = {layer for group in space.precision.groups for layer in group.layers}
        assert found == {name for name in toy_linears(blocks) if "." in name and ".norm" not in name}

    @pytest.mark.parametrize(
        ("part", "said"),
        [
            ({"formats": ["int9"], "layers": ["*"]}, r"precision.formats\[0\]: found 'int9', expected WEIGHT"),
            ({"formats": ["fp32"], "layers": ["*"]}, r"precision.formats\[0\]: found 'fp32'"),
            ({"formats": "all", "layers": ["*"]}, "precision.formats: found str 'all', expected a list"),
            ({"formats": "default"}, "precision.layers: found nothing"),
            (
                {"formats": "default", "layers": ["*"], "groups": "row"},
                "precision.groups: found 'row', expected one of",
            ),
            ({"formats": "default", "layers": ["*"], "bits": 4}, "precision.bits: found an unknown key"),
        ],
    )
    def test_faults(self, tmp_path, part, said):
        with pytest.raises(SpaceError, match=said):
            self.read(tmp_path, precision=part)

    def test_open_and_frozen_at_once(self, tmp_path):
        with pytest.raises(SpaceError, match=r"frozen.precision: found it beside precision"):
            self.read(tmp_path, precision={"formats": "default", "layers": ["*"]}, frozen={"precision": "pipeline"})


class TestAxis:
    """What an axis refuses."""

    def test_more_layers_than_rules(self):
        names = [f"blocks.{i}" for i in range(1001)]
        with pytest.raises(SpaceError, match="found 1001 layers, expected at most 1000"):
            PrecisionAxis.of(names, [], [INT8])

    def test_words(self):
        assert rule_word(rule_of_word("int4/base@tensor+32", base="fp16")) == "int4/fp16@tensor+32"
        assert rule_of_word("nf4", base="bf16").activation == "bf16"
        assert all(rule_of_word(word, base="bf16") is None for word in ("", "int8/nf4", "int8+0", "base", "int9"))
