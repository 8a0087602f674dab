"""Schedules that the tests of the format share."""

from __future__ import annotations

import hashlib

import pytest

from schedsearch.schedule import (
    Measurement,
    ModelRef,
    PrecisionRule,
    Provenance,
    Schedule,
    Solver,
    Tables,
    TableTensor,
)
from schedsearch.schedule._side import Tensor, pack

SIDE = pack({"gain": Tensor("F32", (), b"\0" * 4), "shift": Tensor("F16", (4, 16), b"\0" * 128)})
"""A side file of two tensors."""


@pytest.fixture
def model() -> ModelRef:
    return ModelRef(pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=64, width=64)


@pytest.fixture
def plain(model: ModelRef) -> Schedule:
    """Four steps, everything computed."""
    return Schedule(sigma=(1.0, 0.75, 0.5, 0.25, 0.0), solver=(Solver(),) * 4, model=model)


@pytest.fixture
def full() -> Schedule:
    """A schedule that uses every part and field of the format."""
    euler, dpm = Solver(), Solver(family="dpm", order=2, prediction="data", corrector="pseudo", estimate="heun")
    return Schedule(
        sigma=(1.0, 0.75, 0.5, 0.25, 0.0),
        solver=(euler, dpm, dpm, euler),
        model=ModelRef(
            pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=64, width=96, batch=2, adapters=("style",)
        ),
        ops=(("model", "CCRC"), ("blocks.2", "CR1C"), ("blocks.10.attn", "SCRS")),
        guidance=(3.5, 1.0, None, None),
        precision=(PrecisionRule(pattern="blocks.*", weight="int8", activation="bf16"),),
        pruned=("blocks.11",),
        tables=Tables(
            sha256=hashlib.sha256(SIDE).hexdigest(),
            tensors=(
                TableTensor(name="gain", shape=(), dtype="F32", role=""),
                TableTensor(name="shift", shape=(4, 16), dtype="F16", role="error correction"),
            ),
            data=SIDE,
        ),
        measured=(
            Measurement(
                metric="speedup", unit="x", better="max", value=2.1, low=2.0, high=2.2, n=10, prompts="held-out",
                device="2 CPU cores", dtype="float32", batch=1, created_by="schedsearch 0.1.0", date="2026-01-31",
            ),
        ),
        provenance=Provenance(
            study="s", searcher="auto", seed=3, ask=7, parents=("sha256:" + "d" * 64,), created_by="x", note="é"
        ),
    )  # fmt: skip
