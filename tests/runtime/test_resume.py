"""Runs that begin where another one was: the same image, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch

from schedsearch.errors import ApplyError, UsageError
from schedsearch.runtime import Handle, apply, identity_schedule
from schedsearch.schedule import Schedule, Solver

STEPS = 6
PLANS = {
    "euler": ({}, Solver()),
    "adams": ({}, Solver(family="adams", order=3)),
    "heun": ({}, Solver(family="heun", order=2)),
    "dpm": ({}, Solver(family="dpm", order=2, prediction="data", corrector="pseudo")),
    "unipc implicit": ({}, Solver(family="unipc", order=3, corrector="implicit")),
    "model": ({"model": "CC1C2R"}, Solver(family="adams", order=2)),
    "model heun": ({"model": "CC1C2R"}, Solver(family="heun", order=2)),
    "blocks": (
        {"transformer_blocks.0": "CCRC1R", "transformer_blocks.1": "CCRC1R", "single_transformer_blocks.2": "CRC2C3"},
        Solver(family="heun", order=2),
    ),
    "components": (
        {"transformer_blocks.0.attn": "CRC1RC", "transformer_blocks.0": "CCCCCR",
         "single_transformer_blocks.1.attn": "CCRS1R"},
        Solver(),
    ),
    "all": (
        {"model": "CCCRC1", "transformer_blocks.1": "CRC1R2", "single_transformer_blocks.0.proj_mlp": "CRC1R2"},
        Solver(family="unipc", order=2, corrector="pseudo"),
    ),
}  # fmt: skip


class Seen(NamedTuple):
    """What a run was at one call."""

    sample: torch.Tensor
    output: torch.Tensor
    history: Any
    caches: Any


def schedule_for(pipe: Any, rows: dict[str, str], solver: Solver) -> Schedule:
    base = identity_schedule(pipe, STEPS, height=64, width=64)
    return replace(base, ops=tuple(rows.items()), solver=(solver,) * STEPS)


def watched(handle: Handle, run: Any, pipe: Any, **kwargs: Any) -> tuple[torch.Tensor, list[Seen]]:
    """A whole run, and what it was at every call."""
    seen: list[Seen] = []

    def note(index: int, _call: Any, sample: Any, output: Any, history: Any) -> None:
        assert index == len(seen)
        seen.append(Seen(sample.clone(), output.clone(), history, handle.snapshot()))

    handle.on_call = note
    images = run(pipe, **kwargs)
    handle.on_call = None
    return images, seen


@pytest.mark.parametrize(
    ("plan_name", "batch", "cfg"),
    [*((name, 1, False) for name in PLANS), ("dpm", 3, True), ("model heun", 3, True), ("blocks", 1, True),
     ("components", 3, False), ("all", 3, True)],
)  # fmt: skip
def test_every_call_can_be_the_first(mini: Any, run: Any, plan_name: str, batch: int, cfg: bool) -> None:
    schedule = schedule_for(mini, *PLANS[plan_name])
    call = {"batch": batch, "cfg": cfg}
    with apply(mini, schedule) as handle:
        plain = run(mini, **call)
    with apply(mini, schedule, unfitted=True) as handle:
        images, seen = watched(handle, run, mini, **call)
        assert torch.equal(images, plain)
        assert len(seen) == len(handle.calls)
        for index in range(0 if cfg or batch > 1 else 1, len(seen), 3 if cfg or batch > 1 else 2):
            before = seen[index - 1].caches if index else None
            handle.resume(index, seen[index].history, before)
            assert torch.equal(run(mini, **call, latents=seen[index].sample.clone()), plain), index
        assert torch.equal(run(mini, **call), plain)


def test_another_schedule_goes_on_where_they_agree(mini: Any, run: Any) -> None:
    """The children of a node: equal keys before a call, other steps and rows after it."""
    rows = {"model": "CCC1CC", "transformer_blocks.0": "CRCCCC"}
    parent = schedule_for(mini, rows, Solver(family="adams", order=2))
    with apply(mini, parent, unfitted=True) as handle:
        _, seen = watched(handle, run, mini)
        keys = [handle.sites_key(i) for i in range(STEPS)]
    later = (parent.solver[0],) * 2 + (Solver(family="unipc", order=3, corrector="pseudo"),) * 4
    sigma = (*parent.sigma[:3], 0.4, 0.2, 0.1, 0.0)
    child = replace(parent, sigma=sigma, solver=later, ops=(("model", "CCCC2R"), ("transformer_blocks.0", "CRCCCC")))
    with apply(mini, child) as handle:
        plain = run(mini)
    with apply(mini, child, unfitted=True) as handle:
        assert [handle.sites_key(i) for i in range(3)] == keys[:3]
        assert handle.sites_key(3) != keys[3]
        sample, history = handle.advance(2, seen[2].history, seen[2].sample, seen[2].output)
        handle.resume(3, history, seen[2].caches)
        made: list[int] = []
        handle.on_call = lambda index, *_: made.append(index)
        assert torch.equal(run(mini, latents=sample), plain)
        assert made == [3, 4, 5]


@pytest.mark.parametrize("plan_name", ["euler", "model heun", "all"])
def test_advance_is_what_a_run_does(mini: Any, run: Any, plan_name: str) -> None:
    with apply(mini, schedule_for(mini, *PLANS[plan_name]), unfitted=True) as handle:
        _, seen = watched(handle, run, mini)
        for index, (now, coming) in enumerate(pairwise(seen)):
            sample, history = handle.advance(index, now.history, now.sample, now.output)
            assert torch.equal(sample, coming.sample)
            assert len(history) == len(coming.history)


def test_a_key_says_what_was_kept_and_predicted_and_no_more(mini: Any) -> None:
    def keys(**rows: str) -> list[Any]:
        named = {name.replace("__", "."): row for name, row in rows.items()}
        with apply(mini, schedule_for(mini, named, Solver()), unfitted=True) as handle:
            return [handle.sites_key(i) for i in range(STEPS)]

    plain = keys()
    assert len(set(plain)) == STEPS, "the model's outputs are always kept"
    assert keys(model="CCCCRC")[:4] == plain[:4]
    assert keys(model="CCCCRC")[4] != keys(model="CCCC1C")[4] != plain[4]
    late = keys(transformer_blocks__0="CCCCRC")
    assert late[:3] == plain[:3]
    assert late[3] != plain[3], "from here on the block's residual is kept"
    assert keys(transformer_blocks__1="CCCCRC")[3] != late[3]
    assert keys(transformer_blocks__0="CCCCRR")[:5] == late[:5]
    assert keys(single_transformer_blocks__0="SCCCCC")[0] != plain[0]


def test_plain_handles_keep_only_what_they_need(mini: Any, run: Any) -> None:
    with apply(mini, schedule_for(mini, {}, Solver())) as handle:
        run(mini)
        assert handle.plan.sites == ()
    with apply(mini, schedule_for(mini, {}, Solver()), unfitted=True) as handle:
        run(mini)
        assert [site.actions for site in handle.plan.sites] == ["K" * STEPS]


@pytest.fixture
def handle(mini: Any) -> Iterator[Handle]:
    with apply(mini, schedule_for(mini, {"transformer_blocks.0": "CCR1CR"}, Solver()), unfitted=True) as made:
        yield made


def test_wrong_caches_are_refused(mini: Any, run: Any, handle: Handle) -> None:
    with pytest.raises(ApplyError, match=r"snapshot: found no call yet"):
        handle.snapshot()
    _, seen = watched(handle, run, mini)
    with pytest.raises(ApplyError, match=r"resume: found caches of a run that did or kept something else up to call 2"):
        handle.resume(3, (), seen[3].caches)
    with pytest.raises(ApplyError, match="resume: found caches"):
        handle.resume(3, (), None)
    with pytest.raises(UsageError, match=r"call_index: found 6, expected 0\.\.5"):
        handle.resume(6, (), seen[5].caches)


def test_a_snapshot_is_a_copy_and_knows_its_size(mini: Any, run: Any, handle: Handle) -> None:
    plain, seen = watched(handle, run, mini)
    run(mini, batch=2)
    handle.resume(3, seen[3].history, seen[2].caches)
    assert torch.equal(run(mini, latents=seen[3].sample), plain)
    model, block = 64 * 32 * 4, (64 + 16) * 128 * 4
    assert seen[2].caches.n_bytes == 4 * model + 2 * block


def test_a_run_that_is_abandoned_leaves_nothing_behind(mini: Any, run: Any, handle: Handle) -> None:
    plain = run(mini)

    def stop(index: int, *_: Any) -> None:
        if index == 3:
            raise InterruptedError

    handle.on_call = stop
    with pytest.raises(InterruptedError):
        run(mini)
    handle.on_call = None
    assert torch.equal(run(mini), plain)
