"""Sensitivities as a file, and what sums, rankings and choices make of them, on made-up numbers of known answers."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from itertools import product

import pytest

from schedsearch.errors import EvaluationError, ScheduleError, UsageError
from schedsearch.sensitivity import (
    KEPT,
    REMOVED,
    Cell,
    Choice,
    Header,
    Layer,
    Sensitivities,
    Subset,
    additivity,
    average_bits,
    draw_subsets,
    effect_of,
    mixed,
    most_saved_ms,
    parse_sensitivities,
    protected_layers,
    ranked_blocks,
    ranked_layers,
    ranked_operations,
    ranked_removals,
    read_sensitivities,
    removed_blocks,
    rules_of,
    seed_choices,
    seed_removals,
    sensitivities_text,
    write_sensitivities,
)

HEADER = Header(
    model="mini", config="c" * 64, carrier="sha256:" + "d" * 64, steps=7, prompts="p sha256:00", n_prompts=2, seed=0,
    dtype="fp32", torch="2", schedsearch="0", date="2026-01-31", command="schedsearch sensitivity --model mini",
)  # fmt: skip
BLOCKS = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
NAMES = (*(f"{block}.{part}" for block in BLOCKS for part in ("attn.to_q", "norm1.linear")), "proj_out")
CHOICES = (
    Choice(word="int8/fp32", weight="int8", activation="fp32"),
    Choice(word="int4/fp32", weight="int4", activation="fp32"),
)
BITS = {"int8/fp32": 8.25, "int4/fp32": 4.5}


def weight_of(name):
    """How much a layer matters: later ones more, the last layer most of all."""
    return 1e-4 * (NAMES.index(name) + 1) * (100 if name == "proj_out" else 1)


def cell(name, word):
    effect = weight_of(name) * {"int8/fp32": 1.0, "int4/fp32": 256.0}[word]
    root = math.sqrt(effect)
    saved = int((32.0 - BITS[word]) * 1000 / 8)
    return Cell(module=name, word=word, errors=(root, root), bits=BITS[word], saved_bytes=saved, saved_ms=saved / 1e4)


def removal(i):
    root = math.sqrt((0.1, 0.4, 0.2, 0.25)[i])
    return Cell(module=BLOCKS[i], word=REMOVED, errors=(root, root), bits=0.0, saved_bytes=1000 * (i + 1))


@pytest.fixture
def found():
    cells = tuple(cell(name, choice.word) for choice in CHOICES for name in NAMES)
    layers = tuple(Layer(name=name, weights=1000, bits=32.0) for name in NAMES)
    bare = Sensitivities(
        header=HEADER, layers=layers, blocks=BLOCKS, choices=CHOICES, cells=(*cells, *(removal(i) for i in range(4)))
    )
    picks = draw_subsets(bare, "formats", 6, words=tuple(BITS))
    roots = [math.sqrt(2.0 * bare.predicted(each)) for each in picks]
    return bare.having(
        subsets=tuple(Subset(kind="formats", picks=each, errors=(r, r)) for each, r in zip(picks, roots, strict=True))
    )


class TestFile:
    def test_it_gives_back_what_was_written(self, found, tmp_path):
        assert parse_sensitivities(sensitivities_text(found)) == found
        path = tmp_path / "s.json"
        write_sensitivities(found, path)
        assert read_sensitivities(path) == found
        assert [entry.name for entry in tmp_path.iterdir()] == ["s.json"]

    def test_a_folder_that_is_not_there_is_told(self, found, tmp_path):
        with pytest.raises(ScheduleError, match=r"s\.json: cannot be written"):
            write_sensitivities(found, tmp_path / "no" / "s.json")
        with pytest.raises(EvaluationError, match=r"found no file, expected sensitivities\. `schedsearch sensitivity`"):
            read_sensitivities(tmp_path / "s.json")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: d.update(format="x"), "expected a file of format 'schedsearch.sensitivities'"),
            (lambda d: d.update(version=2), "version: found 2, expected 1. Measure it again."),
            (lambda d: d.update(version=True), "version: found true, expected 1"),
            (lambda d: d.update(more=1), 'found "more", expected only the keys format, version'),
            (lambda d: d.pop("seed"), "found no key 'seed'"),
            (lambda d: d.update(seed=-1), "seed: found -1, expected a whole number of at least 0"),
            (lambda d: d.update(dtype="int8"), 'dtype: found "int8", expected one of fp32, bf16, fp16'),
            (lambda d: d.update(n_prompts=3), "cells[0].errors: found 2, expected 3 numbers, one per prompt"),
            (
                lambda d: d["layers"].append(d["layers"][0]),
                'layers[9]: found "blocks.0.attn.to_q" again, expected each once',
            ),
            (lambda d: d["layers"].pop(0), "cells[0].module: found"),
            (lambda d: d["choices"].pop(0), 'cells[0].word: found "int8/fp32", expected one of the choices'),
            (lambda d: d["choices"][0].update(weight="int7"), 'choices[0].weight: found "int7", expected one of fp32'),
            (lambda d: d["cells"][0].update(errors=[-1.0, 0.0]), "cells[0].errors[0]: found -1.0, expected 0 or more"),
            (lambda d: d["cells"][0].update(saved_ms="1"), 'cells[0].saved_ms: found "1", expected a finite number'),
            (
                lambda d: d["cells"][0].update(saved_bytes=1.5),
                "saved_bytes: found 1.5, expected a whole number",
            ),
            (lambda d: d["cells"].pop(0), "expected changes that have a cell"),
            (
                lambda d: d["subsets"][0].update(kind="x"),
                'kind: found "x", expected one of formats, removed',
            ),
            (lambda d: d["subsets"][0].update(picks=["a"]), 'picks[0]: found "a", expected [module, word]'),
            (lambda d: d.update(blocks="x"), 'blocks: found "x", expected a list'),
        ],
    )
    def test_what_breaks_a_rule_is_refused_and_the_text_says_where(self, found, change, said):
        document = json.loads(sensitivities_text(found))
        change(document)
        with pytest.raises(EvaluationError, match=re.escape(said)):
            parse_sensitivities(json.dumps(document))

    @pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000])
    def test_damaged_text_is_refused(self, text):
        with pytest.raises(EvaluationError, match="found damaged JSON"):
            parse_sensitivities(text)


class TestSums:
    def test_the_effect_is_the_mean_square(self):
        assert effect_of((3.0, 4.0)) == 12.5

    def test_a_cell_that_was_not_measured_is_named(self, found):
        with pytest.raises(EvaluationError, match="found no cell of proj_out in int3, expected it"):
            found.cell("proj_out", "int3")
        with pytest.raises(EvaluationError, match=r"found no cell of blocks\.9 in removal"):
            found.cell("blocks.9", REMOVED)

    def test_proportional_sums_are_told_with_their_factor(self, found):
        seen = additivity(found, "formats")
        assert (seen.n, seen.spearman, seen.pearson) == (6, pytest.approx(1.0), pytest.approx(1.0))
        assert seen.ratio == pytest.approx(2.0)
        assert seen.holds

    def test_an_order_upside_down_does_not_hold(self, found):
        order = sorted(found.subsets, key=lambda subset: subset.effect)
        roots = [subset.errors for subset in reversed(order)]
        turned = tuple(dataclasses.replace(s, errors=e) for s, e in zip(order, roots, strict=True))
        seen = additivity(dataclasses.replace(found, subsets=turned), "formats")
        assert seen.spearman == pytest.approx(-1.0)
        assert not seen.holds

    def test_equal_effects_go_together_with_nothing(self, found):
        flat = tuple(dataclasses.replace(subset, errors=(0.1, 0.1)) for subset in found.subsets)
        assert additivity(dataclasses.replace(found, subsets=flat), "formats").spearman == 0.0

    def test_too_few_sets_say_nothing(self, found):
        with pytest.raises(EvaluationError, match="found 0 subsets of kind removed, expected three or more"):
            additivity(found, "removed")

    def test_random_sets_are_the_same_again_and_the_first_of_more(self, found):
        drawn = draw_subsets(found, "formats", 8, words=tuple(BITS), seed=5)
        assert drawn == draw_subsets(found, "formats", 12, words=tuple(BITS), seed=5)[:8]
        assert [len(picks) for picks in drawn[:4]] == [2, 4, 7, 9]
        removed = draw_subsets(found, "removed", 20, seed=5)
        assert {len(picks) for picks in removed} == {1, 2}
        assert all(word == REMOVED for picks in removed for _, word in picks)


class TestRanking:
    def test_kinds_and_blocks_are_sums_of_their_layers(self, found):
        word = "int4/fp32"
        by_kind = {row.name: row for row in ranked_operations(found, word)}
        assert {name: row.n for name, row in by_kind.items()} == {
            "blocks.*.attn.to_q": 4, "blocks.*.norm1.linear": 4, "proj_out": 1,
        }  # fmt: skip
        total = sum(row.effect for row in ranked_layers(found, word))
        assert sum(row.effect for row in by_kind.values()) == pytest.approx(total)
        assert sum(row.effect for row in ranked_blocks(found, word)) == pytest.approx(total)
        assert [row.name for row in ranked_blocks(found, word)][:2] == ["outside the blocks", "blocks.3"]

    def test_the_worst_per_byte_comes_first(self, found):
        rows = ranked_layers(found, "int8/fp32")
        assert rows[0].name == "proj_out"
        assert [row.per_megabyte for row in rows] == sorted((row.per_megabyte for row in rows), reverse=True)
        assert rows[0].per_ms == pytest.approx(rows[0].effect / rows[0].saved_ms)

    def test_times_that_are_not_known_stay_so(self, found):
        rows = ranked_removals(found)
        assert [row.name for row in rows] == ["blocks.1", "blocks.0", "blocks.2", "blocks.3"]
        assert {(row.saved_ms, row.per_ms) for row in rows} == {(None, None)}

    def test_what_saves_nothing_is_infinitely_bad(self, found):
        worse = dataclasses.replace(found.cell("proj_out", "int8/fp32"), saved_bytes=-3, saved_ms=-1.0)
        row = ranked_layers(found.having(cells=(worse,)), "int8/fp32")[0]
        assert (row.name, row.per_megabyte, row.per_ms) == ("proj_out", math.inf, math.inf)


class TestChoosing:
    @pytest.mark.parametrize("limit", [4.5, 5.0, 6.3, 8.25, 12.0, 31.0])
    def test_mixed_formats_are_the_best_of_all_that_keep_the_limit(self, found, limit):
        chosen = mixed(found, limit=limit)
        bits = {"fp32": 32.0, **BITS}
        losses = {(name, "fp32"): 0.0 for name in NAMES} | {one.key: one.effect for one in found.cells}
        best = min(
            sum(losses[pick] for pick in zip(NAMES, words, strict=True))
            for words in product(bits, repeat=len(NAMES))
            if sum(bits[word] for word in words) <= limit * len(NAMES) + 1e-9
        )
        assert chosen.loss == pytest.approx(best, rel=1e-9, abs=1e-15)
        assert average_bits(found, dict(chosen.picks)) <= limit + 1e-9

    def test_bytes_and_milliseconds_are_limits_too(self, found):
        in_bits, in_bytes = mixed(found, limit=6.0), mixed(found, limit=6.0 * 9000 / 8, cost="bytes")
        assert in_bits.picks == in_bytes.picks
        everything = sum(found.cell(name, "int4/fp32").saved_ms for name in NAMES)
        quick = mixed(found, limit=-everything, cost="ms")
        assert {word for _, word in quick.picks} == {"int4/fp32"}
        timeless = found.having(cells=(dataclasses.replace(found.cell("proj_out", "int4/fp32"), saved_ms=None),))
        assert most_saved_ms(found) == pytest.approx(everything)
        assert most_saved_ms(timeless) == pytest.approx(everything - 0.3437 + 0.2968)
        assert dict(mixed(timeless, limit=-most_saved_ms(timeless), cost="ms").picks)["proj_out"] == "int8/fp32"
        with pytest.raises(UsageError, match="found no time of proj_out in int4/fp32, expected one"):
            mixed(timeless, limit=0.0, cost="ms", protected={"proj_out": "int4/fp32"})

    def test_settled_layers_and_words_are_kept_to(self, found):
        chosen = mixed(found, limit=12.0, words=["int4/fp32"], protected={"proj_out": "int8/fp32"})
        assert dict(chosen.picks)["proj_out"] == "int8/fp32"
        assert {word for name, word in chosen.picks if name != "proj_out"} <= {"fp32", "int4/fp32"}
        with pytest.raises(EvaluationError, match="found no cell of proj_out in int2"):
            mixed(found, limit=12.0, protected={"proj_out": "int2"})
        with pytest.raises(UsageError, match="found a limit of 36000, expected at least 40500"):
            mixed(found, limit=4.0)

    def test_protected_are_those_outside_and_the_modulations(self):
        assert protected_layers(NAMES) == (*(f"{block}.norm1.linear" for block in BLOCKS), "proj_out")

    def test_rules_are_few_and_none_where_nothing_changes(self, found):
        assert rules_of(found, {}) == ()
        rules = rules_of(found, dict.fromkeys(NAMES, "int4/fp32") | {"proj_out": "fp32"})
        assert [(rule.pattern, rule.weight, rule.activation) for rule in rules] == [
            ("proj_out", "fp32", "fp32"), ("*", "int4", "fp32"),
        ]  # fmt: skip
        rules = rules_of(found, {"proj_out": "int8/fp32"})
        assert [(rule.pattern, rule.weight) for rule in rules] == [("proj_out", "int8"), ("*", "fp32")]

    @pytest.mark.parametrize(
        ("saving", "cost", "gone"),
        [(1, "count", {0}), (2, "count", {0, 2}), (3500, "bytes", {3}), (5000, "bytes", {0, 3}), (0, "bytes", set())],
    )
    def test_blocks_are_left_out_at_least_harm(self, found, saving, cost, gone):
        chosen = dict(removed_blocks(found, saving=saving, cost=cost).picks)
        assert {i for i, block in enumerate(BLOCKS) if chosen[block] == REMOVED} == gone
        assert all(chosen[block] == KEPT for i, block in enumerate(BLOCKS) if i not in gone)

    def test_more_than_there_is_cannot_be_saved(self, found):
        with pytest.raises(UsageError, match="expected at least -10000, the cheapest choice"):
            removed_blocks(found, saving=10_001)
        with pytest.raises(UsageError, match=r"found no time of blocks\.0"):
            removed_blocks(found, saving=1.0, cost="ms")


GROUPS = (*((f"{block}.attn.to_q", f"{block}.norm1.linear") for block in BLOCKS), ("proj_out",))
INT8, INT4 = (choice.rule("*") for choice in CHOICES)


class TestSeeds:
    @pytest.mark.parametrize("cost", ["bytes", "ms"])
    @pytest.mark.parametrize("share", [0.3, 0.5, 0.86, 0.95, 1.0])
    def test_choices_are_the_best_of_all_that_save_as_much(self, found, share, cost):
        (chosen,) = seed_choices(found, GROUPS, (INT8, INT4), cost=cost, shares=[share])
        words = ("", *(choice.word for choice in CHOICES))

        def total(picks, value):
            named = zip(picks, GROUPS, strict=True)
            return sum(value(found.cell(name, words[k])) for k, names in named if k for name in names)

        def saved(picks):
            return total(picks, lambda cell: cell.saved_bytes)

        most = saved([2] * len(GROUPS))
        kept = [picks for picks in product(range(3), repeat=len(GROUPS)) if saved(picks) >= share * most - 1e-6]
        assert chosen in kept
        best = min(total(picks, lambda cell: cell.effect) for picks in kept)
        assert total(chosen, lambda cell: cell.effect) == pytest.approx(best, rel=1e-9)

    def test_equal_choices_are_one_and_the_order_is_that_of_the_shares(self, found):
        both = seed_choices(found, GROUPS, (INT4, INT8), shares=[1.0, 0.5, 0.9999, 0.5])
        assert len(both) == 2
        assert both[0] == (1,) * len(GROUPS)

    def test_a_format_that_was_not_measured_or_timed_everywhere_is_no_option(self, found):
        int2 = dataclasses.replace(INT4, weight="int2")
        assert seed_choices(found, GROUPS, (int2,)) == ()
        (only,) = seed_choices(found, GROUPS, (int2, INT8), shares=[1.0])
        assert set(only) == {2}
        timeless = found.having(cells=(dataclasses.replace(found.cell(NAMES[0], "int8/fp32"), saved_ms=None),))
        assert seed_choices(timeless, GROUPS, (INT8,), cost="ms", shares=[1.0]) == ((0, 1, 1, 1, 1),)
        assert seed_choices(timeless, GROUPS, (INT8,), cost="bytes", shares=[1.0]) == ((1, 1, 1, 1, 1),)

    def test_what_takes_longer_is_never_chosen_for_time(self, found):
        slow = tuple(
            dataclasses.replace(found.cell(name, "int8/fp32"), saved_ms=-1.0 if "norm1" in name else 1.5)
            for name in NAMES
        )
        apart = [(name,) for name in NAMES]
        (chosen,) = seed_choices(found.having(cells=slow), apart, (INT8,), cost="ms", shares=[1.0])
        assert [name for name, k in zip(NAMES, chosen, strict=True) if k] == [n for n in NAMES if "norm1" not in n]

    def test_removals_are_the_least_harmful_of_those_that_may_go(self, found):
        assert seed_removals(found, BLOCKS, 2) == (("blocks.0",), ("blocks.0", "blocks.2"))
        assert seed_removals(found, BLOCKS[1:3], 9) == (("blocks.2",), ("blocks.2", "blocks.1"))
        assert seed_removals(found, BLOCKS, 0) == ()
        unmeasured = dataclasses.replace(found, cells=tuple(one for one in found.cells if one.word))
        assert seed_removals(unmeasured, BLOCKS, 2) == ()
