"""Formats a device carries out, timed once, and which of them are worth searching."""

from __future__ import annotations

import dataclasses

import pytest

from schedsearch.evaluate import CostModel, denoiser_formats, with_linear_prices, worthwhile
from schedsearch.evaluate._cost import FEATURES, ModuleTimes
from schedsearch.evaluate._latency import device_name
from schedsearch.evaluate._prices import LinearPrices, TimedLinear
from schedsearch.quantize import execution_of
from schedsearch.runtime import block_lists_of
from schedsearch.runtime._precision import linears_of
from schedsearch.schedule import PrecisionRule, rule_word

INT8 = PrecisionRule(pattern="*", weight="int8", activation="int8")
FP8 = PrecisionRule(pattern="*", weight="fp8_e4m3", activation="fp8_e4m3")
INT4 = PrecisionRule(pattern="*", weight="int4", activation="bf16")
SHAPES = {"a": (4, 32, 32), "b": (4, 32, 128)}


def prices_of(**times: tuple[str, float, float]) -> LinearPrices:
    """Prices of two layers, ``a`` and ``b``: per format its execution and milliseconds; the base takes 1 and 2."""
    rows = [
        TimedLinear(shape=SHAPES[name], format="fp32", execution="base", ms=ms) for name, ms in (("a", 1.0), ("b", 2.0))
    ]
    rows += [
        TimedLinear(shape=SHAPES[name], format=word.replace("__", "/"), execution=how, ms=ms)
        for word, (how, *each) in times.items()
        for name, ms in zip("ab", each, strict=True)
    ]
    return LinearPrices(base="fp32", layers=tuple(SHAPES.items()), times=tuple(rows))


class TestHere:
    def test_all_that_are_found_are_executed_and_nothing_is_the_base(self, tiny):
        names, base, formats = denoiser_formats(tiny)
        assert names == tuple(linears_of(tiny.transformer))
        assert base == "fp32"
        assert "int8" in map(rule_word, formats)
        for rule in formats:
            executions = {
                execution_of(rule, (x.out_features, x.in_features), x.weight.dtype, x.weight.device).execution
                for x in linears_of(tiny.transformer).values()
            }
            assert executions - {"base", "simulated"}

    def test_times_of_every_linear_shape_go_into_the_cost_model_and_through_its_text(self, tiny, tiny_card):
        lists = block_lists_of(tiny)
        modules = [(n, 9.0) for each in lists for b in each for n in (b.name, *(f"{b.name}.{p}" for p in b.components))]
        times = ModuleTimes(block_lists=lists, branches=1, rest_ms=9.0, modules=tuple(modules))
        cost = CostModel(
            device=device_name("cpu"), full_ms=16.0, times=times, coefficients=(1.0,) * len(FEATURES), residual=0.0
        )
        found = with_linear_prices(cost, tiny, tiny_card, [INT8], repeats=1)
        assert {time.format for time in found.prices.times} == {"fp32", "int8"}
        assert {time.shape for time in found.prices.times} == {shape for _, shape in found.prices.layers}
        assert CostModel.from_json(found.to_json()) == found
        bare = dataclasses.replace(found, prices=None)
        assert bare == cost


class TestWorth:
    def test_what_is_faster_somewhere_is(self):
        assert worthwhile(prices_of(int8=("torch", 0.5, 2.5)), INT8, ["a", "b"])

    def test_what_is_slower_everywhere_is_not_unless_memory_is_short(self):
        prices = prices_of(int4__bf16=("torch", 1.5, 2.5))
        assert not worthwhile(prices, INT4, ["a", "b"])
        assert worthwhile(prices, INT4, ["a", "b"], for_memory=True)

    def test_a_hair_faster_may_be_noise(self):
        assert not worthwhile(prices_of(int8=("torch", 0.9, 2.5)), INT8, ["a", "b"])
        assert worthwhile(prices_of(int8=("torch", 0.85, 2.5)), INT8, ["a", "b"])

    def test_what_is_simulated_or_was_not_timed_is_not(self):
        assert not worthwhile(prices_of(fp8_e4m3=("simulated", 0.5, 0.5)), FP8, ["a"], for_memory=True)
        assert not worthwhile(prices_of(), INT8, ["a"])

    def test_layers_that_are_not_searched_do_not_matter(self):
        prices = prices_of(int8=("torch", 1.5, 0.5))
        assert not worthwhile(prices, INT8, ["a"])
        assert worthwhile(prices, INT8, ["b"])
        assert not worthwhile(prices, INT8, [])


def test_a_schedule_costs_what_its_layers_save_less(tiny, tiny_plan):
    """1 ms per block and call, of which a layer of attention takes 0.1 ms, and 0.04 ms in int8."""
    lists = block_lists_of(tiny)
    modules = [(n, 1.0) for each in lists for b in each for n in (b.name, *(f"{b.name}.{p}" for p in b.components))]
    times = ModuleTimes(block_lists=lists, branches=1, rest_ms=0.0, modules=tuple(modules))
    known = tuple(1.0 if name in ("compute", "saved") else 0.0 for name in FEATURES)
    layers = tuple((name, (4, x.in_features, x.out_features)) for name, x in linears_of(tiny.transformer).items())
    rows = [
        TimedLinear(shape=shape, format=word, execution=how, ms=ms)
        for shape in {shape for _, shape in layers}
        for word, how, ms in (("fp32", "base", 0.1), ("int8", "torch", 0.04))
    ]
    prices = LinearPrices(base="fp32", layers=layers, times=tuple(rows))
    cost = CostModel(device="x", full_ms=1.0, times=times, coefficients=known, residual=0.0, prices=prices)
    n_blocks = sum(len(each) for each in lists)
    rule = dataclasses.replace(INT8, pattern="transformer_blocks.0.attn.*")
    changed = sum(name.startswith("transformer_blocks.0.attn.") for name, _ in layers)
    assert cost.predict_ms(tiny_plan()) == pytest.approx(4 * n_blocks)
    assert cost.predict_ms(tiny_plan(precision=(rule,))) == pytest.approx(4 * (n_blocks - 0.06 * changed))
    cached = tiny_plan(precision=(rule,), rows={"model": "CRRC"})
    assert cost.predict_ms(cached) == pytest.approx(2 * (n_blocks - 0.06 * changed))
    idle = tiny_plan(precision=(rule,), rows={"transformer_blocks.0": "CRRR"})
    assert cost.predict_ms(idle) == pytest.approx(4 * (n_blocks - 1) + 1 - 0.06 * changed)
