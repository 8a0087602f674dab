"""``torch.compile(fullgraph=True)`` with a schedule applied: the same image, one graph per step pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from schedsearch.runtime import apply, identity_schedule

ROWS = (("model", "CCC1RC2C"), ("transformer_blocks.0.attn", "CCCCCCCR"), ("transformer_blocks.1", "CRCCCCCC"))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "is_corrected"), [(False, False), (True, False), (False, True)], ids=["plain", "cfg", "corrected"]
)
def test_every_level_compiles_without_graph_breaks(
    shallow: Any, run: Any, corrected: Any, cfg: bool, is_corrected: bool
) -> None:
    """Tracing only (no code generation), so the result is the same bit for bit."""
    plain, graphs = shallow.transformer, []

    def backend(module: Any, _inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    schedule = replace(identity_schedule(shallow, 8, height=16, width=16), ops=ROWS)
    with apply(shallow, corrected(shallow, schedule) if is_corrected else schedule) as handle:
        expected = run(shallow, cfg=cfg)
        try:
            shallow.transformer = torch.compile(plain, fullgraph=True, backend=backend)
            assert torch.equal(run(shallow, cfg=cfg), expected)
            made = len(graphs)
            assert torch.equal(run(shallow, cfg=cfg), expected)
        finally:
            shallow.transformer = plain
        assert len(graphs) == made, "a second run compiled again"
        assert made <= len(set(handle.plan.patterns)) + 1


@pytest.mark.slow
def test_a_compiled_model_takes_and_returns_a_schedule(shallow: Any, run: Any) -> None:
    plain = shallow.transformer
    full = run(shallow)
    schedule = replace(identity_schedule(shallow, 8, height=16, width=16), ops=(("model", "CCRRCRRR"),))
    with apply(shallow, schedule):
        expected = run(shallow)
    try:
        shallow.transformer = torch.compile(plain, fullgraph=True, backend="eager")
        assert torch.equal(run(shallow), full)
        with apply(shallow, schedule):
            assert torch.equal(run(shallow), expected)
        assert torch.equal(run(shallow), full)
    finally:
        shallow.transformer = plain


@pytest.mark.slow
def test_generated_code_gives_the_same_image(shallow: Any, run: Any) -> None:
    plain = shallow.transformer
    with apply(shallow, replace(identity_schedule(shallow, 4, height=16, width=16), ops=(("model", "CC1R"),))):
        expected = run(shallow, steps=4)
        try:
            shallow.transformer = torch.compile(plain, fullgraph=True)
            torch.testing.assert_close(run(shallow, steps=4), expected, atol=1e-4, rtol=1e-4)
        finally:
            shallow.transformer = plain
