"""Low-bit layers kept between schedules, and the model's own weights let go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module

from schedsearch.errors import ApplyError, UnsupportedFeatureError
from schedsearch.quantize import QuantLinear
from schedsearch.runtime import LowBitCache, apply, identity_schedule
from schedsearch.runtime._precision import linears_of
from schedsearch.schedule import PrecisionRule
from schedsearch.testing import random_flux

N_STEPS = 2
INT8 = PrecisionRule(pattern="transformer_blocks.*", weight="int8", activation="int8")
FP32 = PrecisionRule(pattern="*", weight="fp32", activation="fp32")


def plan(pipe, *rules):
    size = 16 * pipe.vae_scale_factor
    return dataclasses.replace(identity_schedule(pipe, N_STEPS, height=size, width=size), precision=rules)


@pytest.fixture
def fresh():
    """A pipeline of its own: what is let go does not come back."""
    return random_flux(1, 1)


class TestKeepBase:
    def test_the_weights_go_and_the_pictures_stay(self, fresh, run):
        with apply(fresh, plan(fresh, INT8)) as handle:
            expected = run(fresh, steps=N_STEPS)
            assert "beside the model's own" in handle.describe()
        before = sum(p.numel() for p in fresh.transformer.parameters())
        inside = [x for name, x in linears_of(fresh.transformer).items() if name.startswith("transformer_blocks.")]
        weights = sum(layer.weight.numel() for layer in inside)
        handle = apply(fresh, plan(fresh, INT8), keep_base=False)
        assert "in place of the model's own" in handle.describe()
        assert sum(p.numel() for p in fresh.transformer.parameters()) == before - weights
        assert torch.equal(run(fresh, steps=N_STEPS), expected)
        assert fresh.transformer.dtype == torch.float32

    def test_taking_it_off_says_that_the_model_must_be_loaded_again(self, fresh, run):
        with apply(fresh, plan(fresh, INT8), keep_base=False) as handle:
            expected = run(fresh, steps=N_STEPS)
        with pytest.raises(ApplyError, match=r"keep_base=False, .* cannot be taken off. Load the model again"):
            handle.remove()
        assert torch.equal(run(fresh, steps=N_STEPS), expected)  # it is still on

    def test_a_layer_without_its_weight_cannot_be_made_anew(self, fresh):
        linear = fresh.transformer.proj_out
        layer = QuantLinear.of(linear, INT8)
        x = torch.randn(3, linear.in_features)
        expected = layer(x)
        assert layer.release()
        assert torch.equal(layer(x), expected)
        for again in (lambda: layer.make(torch.device("cpu")), lambda: QuantLinear.of(linear, INT8)):
            with pytest.raises(UnsupportedFeatureError, match="own weight was let go by keep_base=False"):
                again()

    def test_a_layer_that_stays_as_it_is_keeps_its_weight(self, fresh, run):
        plain = run(fresh, steps=N_STEPS)
        handle = apply(fresh, plan(fresh, FP32), keep_base=False)
        assert torch.equal(run(fresh, steps=N_STEPS), plain)
        handle.remove()

    def test_offloading_and_caches_are_refused(self, fresh):
        with pytest.raises(ApplyError, match="keep_base: found False beside a cache"):
            apply(fresh, plan(fresh, INT8), keep_base=False, cache=LowBitCache())
        cpu_offload(fresh.transformer, torch.device("cpu"))
        try:
            with pytest.raises(ApplyError, match="keep_base: found False on a pipeline with offloading"):
                apply(fresh, plan(fresh, INT8), keep_base=False)
        finally:
            remove_hook_from_module(fresh.transformer, recurse=True)


class TestCache:
    def test_a_layer_is_made_once_per_rule(self, shallow, run):
        cache, double = LowBitCache(), len([n for n in linears_of(shallow.transformer) if n.startswith("transformer_")])
        with apply(shallow, plan(shallow, INT8)):
            expected = run(shallow, steps=N_STEPS)
        for _ in range(3):
            with apply(shallow, plan(shallow, INT8), cache=cache):
                assert torch.equal(run(shallow, steps=N_STEPS), expected)
        assert cache.made == double
        narrower = dataclasses.replace(INT8, pattern="transformer_blocks.0.attn.*")  # another pattern, the same words
        with apply(shallow, plan(shallow, narrower), cache=cache):
            pass
        assert cache.made == double
        by_tensor = dataclasses.replace(narrower, scales="tensor")
        with apply(shallow, plan(shallow, by_tensor), cache=cache) as handle:
            assert cache.made == double + len(handle._layers.layers)

    def test_its_bytes_are_bounded_and_the_oldest_go_first(self, shallow):
        linears = linears_of(shallow.transformer)
        names = [name for name in linears if ".attn.to_" in name][:3]
        one = QuantLinear.of(linears[names[0]], INT8).n_bytes
        cache, here = LowBitCache(2 * one), torch.device("cpu")
        for name in (*names[:2], names[0], names[2], names[0], names[1]):
            cache.get(name, linears[name], INT8, here)
        assert cache.made == 4  # the second was dropped for the third, the first was used again
        assert cache.n_bytes <= 2 * one
        assert LowBitCache(0).get(names[0], linears[names[0]], INT8, here).n_bytes == one

    def test_another_layer_of_the_same_name_is_made_anew(self, shallow, fresh):
        cache, here = LowBitCache(), torch.device("cpu")
        for pipe in (shallow, fresh):
            linear = pipe.transformer.proj_out
            assert cache.get("proj_out", linear, INT8, here).base is linear
        assert cache.made == 2
        assert cache.n_bytes == cache.get("proj_out", fresh.transformer.proj_out, INT8, here).n_bytes
