"""Bytes of weights and caches: predicted from shapes, against what a run holds, and refused before it is run."""

from __future__ import annotations

import dataclasses

import pytest

from schedsearch.errors import UsageError
from schedsearch.evaluate import CostModel, PipelineEvaluator, memory_model
from schedsearch.evaluate._cost import FEATURES, ModuleTimes
from schedsearch.evaluate._prices import LinearPrices, TimedLinear
from schedsearch.runtime import apply, block_lists_of
from schedsearch.schedule import PrecisionRule, Solver, parse_bytes
from schedsearch.study import Candidate

INT8 = PrecisionRule(pattern="*", weight="int8", activation="int8")
FP8 = PrecisionRule(pattern="*", weight="fp8_e4m3", activation="fp8_e4m3")


@pytest.fixture(scope="module")
def plain_model(tiny, tiny_workload):
    return memory_model(tiny, tiny_workload, "a")


@pytest.fixture(scope="module")
def prices(plain_model):
    """Every layer takes 1 ms, and half of it in int8; float8 is simulated."""
    layers = tuple((layer.name, layer.shape) for layer in plain_model.linears.layers)
    rows = [
        TimedLinear(shape=shape, format=word, execution=how, ms=ms)
        for shape in {shape for _, shape in layers}
        for word, how, ms in (("fp32", "base", 1.0), ("int8", "torch", 0.5), ("fp8_e4m3", "simulated", 3.0))
    ]
    return LinearPrices(base="fp32", layers=layers, times=tuple(rows))


@pytest.fixture(scope="module")
def model(plain_model, prices):
    return dataclasses.replace(plain_model, prices=prices)


@pytest.fixture(scope="module")
def evaluator_of(tiny, tiny_card, tiny_table):
    lists = block_lists_of(tiny)
    modules = [
        (name, 1.0) for each in lists for b in each for name in (b.name, *(f"{b.name}.{p}" for p in b.components))
    ]
    times = ModuleTimes(block_lists=lists, branches=1, rest_ms=1.0, modules=tuple(modules))
    known = tuple(1.0 if name in ("compute", "saved") else 0.0 for name in FEATURES)
    cost = CostModel(device="a machine", full_ms=16.0, times=times, coefficients=known, residual=0.0)

    def make(**settings):
        return PipelineEvaluator(tiny, tiny_card, ("a", "bb"), cost_model=cost, mac_table=tiny_table, **settings)

    return make


def test_plain_weights_are_four_bytes_each(model, tiny, tiny_plan):
    n = sum(parameter.numel() for parameter in tiny.transformer.parameters())
    plain = tiny_plan()
    assert model.checkpoint_bytes(plain) == model.resident_bytes(plain) == model.peak_bytes(plain) == 4 * n
    assert model.cache_bytes(plain) == 0


def test_int8_is_a_byte_and_a_scale_per_row_and_nothing_of_the_base_stays(model, tiny_plan):
    layers = model.linears.layers
    others = 4 * sum(n for _, n in model.linears.others)
    biases = 4 * sum(layer.out_features for layer in layers if layer.bias)
    codes = sum(layer.weights + 4 * layer.out_features for layer in layers)
    plan = tiny_plan(precision=(INT8,))
    assert model.checkpoint_bytes(plan) == others + biases + codes
    assert model.resident_bytes(plan) == others + biases + codes


def test_a_simulated_format_saves_nothing_on_the_device(model, plain_model, tiny_plan):
    plan, plain = tiny_plan(precision=(FP8,)), tiny_plan()
    assert model.checkpoint_bytes(plan) < model.checkpoint_bytes(plain)
    assert model.resident_bytes(plan) == model.resident_bytes(plain)
    assert plain_model.resident_bytes(tiny_plan(precision=(INT8,))) == plain_model.resident_bytes(plain)  # not timed


@pytest.mark.parametrize(
    "rows",
    [
        {"model": "CRCR"},
        {"model": "CC1C"},
        {"transformer_blocks.0": "CC1R", "transformer_blocks.1": "CC1R", "single_transformer_blocks.0": "CRRR"},
        {"transformer_blocks.0.attn": "CRCR", "single_transformer_blocks.1.proj_mlp": "CC1C"},
        {"model": "CCRC", "transformer_blocks.1.ff_context": "CC2R"},
        {"transformer_blocks.0": "CSSC"},
    ],
)
def test_caches_are_what_a_run_holds(model, tiny, tiny_plan, tiny_runs, rows):
    plan = tiny_plan(rows=rows)
    with apply(tiny, plan) as handle:
        tiny_runs(n=1, batch=1).latents(0, 1, steps=4)
        assert model.cache_bytes(plan) == handle._state.n_bytes
    assert model.peak_bytes(plan) == model.resident_bytes(plan) + model.cache_bytes(plan)


def test_caches_of_two_call_steps_are_predicted_too(model, tiny_plan):
    assert (
        model.cache_bytes(
            tiny_plan(rows={"transformer_blocks.0": "CRCR"}, solver=(Solver(family="heun", order=2),) * 4)
        )
        > 0
    )


def test_a_schedule_over_the_limit_is_refused_before_it_is_run(evaluator_of, model, tiny_plan):
    limit = model.peak_bytes(tiny_plan(precision=(INT8,))) + 10
    evaluator = evaluator_of(memory=model, max_bytes=limit)
    plain = evaluator.evaluate(Candidate(schedule=tiny_plan(), searcher="test", ask=0), fidelity=1)
    assert plain.status == "pruned"
    assert plain.denoiser_evals == 0
    assert plain.reason.startswith("predicted peak memory: found ")
    assert "(weights " in plain.reason
    low = evaluator.evaluate(Candidate(schedule=tiny_plan(precision=(INT8,)), searcher="test", ask=1), fidelity=1)
    assert low.status == "ok"
    assert dict(low.metrics)["peak_bytes"] == limit - 10
    cached = tiny_plan(precision=(INT8,), rows={"model": "CRRR"})
    kept = evaluator.evaluate(Candidate(schedule=cached, searcher="test", ask=2), fidelity=1)
    assert kept.status == "pruned"


def test_low_bit_layers_are_made_once_for_all_candidates(evaluator_of, tiny_plan):
    evaluator = evaluator_of()
    rules = dataclasses.replace(INT8, pattern="transformer_blocks.*")
    n = None
    for ask, rows in enumerate(({}, {"model": "CRCR"}, {"model": "CCRC"}, {"transformer_blocks.0": "CRRC"})):
        candidate = Candidate(schedule=tiny_plan(precision=(rules,), rows=rows), searcher="test", ask=ask)
        found = evaluator.evaluate(candidate, fidelity=2)
        assert found.status == "ok", found.reason
        n = n or evaluator.layers_made
        assert evaluator.layers_made == n > 0
    fewer = dataclasses.replace(INT8, pattern="transformer_blocks.0.*")
    evaluator.evaluate(Candidate(schedule=tiny_plan(precision=(fewer,)), searcher="test", ask=9), fidelity=1)
    assert evaluator.layers_made == n


def test_scores_with_kept_layers_and_shared_calls_are_those_without(evaluator_of, tiny_plan):
    rules = dataclasses.replace(INT8, pattern="transformer_blocks.*")
    plans = [tiny_plan(precision=p, rows=r) for p in ((), (rules,)) for r in ({}, {"model": "CCRC"}, {"model": "CCCR"})]
    shared = evaluator_of()
    for ask, plan in enumerate(plans):
        candidate = Candidate(schedule=plan, searcher="test", ask=ask)
        alone = evaluator_of(tree_bytes=0).evaluate(candidate, fidelity=2)
        assert shared.evaluate(candidate, fidelity=2).samples == alone.samples


@pytest.mark.parametrize(
    ("text", "n"), [("8GB", 8 * 10**9), ("7.5 GiB", 7680 * 2**20), ("500mb", 5 * 10**8), ("1 kB", 1000), ("12B", 12)]
)
def test_bytes_with_units(text, n):
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8 gigabytes", "1iB", "1e9B", ""])
def test_what_is_no_number_of_bytes(text):
    with pytest.raises(UsageError, match=r"--max-memory: found .* such as 8GB, 500MB or 7.5GiB"):
        parse_bytes(text)
