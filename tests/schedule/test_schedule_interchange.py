"""ECAD's and SmoothCache's files, and ECAD's published costs from FLUX.1-dev's block structure alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule import (
    FLUX_DEV,
    FluxStructure,
    ModelRef,
    Schedule,
    Solver,
    ecad_macs,
    from_ecad,
    from_smoothcache,
    to_ecad,
    to_smoothcache,
)
from schedsearch.schedule._ecad_cost import component_macs, fixed_macs

MODEL = ModelRef(pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=256, width=256)
NAMES = list(component_macs(FLUX_DEV, image_tokens=1, text_tokens=1))
"""The 171 components of FLUX.1-dev in ECAD's order: a step of a schedule is a set of positions in this list."""

Ranges = tuple[tuple[int, int], ...]


def sigmas(n_steps: int) -> tuple[float, ...]:
    return tuple(1 - i / n_steps for i in range(n_steps + 1))


def schedule_of(steps: list[Ranges]) -> Schedule:
    """The schedule that at each step computes the components in the given half-open ranges."""
    on = [{i for a, b in ranges for i in range(a, b)} for ranges in steps]
    rows = {name: "".join("C" if i in step else "R" for step in on) for i, name in enumerate(NAMES)}
    return imported(rows, len(steps))


def imported(rows: Mapping[str, str], n_steps: int) -> Schedule:
    return Schedule(sigma=sigmas(n_steps), solver=(Solver(),) * n_steps, model=MODEL, ops=tuple(rows.items()))


def tera(schedule: Schedule, image_tokens: int = 256) -> float:
    return sum(ecad_macs(schedule, image_tokens=image_tokens)) / 1e12


# Published with arXiv 2506.15682: the number of recomputed components per step, for some steps also which. The places
# of the others are our reconstruction from the published counts and totals: among ranges at the head, the tail or at
# both, the choice with the fewest split steps that meets the published total and the published number of constant runs.
ALL: Ranges = ((0, 171),)
FAST_COUNTS = (171, 0, 105, 0, 171, 0, 95, 0, 16, 0, 81, 72, 24, 0, 87, 9, 20, 106, 122, 1)
FASTER_COUNTS = (171, 0, 105, 0, 140, 0, 32, 0, 0, 0, 81, 0, 0, 0, 87, 9, 20, 25, 74, 1)


def head(n: int) -> Ranges:
    return ((0, n),)


def tail(n: int) -> Ranges:
    return ((171 - n, 171),)


SHARED: dict[int, Ranges] = {
    0: ALL, 2: ((0, 28), (35, 66), (125, 171)), 10: tail(81), 14: head(87), 15: head(9), 16: tail(20), 19: head(1)
}  # fmt: skip
FAST = {
    **SHARED, 4: ALL, 6: head(95), 8: head(2) + tail(14), 11: tail(72), 12: tail(24), 17: head(2) + tail(104),
    18: head(122),
}  # fmt: skip
FASTER = {**SHARED, 4: head(3) + tail(137), 6: head(2) + tail(30), 17: head(25), 18: head(74)}


class TestCost:
    def test_the_structure_gives_the_cost_of_a_full_step(self):
        n = 256 + 512
        d2 = 3072**2
        assert len(NAMES) == 171
        assert sum(component_macs(FLUX_DEV, image_tokens=256, text_tokens=512).values()) == d2 * 12 * n * 57
        assert 2 * fixed_macs(FLUX_DEV, image_tokens=256, text_tokens=512) == 19_643_498_496
        assert 2 * fixed_macs(FLUX_DEV, image_tokens=4096, text_tokens=512) == 22_663_397_376
        (step,) = ecad_macs(schedule_of([ALL]), image_tokens=256)
        assert step / 1e12 == pytest.approx(9.934575, abs=1e-6)
        (large,) = ecad_macs(schedule_of([ALL]), image_tokens=4096)
        assert large / 1e12 == pytest.approx(59.512, abs=1e-3)

    def test_the_plain_run(self):
        assert tera(schedule_of([ALL] * 20)) == pytest.approx(198.69151, abs=1e-5)

    @pytest.mark.parametrize(
        ("every", "published"), [(2, 99.542), (3, 69.797), (4, 49.968), (5, 40.053), (6, 40.053), (7, 30.138)]
    )
    def test_fora(self, every, published):
        schedule = schedule_of([ALL if step % every == 0 else () for step in range(20)])
        assert tera(schedule) == pytest.approx(published, abs=5e-4)

    @pytest.mark.parametrize(
        ("ranges", "counts", "published", "runs"),
        [(FAST, FAST_COUNTS, 63.0232, 32), (FASTER, FASTER_COUNTS, 43.6040, 28)],
        ids=["ours_fast", "ours_faster"],
    )
    def test_the_published_schedules(self, ranges, counts, published, runs):
        schedule = schedule_of([ranges.get(step, ()) for step in range(20)])
        table = [[schedule.row(name)[step] == "C" for name in NAMES] for step in range(20)]
        assert tuple(map(sum, table)) == counts
        assert tera(schedule) == pytest.approx(published, abs=5e-5)
        flat = [gene for step in table for gene in step]
        assert 1 + sum(a != b for a, b in pairwise(flat)) == runs
        again = from_ecad(to_ecad(schedule, double_blocks=19, single_blocks=38), model=MODEL, sigma=schedule.sigma)
        assert again.ops == schedule.ops
        assert tera(again) == tera(schedule)

    def test_the_fast_schedule_at_four_times_the_side(self):
        schedule = schedule_of([FAST.get(step, ()) for step in range(20)])
        assert tera(schedule, 4096) == pytest.approx(376.6215, abs=5e-5)

    def test_coarser_rows_and_pruning_save_what_is_inside(self):
        plain = schedule_of([ALL] * 4)
        step = ecad_macs(plain, image_tokens=256)[0]
        fixed = 2 * fixed_macs(FLUX_DEV, image_tokens=256, text_tokens=512)
        block = 2 * 3072**2 * 12 * 768
        assert ecad_macs(replace(plain, ops=(("model", "CR2C"),)), image_tokens=256) == (step, 0, 0, step)
        rows = (("transformer_blocks.3", "CRCS"), ("transformer_blocks.3.attn", "CRRR"))
        attn = 2 * 3072**2 * 4 * 768
        assert ecad_macs(replace(plain, ops=rows), image_tokens=256) == (step, step - block, step - attn, step - block)
        pruned = replace(plain, pruned=("transformer_blocks.3", "single_transformer_blocks.0.attn"))
        assert set(ecad_macs(pruned, image_tokens=256)) == {step - block - 2 * 3072**2 * 3 * 768}
        tiny = FluxStructure(double_blocks=0, single_blocks=0)
        assert set(ecad_macs(plain, image_tokens=256, structure=tiny)) == {
            2 * fixed_macs(tiny, image_tokens=256, text_tokens=512)
        }
        assert fixed < step


def ecad_file(**changes: object) -> dict:
    """A two-step file of one double and one single block."""
    double = {"full_attn": True, "full_ff": True, "full_ff_context": True}
    single = {"single_attn": True, "single_proj_mlp": True, "single_proj_out": True}
    reused = {"0": {**double, "full_ff": False}, "single_0": {**single, "single_proj_out": False}}
    head = {
        "num_blocks": 1, "num_inference_steps": 2, "name": "n", "attributes": {"any": [1]}, "num_single_blocks": 1,
        "schedule": {"000": {"0": double, "single_0": single}, "001": reused}, **changes,
    }  # fmt: skip
    return {"cache_schedule": head, "config": {"height": 256}, "metrics": {"total_macs_T": 1.0}}


class TestEcad:
    """R22."""

    def test_true_is_recompute(self):
        schedule = from_ecad(json.dumps(ecad_file()), model=MODEL, sigma=(1.0, 0.5, 0.0))
        assert schedule.ops == (
            ("single_transformer_blocks.0.proj_out", "CR"),
            ("transformer_blocks.0.ff", "CR"),
        )
        assert schedule.provenance.note == "imported from ECAD: n"
        assert schedule.measured == ()

    def test_cached_before_it_ever_ran_is_computed(self):
        file = ecad_file()
        file["cache_schedule"]["schedule"]["000"]["0"]["full_ff"] = False
        file["cache_schedule"]["schedule"]["000"]["0"]["full_attn"] = False
        schedule = from_ecad(json.dumps(file), model=MODEL, sigma=(1.0, 0.5, 0.0))
        assert (schedule.row("transformer_blocks.0.ff"), schedule.row("transformer_blocks.0.attn")) == ("CR", "CC")

    def test_pixart(self):
        first, second = {"attn1": False, "attn2": True, "ff": True}, {"attn1": True, "attn2": False, "ff": False}
        steps = {"000": {"0": first}, "001": {"0": second}}
        file = {"cache_schedule": {"num_blocks": 1, "num_inference_steps": 2, "schedule": steps}}
        schedule = from_ecad(json.dumps(file), model=MODEL, sigma=(1.0, 0.5, 0.0))
        assert schedule.ops == (("transformer_blocks.0.attn2", "CR"), ("transformer_blocks.0.ff", "CR"))

    @given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=5), st.integers(0, 3))
    def test_round_trip(self, genes, doubles):
        structure = FluxStructure(double_blocks=doubles, single_blocks=3 - doubles)
        names = component_macs(structure, image_tokens=1, text_tokens=1)
        rows = {name: "C" + "".join("RC"[step[i]] for step in genes[1:]) for i, name in enumerate(names)}
        schedule = imported(rows, len(genes))
        text = to_ecad(schedule, double_blocks=doubles, single_blocks=3 - doubles)
        again = from_ecad(text, model=MODEL, sigma=schedule.sigma)
        assert again.id == schedule.id
        assert to_ecad(again, double_blocks=doubles, single_blocks=3 - doubles) == text

    @pytest.mark.parametrize(
        ("change", "path", "rule"),
        [
            (lambda h: h.pop("schedule"), "cache_schedule.schedule", "R22"),
            (lambda h: h.update(extra=1), "cache_schedule.extra", "R22"),
            (lambda h: h.update(num_blocks=10**6), "cache_schedule.num_blocks", "R22"),
            (lambda h: h.update(num_blocks=True), "cache_schedule.num_blocks", "R22"),
            (lambda h: h.update(num_blocks=2), "cache_schedule.schedule.000.1", "R22"),
            (lambda h: h.update(num_single_blocks=0), "cache_schedule.schedule.000.single_0", "R22"),
            (lambda h: h.update(num_inference_steps=3), "cache_schedule.num_inference_steps", "R24"),
            (lambda h: h["schedule"].pop("001"), "cache_schedule.schedule.001", "R22"),
            (lambda h: h["schedule"]["001"]["0"].pop("full_ff"), "cache_schedule.schedule.001.0.full_ff", "R22"),
            (lambda h: h["schedule"]["001"]["0"].update(full_ff=1), "cache_schedule.schedule.001.0.full_ff", "R22"),
            (lambda h: h["schedule"]["001"]["0"].update(ff=True), "cache_schedule.schedule.001.0.ff", "R22"),
            (lambda h: h["schedule"].update({"001": []}), "cache_schedule.schedule.001", "R22"),
        ],
    )
    def test_a_damaged_file(self, change, path, rule):
        file = ecad_file()
        change(file["cache_schedule"])
        with pytest.raises(ScheduleFormatError) as caught:
            from_ecad(json.dumps(file), model=MODEL, sigma=(1.0, 0.5, 0.0))
        assert (caught.value.path, caught.value.rule) == (path, rule)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "data", ["", "[]", "{}", '{"cache_schedule": 1}', '{"cache_schedule": {}, "x": 1}', "[" * 9999]
    )
    def test_another_file(self, data):
        with pytest.raises(ScheduleFormatError):
            from_ecad(data, model=MODEL, sigma=(1.0, 0.5, 0.0))

    @pytest.mark.parametrize(
        ("changes", "path"),
        [
            ({"ops": (("model", "CR"),)}, "ops.model"),
            ({"ops": (("transformer_blocks.0", "CR"),)}, "ops.transformer_blocks.0"),
            ({"ops": (("transformer_blocks.1.ff", "CR"),)}, "ops.transformer_blocks.1.ff"),
            ({"ops": (("transformer_blocks.0.ff", "C1"),)}, "ops.transformer_blocks.0.ff[1]"),
            ({"guidance": (1.0, None)}, "guidance"),
            ({"pruned": ("a",)}, "pruned"),
            ({"solver": (Solver(), Solver(family="dpm", order=2))}, "steps.solver[1]"),
            ({"solver": (Solver(prediction="noise"), Solver())}, "steps.solver[0]"),
        ],
    )
    def test_what_it_cannot_say_is_refused(self, changes, path):
        schedule = replace(imported({}, 2), **changes)
        with pytest.raises(ScheduleFormatError) as caught:
            to_ecad(schedule, double_blocks=1, single_blocks=1)
        assert caught.value.path == path

    def test_an_unknown_key_in_a_big_file_is_a_short_error(self):
        blocks = {f"{i}": {"full_attn": True, "full_ff": True, "full_ff_context": True} for i in range(3000)}
        file = ecad_file(num_blocks=3000, num_single_blocks=0, schedule={"000": {**blocks, "x": {}}, "001": blocks})
        with pytest.raises(
            ScheduleFormatError, match=r"schedule\.000\.x: .* 1001, .*, \.\.\. \(3000 names\)"
        ) as caught:
            from_ecad(json.dumps(file), model=MODEL, sigma=(1.0, 0.5, 0.0))
        assert len(str(caught.value)) < 400


class TestSmoothCache:
    """R23."""

    COMPONENTS = tuple(f"transformer_blocks.{i}.{part}" for i in range(3) for part in ("attn", "ff", "ff_context"))

    def test_one_row_for_all_blocks(self):
        schedule = from_smoothcache(
            '{"attn": [1, 0, 0], "mlp": [1, 1, 0]}', model=MODEL, sigma=sigmas(3), components=self.COMPONENTS
        )
        assert schedule.ops == tuple(
            row
            for i in range(3)
            for row in ((f"transformer_blocks.{i}.attn", "CRR"), (f"transformer_blocks.{i}.ff", "CCR"))
        )
        assert schedule.provenance.note == "imported from SmoothCache"

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20))
    def test_round_trip(self, rest):
        masks = {kind: [1, *(int(step[i]) for step in rest)] for i, kind in enumerate(("attn", "mlp"))}
        text = json.dumps(masks) + "\n"
        schedule = from_smoothcache(text, model=MODEL, sigma=sigmas(len(rest) + 1), components=self.COMPONENTS)
        assert to_smoothcache(schedule, components=self.COMPONENTS) == text

    def test_through_ecad_and_back(self):
        text = '{"attn": [1, 0, 1, 0], "mlp": [1, 1, 0, 0]}\n'
        first = from_smoothcache(text, model=MODEL, sigma=sigmas(4), components=self.COMPONENTS)
        second = from_ecad(to_ecad(first, double_blocks=3, single_blocks=0), model=MODEL, sigma=sigmas(4))
        assert second.id == first.id
        assert to_smoothcache(second, components=self.COMPONENTS) == text

    def test_own_layer_types(self):
        layers = {"mlp": ("ff", "ff_context")}
        schedule = from_smoothcache(
            '{"mlp": [1, 0]}', model=MODEL, sigma=sigmas(2), components=self.COMPONENTS, layers=layers
        )
        assert len(schedule.ops) == 6
        assert to_smoothcache(schedule, components=self.COMPONENTS, layers=layers) == '{"mlp": [1, 0]}\n'

    @pytest.mark.parametrize(
        ("text", "path", "words"),
        [
            ("{}", "", "found no layer type"),
            ('{"atn": [1, 0]}', "atn", "Did you mean 'attn'?"),
            ('{"attn": [1, 0, 1]}', "attn", "found 3 steps, expected 2"),
            ('{"attn": [0, 1]}', "attn[0]", "found 0, expected 1"),
            ('{"attn": [1, 2]}', "attn[1]", "a whole number in 0..1"),
            ('{"attn": [1, true]}', "attn[1]", "found true"),
            ('{"attn": [1, 0.0]}', "attn[1]", "found 0.0"),
            ('{"attn": "10"}', "attn", "a list"),
            ('{"attn": {"0": [1]}}', "attn", "a list"),
            ('{"attn2": [1, 0]}', "attn2", "a layer type of no component given"),
            ('{"mlp": [1, 0], "ff": [1, 1]}', "ff", "a second row"),
        ],
    )
    def test_a_damaged_file(self, text, path, words):
        with pytest.raises(ScheduleFormatError) as caught:
            from_smoothcache(text, model=MODEL, sigma=sigmas(2), components=self.COMPONENTS)
        assert caught.value.path == path
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        ("rows", "path"),
        [
            ({"transformer_blocks.0.attn": "CR"}, "ops.transformer_blocks.1.attn"),
            ({"transformer_blocks.0.ff_context": "CR"}, "ops.transformer_blocks.0.ff_context"),
            ({"transformer_blocks.0": "CR"}, "ops.transformer_blocks.0"),
            ({"transformer_blocks.0.attn": "CS"}, "ops.transformer_blocks.0.attn[1]"),
        ],
    )
    def test_what_it_cannot_say_is_refused(self, rows, path):
        with pytest.raises(ScheduleFormatError) as caught:
            to_smoothcache(imported(rows, 2), components=self.COMPONENTS)
        assert caught.value.path == path

    def test_another_sampler_is_refused(self):
        schedule = replace(imported({}, 2), solver=(Solver(), Solver(family="unipc", order=2)))
        with pytest.raises(ScheduleFormatError, match=r"^steps\.solver\[1\]: found unipc of order 2, .*FORMAT.md R23"):
            to_smoothcache(schedule, components=self.COMPONENTS)
