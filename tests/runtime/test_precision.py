"""Precision rules on a live pipeline: which layers they reach, what becomes of the images, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from safetensors.torch import save
from torch import nn

from schedsearch.errors import ApplyError, ModelMismatchError, UnsupportedFeatureError
from schedsearch.quantize import QuantLinear, fake, quantized
from schedsearch.runtime import apply, denoiser_of, identity_schedule
from schedsearch.runtime._precision import linears_of, low_bit_layers, rules_of
from schedsearch.runtime._state import RunState
from schedsearch.schedule import PrecisionRule, Schedule, Tables, TableTensor, dumps, loads

N_STEPS = 4
OUT = "proj_out"
BLOCKS = ("transformer_blocks.0", "transformer_blocks.1")


def rule(pattern: str, weight: str = "int8", activation: str = "int8", **more: Any) -> PrecisionRule:
    return PrecisionRule(pattern=pattern, weight=weight, activation=activation, **more)


def schedule_of(pipe: Any, *rules: PrecisionRule, **changes: Any) -> Schedule:
    size = 16 * pipe.vae_scale_factor
    return dataclasses.replace(identity_schedule(pipe, N_STEPS, height=size, width=size), precision=rules, **changes)


def tables(**tensors: torch.Tensor) -> Tables:
    """Side file of tensors whose names are given with ``__`` for points."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    data = save(named)
    kinds = {torch.float32: "F32", torch.uint8: "U8", torch.float64: "F64"}
    entries = tuple(
        TableTensor(name=name, shape=tuple(t.shape), dtype=kinds[t.dtype], role="test") for name, t in named.items()
    )
    return Tables(sha256=hashlib.sha256(data).hexdigest(), tensors=entries, data=data)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()


def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer that is not left alone is simulated from here on."""
    original = QuantLinear.of.__func__

    def of(cls, *args, **kwargs):
        return original(cls, *args, **{**kwargs, "execution": "simulated"})

    monkeypatch.setattr(QuantLinear, "of", classmethod(of))


class TestIdentity:
    def test_rules_at_the_base_dtype_change_no_bit_and_no_layer(self, shallow, run):
        plain = run(shallow, steps=N_STEPS)
        with apply(shallow, schedule_of(shallow, rule("*", "fp32", "fp32"))) as handle:
            assert not any("forward" in module.__dict__ for module in denoiser_of(shallow).modules())
            assert torch.equal(run(shallow, steps=N_STEPS), plain)
            assert "(42 layers): fp32 x fp32, as it is" in handle.describe()

    def test_removing_gives_back_the_same_bits_and_instances(self, shallow, run):
        denoiser = denoiser_of(shallow)
        before = {name: (module, dict(module.__dict__)) for name, module in denoiser.named_modules()}
        weights = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        plain = run(shallow, steps=N_STEPS)
        handle = apply(shallow, schedule_of(shallow, rule("*", "int4", "int8", rank=2)))
        low = run(shallow, steps=N_STEPS)
        assert distance(low, plain) > 1e-4
        assert torch.equal(run(shallow, steps=N_STEPS), low)
        assert dict(denoiser.state_dict()).keys() == weights.keys()
        handle.remove()
        handle.remove()
        assert torch.equal(run(shallow, steps=N_STEPS), plain)
        for name, module in denoiser.named_modules():
            assert module is before[name][0]
            assert module.__dict__.keys() == before[name][1].keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in denoiser.state_dict().items())

    def test_nothing_is_left_behind_by_a_schedule_that_is_refused(self, shallow):
        with pytest.raises(ModelMismatchError):
            apply(shallow, schedule_of(shallow, rule("*"), rule("nothing")))
        assert not any("forward" in module.__dict__ for module in denoiser_of(shallow).modules())


class TestMixed:
    RULES = (
        rule("time_text_embed.*", "fp32", "fp32"),
        rule("*norm*", "fp32", "fp32"),
        rule("single_*", "fp8_e4m3", "fp8_e4m3"),
        rule("*.attn.*", "int4", "int8", scales="row"),
        rule("*transformer_blocks*"),
    )

    def test_executed_and_simulated_agree(self, mini, run, monkeypatch):
        """Replays a file of int8, int4 and fp8 rules. Sums of whole numbers are exact in float32, so the two agree to
        the bit here; were they not, a value on the edge of two codes would go to the other and the error would grow
        through the layers behind.
        """
        schedule = loads(dumps(schedule_of(mini, *self.RULES)))
        with apply(mini, schedule) as handle:
            executed = run(mini, steps=N_STEPS)
            said = handle.describe()
        simulated(monkeypatch)
        with apply(mini, schedule) as handle:
            assert "int8 x int8, simulated (not faster)" in handle.describe()
            expected = run(mini, steps=N_STEPS)
        assert "int8 x int8, torch\n" in said
        assert "int4 x int8, scales by row, torch\n" in said
        assert "fp8_e4m3 x fp8_e4m3, simulated (not faster)\n" in said
        assert torch.equal(executed, expected)
        assert distance(expected, run(mini, steps=N_STEPS)) > 1e-2

    def test_the_first_rule_wins(self, mini):
        names = tuple(linears_of(denoiser_of(mini)))
        found = rules_of(names, self.RULES)
        assert found["transformer_blocks.0.norm1.linear"].weight == "fp32"
        assert found["single_transformer_blocks.3.proj_mlp"].weight == "fp8_e4m3"
        assert found["transformer_blocks.1.attn.to_q"].weight == "int4"
        assert found["transformer_blocks.1.ff.net.2"].weight == "int8"
        assert "proj_out" not in found
        assert list(found) == [name for name in names if name in found]

    def test_describe_says_how_each_layer_is_carried_out_and_why(self, shallow):
        rules = (rule("*norm*", "fp32", "fp32"), rule("transformer_blocks.*"), rule(OUT, "int4", "int8"))
        with apply(shallow, schedule_of(shallow, *rules)) as handle:
            lines = handle.describe().splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("precision:"))
        assert lines[start].startswith("precision: 31 of 42 linear layers; ")
        assert lines[start + 1] == (
            "  transformer_blocks.0.norm1.linear .. transformer_blocks.0.norm1_context.linear (2 layers): "
            "fp32 x fp32, as it is"
        )
        assert lines[start + 2].endswith("(12 layers): int8 x int8, torch")
        assert "  proj_out: int4 x int8, simulated (not faster)" in lines
        why = next(line for line in lines if line.startswith("  int8 x int8, torch: "))
        assert "not base: the formats are not the layer's float32; not kernel: the kernels need a CUDA device" in why
        why = next(line for line in lines if line.startswith("  int4 x int8, simulated (not faster): "))
        assert "not torch: _int_mm has no scales by groups of 64" in why


class TestBesideCaches:
    ROWS = (("model", "CCRC"), ("transformer_blocks.0", "CRCC"), ("transformer_blocks.1.attn", "CC1C"))

    def test_caches_keep_what_low_bit_layers_computed(self, mini, run):
        """A run with rows is the same whether the weights are rounded here or were rounded before."""
        names = [name for name in linears_of(denoiser_of(mini)) if name.startswith("transformer_blocks")]
        plain = {name: linears_of(denoiser_of(mini))[name].weight.data for name in names}
        with apply(mini, schedule_of(mini, rule("transformer_blocks.*", "int8", "fp32"), ops=self.ROWS)):
            found = run(mini, steps=N_STEPS)
        try:
            for name in names:
                linears_of(denoiser_of(mini))[name].weight.data = fake(plain[name], "int8")
            with apply(mini, schedule_of(mini, ops=self.ROWS)):
                expected = run(mini, steps=N_STEPS)
        finally:
            for name in names:
                linears_of(denoiser_of(mini))[name].weight.data = plain[name]
        assert torch.equal(found, expected)

    def test_a_cached_linear_layer_may_be_low_bit_too(self, shallow, run):
        rows = (("single_transformer_blocks.0.proj_mlp", "CRRC"),)
        schedule = schedule_of(shallow, rule("single_*.proj_mlp"), ops=rows)
        calls = []
        layer = linears_of(denoiser_of(shallow))["single_transformer_blocks.0.proj_mlp"]
        with apply(shallow, schedule) as handle:
            entry = handle._layers.layers[0].layer
            entry.register_forward_hook(lambda *_: calls.append(1))
            run(shallow, steps=N_STEPS)
        assert len(calls) == 2
        assert "forward" not in layer.__dict__

    def test_runs_of_other_formats_are_told_apart(self, shallow):
        keys = set()
        for rules in ((), (rule("*"),), (rule("*", "int4"),)):
            with apply(shallow, schedule_of(shallow, *rules)) as handle:
                keys.add(handle.sites_key(1))
        assert len(keys) == 3

    def test_caches_are_taken_over_by_runs_of_the_same_formats_alone(self, shallow, run):
        schedules = [
            schedule_of(shallow, rule("*", weight), ops=(("transformer_blocks.0", "CCRC"),))
            for weight in ("int8", "int4")
        ]
        taken: list[Any] = []
        with apply(shallow, schedules[0], unfitted=True) as handle:
            handle.on_call = lambda *_: taken.append(handle.snapshot())
            run(shallow, steps=N_STEPS)
            handle.resume(2, (), taken[1])
        with (
            apply(shallow, schedules[1], unfitted=True) as handle,
            pytest.raises(ApplyError, match="resume: found caches of a run that did or kept something else"),
        ):
            handle.resume(2, (), taken[1])


class TestTables:
    def test_scales_per_step_follow_the_run(self, mini, run):
        scales = torch.tensor([0.02, 0.03, 0.04, 0.05])
        seen: list[float | None] = []
        schedule = schedule_of(mini, rule("proj_out"), tables=tables(proj_out__activation_scale=scales))
        with apply(mini, schedule) as handle:
            layer = handle._layers.layers[0].layer
            layer.register_forward_pre_hook(lambda _, args: seen.append(None if args[1] is None else args[1].item()))
            run(mini, steps=N_STEPS)
            assert seen == pytest.approx(scales.tolist())
            assert "proj_out: int8 x int8, static scales per step, torch" in handle.describe()
            seen.clear()
            linears_of(denoiser_of(mini))["proj_out"](torch.ones(1, mini.transformer.inner_dim))
            run(mini, steps=N_STEPS, cfg=True)
            assert seen[0] is None
            assert seen[1:] == pytest.approx(scales.repeat_interleave(2).tolist())

    def test_a_second_call_of_a_step_uses_the_steps_scale(self, shallow, run):
        scales = torch.tensor([0.02, 0.03, 0.04, 0.05])
        schedule = schedule_of(shallow, rule("proj_out"), tables=tables(proj_out__activation_scale=scales))
        heun = dataclasses.replace(schedule.solver[0], family="heun", order=2)
        schedule = dataclasses.replace(schedule, solver=(heun, *schedule.solver[1:]))
        seen: list[float] = []
        with apply(shallow, schedule) as handle:
            handle._layers.layers[0].layer.register_forward_pre_hook(lambda _, args: seen.append(args[1].item()))
            run(shallow, steps=N_STEPS)
        assert seen == pytest.approx([0.02, 0.02, 0.03, 0.04, 0.05])

    def test_smoothing_rounding_and_bias_reach_the_layer(self, shallow, run):
        layer = linears_of(denoiser_of(shallow))["proj_out"]
        n_out, n_in = layer.weight.shape
        smooth = torch.rand(n_in) + 0.5
        bits = torch.randint(0, 256, (n_out, (n_in + 7) // 8), dtype=torch.uint8)
        bias = torch.randn(n_out)
        side = tables(proj_out__smooth=smooth, proj_out__rounding=bits, proj_out__bias=bias)
        with apply(shallow, schedule_of(shallow, rule("proj_out", "int4", "int8"), tables=side)):
            x = torch.randn(5, n_in)
            found = layer(x)
        up = (bits[:, :, None] >> torch.arange(8) & 1).flatten(1)[:, :n_in].bool()
        weight = quantized(layer.weight.detach() * smooth, "int4", up=up).dequantized()
        expected = nn.functional.linear(fake(x / smooth, "int8", scales="row"), weight, bias)
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(
        ("tensors", "error", "text"),
        [
            (
                {"blocks__zero_point": torch.ones(2)},
                UnsupportedFeatureError,
                "tables.tensors.blocks.zero_point: found a",
            ),
            ({"smooth": torch.ones(2)}, UnsupportedFeatureError, "tables.tensors.smooth: found a tensor that this"),
            ({"nowhere__smooth": torch.ones(2)}, ModelMismatchError, "the denoiser has no such linear layer, expected"),
            ({"x_embedder__smooth": torch.ones(4)}, ModelMismatchError, "while no precision rule speaks of it"),
            ({"proj_out__smooth": torch.ones(2)}, ApplyError, "tables.tensors.proj_out.smooth: found shape (2,)"),
            ({"proj_out__activation_scale": torch.ones(3)}, ApplyError, "expected (1,) or (4,)."),
        ],
    )
    def test_tables_that_do_not_fit_are_refused(self, shallow, tensors, error, text):
        with pytest.raises(error) as caught:
            apply(shallow, schedule_of(shallow, rule("proj_out"), tables=tables(**tensors)))
        assert text in str(caught.value)

    def test_tables_without_their_data_are_refused(self, shallow):
        side = dataclasses.replace(tables(proj_out__smooth=torch.ones(32)), data=None)
        for unfitted in (False, True):
            with pytest.raises(ApplyError, match="tables: found no data"):
                apply(shallow, schedule_of(shallow, rule("proj_out"), tables=side), unfitted=unfitted)


class TestRefused:
    def test_a_pattern_that_matches_nothing_names_what_is_near(self, shallow):
        with pytest.raises(ModelMismatchError) as caught:
            apply(shallow, schedule_of(shallow, rule("*"), rule("transformer_blocks.0.attn.to_qq")))
        assert "precision[1].pattern: found 'transformer_blocks.0.attn.to_qq', which matches none" in str(caught.value)
        assert "42 linear layers, expected one such as transformer_blocks.0.attn.to_q, " in str(caught.value)

    def test_a_pattern_of_modules_that_are_no_linear_layers_matches_nothing(self, shallow):
        with pytest.raises(ModelMismatchError, match="which matches none"):
            apply(shallow, schedule_of(shallow, rule("transformer_blocks.0")))

    def test_layers_of_another_library_are_named(self, shallow):
        layer = linears_of(denoiser_of(shallow))["proj_out"]
        weight = layer.weight
        layer.weight = nn.Parameter(torch.zeros(4, 16, dtype=torch.uint8), requires_grad=False)
        try:
            with pytest.raises(
                UnsupportedFeatureError, match=r"^proj_out: precision: found a Linear with a torch.uint8"
            ):
                apply(shallow, schedule_of(shallow, rule("proj_out")))
        finally:
            layer.weight = weight


class Adapter(nn.Module):
    """As peft wraps a linear layer for LoRA: the layer, and two small ones in dictionaries."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class TestNeighbours:
    def test_the_layer_under_an_adapter_is_reached_and_the_adapter_is_not(self):
        inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
        inner[1] = Adapter(inner[1])
        assert list(linears_of(inner)) == ["0", "1"]
        assert linears_of(inner)["1"] is inner[1].base_layer

    def test_weights_that_offloading_keeps_elsewhere_are_fetched(self, shallow):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
        schedule, x = schedule_of(shallow, rule("1")), torch.randn(3, 8)
        state = RunState(())

        def low() -> torch.Tensor:
            patches = low_bit_layers(model, schedule, torch.device("cpu")).patch(model, state)
            y = model(x)
            assert [patch.undo() for patch in patches] == [True]
            return y

        expected = low()
        assert not torch.equal(expected, model(x))
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert model[1].weight.is_meta
        assert torch.equal(low(), expected)
        assert model[1].weight.is_meta
        remove_hook_from_module(model, recurse=True)

    @pytest.mark.slow
    def test_a_compiled_denoiser_needs_one_graph_for_all_steps(self, shallow, run):
        """A scale per step is a tensor of the run, so no step compiles anew."""
        side = tables(proj_out__activation_scale=torch.tensor([0.02, 0.03, 0.04, 0.05]))
        rules = (rule("proj_out"), rule("single_*", "int4", "int8"))
        schedule = schedule_of(shallow, *rules, tables=side)
        with apply(shallow, schedule):
            expected = run(shallow, steps=N_STEPS)
        plain = shallow.transformer
        torch._dynamo.reset()
        counters = torch._dynamo.utils.counters
        counters.clear()
        shallow.transformer = torch.compile(plain, backend="eager", fullgraph=True)
        try:
            with apply(shallow, schedule):
                found = run(shallow, steps=N_STEPS)
        finally:
            shallow.transformer = plain
            torch._dynamo.reset()
        assert torch.equal(found, expected)
        assert counters["stats"]["unique_graphs"] == 1
