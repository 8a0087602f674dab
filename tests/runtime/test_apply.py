"""Putting a schedule on, taking it off, and everything that is refused, by the words of the refusal."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import schedsearch
from schedsearch.errors import (
    AlreadyAppliedError,
    ApplyError,
    ModelMismatchError,
    ScheduleMismatchWarning,
    UnsupportedFeatureError,
    UsageError,
)
from schedsearch.runtime import apply, default_sigmas, identity_schedule, model_ref, topology_of
from schedsearch.schedule import Schedule, write_schedule


def schedule_for(pipe: Any, row: str = "CCRC1R") -> Schedule:
    size = 16 * pipe.vae_scale_factor
    return replace(identity_schedule(pipe, len(row), height=size, width=size), ops=(("model", row),))


@pytest.mark.parametrize("shift", [{"shift": 3.0}, {"use_dynamic_shifting": True}], ids=["static", "dynamic"])
def test_default_sigmas_are_the_pipelines_own(deep: Any, run: Any, shift: dict[str, Any]) -> None:
    original = deep.scheduler
    try:
        deep.scheduler = FlowMatchEulerDiscreteScheduler(**shift)
        plain = run(deep, steps=5)
        sigmas = default_sigmas(deep, 5, height=16, width=16)
        assert sigmas == tuple(deep.scheduler.sigmas.tolist())
        with apply(deep, identity_schedule(deep, 5, height=16, width=16)):
            assert torch.equal(run(deep, steps=5), plain)
    finally:
        deep.scheduler = original


def test_a_file_replays_through_the_package_itself(mini: Any, run: Any, tmp_path: Path) -> None:
    schedule = schedule_for(mini)
    write_schedule(schedule, tmp_path / "a.json")
    with apply(mini, schedule):
        expected = run(mini, steps=6)
    with schedsearch.apply(mini, tmp_path / "a.json") as handle:
        assert handle.schedule.id == schedule.id
        assert torch.equal(run(mini, steps=6), expected)
    with schedsearch.apply(mini, str(tmp_path / "a.json")):
        assert torch.equal(run(mini, steps=6), expected)


def test_the_schedules_steps_win_over_the_callers(mini: Any, run: Any) -> None:
    with apply(mini, schedule_for(mini)):
        assert torch.equal(run(mini, steps=6), run(mini, steps=50))


def test_describe_says_what_runs(mini: Any, run: Any) -> None:
    with apply(mini, schedule_for(mini)) as handle:
        before = handle.describe()
        run(mini, steps=6)
        after = handle.describe()
    assert "6 steps from sigma 1 to 0, 3 run the denoiser" in before
    assert "CKRK1R  the whole denoiser" in before
    assert "caches hold 0.00 MiB now" in before
    assert "caches hold 0.02 MiB now" in after


def test_a_second_schedule_is_refused(mini: Any) -> None:
    with apply(mini, schedule_for(mini)), pytest.raises(AlreadyAppliedError, match=r"Call remove\(\) on the handle"):
        apply(mini, schedule_for(mini))


def test_remove_twice_is_fine_and_leaves_a_new_scheduler_alone(mini: Any) -> None:
    original = mini.scheduler
    handle = apply(mini, schedule_for(mini))
    other = FlowMatchEulerDiscreteScheduler()
    mini.scheduler = other
    handle.remove()
    handle.remove()
    assert mini.scheduler is other
    mini.scheduler = original


def test_remove_underneath_a_later_wrapper_is_refused(mini: Any) -> None:
    handle = apply(mini, schedule_for(mini))
    ours = mini.transformer.forward
    mini.transformer.forward = functools.partial(ours)
    with pytest.raises(ApplyError, match="wrapped again after the schedule was applied"):
        handle.remove()
    mini.transformer.forward = ours
    handle.remove()


def test_a_wrapper_that_was_there_before_is_put_back(mini: Any) -> None:
    original = mini.transformer.forward
    earlier = functools.partial(original)
    mini.transformer.forward = earlier
    try:
        apply(mini, schedule_for(mini)).remove()
        assert mini.transformer.forward is earlier
    finally:
        del mini.transformer.forward


def test_an_exception_inside_with_still_removes(mini: Any) -> None:
    with pytest.raises(ZeroDivisionError), apply(mini, schedule_for(mini)):
        raise ZeroDivisionError


def test_another_model_is_refused_by_name(mini: Any, deep: Any) -> None:
    with pytest.raises(
        ModelMismatchError, match=r"model\.config: found a FluxTransformer2DModel with config [0-9a-f]{12}"
    ):
        apply(deep, schedule_for(mini))


def test_an_unknown_module_is_refused_by_name(mini: Any) -> None:
    schedule = replace(schedule_for(mini), ops=(("transformer_blocks.9", "CRRRRR"),))
    with pytest.raises(ModelMismatchError, match=r"ops\.transformer_blocks\.9: this denoiser has no such"):
        apply(mini, schedule)


def test_what_cannot_be_replayed_is_refused(mini: Any) -> None:
    with pytest.raises(UnsupportedFeatureError, match="guidance: the schedule has this part, expected none"):
        apply(mini, replace(schedule_for(mini), guidance=(None,) * 6))


def test_a_stochastic_scheduler_is_refused(mini: Any) -> None:
    original = mini.scheduler
    mini.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    try:
        with pytest.raises(UnsupportedFeatureError, match="stochastic_sampling: found True"):
            apply(mini, schedule_for(mini))
    finally:
        mini.scheduler = original


def test_other_pipelines_are_refused() -> None:
    with pytest.raises(UnsupportedFeatureError, match="pipe: found a object, expected one of the pipelines"):
        topology_of(object())


def test_budgets_belong_to_frontier_folders(mini: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"budget: found none, expected one such as '4x'"):
        apply(mini, tmp_path)
    with pytest.raises(UsageError, match=r"budget: found '4x', expected none"):
        apply(mini, schedule_for(mini), budget="4x")


def test_another_resolution_is_warned_about_once(mini: Any, run: Any) -> None:
    with apply(mini, schedule_for(mini)):
        with pytest.warns(ScheduleMismatchWarning, match="searched at 64x64 .64 image tokens. and runs on 16"):
            run(mini, steps=6, size=32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(mini, steps=6, size=32)


def test_other_adapters_are_warned_about(mini: Any) -> None:
    schedule = schedule_for(mini)
    schedule = replace(schedule, model=replace(schedule.model, adapters=("style",)))
    with pytest.warns(ScheduleMismatchWarning, match=r"searched with adapters \['style'\] and runs with \[\]"):
        apply(mini, schedule).remove()


def test_a_run_that_broke_off_does_not_disturb_the_next(mini: Any, run: Any) -> None:
    def stop(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise KeyboardInterrupt
        return kwargs

    with apply(mini, schedule_for(mini)):
        expected = run(mini, steps=6)
        with pytest.raises(KeyboardInterrupt):
            run(mini, steps=6, callback_on_step_end=stop)
        assert torch.equal(run(mini, steps=6), expected)


def test_inference_mode_and_no_grad_can_alternate(mini: Any, run: Any) -> None:
    with apply(mini, schedule_for(mini)):
        with torch.inference_mode():
            first = run(mini, steps=6)
        assert torch.equal(run(mini, steps=6), first)


def test_model_ref_names_the_denoiser(mini: Any, deep: Any) -> None:
    a, b = (model_ref(p, height=64, width=64) for p in (mini, deep))
    assert a.pipeline == b.pipeline == "FluxPipeline"
    assert a.config != b.config
    assert a.blocks != b.blocks
    assert a == model_ref(mini, height=64, width=64)


def test_bfloat16_runs_and_stays_bfloat16(deep: Any, run: Any) -> None:
    deep.to(torch.bfloat16)
    try:
        schedule = replace(
            schedule_for(deep, "CCC21R"), ops=(("model", "CCC2CR"), ("single_transformer_blocks.3", "CCCC1C"))
        )
        with apply(deep, schedule):
            images = run(deep, steps=6)
        assert torch.isfinite(images).all()
    finally:
        deep.to(torch.float32)
