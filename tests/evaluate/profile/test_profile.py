"""The operations of a call, how they are timed, the table they make, and whole loops."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from schedsearch.errors import EvaluationError, UsageError
from schedsearch.evaluate import TimedRun
from schedsearch.evaluate._prices import LinearPrices
from schedsearch.evaluate._trace import capture_call
from schedsearch.evaluate.profile import _measure as measure
from schedsearch.evaluate.profile import (
    example_schedules,
    measure_loops,
    measure_table,
    operations_of,
    parse_word,
    predicted_speedup,
    random_embeds,
    random_pipeline,
    table_header,
    table_times,
)
from schedsearch.evaluate.profile._timing import median_ms
from schedsearch.runtime import block_lists_of, identity_schedule, model_ref
from schedsearch.schedule import PrecisionRule
from schedsearch.testing import random_flux

LINEAR_SHAPES = 16
"""Distinct linear shapes of that configuration."""


def test_an_operation_runs_again_on_its_own_inputs(pipe, workload):
    kwargs = capture_call(pipe, workload, random_embeds(pipe, workload)).kwargs
    found = operations_of(pipe.transformer, kwargs, block_lists_of(pipe))

    assert [operation.op for operation in found] == sorted(
        (operation.op for operation in found),
        key=("denoiser", "block", "component", "linear", "attention", "modulation", "norm").index,
    )
    with torch.no_grad():
        again = found[0].call()[0]
        expected = pipe.transformer(**kwargs)[0]
        shapes = {o.shape: o.call().shape for o in found if o.op == "linear"}
    assert torch.equal(again, expected)
    assert all(shape[-1] == out and shape.numel() == t * out for (t, _, out), shape in shapes.items())
    attention = next(operation for operation in found if operation.op == "attention")
    assert (attention.shape, attention.n) == ((2, 27, 27, 16), 2)
    assert attention.call().shape == (1, 2, 27, 16)


def test_a_median_is_of_one_call_however_often_it_is_repeated():
    now, calls = [0.0], {"short": 0, "long": 0}

    def work(name, ms):
        calls[name] += 1
        now[0] += ms / 1e3

    entered = []

    @contextmanager
    def prepared():
        entered.append(now[0])
        now[0] += 1.0  # not part of its time
        yield

    found = median_ms(
        {"short": partial(work, "short", 0.25), "long": TimedRun(call=partial(work, "long", 50.0), prepare=prepared)},
        repeats=3,
        warmup=1,
        clock=lambda: now[0],
    )

    assert found == pytest.approx({"short": 0.25, "long": 50.0})
    assert calls == {"short": 2 + 4 * 8, "long": 2 + 4}  # calibration, then as often as fills 2 ms
    assert len(entered) == 6


def test_a_table_has_every_operation_and_every_format(table, pipe):
    by_op = {op: [row for row in table.rows if row.op == op] for op in ("block", "component", "linear", "attention")}

    assert {(row.name, row.shape) for row in by_op["block"]} == {
        ("transformer_blocks", (24, 3, 32)),
        ("single_transformer_blocks", (24, 3, 32)),
    }
    assert {row.name for row in by_op["component"]} == {
        f"{kind}.{part}"
        for kind, parts in (("transformer_blocks", ("attn", "ff", "ff_context")),
                            ("single_transformer_blocks", ("attn", "proj_mlp", "proj_out")))
        for part in parts
    }  # fmt: skip
    formats = {word: [row for row in by_op["linear"] if row.format == word] for word in ("fp32", "int8", "int4")}
    assert [len(rows) for rows in formats.values()] == [LINEAR_SHAPES] * 3
    assert sum(row.n for row in formats["fp32"]) == len(table.linears.layers) == sum(row.n for row in formats["int8"])
    assert {row.execution for row in formats["fp32"]} == {"base"}
    assert {row.execution for row in formats["int4"]} == {"simulated"}
    assert all("no torch, " in row.note for row in formats["int4"])
    assert not any(row.note for row in formats["fp32"])
    assert all(row.eager_ms > 0 and row.compiled_ms is None for row in table.rows)
    assert not any(module._forward_pre_hooks for module in pipe.transformer.modules())


def test_a_table_says_what_it_is_about(table, pipe):
    header = table.header

    assert (header.weights, header.dtype, header.width, header.height) == ("random", "fp32", 24, 16)
    assert header.torch == torch.__version__
    assert header.config == model_ref(pipe, height=16, width=24).config
    assert "thread" in header.device
    assert set(header.identity) == {field.name for field in dataclasses.fields(header)} - {"date", "commit", "command"}


def counted(monkeypatch):
    """Times nothing, and counts what would have been."""
    timed = []

    def medians(runs, **_):
        timed.append(tuple(runs))
        return dict.fromkeys(runs, 1.0)

    monkeypatch.setattr(measure, "median_ms", medians)
    return timed


def test_what_a_table_has_is_not_timed_again(table, pipe, workload, monkeypatch):
    timed = counted(monkeypatch)
    rules = [parse_word(word, base="fp32") for word in ("int8", "int4")]
    again = partial(measure_table, pipe, workload, table.header, known=table, modes=["eager"])

    assert again(rules=rules) == table
    assert again() == table
    assert timed == []
    more = again(rules=[*rules, parse_word("nf4", base="fp32")])
    # only the linear shapes, but those in all their formats, because only equal rounds can be compared
    assert timed == [("0 eager", "1 eager", "2 eager", "3 eager")] * LINEAR_SHAPES
    assert len(more.rows) == len(table.rows) + LINEAR_SHAPES


def test_a_table_is_handed_over_after_every_group(table, pipe, workload, monkeypatch):
    counted(monkeypatch)
    seen = []
    measure_table(
        pipe, workload, table.header, modes=["eager"],
        on_group=lambda so_far, done, total, note: seen.append((len(so_far.rows), done, total, note)),
    )  # fmt: skip

    assert [n for n, *_ in seen] == [done for _, done, *_ in seen] == list(range(len(seen)))
    assert {total for *_, total, _ in seen} == {len(seen) - 1}
    assert seen[0][3] == "denoiser FluxTransformer2DModel"


def test_a_table_about_something_else_is_not_continued(table, pipe, workload):
    other = dataclasses.replace(table.header, device="elsewhere")

    with pytest.raises(UsageError, match=r"latency table: device: found '.*' in the table to go on with, expected"):
        measure_table(pipe, workload, other, known=table)


@pytest.fixture
def one_of_each(monkeypatch):
    """Only the first operation of every kind."""

    def few(*call):
        firsts = {}
        for operation in operations_of(*call):
            firsts.setdefault(operation.op, operation)
        return tuple(firsts.values())

    monkeypatch.setattr(measure, "operations_of", few)


def test_compiled_times_stand_beside_eager_ones(pipe, card, workload, monkeypatch, one_of_each):
    """With a backend that only counts."""
    timed = counted(monkeypatch)
    graphs = []

    def backend(module, _inputs):
        graphs.append(module)
        return module.forward

    header = table_header(pipe, card, weights="random")
    rule = parse_word("int4", base="fp32")
    found = measure_table(pipe, workload, header, rules=[rule], backend=backend)

    assert all(row.eager_ms == row.compiled_ms == 1.0 for row in found.rows), [row.note for row in found.rows]
    assert timed[0] == ("0 eager", "0 compiled")
    assert len(graphs) >= 2
    assert not any(module._compiled_call_impl for module in pipe.transformer.modules())


def test_equal_blocks_share_one_graph(tiny_workload):
    """So the limit of recompilations is not met, however many blocks there are: one per kind, and one for the first
    single block, whose inputs come in another memory layout than those of the next ones.
    """
    graphs = []

    def backend(module, _inputs):
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    deep = random_flux(2, 9)
    kwargs = capture_call(deep, tiny_workload, random_embeds(deep, tiny_workload)).kwargs
    run = measure._blockwise_compiled(partial(deep.transformer, **kwargs), deep.transformer, backend)
    measure._once(run)

    assert len(graphs) == 3
    torch.compiler.reset()


def test_what_cannot_be_compiled_says_so_and_is_not_tried_again(pipe, card, workload, monkeypatch):
    counted(monkeypatch)

    def backend(_module, _inputs):
        raise RuntimeError("no compiler here")

    header = table_header(pipe, card, weights="random")
    monkeypatch.setattr(measure, "operations_of", lambda *call: operations_of(*call)[-1:])
    found = measure_table(pipe, workload, header, backend=backend)
    (row,) = found.rows

    assert row.compiled_ms is None
    assert row.note.startswith("compiled: ")
    assert "no compiler here" in row.note
    tried = counted(monkeypatch)
    assert measure_table(pipe, workload, header, backend=backend, known=found) == found
    assert tried == []


def test_every_execution_is_timed_on_request(pipe, workload, table, monkeypatch):
    counted(monkeypatch)
    monkeypatch.setattr(
        measure, "_executions", lambda _linear, _rule, *, every: [("torch", ""), ("simulated", "")][: 1 + every]
    )
    rule = parse_word("int8", base="fp32")
    found = measure_table(pipe, workload, table.header, rules=[rule], every_execution=True, modes=["eager"])

    rows = [row for row in found.rows if row.format == "int8"]
    assert [row.execution for row in rows] == ["torch", "simulated"] * LINEAR_SHAPES


def made_up(table):
    """The table with round numbers: blocks 4 ms, components 1 ms, the whole 10 ms, linear layers 0.25 ms, int8 half."""
    ms = {"denoiser": 10.0, "block": 4.0, "component": 1.0, "linear": 0.25}
    rows = [
        dataclasses.replace(row, eager_ms=0.125 if row.format == "int8" else ms.get(row.op, 0.1)) for row in table.rows
    ]
    return dataclasses.replace(table, rows=tuple(rows))


def test_module_times_come_from_the_table(table, pipe):
    times = table_times(made_up(table), block_lists_of(pipe))

    assert times.rest_ms == 2.0
    assert dict(times.modules)["single_transformer_blocks.0"] == 4.0
    assert dict(times.modules)["transformer_blocks.0.ff"] == 1.0
    with pytest.raises(EvaluationError, match="found no compiled time of block transformer_blocks, expected one"):
        table_times(table, block_lists_of(pipe), mode="compiled")


def test_the_predicted_speedup_is_that_of_what_is_computed(table, pipe, monkeypatch):
    known = made_up(table)
    times, prices = table_times(known, block_lists_of(pipe)), LinearPrices.of(known)
    plain = identity_schedule(pipe, 4, height=16, width=24)

    def speedup(**fields):
        return predicted_speedup(dataclasses.replace(plain, **fields), plain, times, prices)

    assert speedup() == 1.0
    assert speedup(ops=(("model", "CRRR"),)) == 4.0
    assert speedup(ops=(("transformer_blocks.0", "CRRR"),)) == pytest.approx(40 / (40 - 3 * 4))
    assert speedup(ops=(("transformer_blocks.0.ff", "CSCC"),)) == pytest.approx(40 / 39)
    ff = PrecisionRule(pattern="*.ff.net.*", weight="int8", activation="int8")
    assert table.find("linear", fmt="int8").execution == "torch"
    assert speedup(precision=(ff,)) == pytest.approx(10 / (10 - 2 * 0.125))
    few = identity_schedule(pipe, 2, height=16, width=24)
    assert predicted_speedup(few, plain, times, prices) == 2.0


def test_loops_are_timed_beside_their_predictions(table, pipe, workload):
    schedules = example_schedules(pipe, workload)
    rounds = []

    rows = measure_loops(pipe, workload, schedules, table, repeats=2, warmup=1, on_round=rounds.append)

    assert list(schedules) == [row.name for row in rows] == ["2x model", "4x model", "8x model", "blocks"]
    assert rounds == [1, 2, 3]
    assert [row.predicted for row in rows[:2]] == pytest.approx([2.0, 4.0])
    assert all(row.n == 2 and row.low <= row.speedup <= row.high for row in rows)
    assert rows[1].schedule == schedules["4x model"].id
    assert not hasattr(pipe.transformer, "_schedsearch_handle")


def test_a_schedule_for_another_size_is_refused(table, pipe, workload):
    other = {"plan": identity_schedule(pipe, 4, height=16, width=16)}

    with pytest.raises(UsageError, match="plan: model: found a schedule for 16x16 pixels, expected 24x16"):
        measure_loops(pipe, workload, other, table)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none")
def test_a_table_on_an_accelerator(card, workload):
    pipe = random_pipeline(card, device="cuda", dtype="bfloat16")
    rules = [parse_word(word, base="bf16") for word in ("int8", "fp8_e4m3", "int4/bf16")]
    header = table_header(pipe, card, weights="random")

    table = measure_table(pipe, workload, header, rules=rules, repeats=3)
    loops = measure_loops(pipe, workload, example_schedules(pipe, workload), table, repeats=2, device="cuda")

    assert header.device == torch.cuda.get_device_name()
    assert all(row.eager_ms is not None for row in table.rows if row.execution == "base")
    assert all(row.compiled_ms is not None for row in table.rows if row.op in {"denoiser", "block"})
    assert {row.format for row in table.rows} == {"bf16", "int8", "fp8_e4m3", "int4/bf16"}
    assert all(loop.speedup > 1.0 for loop in loops[:2])
