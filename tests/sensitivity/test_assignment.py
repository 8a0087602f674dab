"""The assignment is the optimum that trying everything finds, and its rules say the same again."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.runtime._precision import rules_of
from schedsearch.schedule import PrecisionRule
from schedsearch.sensitivity import Choice, Option, assigned, block_of, compact_rules, operation_of

LOSSES = st.one_of(st.floats(0, 1), st.floats(1e-9, 1e-6), st.floats(0, 1e3), st.integers(0, 3).map(float))


@st.composite
def problems(draw):
    n_items = draw(st.integers(1, 6))
    options = {
        f"item{i}": [
            Option(word=str(j), loss=draw(LOSSES), cost=float(draw(st.integers(-20, 1000))))
            for j in range(draw(st.integers(1, 4)))
        ]
        for i in range(n_items)
    }
    least = sum(min(way.cost for way in ways) for ways in options.values())
    most = sum(max(way.cost for way in ways) for ways in options.values())
    return options, draw(st.floats(least, max(most, least)))


def brute_force(options, limit):
    """The least loss within the limit, by trying every combination."""
    return min(
        sum(way.loss for way in chosen)
        for chosen in product(*options.values())
        if sum(way.cost for way in chosen) <= limit
    )


@settings(max_examples=30)
@given(problems())
def test_it_is_the_optimum_of_all_combinations(problem):
    options, limit = problem
    found = assigned(options, limit)
    assert found.cost <= limit
    assert found.loss == pytest.approx(brute_force(options, limit), rel=1e-9, abs=1e-12 * 1e3)
    words = dict(found.picks)
    assert list(words) == list(options)
    chosen = [next(way for way in ways if way.word == words[item]) for item, ways in options.items()]
    assert found.loss == pytest.approx(sum(way.loss for way in chosen))
    assert found.cost == sum(way.cost for way in chosen)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(1e-6, 1), st.integers(1, 50)), min_size=1, max_size=9), st.floats(0, 1))
def test_a_knapsack_of_things_to_leave_out_is_the_optimum_of_all_subsets(things, share):
    wanted = share * sum(saved for _, saved in things)
    options = {
        str(i): [Option(word="kept", loss=0.0, cost=0.0), Option(word="", loss=loss, cost=-float(saved))]
        for i, (loss, saved) in enumerate(things)
    }
    found = assigned(options, -wanted)
    best = min(
        sum(loss for (loss, _), out in zip(things, outs, strict=True) if out)
        for outs in product([False, True], repeat=len(things))
        if sum(saved for (_, saved), out in zip(things, outs, strict=True) if out) >= wanted
    )
    assert found.loss == pytest.approx(best, rel=1e-9)


def test_nothing_is_given_up_where_everything_fits():
    ways = [Option(word="big", loss=0.0, cost=5.0), Option(word="small", loss=1.0, cost=1.0)]
    assert assigned({"a": ways, "b": ways}, 10.0).picks == (("a", "big"), ("b", "big"))


def test_what_cannot_be_is_refused():
    ways = [Option(word="big", loss=0.0, cost=5.0), Option(word="small", loss=1.0, cost=2.0)]
    with pytest.raises(UsageError, match="found a limit of 3, expected at least 4, the cheapest choice"):
        assigned({"a": ways, "b": ways}, 3.0)
    with pytest.raises(UsageError, match="found no items"):
        assigned({}, 3.0)
    with pytest.raises(UsageError, match=r"assignment\.a: found no option"):
        assigned({"a": []}, 3.0)
    with pytest.raises(UsageError, match=r"assignment\.a\.x: found loss nan and cost 1"):
        assigned({"a": [Option(word="x", loss=float("nan"), cost=1.0)]}, 3.0)


# ---- rules

WORDS = ("fp32", "int8", "int4", "int4+8")
CHOICES = {
    "fp32": Choice(word="fp32", weight="fp32", activation="fp32"),
    "int8": Choice(word="int8", weight="int8", activation="int8"),
    "int4": Choice(word="int4", weight="int4", activation="int4"),
    "int4+8": Choice(word="int4+8", weight="int4", activation="int4", rank=8),
}
KINDS = ("attn.to_q", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "norm.linear")
NAMES = (
    *(f"transformer_blocks.{i}.{kind}" for i in range(12) for kind in KINDS),
    *(f"single_transformer_blocks.{i}.{kind}" for i in range(23) for kind in KINDS[:2]),
    "x_embedder",
    "norm_out.linear",
    "proj_out",
)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.5, 1.0]))
def test_rules_give_every_layer_its_format_and_no_pattern_is_idle(seed, share):
    source = random.Random(seed)
    usual = {kind: source.choice(WORDS) for kind in sorted({operation_of(name) for name in NAMES})}
    words = {name: source.choice(WORDS) if source.random() < share else usual[operation_of(name)] for name in NAMES}
    rules = compact_rules(words.items(), CHOICES)
    followed = rules_of(NAMES, rules)  # as the runtime has it: the first match wins, an idle pattern is refused
    assert followed == {name: CHOICES[word].rule(followed[name].pattern) for name, word in words.items()}
    assert len(rules) <= len(NAMES)


def test_few_exceptions_are_few_rules():
    words = dict.fromkeys(NAMES, "int4")
    words["x_embedder"] = "fp32"
    for i in (0, 3, 10, 11):
        words[f"transformer_blocks.{i}.ff.net.2"] = "int8"
    for i in range(23):
        words[f"single_transformer_blocks.{i}.attn.to_q"] = "int4+8"
    rules = compact_rules(words.items(), CHOICES)
    assert [(rule.pattern, rule.weight, rule.rank) for rule in rules] == [
        ("transformer_blocks.[03].ff.net.2", "int8", 0),
        ("transformer_blocks.1[01].ff.net.2", "int8", 0),
        ("x_embedder", "fp32", 0),
        ("single_transformer_blocks.*.attn.to_q", "int4", 8),
        ("*", "int4", 0),
    ]


def test_one_format_is_one_rule():
    rules = compact_rules([(name, "int8") for name in NAMES], CHOICES)
    assert rules == (PrecisionRule(pattern="*", weight="int8", activation="int8"),)


def test_kinds_and_blocks_of_names():
    assert operation_of("transformer_blocks.12.ff.net.0.proj") == "transformer_blocks.*.ff.net.0.proj"
    assert operation_of("time_text_embed.timestep_embedder.linear_1") == "time_text_embed.timestep_embedder.linear_1"
    assert block_of("single_transformer_blocks.7.proj_out") == "single_transformer_blocks.7"
    assert block_of("norm_out.linear") == block_of("proj_out") == "outside the blocks"
