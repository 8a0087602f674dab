"""What pages take for granted, made small; and haste for what their commands measure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

STEPS = 8
"""Of the bundled model's plain run, which has 28."""

Names = dict[str, Any]


@functools.cache
def _plans() -> tuple[Any, ...]:
    """Three schedules for the bundled model, each cheaper than the one before, with numbers nobody measured."""
    from schedsearch.evaluate import find_card, load_pipeline
    from schedsearch.runtime import identity_schedule
    from schedsearch.schedule import Measurement

    plain = identity_schedule(load_pipeline(find_card("flux-mini")), STEPS, height=64, width=64)
    plans = []
    for row, speed, psnr in (("CCCRCCRC", 1.3, 50.0), ("CCRRCRRC", 3.2, 40.0), ("CCRRRRRR", 4.1, 30.0)):
        numbers = (
            ("speedup", "x", "max", speed), ("latency_ms", "ms", "min", 400 / speed),
            ("macs_fraction", "1", "min", 1 / speed), ("psnr", "dB", "max", psnr),
        )  # fmt: skip
        measured = tuple(
            Measurement(metric=metric, unit=unit, better=better, value=value, low=value, high=value, n=1)
            for metric, unit, better, value in numbers
        )
        plans.append(dataclasses.replace(plain, ops=(("model", row),), measured=measured))
    return tuple(plans)


def _plan(names: Names, path: Path) -> None:
    from schedsearch.schedule import write_schedule

    path.parent.mkdir(parents=True, exist_ok=True)
    write_schedule(_plans()[-1], path)


def _run_folder(names: Names, path: Path) -> None:
    """What `optimize` leaves."""
    from schedsearch.schedule import write_frontier

    _plan(names, path / f"{path.name}.json")
    write_frontier(path / "frontier", _plans(), quality="psnr")


def _low_bit() -> Any:
    """A schedule with low-bit layers."""
    from schedsearch.schedule import PrecisionRule

    rule = PrecisionRule(pattern="transformer_blocks.0.ff.*", weight="int8", activation="int8")
    return dataclasses.replace(_plans()[-1], precision=(rule,))


def _low_bit_plan(names: Names, path: Path) -> None:
    from schedsearch.schedule import write_schedule

    write_schedule(_low_bit(), path)


def _table(names: Names, path: Path) -> None:
    """A latency table of the bundled model's layers without any times."""
    from schedsearch.evaluate import LatencyTable, Workload, find_card, linears_of, load_pipeline, write_table
    from schedsearch.evaluate._latency_table import TableHeader
    from schedsearch.evaluate._trace import capture_call
    from schedsearch.runtime import denoiser_of

    card = find_card("flux-mini")
    header = TableHeader(
        model="flux-mini", config="c" * 64, weights="random", height=64, width=64, dtype="fp32", device="a machine",
        torch="2", diffusers="0.4", schedsearch="0.1", date="2026-11-21", commit="", command="schedsearch profile",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pipe = load_pipeline(card)
    linears = linears_of(denoiser_of(pipe), capture_call(pipe, Workload.from_card(card), "red apple").kwargs)
    write_table(LatencyTable(header=header, linears=linears, rows=(), loops=()), path)


def _sensitivities(names: Names, path: Path) -> None:
    """Effects of two formats on two layers, made up."""
    from schedsearch.sensitivity import REMOVED, Cell, Choice, Header, Layer, Sensitivities, write_sensitivities

    header = Header(
        model="flux-mini", config="c" * 64, carrier="sha256:" + "d" * 64, steps=7, prompts="p", n_prompts=1, seed=0,
        dtype="fp32", torch="2", schedsearch="0.1", date="2026-11-21", command="schedsearch sensitivity",
    )  # fmt: skip
    blocks = ("transformer_blocks.0", "transformer_blocks.1")
    layers = [f"{block}.ff.net.2" for block in blocks]
    bits = {"int8/fp32": 8.25, "int4/fp32": 4.5}
    cells = [
        Cell(module=layer, word=word, errors=(0.1 / n,), bits=n, saved_bytes=int(4000 - 125 * n))
        for layer in layers
        for word, n in bits.items()
    ]
    cells += [Cell(module=block, word=REMOVED, errors=(0.5,), bits=0.0, saved_bytes=1000) for block in blocks]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sensitivities(
        Sensitivities(
            header=header,
            layers=tuple(Layer(name=name, weights=1000, bits=32.0) for name in layers),
            blocks=blocks,
            choices=tuple(Choice(word=word, weight=word[:4], activation="fp32") for word in bits),
            cells=tuple(cells),
        ),
        path,
    )


def _card() -> Any:
    from schedsearch.evaluate import find_card

    return find_card("flux-mini")


def _pipe() -> Any:
    """A pipeline that, like those of real models, needs nothing but a prompt."""
    from diffusers import FluxPipeline

    from schedsearch.evaluate import load_pipeline

    size = {"height": 64, "width": 64, "num_inference_steps": STEPS, "guidance_scale": 1.0, "max_sequence_length": 16}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return FluxPipeline.__call__(self, *args, **size | kwargs)

    pipe = load_pipeline(_card())
    pipe.__class__ = type("FluxPipeline", (FluxPipeline,), {"__call__": call})
    return pipe


def _workload() -> Any:
    from schedsearch.evaluate import Workload

    return dataclasses.replace(Workload.from_card(_card()), steps=STEPS)


def _inputs(seed: int) -> Any:
    import torch

    return torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))


def _layer() -> Any:
    import torch

    return torch.nn.Linear(32, 16).requires_grad_(False)


def _linears() -> Any:
    from schedsearch.schedule import PrecisionRule
    from schedsearch.space import LinearLayers
    from schedsearch.testing import toy_blocks, toy_linears

    rule = PrecisionRule(pattern="*", weight="int8", activation="int8")
    return LinearLayers(names=toy_linears(toy_blocks()), base="bf16", formats=(rule,))


def _toy(name: str) -> Callable[[], Any]:
    def made() -> Any:
        from schedsearch import testing

        found = {
            "model_ref": testing.toy_model_ref,
            "blocks": testing.toy_blocks,
            "default_sigmas": lambda: testing.toy_sigmas(10),
            "objectives": lambda: testing.TOY_OBJECTIVES,
            "space": lambda: testing.toy_space((("component", "CR"),)),
            "probe": lambda: None,
        }
        return found[name]()

    return made


def _prompts() -> tuple[str, ...]:
    from schedsearch_calibration import prompt_set

    return prompt_set("flux-mini-calibration").prompts[:4]


VALUES: Mapping[str, Callable[[], Any]] = {
    "pipe": _pipe,
    "workload": _workload,
    "prompts": _prompts,
    "schedule": _low_bit,
    "layer": _layer,
    "linear": _layer,
    "inputs": lambda: _inputs(0),
    "x": lambda: _inputs(2),
    "other_inputs": lambda: _inputs(1),
    "linears": _linears,
    **{name: _toy(name) for name in ("model_ref", "blocks", "default_sigmas", "objectives", "space", "probe")},
}
FILES: Mapping[str, Callable[[Names, Path], None]] = {
    "plan.json": _plan,
    "flux-4x.json": _plan,
    "low-bit.json": _low_bit_plan,
    "runs/flux-4x": _run_folder,
    "runs/flux-mini-4x": _run_folder,
    "runs/flux.json": _table,
    "runs/sensitivity-flux-mini.json": _sensitivities,
}


@pytest.fixture(scope="session")
def given() -> Mapping[str, Callable[[Names, Path], None]]:
    """What each name or file that pages take for granted becomes: functions of a page's names and folder."""

    def value(name: str) -> Callable[[Names, Path], None]:
        return lambda names, folder: names.update({name: VALUES[name]()})

    def file(name: str) -> Callable[[Names, Path], None]:
        return lambda names, folder: FILES[name](names, folder / name)

    return {name: value(name) for name in VALUES} | {name: file(name) for name in FILES}


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch, steady_cost: Callable[..., Any]) -> None:
    """Few prompts, few rounds, a given cost model, and eight steps where the bundled model has 28."""
    from schedsearch.bench import _calibration, _elsewhere, _sensitivity
    from schedsearch.evaluate import _models, evaluate_held_out, with_linear_prices
    from schedsearch.optimize import _bench, _correct, _finals, _run
    from schedsearch_calibration import prompt_set

    def few(name: str) -> Any:
        whole = prompt_set(name)
        return dataclasses.replace(whole, prompts=whole.prompts[: 2 if "held-out" in name else 4])

    folder_card = _models._folder_card

    def short(folder: Path) -> Any:
        card = folder_card(folder)
        return dataclasses.replace(card, steps=min(card.steps, STEPS))

    monkeypatch.setattr(_models, "_folder_card", short)
    for module in (_run, _elsewhere, _correct, _calibration, _sensitivity):
        monkeypatch.setattr(module, "prompt_set", few)
    monkeypatch.setattr(_bench, "FIDELITY", 2)
    for module in (_bench, _finals):
        monkeypatch.setattr(module, "LADDER", (2.0,))
    monkeypatch.setattr(_finals, "FRESH", 2)
    monkeypatch.setattr(_finals, "AROUND", (0.0,))
    monkeypatch.setattr(_run, "measure_cost", steady_cost)
    monkeypatch.setattr(_run, "with_linear_prices", functools.partial(with_linear_prices, repeats=1))
    monkeypatch.setattr(_finals, "evaluate_held_out", functools.partial(evaluate_held_out, repeats=2, warmup=0))
