"""Recording inputs and fitting tables on a random pipeline, against what its layers really saw."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from schedsearch.errors import EvaluationError, UsageError
from schedsearch.evaluate import CalibrationPolicy, calibrate, policy_of
from schedsearch.evaluate import _calibration as module
from schedsearch.evaluate._calibration import (
    SCALE,
    UNSMOOTHED,
    fitting_tools,
    packed,
    plain_schedule,
    static_tables,
)
from schedsearch.evaluate._latent_errors import LatentErrors
from schedsearch.evaluate._layer_inputs import record_inputs
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.quantize import QuantLinear, output_error
from schedsearch.runtime import apply
from schedsearch.runtime._precision import linears_of
from schedsearch.schedule import PrecisionRule, read_schedule, write_schedule
from schedsearch.schedule._side import unpack

NAME = "transformer_blocks.1.ff.net.2"
OTHER = "single_transformer_blocks.0.proj_out"
ONCE = "transformer_blocks.0.norm1.linear"
POLICY = CalibrationPolicy(name="few", prompts=3, rows=40, judged=16, decides="layer")
LOW = PrecisionRule(pattern="transformer_blocks.*.ff.net.2", weight="int4", activation="int8")


@pytest.fixture(scope="module")
def plan4(tiny_plan):
    return tiny_plan(steps=4, rows={"model": "CCRC"})


@pytest.fixture(scope="module")
def low(plan4):
    return dataclasses.replace(plan4, precision=(LOW,))


@pytest.fixture(scope="module")
def made(tiny, tiny_workload, low):
    return calibrate(tiny, tiny_workload, low, ("a", "bb", "ccc", "dddd"), POLICY, batch=2)


@pytest.fixture
def seen(tiny, tiny_runs, plan4):
    """All inputs of a layer by call, in one batch."""
    linear = linears_of(tiny.transformer)[NAME]
    inputs = []
    hook = linear.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].detach().clone()))
    try:
        runs = tiny_runs(3, 2)
        with apply(tiny, plan4):
            for start, stop in runs.batches(3):
                runs.latents(start, stop, steps=4)
    finally:
        hook.remove()
    return [torch.cat([inputs[i], inputs[i + 3]]).flatten(0, -2) for i in range(3)]


def recorded(runs, schedule, layers, policy, **more):
    groups = record_inputs(runs, schedule, layers, policy, **more)
    return {name: inputs for group in groups for name, inputs in group.items()}


class TestRecording:
    def test_rows_are_rows_that_the_layer_saw_in_the_order_of_steps(self, tiny_runs, plan4, seen):
        found = recorded(tiny_runs(3, 2), plan4, (NAME,), POLICY)[NAME]
        assert (found.rows.shape[0], found.judged.shape[0]) == (40, 16)
        quotas = POLICY.quotas(4, {0, 1, 3}, 40)
        assert quotas == {0: 10, 1: 20, 3: 10}
        at = 0
        for (_, n), inputs in zip(quotas.items(), seen, strict=True):
            for row in found.rows[at : at + n]:
                assert (inputs - row).abs().amax(1).min() < 1e-5
            at += n
        kept = {tuple(row.tolist()) for row in found.rows}
        assert len(kept) == 40
        assert not kept & {tuple(row.tolist()) for row in found.judged}

    def test_statistics_are_of_all_rows_of_the_steps_recorded(self, tiny_runs, plan4, seen):
        found = recorded(tiny_runs(3, 2), plan4, (NAME,), POLICY)[NAME].statistics
        assert found.count.tolist() == [len(seen[0]), len(seen[1]), 0, len(seen[2])]
        for step, inputs in zip((0, 1, 3), seen, strict=True):
            torch.testing.assert_close(found.largest(step), inputs.abs().amax(0), rtol=1e-4, atol=1e-5)

    def test_the_same_call_keeps_the_same_rows_and_another_seed_others(self, tiny_runs, plan4):
        one, two, other = (recorded(tiny_runs(3, 2), plan4, (NAME,), POLICY, seed=seed)[NAME] for seed in (0, 0, 1))
        assert torch.equal(one.rows, two.rows)
        assert not torch.equal(one.rows, other.rows)

    def test_less_memory_takes_more_runs_and_gives_the_same(self, tiny_runs, plan4):
        names = (NAME, OTHER, ONCE)
        whole = list(record_inputs(tiny_runs(3, 2), plan4, names, POLICY))
        parts = list(record_inputs(tiny_runs(3, 2), plan4, names, POLICY, max_bytes=1))
        assert [list(group) for group in whole] == [list(names)]
        assert [list(group) for group in parts] == [[name] for name in names]
        assert all(torch.equal(whole[0][name].rows, group[name].rows) for name, group in zip(names, parts, strict=True))

    def test_layers_with_few_rows_give_what_they_have_to_both_sides(self, tiny_runs, plan4):
        found = recorded(tiny_runs(3, 2), plan4, (ONCE,), POLICY)[ONCE]
        assert (len(found.rows), len(found.judged)) == (3 * 3, 0)  # a row per prompt and call, far fewer than wanted

    def test_the_last_step_alone(self, tiny_runs, plan4, seen):
        last = dataclasses.replace(POLICY, steps="last")
        found = recorded(tiny_runs(3, 2), plan4, (NAME,), last)[NAME]
        assert found.statistics.count.tolist() == [0, 0, 0, len(seen[2])]

    def test_a_layer_that_never_runs_is_left_out(self, tiny_runs, tiny_plan):
        schedule = tiny_plan(steps=3, rows={"transformer_blocks.1": "SSS"})
        assert list(recorded(tiny_runs(3, 2), schedule, (NAME, OTHER), POLICY)) == [OTHER]

    def test_no_hook_stays_and_unknown_layers_are_named(self, tiny, tiny_runs, plan4):
        recorded(tiny_runs(3, 2), plan4, (NAME,), POLICY)
        assert not linears_of(tiny.transformer)[NAME]._forward_pre_hooks
        with pytest.raises(EvaluationError, match="found no linear layer nothing, expected one of the denoiser's"):
            recorded(tiny_runs(3, 2), plan4, ("nothing",), POLICY)


class TestCalibrating:
    def test_every_low_bit_layer_is_fitted_and_none_gets_worse(self, made):
        assert list(made.layers) == [f"transformer_blocks.{i}.ff.net.2" for i in range(2)]
        for errors in made.layers.values():
            tried = [tool for tool, _ in errors]  # smoothing is only tried where some exponent helps
            assert [tool for tool in tried if tool != "smooth"] == ["plain", "rounding", "bias"]
            assert [error for _, error in errors] == sorted((error for _, error in errors), reverse=True)
        assert made.count("rounding") >= 1
        assert (made.tools, made.errors, made.left_out) == (("smooth", "rounding", "bias"), (), ())

    def test_the_tables_in_the_schedule_make_the_layer_that_was_measured(self, made, tiny, tiny_runs, low, tmp_path):
        from schedsearch.runtime._precision import layer_tables

        write_schedule(made.schedule, tmp_path / "s.json")
        tables = layer_tables(read_schedule(tmp_path / "s.json"))[NAME]
        linear = linears_of(tiny.transformer)[NAME]
        inputs = recorded(tiny_runs(3, 2), plain_schedule(low), (NAME,), POLICY)[NAME]
        # The prompts of `tiny_runs` are not those of `calibrate`, so the rows are not, but the gain is.
        exact = linear(inputs.judged).detach()
        with_tables = QuantLinear.of(linear, LOW, tables, execution="simulated")(inputs.judged).detach()
        without = QuantLinear.of(linear, LOW, {}, execution="simulated")(inputs.judged).detach()
        assert output_error(exact, with_tables) < output_error(exact, without)

    def test_the_artefact_says_its_policy_and_runs(self, made, tiny_runs):
        assert policy_of(made.schedule) == POLICY
        errors = LatentErrors(tiny_runs(1), base=plain_schedule(made.schedule))
        assert 0.0 < errors.of(made.schedule)[0] < 1.0

    def test_the_latents_decide_how_many_kinds_are_kept(self, tiny, tiny_workload, low, monkeypatch):
        policy = dataclasses.replace(POLICY, decides="latent_error")
        answers = iter((0.3, 0.1, 0.2, 0.4))
        monkeypatch.setattr(module.LatentErrors, "of", lambda *_: (next(answers),))
        made = calibrate(tiny, tiny_workload, low, ("a", "bb", "ccc"), policy, batch=2)
        assert made.errors == (0.3, 0.1, 0.2, 0.4)
        assert made.tools == ("smooth",)
        tensors = made.schedule.tables.tensors if made.schedule.tables is not None else ()
        assert {tensor.name.rpartition(".")[2] for tensor in tensors} <= {"smooth"}

    @pytest.mark.parametrize(("scales", "length"), [("static", 1), ("per-step", 4)])
    def test_static_scales_are_those_of_what_the_layer_multiplies(self, tiny, tiny_workload, low, scales, length):
        policy = dataclasses.replace(POLICY, scales=scales)
        made = calibrate(tiny, tiny_workload, low, ("a", "bb", "ccc"), policy, batch=2)
        tensors = {tensor.name: tensor for tensor in made.schedule.tables.tensors}
        assert tensors[f"{NAME}.activation_scale"].shape == (length,)
        assert policy_of(made.schedule) == policy
        runs = PairedRuns(tiny, tiny_workload, ("a",), seed=0, batch=1)
        errors = LatentErrors(runs, base=plain_schedule(made.schedule))
        assert 0.0 < errors.of(made.schedule)[0] < 1.0

    def test_scales_follow_the_smoothing_that_is_kept(self, tiny_runs, plan4):
        inputs = recorded(tiny_runs(3, 2), plan4, (NAME,), POLICY)[NAME]
        assert inputs.counts == (10, 20, 0, 10)
        assert [sum(map(len, parts)) for parts in inputs.by_step()] == [10, 20, 0, 10]
        smooth = torch.full((inputs.rows.shape[1],), 4.0)
        policy = dataclasses.replace(POLICY, scales="per-step")
        own = static_tables(LOW, inputs, policy, smooth)
        torch.testing.assert_close(own[SCALE] * 4.0, own[UNSMOOTHED])
        assert own[SCALE][2] == own[SCALE][1]  # a step without rows has the nearest one's
        scales = {}
        for tools in (("smooth",), ()):
            made = packed(plan4, {NAME: {"smooth": smooth, **own}}, tools, policy)
            scales[tools] = unpack(made.tables.data)[f"{NAME}.{SCALE}"].raw
        assert scales == {("smooth",): own[SCALE].numpy().tobytes(), (): own[UNSMOOTHED].numpy().tobytes()}
        assert static_tables(LOW, inputs, POLICY, smooth) == {}
        assert static_tables(dataclasses.replace(LOW, activation="fp32"), inputs, policy, smooth) == {}

    def test_old_tables_and_measurements_are_replaced(self, made, tiny, tiny_workload):
        short = dataclasses.replace(POLICY, rows=8, name="other")
        again = calibrate(tiny, tiny_workload, made.schedule, ("a", "bb", "ccc"), short, batch=2)
        assert policy_of(again.schedule) == short
        assert plain_schedule(again.schedule) == plain_schedule(made.schedule)
        assert plain_schedule(made.schedule).tables is None

    def test_what_cannot_be_calibrated_is_refused(self, tiny, tiny_workload, low, plan4):
        with pytest.raises(UsageError, match="found 0 precision rules and no low-bit layer among"):
            calibrate(tiny, tiny_workload, plan4, ("a", "b", "c"), POLICY)
        base = dataclasses.replace(low, precision=(PrecisionRule(pattern="*", weight="fp32", activation="fp32"),))
        with pytest.raises(UsageError, match="found 1 precision rules and no low-bit layer"):
            calibrate(tiny, tiny_workload, base, ("a", "b", "c"), POLICY)
        elsewhere = dataclasses.replace(POLICY, layers="single_*")
        with pytest.raises(UsageError, match=r"no low-bit layer among single_\*"):
            calibrate(tiny, tiny_workload, low, ("a", "b", "c"), elsewhere)
        with pytest.raises(UsageError, match="found 2 prompts, expected the 3 of few"):
            calibrate(tiny, tiny_workload, low, ("a", "b"), POLICY)

    def test_rounding_of_models_too_large_for_a_side_file_is_left_out(self, monkeypatch):
        layers = {"a": torch.nn.Linear(64, 64)}
        assert fitting_tools(layers) == ("smooth", "rounding", "bias")
        monkeypatch.setattr(module, "MAX_SIDE_BYTES", 1000)
        assert fitting_tools(layers) == ("smooth", "bias")

    def test_packing_keeps_values_and_kinds_asked_for(self, plan4):
        tables = {NAME: {"smooth": torch.arange(1.0, 4.0), "bias": torch.ones(2)}}
        made = packed(plan4, tables, ("smooth",), POLICY)
        assert [(t.name, t.shape, t.dtype) for t in made.tables.tensors] == [(f"{NAME}.smooth", (3,), "F32")]
        assert made.tables.data.endswith(torch.arange(1.0, 4.0).numpy().tobytes())
