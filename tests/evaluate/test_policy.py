"""Calibration policies: where rows come from, and that an artefact says it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.evaluate import POLICIES, CalibrationPolicy, find_policy, parse_policy, policy_of
from schedsearch.schedule import SideTensor, TableTensor, dumps, loads, with_layer_tables

VALUES = st.builds(
    CalibrationPolicy,
    name=st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
    layers=st.sampled_from(["*", "single_*", "*.ff.net.[02]*"]),
    steps=st.sampled_from(["all", "last", "every", "normal"]),
    every=st.integers(1, 9),
    prompts=st.integers(1, 99),
    rows=st.integers(1, 5000),
    judged=st.integers(0, 5000),
    decides=st.sampled_from(["layer", "latent_error"]),
    scales=st.sampled_from(["dynamic", "static", "per-step"]),
)


class TestShares:
    @pytest.mark.parametrize(
        ("steps", "every", "shares"),
        [
            ("all", 1, (0.25, 0.25, 0.25, 0.25)),
            ("last", 1, (0.0, 0.0, 0.0, 1.0)),
            ("every", 2, (0.5, 0.0, 0.5, 0.0)),
            ("every", 9, (1.0, 0.0, 0.0, 0.0)),
        ],
    )
    def test_of_four_steps(self, steps, every, shares):
        assert CalibrationPolicy(name="p", steps=steps, every=every).shares(4) == shares

    def test_the_normal_one_is_ptq4dms_and_leans_towards_the_image(self):
        shares = POLICIES["near-image"].shares(10)
        times = [0.95 - 0.1 * i for i in range(10)]
        density = [math.exp(-(((t - 0.4) / 0.5) ** 2) / 2) for t in times]
        assert shares == pytest.approx([d / sum(density) for d in density])
        assert sum(shares[5:]) > sum(shares[:5])

    @given(VALUES, st.integers(1, 60), st.integers(0, 3000), st.sets(st.integers(0, 59)))
    def test_quotas_add_up_and_only_running_steps_have_any(self, policy, n_steps, rows, running):
        running = {step for step in running if step < n_steps}
        quotas = policy.quotas(n_steps, running, rows)
        assert set(quotas) == running
        assert sum(quotas.values()) == (rows if running else 0)
        assert all(n >= 0 for n in quotas.values())

    def test_rows_of_a_step_that_does_not_run_come_from_the_one_before(self):
        last = POLICIES["last-step"]
        assert last.quotas(4, {0, 2}, 10) == {0: 0, 2: 10}
        assert POLICIES["all-steps"].quotas(4, {1, 2}, 12) == {1: 6, 2: 6}
        assert CalibrationPolicy(name="p").quotas(3, {0, 1, 2}, 4) == {0: 2, 1: 1, 2: 1}


class TestWords:
    def test_three_ship(self):
        assert {name: policy.steps for name, policy in POLICIES.items()} == {
            "all-steps": "all", "near-image": "normal", "last-step": "last",
        }  # fmt: skip
        assert len({dataclasses.replace(policy, name="p", steps="all") for policy in POLICIES.values()}) == 1
        assert find_policy("last-step") is POLICIES["last-step"]
        with pytest.raises(UsageError, match="found 'best', expected one of all-steps, near-image, last-step, or all"):
            find_policy("best")

    @given(VALUES)
    def test_a_policy_is_read_back_from_its_text(self, policy):
        again = parse_policy(policy.text)
        assert again == (policy if policy.steps == "every" else dataclasses.replace(policy, every=1))

    @pytest.mark.parametrize("text", ["", "smoothing", "a: layers *", "A: layers *, steps all, 1 prompts"])
    def test_other_text_is_no_policy(self, text):
        assert parse_policy(text) is None

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"name": "A b"}, "name: found 'A b', expected small letters"),
            ({"layers": "a b"}, "layers: found 'a b', expected a glob"),
            ({"steps": "some"}, "steps: found 'some', expected one of all, last, every, normal"),
            ({"every": 0}, "every: found 0, expected 1 or more"),
            ({"rows": 0}, "rows: found 0"),
            ({"judged": -1}, "judged: found -1, expected 0 or more"),
            ({"scales": "none"}, "scales: found 'none', expected one of dynamic, static, per-step"),
            ({"decides": "psnr"}, "decides: found 'psnr', expected one of layer, latent_error"),
        ],
    )
    def test_what_cannot_be_is_refused(self, fields, said):
        with pytest.raises(UsageError, match=said):
            CalibrationPolicy(**{"name": "p", **fields})


class TestInTheArtefact:
    def test_every_table_says_its_policy_and_the_schedule_gives_it_back(self, schedule):
        policy = CalibrationPolicy(name="mine", steps="every", every=3, rows=10)
        tensors = {"a.b.smooth": SideTensor("F32", (2,), b"\0" * 8), "a.b.bias": SideTensor("F32", (1,), b"\0" * 4)}
        made = with_layer_tables(schedule, tensors, role=policy.text)
        assert made.tables.tensors == (
            TableTensor(name="a.b.bias", shape=(1,), dtype="F32", role=f"bias; {policy.text}"),
            TableTensor(name="a.b.smooth", shape=(2,), dtype="F32", role=f"smooth; {policy.text}"),
        )
        assert policy_of(loads(dumps(made))) == policy
        assert policy_of(schedule) is None

    def test_another_policy_is_another_schedule(self, schedule):
        tensors = {"a.b.bias": SideTensor("F32", (1,), b"\0" * 4)}
        ids = {with_layer_tables(schedule, tensors, role=policy.text).id for policy in POLICIES.values()}
        assert len(ids) == 3
