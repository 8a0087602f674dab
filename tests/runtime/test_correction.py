"""Corrections of predicted values: what a run with them gives, against numbers worked out by hand; what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import pytest
import torch
from safetensors.torch import load

from schedsearch.errors import ApplyError, ModelMismatchError
from schedsearch.runtime import apply, block_lists_of, denoiser_of, identity_schedule
from schedsearch.runtime._cache import Cache
from schedsearch.runtime._correction import value_shape
from schedsearch.runtime._plan import plan
from schedsearch.schedule import MODEL_ROW, Schedule, SideTensor, Solver, corrections, dumps, loads, with_tensors

STEPS = 4
BLOCK, NEXT, COMPONENT = "transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.0.attn"


def schedule_of(pipe: Any, rows: dict[str, str], **changes: Any) -> Schedule:
    size = 16 * pipe.vae_scale_factor
    base = identity_schedule(pipe, STEPS, height=size, width=size)
    return dataclasses.replace(base, ops=tuple(rows.items()), **changes)


def identity(pipe: Any, row: str) -> torch.Tensor:
    streams, channels = value_shape(pipe, row)
    table = torch.zeros(STEPS, streams, 2, channels)
    table[:, :, 0] = 1.0
    return table


def drawn(pipe: Any, schedule: Schedule, row: str, seed: int = 0) -> torch.Tensor:
    """A correction of some size at every step at which the row predicts."""
    table = identity(pipe, row)
    source = torch.Generator().manual_seed(seed)
    for step, op in enumerate(schedule.row(row)):
        if op not in "CS":
            table[step] += 0.3 * torch.randn(table[step].shape, generator=source)
    return table


def corrected(schedule: Schedule, **tables: torch.Tensor) -> Schedule:
    named = {name.replace("__", ".") + ".correction": table for name, table in tables.items()}
    tensors = {
        name: SideTensor("F32", tuple(table.shape), table.contiguous().numpy().tobytes())
        for name, table in named.items()
    }
    return with_tensors(schedule, tensors, role="test")


def key(row: str) -> str:
    return row.replace(".", "__")


class Recorder:
    """What modules took in and gave during a run, by name, one entry per step."""

    def __init__(self, pipe: Any, *names: str) -> None:
        self.seen: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}
        modules = {name: denoiser_of(pipe).get_submodule(name) if name else denoiser_of(pipe) for name in names}
        self.hooks = [m.register_forward_hook(self._hook(name), with_kwargs=True) for name, m in modules.items()]

    def _hook(self, name: str) -> Any:
        def note(_module: Any, args: Any, kwargs: Any, out: Any) -> None:
            outs = tuple(t.clone() for t in out) if isinstance(out, tuple) else (out.clone(),)
            self.seen[name].append(({k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor)} or args, outs))

        return note

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def residual(entry: tuple[Any, Any]) -> list[torch.Tensor]:
    inputs, outputs = entry
    return [out - inputs[n] for out, n in zip(outputs, ("encoder_hidden_states", "hidden_states"), strict=True)]


def by_hand(values: list[torch.Tensor], table: torch.Tensor) -> list[torch.Tensor]:
    return [stream[0] * value + stream[1] for value, stream in zip(values, table, strict=True)]


class TestNumbers:
    def test_a_reused_output_of_the_model(self, shallow, run):
        schedule = schedule_of(shallow, {MODEL_ROW: "CRCR"})
        table = drawn(shallow, schedule, MODEL_ROW)
        with apply(shallow, corrected(schedule, model=table)), Recorder(shallow, "") as seen:
            run(shallow, steps=STEPS)
        out = [outs[0] for _, outs in seen.seen[""]]
        assert torch.allclose(out[1], table[1, 0, 0] * out[0] + table[1, 0, 1], atol=1e-6)
        assert torch.allclose(out[3], table[3, 0, 0] * out[2] + table[3, 0, 1], atol=1e-6)

    def test_a_forecast_is_corrected_after_it_is_made(self, shallow, run):
        schedule = schedule_of(shallow, {MODEL_ROW: "CC1C"})
        table, s = drawn(shallow, schedule, MODEL_ROW), schedule.sigma
        with apply(shallow, corrected(schedule, model=table)), Recorder(shallow, "") as seen:
            run(shallow, steps=STEPS)
        v0, v1, found, _ = [outs[0] for _, outs in seen.seen[""]]
        forecast = v1 + (v1 - v0) / (s[1] - s[0]) * (s[2] - s[1])
        assert torch.allclose(found, table[2, 0, 0] * forecast + table[2, 0, 1], atol=1e-5)

    def test_the_residual_of_a_block_per_stream(self, shallow, run):
        schedule = schedule_of(shallow, {BLOCK: "CRRC"})
        table = drawn(shallow, schedule, BLOCK)
        with apply(shallow, corrected(schedule, **{key(BLOCK): table})), Recorder(shallow, BLOCK) as seen:
            run(shallow, steps=STEPS)
        entries = seen.seen[BLOCK]
        kept = residual(entries[0])
        for step in (1, 2):
            for found, wanted in zip(residual(entries[step]), by_hand(kept, table[step]), strict=True):
                assert torch.allclose(found, wanted, atol=1e-5)

    def test_the_output_of_a_component(self, shallow, run):
        schedule = schedule_of(shallow, {COMPONENT: "CRCC"})
        table = drawn(shallow, schedule, COMPONENT)
        assert table.shape[1] == 2
        with apply(shallow, corrected(schedule, **{key(COMPONENT): table})), Recorder(shallow, COMPONENT) as seen:
            run(shallow, steps=STEPS)
        entries = seen.seen[COMPONENT]
        for found, wanted in zip(entries[1][1], by_hand(list(entries[0][1]), table[1]), strict=True):
            assert torch.allclose(found, wanted, atol=1e-6)

    def test_the_second_call_of_a_step_is_corrected_alike(self, shallow, run):
        schedule = schedule_of(shallow, {MODEL_ROW: "CRCC"}, solver=(Solver(family="heun", order=2),) * STEPS)
        table = drawn(shallow, schedule, MODEL_ROW)
        with apply(shallow, corrected(schedule, model=table)), Recorder(shallow, "") as seen:
            run(shallow, steps=STEPS)
        out = [outs[0] for _, outs in seen.seen[""]]  # two calls per step: 0 0' 1 1' ...
        for predicted in (out[2], out[3]):
            assert torch.allclose(predicted, table[1, 0, 0] * out[0] + table[1, 0, 1], atol=1e-6)

    def test_both_guidance_passes_are_corrected_each_from_its_own_store(self, shallow, run):
        schedule = schedule_of(shallow, {MODEL_ROW: "CRCC"})
        table = drawn(shallow, schedule, MODEL_ROW)
        with apply(shallow, corrected(schedule, model=table)), Recorder(shallow, "") as seen:
            run(shallow, steps=STEPS, cfg=True)
        out = [outs[0] for _, outs in seen.seen[""]]
        for k in (0, 1):
            assert torch.allclose(out[2 + k], table[1, 0, 0] * out[k] + table[1, 0, 1], atol=1e-6)
        assert not torch.equal(out[0], out[1])


BOTH = {BLOCK: "CRCR", NEXT: "CRCR"}


class TestSegments:
    def segments(self, pipe: Any, schedule: Schedule) -> list[tuple[str, ...]]:
        return [site.modules for site in plan(schedule, block_lists_of(pipe), corrections=corrections(schedule)).sites]

    def test_the_first_blocks_correction_is_that_of_the_sum(self, shallow, run):
        schedule = schedule_of(shallow, BOTH)
        table = drawn(shallow, schedule, BLOCK)
        whole = corrected(schedule, **{key(BLOCK): table})
        assert self.segments(shallow, whole) == [(BLOCK, NEXT)]
        with apply(shallow, whole), Recorder(shallow, BLOCK, NEXT) as seen:
            run(shallow, steps=STEPS)
        first, second = seen.seen[BLOCK], seen.seen[NEXT]
        kept = [a + b for a, b in zip(residual(first[0]), residual(second[0]), strict=True)]
        for found, wanted in zip(residual(first[1]), by_hand(kept, table[1]), strict=True):
            assert torch.allclose(found, wanted, atol=1e-5)
        assert all(not r.any() for r in residual(second[1]))

    def test_a_block_with_a_correction_begins_a_segment(self, shallow, run):
        schedule = schedule_of(shallow, BOTH)
        tables = {key(NEXT): drawn(shallow, schedule, NEXT, seed=1)}
        broken = corrected(schedule, **tables)
        assert self.segments(shallow, broken) == [(BLOCK,), (NEXT,)]
        with apply(shallow, broken), Recorder(shallow, BLOCK, NEXT) as seen:
            run(shallow, steps=STEPS)
        for found, wanted in zip(residual(seen.seen[BLOCK][1]), residual(seen.seen[BLOCK][0]), strict=True):
            assert torch.allclose(found, wanted, atol=1e-5)
        kept = residual(seen.seen[NEXT][0])
        for found, wanted in zip(residual(seen.seen[NEXT][1]), by_hand(kept, tables[key(NEXT)][1]), strict=True):
            assert torch.allclose(found, wanted, atol=1e-5)


class TestRunsThatBeginInTheMiddle:
    """Image to image: what a correction was made for is the reuse of certain steps."""

    def corrected_at(self, pipe, row, begin):
        schedule = dataclasses.replace(identity_schedule(pipe, 6, height=16, width=16), ops=(("model", row),))
        names = tuple("" if op == "C" else f"at {i}" for i, op in enumerate(row))
        (site,) = plan(schedule, block_lists_of(pipe), begin=begin, corrections={"model": names}).sites
        return [i for i, name in enumerate(site.corrected) if name]

    @pytest.mark.parametrize(
        ("row", "begin", "steps"),
        [("CRRCRR", 0, [1, 2, 4, 5]), ("CRRCRR", 1, [4, 5]), ("CRRCRR", 3, [4, 5]), ("CRRCRR", 4, []),
         ("CC1C11", 0, [2, 4, 5]), ("CC1C11", 1, [4, 5]), ("CC1C11", 2, []), ("CC1C11", 3, [])],
    )  # fmt: skip
    def test_predictions_are_corrected_where_they_use_the_same_steps(self, shallow, row, begin, steps):
        assert self.corrected_at(shallow, row, begin) == steps


class TestIdentity:
    @pytest.mark.parametrize("rows", [{MODEL_ROW: "CRCR"}, {BLOCK: "CRCR", NEXT: "CRCR"}, {COMPONENT: "CRCR"}])
    def test_ones_and_zeros_change_no_bit(self, shallow, run, rows):
        schedule = schedule_of(shallow, rows)
        with apply(shallow, schedule) as handle:
            plain, keys = run(shallow, steps=STEPS), [handle.sites_key(i) for i in range(STEPS)]
        trivial = corrected(schedule, **{key(row): identity(shallow, row) for row in rows})
        with apply(shallow, trivial) as handle:
            assert torch.equal(run(shallow, steps=STEPS), plain)
            assert [handle.sites_key(i) for i in range(STEPS)] == keys
            assert "corrected" not in handle.describe()

    def test_removing_gives_back_the_plain_pipeline(self, shallow, run):
        before = run(shallow, steps=STEPS)
        schedule = schedule_of(shallow, {MODEL_ROW: "CRCR"})
        handle = apply(shallow, corrected(schedule, model=drawn(shallow, schedule, MODEL_ROW)))
        assert not torch.equal(run(shallow, steps=STEPS), before)
        handle.remove()
        assert torch.equal(run(shallow, steps=STEPS), before)

    def test_a_file_replays_what_was_in_memory(self, shallow, run, tmp_path):
        from schedsearch.schedule import read_schedule, write_schedule

        schedule = schedule_of(shallow, {BLOCK: "CRCR"})
        schedule = corrected(schedule, **{key(BLOCK): drawn(shallow, schedule, BLOCK)})
        write_schedule(schedule, tmp_path / "s.json")
        with apply(shallow, schedule):
            wanted = run(shallow, steps=STEPS)
        with apply(shallow, tmp_path / "s.json") as handle:
            assert "corrected at 2 steps" in handle.describe()
            assert torch.equal(run(shallow, steps=STEPS), wanted)
        assert read_schedule(tmp_path / "s.json").id == schedule.id

    def test_half_precision_corrects_in_single(self, shallow, run):
        """A bfloat16 scale of 1.001 would be 1."""
        cache = Cache(0)
        value = torch.full((1, 2, 3), 1000.0, dtype=torch.bfloat16)
        cache.keep([value], ())
        (found,) = cache.predict((), [(torch.full((3,), 1.006), torch.zeros(3))])
        assert found.dtype == torch.bfloat16
        assert found.unique().tolist() == [1008.0]


class TestSharing:
    def test_runs_share_what_lies_before_the_first_difference(self, shallow):
        schedule = schedule_of(shallow, {MODEL_ROW: "CRRR"})
        one = drawn(shallow, schedule, MODEL_ROW)
        other = one.clone()
        other[2] += 0.1
        keys = []
        for table in (one, other):
            with apply(shallow, corrected(schedule, model=table)) as handle:
                keys.append([handle.sites_key(i) for i in range(STEPS)])
        assert [a == b for a, b in zip(*keys, strict=True)] == [True, True, False, False]

    def test_a_run_that_goes_on_gives_the_same_bits(self, shallow, run):
        schedule = schedule_of(shallow, {BLOCK: "CRRC", NEXT: "CCRR"})
        schedule = corrected(schedule, **{key(BLOCK): drawn(shallow, schedule, BLOCK)})
        with apply(shallow, schedule, unfitted=True) as handle:
            seen: list[Any] = []
            handle.on_call = lambda _i, _c, x, _o, history: seen.append((x.clone(), history, handle.snapshot()))
            wanted = run(shallow, steps=STEPS)
            handle.on_call = None
            handle.resume(2, seen[2][1], seen[1][2])
            assert torch.equal(run(shallow, steps=STEPS, latents=seen[2][0]), wanted)


class TestRefused:
    def test_another_number_of_channels(self, shallow):
        schedule = schedule_of(shallow, {MODEL_ROW: "CRCR"})
        wide = torch.zeros(STEPS, 1, 2, 5)
        wide[:, :, 0] = 1.0
        with pytest.raises(ModelMismatchError, match=r"tables\.tensors\.model\.correction: found shape \[4, 1, 2, 5\]"):
            apply(shallow, corrected(schedule, model=wide))

    @pytest.mark.parametrize("unfitted", [False, True])
    def test_a_schedule_whose_side_file_is_missing(self, shallow, unfitted):
        schedule = schedule_of(shallow, {MODEL_ROW: "CRCR"})
        bare = loads(dumps(corrected(schedule, model=drawn(shallow, schedule, MODEL_ROW))))
        with pytest.raises(ApplyError, match="tables: found no data"):
            apply(shallow, bare, unfitted=unfitted)

    def test_more_streams_than_the_row_has(self):
        cache = Cache(0)
        cache.keep([torch.ones(1, 2, 3)] * 3, ())
        with pytest.raises(ApplyError, match="correction: found 2 streams for a value of 3, expected as many"):
            cache.predict((), [(torch.ones(3), torch.zeros(3))] * 2)

    def test_another_number_of_streams(self, shallow):
        schedule = schedule_of(shallow, {BLOCK: "CRCR"})
        _, channels = value_shape(shallow, BLOCK)
        one = torch.zeros(STEPS, 1, 2, channels)
        one[:, :, 0] = 1.0
        with pytest.raises(ModelMismatchError, match=r"expected \[4, 2, 2, 32\]: 2 streams of 32 channels"):
            apply(shallow, corrected(schedule, **{key(BLOCK): one}))


def test_shapes_are_those_of_what_modules_give(shallow, run):
    names = [b.name for blocks in block_lists_of(shallow) for b in blocks]
    parts = [f"{b.name}.{c}" for blocks in block_lists_of(shallow) for b in blocks for c in b.components]
    with Recorder(shallow, "", *names, *parts) as seen:
        run(shallow, steps=1)
    for name, entries in seen.seen.items():
        outs = entries[0][1]
        assert value_shape(shallow, name or MODEL_ROW) == (len(outs), outs[0].shape[-1]), name


def test_text_of_a_schedule_without_its_data_keeps_its_corrections(shallow):
    schedule = schedule_of(shallow, {MODEL_ROW: "CRCR"})
    schedule = corrected(schedule, model=drawn(shallow, schedule, MODEL_ROW))
    again = loads(dumps(schedule))
    assert again.id == schedule.id
    assert again.tables is not None
    assert schedule.tables is not None
    assert load(schedule.tables.data or b"").keys() == {t.name for t in again.tables.tensors}
