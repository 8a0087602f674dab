"""Corrections of rows and layers: exact where the truth is affine, never worse on what was fitted, nothing left."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from schedsearch.errors import UsageError
from schedsearch.evaluate import (
    LatentErrors,
    correct_layers,
    correct_rows,
    schedule_macs,
    without_corrections,
)
from schedsearch.evaluate import _correction as correction
from schedsearch.evaluate._correction import full_schedule, rounds_of
from schedsearch.evaluate._work import step_work
from schedsearch.runtime import apply, block_lists_of
from schedsearch.runtime._plan import plan
from schedsearch.schedule import PrecisionRule, Solver, corrections
from schedsearch.types import BlockSpec

N_STEPS = 6
INT4 = (PrecisionRule(pattern="*", weight="int4", activation="int8"),)


@pytest.fixture
def closed(tiny, monkeypatch):
    """The tiny pipeline with the exact velocity of one Gaussian in place of its network: affine in every channel, so
    one step's output is an affine function of any other's.
    """
    mean, variance = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.tensor([0.1, 0.5, 1.0, 2.0])

    def forward(hidden_states, timestep, **_):
        b = timestep.reshape(-1, 1, 1).float()
        a = 1.0 - b
        slope = (b - a * variance) / (a * a * variance + b * b)
        return (slope * (hidden_states - a * mean) - mean,)

    monkeypatch.setattr(tiny.transformer, "forward", forward)
    return tiny


def mean_error(errors, schedule):
    return statistics.fmean(errors.of(schedule))


class TestClosedForm:
    @pytest.mark.parametrize("row", ["CRRRRR", "CRRCRR", "CC1CR2"])
    def test_corrected_reuse_is_the_full_run(self, closed, tiny_runs, tiny_plan, row):
        runs, schedule = tiny_runs(n=4, batch=3), tiny_plan(N_STEPS, rows={"model": row})
        errors = LatentErrors(runs)
        corrected = correct_rows(runs, schedule).schedule
        assert mean_error(errors, schedule) > 1e-2
        assert mean_error(errors, corrected) < 1e-4

    def test_one_pass_is_not_because_what_is_kept_later_has_moved(self, closed, tiny_runs, tiny_plan):
        runs, schedule = tiny_runs(n=4, batch=3), tiny_plan(N_STEPS, rows={"model": "CRRCRR"})
        errors = LatentErrors(runs)
        in_one = correct_rows(runs, schedule, on_policy=False).schedule
        assert mean_error(errors, in_one) > 1e-3
        assert mean_error(errors, correct_rows(runs, schedule).schedule) < 1e-4

    def test_the_correction_is_the_ratio_of_slopes(self, closed, tiny_runs, tiny_plan):
        """``v`` is ``k(s) (x - a m) - m``, and ``x`` at the second step ``x + (s1 - s0) v`` of the first."""
        runs, schedule = tiny_runs(n=4, batch=4), tiny_plan(2, rows={"model": "CR"})
        fitted = correct_rows(runs, schedule)
        (name,) = [t.name for t in fitted.schedule.tables.tensors]
        assert name == "model.correction"
        noise = runs.noise(0, 4)
        s = schedule.sigma
        with torch.inference_mode():
            v0 = closed.transformer.forward(noise, torch.tensor([s[0]]))[0]
            v1 = closed.transformer.forward(noise + (s[1] - s[0]) * v0, torch.tensor([s[1]]))[0]
        from safetensors.torch import load

        scale, shift = load(fitted.schedule.tables.data)[name][1, 0]
        assert torch.allclose(scale * v0 + shift, v1, atol=1e-4)
        assert fitted.errors[0].after < 1e-9 < fitted.errors[0].before


class TestRows:
    ROWS = (
        {"model": "CRRCRR"},
        {"transformer_blocks.0": "CRC1RR", "transformer_blocks.1": "CRC1RR"},
        {"transformer_blocks.1.attn": "CRCRCR", "single_transformer_blocks.0.proj_out": "CCRR1R"},
    )

    @pytest.mark.parametrize("rows", ROWS)
    @pytest.mark.parametrize("on_policy", [True, False])
    def test_no_fit_is_worse_and_the_run_is_nearer(self, tiny_runs, tiny_plan, rows, on_policy):
        runs, schedule = tiny_runs(n=5, batch=2), tiny_plan(N_STEPS, rows=rows)
        errors = LatentErrors(runs)
        fitted = correct_rows(runs, schedule, on_policy=on_policy)
        assert fitted.errors
        assert all(e.after < e.before for e in fitted.errors)
        assert mean_error(errors, fitted.schedule) < mean_error(errors, schedule)

    def test_blocks_that_share_a_cache_are_corrected_as_one(self, tiny_runs, tiny_plan):
        schedule = tiny_plan(N_STEPS, rows=self.ROWS[1])
        fitted = correct_rows(tiny_runs(n=2), schedule).schedule
        assert list(corrections(fitted)) == ["transformer_blocks.0"]
        assert [bool(d) for d in corrections(fitted)["transformer_blocks.0"]] == [False, True, False, True, True, True]

    def test_batches_do_not_matter(self, tiny_runs, tiny_plan):
        from safetensors.torch import load

        schedule = tiny_plan(N_STEPS, rows=self.ROWS[0])
        tables = [
            load(correct_rows(tiny_runs(n=4, batch=b), schedule).schedule.tables.data)["model.correction"]
            for b in (1, 4)
        ]
        assert torch.allclose(*tables, atol=1e-3)

    def test_nothing_is_corrected_where_reuse_changes_nothing(self, tiny, monkeypatch, tiny_runs, tiny_plan):
        still = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(3))
        monkeypatch.setattr(
            tiny.transformer,
            "forward",
            lambda hidden_states, **_: (still[:, : hidden_states.shape[1]].expand_as(hidden_states),),
        )
        schedule = tiny_plan(N_STEPS, rows={"model": "CRRCRR"})
        fitted = correct_rows(tiny_runs(n=3), schedule)
        assert fitted.schedule == schedule
        assert fitted.errors == ()

    def test_a_schedule_without_predictions_stays(self, tiny_runs, tiny_plan):
        schedule = tiny_plan(N_STEPS, rows={"transformer_blocks.0": "CSCCCC"})
        assert correct_rows(tiny_runs(n=1), schedule).schedule == schedule

    def test_corrections_there_are_replaced_and_can_be_taken_out(self, tiny_runs, tiny_plan):
        runs, schedule = tiny_runs(n=3), tiny_plan(N_STEPS, rows=self.ROWS[0])
        once = correct_rows(runs, schedule).schedule
        assert correct_rows(runs, once).schedule == once
        assert without_corrections(once) == schedule

    def test_little_memory_thins_what_is_compared(self, tiny_runs, tiny_plan, monkeypatch):
        runs, schedule = tiny_runs(n=3), tiny_plan(N_STEPS, rows=self.ROWS[1])
        whole = correct_rows(runs, schedule).errors[0]
        monkeypatch.setattr(correction, "RECORD_BYTES", 40_000)
        some = correct_rows(runs, schedule).errors[0]
        assert some.before == pytest.approx(whole.before, rel=0.5)
        assert some.before != whole.before

    def test_nothing_is_left_on_the_pipeline(self, tiny, tiny_runs, tiny_plan):
        correct_rows(tiny_runs(n=1), tiny_plan(N_STEPS, rows=self.ROWS[2]))
        assert not hasattr(tiny.transformer, "_schedsearch_handle")
        assert not any("forward" in m.__dict__ or m._forward_hooks for m in tiny.transformer.modules())


class TestLayers:
    @pytest.mark.parametrize("tables", ["step", "constant"])
    def test_every_layer_is_nearer_to_its_base(self, tiny, tiny_runs, tiny_plan, tables):
        runs = tiny_runs(n=4, batch=2)
        schedule = tiny_plan(N_STEPS, rows={"model": "CRCRCR"}, precision=INT4)
        fitted = correct_layers(runs, schedule, tables=tables)
        assert len(fitted.errors) > 40
        assert all(e.after < e.before for e in fitted.errors)
        shapes = {t.shape[0] for t in fitted.schedule.tables.tensors}
        assert shapes == {N_STEPS if tables == "step" else 1}
        with apply(tiny, fitted.schedule) as handle:
            assert ("corrected per step" if tables == "step" else "corrected, ") in handle.describe()

    def test_steps_that_do_not_run_are_left_alone(self, tiny_runs, tiny_plan):
        from safetensors.torch import load

        schedule = tiny_plan(N_STEPS, rows={"model": "CRCRCR"}, precision=INT4)
        fitted = correct_layers(tiny_runs(n=2), schedule).schedule
        table = load(fitted.tables.data)["x_embedder.affine"]
        for step, is_run in enumerate((True, False) * 3):
            identity = bool((table[step, 0] == 1.0).all() and (table[step, 1] == 0.0).all())
            assert identity is not is_run

    def test_too_many_numbers_are_fitted_for_all_steps(self, tiny_runs, tiny_plan, monkeypatch):
        monkeypatch.setattr(correction, "LAYER_BYTES", 1000)
        schedule = tiny_plan(N_STEPS, precision=INT4)
        fitted = correct_layers(tiny_runs(n=1), schedule, tables="step").schedule
        assert {t.shape[0] for t in fitted.tables.tensors} == {1}

    def test_then_rows_on_top(self, tiny_runs, tiny_plan):
        runs = tiny_runs(n=5, batch=2)
        schedule = tiny_plan(N_STEPS, rows={"model": "CRCRCR"}, precision=INT4)
        errors = LatentErrors(runs)
        layers = correct_layers(runs, schedule).schedule
        both = correct_rows(runs, layers).schedule
        assert mean_error(errors, both) < mean_error(errors, schedule)
        assert without_corrections(both) == schedule
        assert {t.name for t in layers.tables.tensors} < {t.name for t in both.tables.tensors}

    def test_none_and_unknown_words(self, tiny_runs, tiny_plan):
        schedule = tiny_plan(N_STEPS, precision=INT4)
        assert correct_layers(tiny_runs(n=1), schedule, tables="none").schedule == schedule
        with pytest.raises(UsageError, match="layers: found 'all', expected one of step, constant, none"):
            correct_layers(tiny_runs(n=1), schedule, tables="all")


def test_a_correction_costs_one_multiply_add_and_no_macs(tiny, tiny_runs, tiny_plan, tiny_table):
    lists = block_lists_of(tiny)
    schedule = tiny_plan(N_STEPS, rows={"model": "CRRC1C"})
    fitted = correct_rows(tiny_runs(n=2), schedule).schedule
    before, after = (step_work(each, lists) for each in (schedule, fitted))
    assert [work.predicted for work in before] == [(), (("model", 0),), (("model", 0),), (), (("model", 1),), ()]
    assert [work.predicted for work in after] == [(), (("model", 1),), (("model", 1),), (), (("model", 2),), ()]
    assert schedule_macs(fitted, tiny_table, lists) == schedule_macs(schedule, tiny_table, lists)


def test_rounds_end_where_something_is_kept(tiny_plan):
    def rounds(rows):
        lists = [[BlockSpec(name=f"transformer_blocks.{i}", components=("attn",)) for i in range(2)]]
        return rounds_of(plan(tiny_plan(6, rows=rows), lists))

    assert rounds({"model": "CRRCRR"}) == [[1, 2], [4, 5]]
    assert rounds({"model": "CRRRRR"}) == [[1, 2, 3, 4, 5]]
    # Block 1 keeps at step 1 what it computes behind block 0's prediction.
    assert rounds({"transformer_blocks.0": "CRCRCR", "transformer_blocks.1": "CCRCRC"}) == [[1], [2], [3], [4], [5]]
    # What is computed and never used again closes nothing.
    assert rounds({"transformer_blocks.0": "CRRRCC"}) == [[1, 2, 3]]
    assert rounds({}) == []


def test_the_full_run_has_the_same_steps_and_nothing_else(tiny_plan):
    table = Solver(family="table", order=2)
    schedule = tiny_plan(2, rows={"model": "CR"}, precision=INT4)
    full = full_schedule(replace(schedule, solver=(Solver(), table)))
    assert full == replace(tiny_plan(2), solver=(Solver(), Solver(family="adams", order=2)))
