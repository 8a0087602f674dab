"""The latency table as a file, format words, and what a table says precision rules cost."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import EvaluationError, ScheduleError, UsageError
from schedsearch.evaluate import LatencyTable, LinearPrices, Linears, read_table, write_table
from schedsearch.evaluate._latency_table import (
    LoopRow,
    OpRow,
    TableHeader,
    parse_table,
    parse_word,
    table_text,
)
from schedsearch.evaluate._linears import LinearLayer
from schedsearch.evaluate._prices import Price, unmeasured
from schedsearch.schedule import NUMBER_FORMATS, PrecisionRule, format_word, rule_word

SMALL, LARGE = (16, 32, 32), (16, 32, 128)
NAMES = ("blocks.0.q", "blocks.0.up", "blocks.1.q", "out")


def linear(shape, word, execution, eager, compiled=None):
    return OpRow(
        op="linear", name="", shape=shape, format=word, execution=execution, eager_ms=eager, compiled_ms=compiled, n=1
    )


HEADER = TableHeader(
    model="tiny", config="c" * 64, weights="random", height=8, width=8, dtype="bf16", device="a machine",
    torch="2", diffusers="0.4", schedsearch="0.1", date="2026-11-21", commit="", command="schedsearch profile",
)  # fmt: skip

TABLE = LatencyTable(
    header=HEADER,
    linears=Linears(
        layers=tuple(
            LinearLayer(name=name, tokens=t, in_features=i, out_features=o, bias=True)
            for name, (t, i, o) in zip(NAMES, (SMALL, LARGE, SMALL, SMALL), strict=True)
        ),
        others=(("blocks.0.scale", 16),),
        base="bf16",
    ),
    rows=(
        OpRow(op="denoiser", name="Flux", shape=(16, 4), format="bf16", execution="base", eager_ms=9.0,
              compiled_ms=None, n=1, note="compiled: RuntimeError: no compiler"),
        linear(SMALL, "bf16", "base", 1.0, 0.9),
        linear(SMALL, "int8", "kernel", 0.5, 0.6),
        linear(SMALL, "int8", "torch", 0.4, 0.4),
        linear(SMALL, "int4", "simulated", 3.0, 0.5),
        linear(LARGE, "bf16", "base", 4.0, 3.0),
        linear(LARGE, "int8", "kernel", 4.5, 2.0),
    ),
    loops=(
        LoopRow(schedule="sha256:" + "0" * 64, name="4x", steps=28, plain_ms=400.0, scheduled_ms=104.0, speedup=3.85,
                low=3.8, high=3.9, n=5, predicted=4.0, date="2026-11-21"),
    ),
)  # fmt: skip


def test_a_written_table_is_read_as_it_was(tmp_path):
    write_table(TABLE, tmp_path / "t.json")

    assert read_table(tmp_path / "t.json") == TABLE
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    assert TABLE.loops[0].reached == 3.85 / 4.0


def test_an_empty_table_is_read_as_it_was():
    empty = dataclasses.replace(TABLE, rows=(), loops=())

    assert parse_table(table_text(empty)) == empty


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    with pytest.raises(ScheduleError, match="cannot be written"):
        write_table(TABLE, tmp_path / "none" / "t.json")


def changed(**changes):
    return json.dumps(json.loads(table_text(TABLE)) | changes)


def changed_row(**changes):
    content = json.loads(table_text(TABLE))
    content["rows"][1] |= changes
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found damaged JSON"),
        ("{" * 100_000, "found damaged JSON"),
        ('{"format": "schedsearch.latencies", "format": 1}', "a key stands twice in one object"),
        ("[]", "found something else, expected a file of format 'schedsearch.latencies'"),
        (changed(version=2), r"version: found 2, expected 1\. Measure it again"),
        (changed(extra=1), 'found "extra", expected only the keys format, version, model'),
        (json.dumps({"format": "schedsearch.latencies", "version": 1}), "found no key 'model', expected it"),
        (changed(height=0), "height: found 0, expected a whole number of at least 1"),
        (changed(weights="good"), 'weights: found "good", expected one of random, loaded'),
        (changed(dtype="int8"), 'dtype: found "int8", expected one of fp32, bf16, fp16'),
        (changed(rows={}), r"rows: found \{\}, expected a list"),
        (changed(layers=[["a", 1, 2, 3]]), r"layers\[0\]: found .*, expected \[name, tokens, in, out, true or false\]"),
        (changed(layers=[["a", 1, 2, 3, True]] * 2), r'layers\[1\]: found "a" again, expected each once'),
        (changed(others=[["a", 0]]), r"others\[0\]\[1\]: found 0, expected a whole number of at least 1"),
        (changed(loops=[{}]), r"loops\[0\]: found no key 'schedule'"),
        (changed_row(eager_ms=0.0), r"rows\[1\]\.eager_ms: found 0\.0, expected a finite number above 0"),
        (changed_row(eager_ms=float("nan")), "NaN is not a number"),
        (changed_row(eager_ms=True), r"rows\[1\]\.eager_ms: found true, expected a finite number"),
        (changed_row(op="mystery"), r'rows\[1\]\.op: found "mystery", expected one of denoiser, block'),
        (changed_row(execution="magic"), r'rows\[1\]\.execution: found "magic", expected one of base'),
        (changed_row(shape=[1, -1]), r"rows\[1\]\.shape\[1\]: found -1, expected a whole number"),
        (changed_row(n=0), r"rows\[1\]\.n: found 0"),
        (changed_row(shape=list(LARGE)), r"rows\[5\]: found .* again, expected each once"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(text, said):
    with pytest.raises(EvaluationError, match=said):
        parse_table(text)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="found no file, expected a latency table"):
        read_table(tmp_path)
    (tmp_path / "t.json").write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="found a file that cannot be read"):
        read_table(tmp_path / "t.json")


FORMATS = [name for name in NUMBER_FORMATS if name != "nf4"]


@given(
    weight=st.sampled_from(NUMBER_FORMATS),
    activation=st.sampled_from(FORMATS),
    scales=st.sampled_from(["default", "row", "tensor"]),
    rank=st.integers(0, 64),
)
def test_a_word_says_all_of_a_rule(weight, activation, scales, rank):
    rule = parse_word(format_word(weight, activation, scales, rank), base="bf16")

    assert rule == PrecisionRule(pattern="*", weight=weight, activation=activation, scales=scales, rank=rank)
    assert parse_word(rule_word(rule), base="fp32") == rule


def test_a_format_for_weights_alone_leaves_activations_in_the_base():
    assert rule_word(parse_word("nf4", base="bf16")) == "nf4/bf16"


@pytest.mark.parametrize("word", ["int7", "int8/nf4", "int8@block", "int8+0", "int8/", "INT8", "int8 "])
def test_a_word_that_is_none_is_refused(word):
    with pytest.raises(UsageError, match=r"--formats: found '.*', expected WEIGHT, WEIGHT/ACTIVATION, and"):
        parse_word(word, base="bf16")


def rule(pattern, weight, activation=None, **fields):
    return PrecisionRule(pattern=pattern, weight=weight, activation=activation or weight, **fields)


@pytest.mark.parametrize(
    ("shape", "what", "price"),
    [
        (SMALL, None, Price(ms=1.0, basis="base")),
        (SMALL, rule("*", "bf16"), Price(ms=1.0, basis="base")),
        (SMALL, rule("*", "int8"), Price(ms=0.5, basis="executed")),  # what a schedule gets, not the fastest
        (LARGE, rule("*", "int8"), Price(ms=4.5, basis="executed")),  # slower, and said so
        (SMALL, rule("*", "int4"), Price(ms=3.0, basis="simulated")),
        (LARGE, rule("*", "int4"), Price(ms=4.0, basis="unmeasured")),
        (SMALL, rule("*", "int8", "bf16"), Price(ms=1.0, basis="unmeasured")),
        (SMALL, rule("*", "int8", rank=8), Price(ms=1.0, basis="unmeasured")),
    ],
)
def test_the_price_of_a_layer(shape, what, price):
    assert LinearPrices.of(TABLE).price(shape, what) == price


def test_a_simulated_format_never_claims_a_speed():
    compiled = LinearPrices.of(TABLE, "compiled")

    # measured at 0.5 ms where the base takes 0.9
    assert compiled.price(SMALL, rule("*", "int4")) == Price(ms=0.9, basis="simulated")


def test_prices_follow_the_first_rule_and_tell_what_is_saved(tiny_plan):
    rules = (rule("out", "bf16"), rule("blocks.0.*", "int8"), rule("*.q", "int4"))
    prices = LinearPrices.of(TABLE)

    schedule = tiny_plan(precision=rules)

    assert {name: price.basis for name, price in prices.prices(schedule).items()} == {
        "blocks.0.q": "executed", "blocks.0.up": "executed", "blocks.1.q": "simulated", "out": "base",
    }  # fmt: skip
    assert prices.saved_ms(schedule) == {"blocks.0.q": 0.5, "blocks.0.up": -0.5, "blocks.1.q": -2.0}
    assert prices.saved_ms(tiny_plan()) == {}
    assert unmeasured(prices, schedule) == ()
    assert unmeasured(prices, tiny_plan(precision=(rule("*", "int4"),))) == ("int4",)
    assert prices.executes(rules[1], TABLE.linears.layers[0])
    assert not prices.executes(rules[2], TABLE.linears.layers[0])


def test_a_table_without_a_base_time_prices_nothing():
    lacking = dataclasses.replace(TABLE, rows=TABLE.rows[:5])

    with pytest.raises(EvaluationError, match=r"found no eager time of blocks.0.up \(16, 32, 128\) in bf16"):
        LinearPrices.of(lacking)


def test_prices_are_stored_as_plain_data():
    prices = LinearPrices.of(TABLE)

    assert LinearPrices.from_content(json.loads(json.dumps(prices.as_content()))) == prices


def test_a_layer_that_the_call_does_not_reach_needs_no_time():
    idle = LinearLayer(name="idle", tokens=0, in_features=3, out_features=3, bias=False)
    linears = dataclasses.replace(TABLE.linears, layers=(*TABLE.linears.layers, idle))

    prices = LinearPrices.of(dataclasses.replace(TABLE, linears=linears))

    assert "idle" not in dict(prices.layers)
