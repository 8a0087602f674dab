"""Counts against an independent counter, a published total, and arithmetic on rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from schedsearch.errors import EvaluationError
from schedsearch.evaluate import schedule_macs
from schedsearch.evaluate._macs import count_call
from schedsearch.evaluate._trace import capture_call, counting_calls
from schedsearch.evaluate._work import step_work
from schedsearch.schedule import Solver
from schedsearch.types import BlockSpec

FLUX_BLOCKS = (("transformer_blocks", 19), ("single_transformer_blocks", 38))


def test_the_total_is_that_of_torchs_own_counter(mini, short, table):
    kwargs = capture_call(mini, short, "a picture").kwargs

    # torch counts matrix products; its table has no rule for the CPU's fused attention, so attention is unfused here.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mini.transformer(**kwargs)

    assert table.total * 2 == counter.get_total_flops()


def test_parts_are_those_of_torchs_own_counter(mini, short, table):
    kwargs = capture_call(mini, short, "a picture").kwargs

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, depth=9) as counter:
        mini.transformer(**kwargs)

    counts = counter.get_flop_counts()
    for name, macs in table.modules:
        assert macs * 2 == sum(counts[f"FluxTransformer2DModel.{name}"].values()), name


def test_a_step_of_flux_is_the_published_number():
    """FLUX.1-dev at 1024 x 1024: 2 x (12 d^2 n x 57 + 2 n^2 d x 57) = 74.36 TFLOPs for d = 3072, n = 4096 + 512."""
    with torch.device("meta"):
        denoiser = FluxTransformer2DModel(guidance_embeds=True)
        kwargs = {
            "hidden_states": torch.empty(1, 4096, 64),
            "encoder_hidden_states": torch.empty(1, 512, 4096),
            "pooled_projections": torch.empty(1, 768),
            "timestep": torch.empty(1),
            "guidance": torch.empty(1),
            "img_ids": torch.empty(4096, 3),
            "txt_ids": torch.empty(512, 3),
            "return_dict": False,
        }
        lists = [[BlockSpec(name=f"{kind}.{i}", components=()) for i in range(n)] for kind, n in FLUX_BLOCKS]
        counted = count_call(denoiser, kwargs, lists)

    d, n = 3072, 4608
    terms = 57 * (12 * d * d * n + 2 * n * n * d)
    assert 2 * terms / 1e12 == pytest.approx(74.36, abs=0.005)
    assert counted.total == pytest.approx(terms, rel=0.002)
    # Within the blocks only the modulation (one token) comes on top of the terms.
    assert sum(macs for _, macs in counted.modules) == pytest.approx(terms, rel=0.0005)


def test_the_table_is_of_one_image(mini, short, lists, table):
    kwargs = dict(capture_call(mini, short, ["a picture", "another"]).kwargs)

    assert kwargs["hidden_states"].shape[0] == 2
    assert count_call(mini.transformer, kwargs, lists) == table


def test_attention_that_cannot_be_seen_is_an_error(mini, short, monkeypatch):
    kwargs = capture_call(mini, short, "a picture").kwargs
    attention = mini.transformer.transformer_blocks[0].attn
    monkeypatch.setattr(
        attention, "forward", lambda hidden_states, encoder_hidden_states, **_: (hidden_states, encoder_hidden_states)
    )

    with pytest.raises(EvaluationError, match=r"found no attention product in transformer_blocks.0.attn \(1 modules\)"):
        count_call(mini.transformer, kwargs, [])


def test_counting_leaves_no_hook_behind(mini, table):
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in mini.transformer.modules())


def test_the_plain_run_costs_every_step_in_full(plan, table, lists):
    assert schedule_macs(plan(steps=5), table, lists) == 5 * table.total
    assert schedule_macs(plan(steps=5), table, lists, branches=2) == 10 * table.total


def test_a_reused_model_costs_nothing(plan, table, lists):
    assert schedule_macs(plan(rows={"model": "CR1C"}), table, lists) == 2 * table.total


def test_a_block_that_does_not_run_is_left_out(plan, table, lists):
    block, other = "transformer_blocks.1", "single_transformer_blocks.3"

    schedule = plan(rows={block: "CRRC", other: "CCSC"})

    assert schedule_macs(schedule, table, lists) == 4 * table.total - 2 * table.of(block) - table.of(other)


def test_a_component_saves_itself_and_the_rest_of_its_block_is_paid(plan, table, lists):
    part = "transformer_blocks.0.ff"

    assert schedule_macs(plan(rows={part: "CR2S"}), table, lists) == 4 * table.total - 3 * table.of(part)


def test_coarser_decisions_win(plan, table, lists):
    block, part = "transformer_blocks.0", "transformer_blocks.0.attn"

    schedule = plan(rows={"model": "CRCC", block: "CCRC", part: "CRRR"})

    assert schedule_macs(schedule, table, lists) == 3 * table.total - table.of(block) - table.of(part)


def test_pruned_modules_are_never_paid(plan, table, lists):
    schedule = plan(pruned=("single_transformer_blocks.7",))

    assert schedule_macs(schedule, table, lists) == 4 * (table.total - table.of("single_transformer_blocks.7"))


def test_guidance_per_step_decides_on_the_second_pass(plan, table, lists):
    schedule = plan(guidance=(3.0, None, None, 3.0))

    assert schedule_macs(schedule, table, lists) == 6 * table.total


def test_a_second_call_does_what_the_first_does(plan, table, lists):
    two = (Solver(family="heun", order=2), Solver(family="adams", order=2, corrector="implicit"), Solver(), Solver())
    part = "transformer_blocks.0.ff"

    # two calls at steps 0 and 1; the reused step 1 computes neither
    assert schedule_macs(plan(solver=two), table, lists) == 6 * table.total
    assert schedule_macs(plan(solver=two, rows={"model": "CRCC"}), table, lists) == 4 * table.total
    assert schedule_macs(plan(solver=two, rows={part: "CSCC"}), table, lists) == 6 * table.total - 2 * table.of(part)


def test_there_is_no_second_call_at_level_zero(plan, table, lists):
    heun = plan(solver=(Solver(family="heun", order=2),) * 4)
    above = dataclasses.replace(heun, sigma=(*heun.sigma[:-1], 0.01))

    assert schedule_macs(heun, table, lists) == 7 * table.total
    assert schedule_macs(above, table, lists) == 8 * table.total


def test_what_is_counted_is_what_runs(mini, short, plan, lists):
    from schedsearch.evaluate import pipeline_kwargs
    from schedsearch.runtime import apply

    solver = (Solver(), Solver(family="heun", order=2), Solver(family="adams", order=3), Solver(family="heun", order=2))
    schedule = plan(solver=solver, rows={"model": "CC1C"})
    sentinel = capture_call(mini, short, "a picture").sentinel
    with counting_calls(mini.transformer, sentinel) as calls, apply(mini, schedule):
        mini(**pipeline_kwargs(short, "a picture", output_type="latent"))

    assert calls.value == sum(work.calls for work in step_work(schedule, lists) if work.runs_denoiser) == 4


def test_a_prediction_without_history_is_paid(plan, lists):
    work = step_work(plan(rows={"model": "C2RC"}), lists)

    assert [step.runs_denoiser for step in work] == [True, False, False, True]
    assert [step.predicted for step in work] == [(), (("model", 0),), (("model", 0),), ()]


def test_an_unknown_module_is_named(table):
    with pytest.raises(EvaluationError, match=r"found no module 'blocks.0', expected a block or component"):
        table.of("blocks.0")


def test_real_calls_are_counted_and_answered_ones_are_not(mini, short, plan):
    from schedsearch.evaluate import pipeline_kwargs
    from schedsearch.runtime import apply

    sentinel = capture_call(mini, short, "a picture").sentinel
    with counting_calls(mini.transformer, sentinel) as calls, apply(mini, plan(rows={"model": "CRRC"})):
        mini(**pipeline_kwargs(short, "a picture", output_type="latent"))

    assert calls.value == 2
