"""The runtime beside what else lives on a pipeline: offloading hooks, shared denoisers, quantised weights, adapters."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, UniPCMultistepScheduler

from schedsearch.errors import UnsupportedFeatureError
from schedsearch.runtime import apply, default_sigmas, identity_schedule, model_ref
from schedsearch.runtime._cache import Cache
from schedsearch.runtime._wrap import _zeros
from schedsearch.schedule import Schedule


def schedule_for(pipe: Any, row: str = "CCRC1R") -> Schedule:
    return replace(identity_schedule(pipe, len(row), height=64, width=64), ops=(("model", row),))


class Counting(ModelHook):
    """What offloading hangs on a module: something that runs before its forward."""

    calls = 0

    def pre_forward(self, _module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("hooked_first", [True, False], ids=["hook-then-apply", "apply-then-hook"])
def test_offloading_hooks_that_come_and_go_keep_the_schedule(mini: Any, run: Any, hooked_first: bool) -> None:
    """Every pipeline call under model offloading takes accelerate's hooks off and puts them on again."""
    schedule = schedule_for(mini)
    with apply(mini, schedule):
        expected = run(mini, steps=6)
    plain = run(mini, steps=6)
    if hooked_first:
        add_hook_to_module(mini.transformer, Counting())
    handle = apply(mini, schedule)
    try:
        if not hooked_first:
            add_hook_to_module(mini.transformer, Counting())
        for _ in range(2):
            assert torch.equal(run(mini, steps=6), expected)
            remove_hook_from_module(mini.transformer)
            add_hook_to_module(mini.transformer, Counting())
        handle.remove()
        assert torch.equal(run(mini, steps=6), plain)
        assert mini.transformer._hf_hook.calls == 6
    finally:
        remove_hook_from_module(mini.transformer)
        mini.transformer.__dict__.pop("forward", None)
    assert torch.equal(run(mini, steps=6), plain)


def test_a_pipeline_that_shares_the_denoiser_runs_plainly(mini: Any, run: Any) -> None:
    other = FluxPipeline(**{**mini.components, "scheduler": FlowMatchEulerDiscreteScheduler()})
    other.set_progress_bar_config(disable=True)
    plain = run(other, steps=6)
    with apply(mini, schedule_for(mini)):
        assert torch.equal(run(other, steps=6), plain)
        run(mini, steps=6)
        assert torch.equal(run(other, steps=6), plain)


def test_remove_frees_the_caches(mini: Any, run: Any) -> None:
    handle = apply(mini, schedule_for(mini))
    run(mini, steps=6)
    buffers = [weakref.ref(t) for b in handle._state.branches for s in b.sites for lv in s.cache.levels for t in lv]
    assert buffers
    handle.remove()
    gc.collect()
    assert all(ref() is None for ref in buffers)


def test_quantised_weights_are_the_same_denoiser(mini: Any) -> None:
    class Config:
        """No JSON, like the objects quantisation leaves in a configuration."""

    before = model_ref(mini, height=64, width=64)
    mini.transformer.register_to_config(quantization_config=Config())
    try:
        assert model_ref(mini, height=64, width=64) == before
    finally:
        kept = {k: v for k, v in mini.transformer.config.items() if k != "quantization_config"}
        mini.transformer._internal_dict = type(mini.transformer._internal_dict)(kept)
    assert "quantization_config" not in mini.transformer.config


def test_another_kind_of_scheduler_is_refused(mini: Any) -> None:
    schedule, original = schedule_for(mini), mini.scheduler
    mini.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    try:
        with pytest.raises(UnsupportedFeatureError, match="found a UniPCMultistepScheduler, expected"):
            apply(mini, schedule)
        with pytest.raises(UnsupportedFeatureError, match="found a UniPCMultistepScheduler"):
            default_sigmas(mini, 6, height=64, width=64)
    finally:
        mini.scheduler = original


def test_forecasts_of_large_float16_values_stay_finite() -> None:
    """Divided differences over small gaps leave the range of float16 long before the forecast does."""
    sigmas = [1.0, 0.988, 0.976, 0.964]
    cache = Cache(3)
    nodes: list[float] = []
    for s in sigmas:
        value = torch.full((4,), 2000.0 * (1 + 3.0 * (1 - s) + 40.0 * (1 - s) ** 2), dtype=torch.float16)
        cache.keep((value,), tuple(torch.tensor(1.0 / (s - n)) for n in nodes[:3]))
        nodes.insert(0, s)
    weights, product = [], 1.0
    for node in nodes[:3]:
        product *= 0.952 - node
        weights.append(torch.tensor(product))
    (forecast,) = cache.predict(tuple(weights))
    assert forecast.dtype == torch.float16
    assert forecast.float().mean().item() == pytest.approx(2000.0 * (1 + 3.0 * 0.048 + 40.0 * 0.048**2), rel=5e-3)


def test_a_skipped_linear_layer_keeps_its_width_under_an_adapter() -> None:
    class Adapted(torch.nn.Module):
        """Like a LoRA layer: no `Linear`, but it knows its width."""

        out_features = 7

    assert _zeros(Adapted(), torch.ones(2, 3, 5)).shape == (2, 3, 7)
    assert _zeros(torch.nn.Identity(), torch.ones(2, 3, 5)).shape == (2, 3, 5)
