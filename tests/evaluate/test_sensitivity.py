"""Effects of single changes on a random pipeline, against what running them says, and the file they are kept in."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from schedsearch.errors import UsageError
from schedsearch.evaluate import find_metric, weight_bytes
from schedsearch.evaluate._latent_errors import LOST, LatentErrors
from schedsearch.evaluate._sensitivity import (
    SensitivityMeter,
    SensitivityPlan,
    choices_of,
    measure_sensitivities,
    with_changes,
)
from schedsearch.runtime import apply
from schedsearch.schedule import PrecisionRule
from schedsearch.sensitivity import (
    REMOVED,
    additivity,
    average_bits,
    effect_of,
    mixed,
    parse_sensitivities,
    protected_layers,
    removed_blocks,
    rules_of,
    sensitivities_text,
)

PROMPTS = ("a", "bb")


@pytest.fixture(scope="module")
def choices():
    return choices_of(["int4", "int2"], base="fp32")


@pytest.fixture(scope="module")
def meter(tiny, tiny_card, tiny_plan):
    return SensitivityMeter(
        tiny, tiny_card, PROMPTS, prompts_name="letters", carrier=tiny_plan(steps=2), seed=3, batch=2
    )


@pytest.fixture(scope="module")
def found(meter, choices):
    return measure_sensitivities(meter, SensitivityPlan(choices=choices, subsets=8))


class TestLatentErrors:
    def test_of_itself_is_nothing_and_of_another_what_the_metric_says(self, tiny, tiny_plan, tiny_runs):
        base, other = tiny_plan(steps=6), tiny_plan(steps=3)
        errors = LatentErrors(tiny_runs(3, 2), base=base)
        assert errors.of(base) == (0.0, 0.0, 0.0)
        runs = tiny_runs(3, 3)
        ends = []
        for schedule in (other, base):
            with apply(tiny, schedule):
                ends.append(runs.latents(0, 3, steps=schedule.n_steps))
        assert errors.of(other) == pytest.approx(find_metric("latent_error")(*ends), rel=1e-4)

    def test_without_a_base_it_is_the_plain_pipeline(self, tiny_plan, tiny_runs, tiny_workload):
        plain = tiny_plan(steps=tiny_workload.steps)
        assert LatentErrors(tiny_runs(2)).of(plain) == (0.0, 0.0)

    def test_what_is_no_number_is_a_large_one(self, tiny_plan, tiny_runs, monkeypatch):
        errors = LatentErrors(tiny_runs(2), base=tiny_plan(steps=2))
        errors.of(tiny_plan(steps=2))
        monkeypatch.setattr(errors, "_ends", lambda _: torch.full_like(errors._wanted, float("nan")))
        assert errors.of(tiny_plan(steps=2)) == (LOST, LOST)


class TestChoices:
    def test_words_without_an_activation_leave_inputs_as_they_are(self):
        made = choices_of(["int4", "int8/int8", "int4+8", "int4"], base="bf16")
        assert [(c.word, c.weight, c.activation, c.rank) for c in made] == [
            ("int4/bf16", "int4", "bf16", 0), ("int8", "int8", "int8", 0), ("int4/bf16+8", "int4", "bf16", 8),
        ]  # fmt: skip
        assert [c.word for c in choices_of(["int4"], base="fp32", activation="int8")] == ["int4/int8"]

    def test_what_saves_nothing_is_left_out(self):
        words = ["fp32", "fp16", "bf16", "int8"]
        assert [c.word for c in choices_of(words, base="fp32")] == ["fp16/fp32", "bf16/fp32", "int8/fp32"]
        assert [c.word for c in choices_of(words, base="fp16")] == ["int8/fp16"]


class TestMeasuring:
    def test_every_layer_in_every_format_and_every_block(self, found, meter, choices):
        names = [layer.name for layer in found.layers]
        blocks = ("transformer_blocks.0", "transformer_blocks.1")
        assert found.blocks[:2] == blocks
        expected = [(name, choice.word) for choice in choices for name in names]
        assert list(found.by_key) == expected + [(block, REMOVED) for block in found.blocks]
        assert {len(subset.errors) for subset in found.subsets} == {2}

    def test_a_cell_is_what_running_it_says(self, found, meter, tiny_plan):
        name = "transformer_blocks.1.ff.net.2"
        cell = found.cell(name, "int4/fp32")
        rule = PrecisionRule(pattern=name, weight="int4", activation="fp32")
        changed = dataclasses.replace(tiny_plan(steps=2), precision=(rule,))
        assert cell.errors == meter._errors.of(changed)
        assert cell.effect == effect_of(cell.errors) > 0.0
        plain = weight_bytes(tiny_plan(steps=2), meter.linears)
        assert cell.saved_bytes == plain - weight_bytes(changed, meter.linears)
        assert cell.bits == pytest.approx(4.5)
        assert cell.saved_ms is None
        gone = found.cell("single_transformer_blocks.0", REMOVED)
        assert gone.saved_bytes == plain - weight_bytes(
            dataclasses.replace(tiny_plan(steps=2), pruned=("single_transformer_blocks.0",)), meter.linears
        )

    def test_fewer_bits_do_more_harm(self, found):
        effects = [sum(c.effect for c in found.cells if c.word == f"int{bits}/fp32") for bits in (4, 2)]
        assert effects[0] < effects[1] / 4

    def test_it_goes_on_where_it_was_cut_off(self, found, meter, choices, monkeypatch):
        saved = []
        cut = dataclasses.replace(found, cells=found.cells[:5], subsets=())
        measured = []
        monkeypatch.setattr(meter, "errors", lambda *changes: measured.append(changes) or (0.1, 0.2))
        plan = SensitivityPlan(choices=choices[:1], blocks=False, subsets=2)
        again = measure_sensitivities(meter, plan, known=cut, save=saved.append)
        assert again.cells[:5] == found.cells[:5]
        assert len(measured) == len(saved) == len(found.layers) - 5 + 2
        assert saved[-1] is again
        assert measure_sensitivities(meter, plan, known=again) == again

    def test_numbers_of_something_else_are_refused(self, found, meter, choices):
        other = dataclasses.replace(found, header=dataclasses.replace(found.header, seed=4))
        with pytest.raises(UsageError, match="sensitivities: seed: found 4 in the file, expected 3"):
            measure_sensitivities(meter, SensitivityPlan(choices=choices), known=other)
        other = dataclasses.replace(found, layers=found.layers[1:])
        with pytest.raises(UsageError, match="layers: found other ones in the file, expected those of this model"):
            measure_sensitivities(meter, SensitivityPlan(choices=choices), known=other)

    def test_a_carrier_with_changes_is_refused(self, tiny, tiny_card, tiny_plan):
        carrier = tiny_plan(pruned=("transformer_blocks.0",))
        with pytest.raises(UsageError, match="carrier: found precision rules or removed blocks"):
            SensitivityMeter(tiny, tiny_card, PROMPTS, prompts_name="", carrier=carrier)

    def test_rows_of_a_removed_block_go_with_it(self, tiny_plan):
        rows = {"transformer_blocks.0": "CR", "transformer_blocks.0.ff": "CR", "transformer_blocks.1": "CR"}
        changed = with_changes(tiny_plan(steps=2, rows=rows), (), ("transformer_blocks.0",))
        assert changed.ops == (("transformer_blocks.1", "CR"),)


class TestChoosing:
    def test_the_file_gives_back_what_was_measured(self, found):
        assert parse_sensitivities(sensitivities_text(found)) == found

    def test_the_rules_of_an_assignment_give_the_bits_it_says(self, found, meter, tiny_plan):
        chosen = mixed(found, limit=6.0)
        picks = dict(chosen.picks)
        assert average_bits(found, picks) == pytest.approx(chosen.cost / found.weights)
        assert chosen.cost <= 6.0 * found.weights
        schedule = dataclasses.replace(tiny_plan(steps=2), precision=rules_of(found, picks))
        saved = sum(found.cell(name, word).saved_bytes for name, word in picks.items() if word != "fp32")
        plain = weight_bytes(tiny_plan(steps=2), meter.linears)
        assert plain - weight_bytes(schedule, meter.linears) == pytest.approx(saved, abs=len(picks))
        assert meter._errors.of(schedule)

    def test_protected_layers_keep_what_they_are(self, found):
        names = [layer.name for layer in found.layers]
        kept = protected_layers(names)
        assert "transformer_blocks.0.norm1_context.linear" in kept
        assert "single_transformer_blocks.1.norm.linear" in kept
        assert {"x_embedder", "context_embedder", "norm_out.linear", "proj_out"} < set(kept)
        assert not any(".attn." in name or ".ff" in name for name in kept)
        chosen = dict(mixed(found, limit=20.0, protected=dict.fromkeys(kept, "fp32")).picks)
        assert {chosen[name] for name in kept} == {"fp32"}

    def test_blocks_to_leave_out_are_those_of_least_effect(self, found):
        order = sorted(found.blocks, key=lambda block: found.cell(block, REMOVED).effect)
        chosen = removed_blocks(found, saving=2, cost="count")
        assert {block for block, word in chosen.picks if word == REMOVED} == set(order[:2])

    def test_additivity_compares_sums_with_what_was_measured(self, found):
        both = additivity(found, "formats"), additivity(found, "removed")
        assert [one.n for one in both] == [8, len({s.picks for s in found.subsets if s.kind == "removed"})]
        assert all(-1.0 <= one.spearman <= 1.0 and one.ratio > 0 for one in both)
        assert both[0].spearman > 0.5
