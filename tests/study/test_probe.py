"""Closed forms on inner products against the tensors they stand for, and the probe as text."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.errors import StudyError
from schedsearch.study import BlockProbe, Probe
from schedsearch.testing import toy_sigmas


def recorded(n_steps=6, *, n_elements=40, seed=0):
    """A random "run": the probe of it, its samples and its outputs."""
    rng = np.random.default_rng(seed)
    sigma = toy_sigmas(n_steps)
    outputs = np.cumsum(rng.normal(size=(n_steps, n_elements)), axis=0)
    samples = [rng.normal(size=n_elements)]
    for i, output in enumerate(outputs):
        samples.append(samples[-1] + (sigma[i + 1] - sigma[i]) * output)
    basis = np.vstack([samples[0], outputs])
    change = np.full((n_steps, 3), np.nan)
    change[: n_steps - 1, 0] = 0.25
    probe = Probe(
        sigma=sigma,
        gram=basis @ basis.T / n_elements,
        l1=np.abs(outputs[:, None] - outputs).mean(axis=2),
        blocks=(BlockProbe(name="transformer_blocks.0", change=change, size=0.5),),
    )
    return probe, np.array(samples), outputs


class TestClosedForms:
    probe, samples, outputs = recorded()

    def test_products_of_samples(self):
        assert self.probe.state_products == pytest.approx(self.samples @ self.samples.T / 40)

    def test_vectors_have_the_lengths_and_angles_of_the_tensors(self):
        assert self.probe.vectors.T @ self.probe.vectors == pytest.approx(self.probe.gram)
        both = self.probe.outputs @ self.probe.states.T
        assert both == pytest.approx(self.outputs @ self.samples.T / 40)

    @settings(max_examples=30)
    @given(st.data(), st.booleans())
    def test_residual_is_that_of_least_squares_on_the_tensors(self, data, free_base):
        i = data.draw(st.integers(0, 5))
        j = data.draw(st.integers(i + 1, 6))
        used = data.draw(st.lists(st.integers(0, i), max_size=4, unique=True))
        columns = [self.outputs[k] for k in used] + ([self.samples[i]] if free_base else [])
        target = self.samples[j] - self.samples[i]
        left = target
        if columns:
            basis = np.array(columns).T
            left = target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]
        found = self.probe.residual(i, j, used, free_base=free_base)
        assert found == pytest.approx(left @ left / 40, abs=1e-12)

    def test_a_step_of_the_teacher_leaves_nothing(self):
        assert self.probe.residual(2, 3, [2]) == pytest.approx(0.0, abs=1e-24)

    def test_a_repeated_output_changes_nothing(self):
        assert self.probe.residual(3, 6, [3, 2, 2]) == pytest.approx(self.probe.residual(3, 6, [3, 2]))

    def test_jumps_are_errors_of_euler_steps(self):
        jumps = self.probe.jumps()
        assert jumps[3, 2] == jumps[4, 4] == np.inf
        for i, j in ((0, 1), (0, 6), (2, 5)):
            move = (self.probe.sigma[j] - self.probe.sigma[i]) * self.outputs[i]
            error = self.samples[j] - self.samples[i] - move
            assert jumps[i, j] == pytest.approx(np.sqrt(error @ error / 40), abs=1e-12)

    def test_psnr(self):
        probe = replace(self.probe, scale=0.25, floor=0.0004)
        assert probe.psnr(0.0036) == pytest.approx(30.0)
        assert self.probe.psnr(0.0) == pytest.approx(3000.0)


class TestText:
    def test_round_trip_is_exact(self):
        probe, _, _ = recorded()
        again = Probe.from_json(probe.to_json())
        assert again == probe
        assert hash(again) == hash(probe)
        assert np.isnan(again.blocks[0].change[-1, 0])
        assert again.gram.tobytes() == probe.gram.tobytes()

    def test_other_numbers_are_another_probe(self):
        probe, _, _ = recorded()
        assert probe != recorded(seed=1)[0]
        assert probe != replace(probe, scale=2.0)
        assert probe != "probe"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: d.update(version=2), r"expected \['schedsearch.probe', 1\]"),
            (lambda d: d.pop("l1"), "found the parts"),
            (lambda d: d.update(extra=1), "found the parts"),
            (lambda d: d.update(gram=[[1.0]]), r"gram: found shape \(1, 1\), expected \(7, 7\)"),
            (lambda d: d.update(scale="x"), "a part of the wrong kind"),
            (lambda d: d.update(blocks=[{"name": "a"}]), "a part of the wrong kind"),
        ],
    )
    def test_what_is_not_a_probe(self, change, said):
        document = json.loads(recorded()[0].to_json())
        change(document)
        with pytest.raises(StudyError, match=said):
            Probe.from_json(json.dumps(document))

    def test_what_is_not_json(self):
        with pytest.raises(StudyError, match="text that is not JSON"):
            Probe.from_json("{")
        with pytest.raises(StudyError, match="found 3"):
            Probe.from_json("3")


class TestRules:
    @pytest.mark.parametrize(
        ("part", "value", "said"),
        [
            ("sigma", (1.0,), "1 levels, expected at least 2"),
            ("sigma", (1.0, 0.9, 0.9, 0.4, 0.3, 0.2, 0.0), "levels that do not fall"),
            ("l1", np.full((6, 6), -1.0), "a negative distance"),
            ("l1", np.full((6, 6), np.nan), "a number that is not finite"),
            ("gram", np.arange(49.0).reshape(7, 7), "not symmetric"),
            ("gram", -np.eye(7), "a negative square"),
            ("floor", -1.0, "floor: found -1.0"),
            ("scale", float("inf"), "scale: found inf"),
            (
                "blocks",
                (BlockProbe(name="a", change=np.zeros((2, 3)), size=1.0),),
                r"blocks.a.change: found shape \(2, 3\)",
            ),
            ("blocks", (BlockProbe(name="a", change=np.zeros((6, 3)), size=-1.0),), "blocks.a.size: found -1.0"),
            ("blocks", (BlockProbe(name="a", change=np.zeros((6, 3)), size=1.0),) * 2, "a name twice"),
        ],
    )
    def test_numbers_that_cannot_be(self, part, value, said):
        with pytest.raises(StudyError, match=said):
            replace(recorded()[0], **{part: value})

    def test_arrays_are_frozen(self):
        with pytest.raises(ValueError, match="read-only"):
            recorded()[0].gram[0, 0] = 1.0


class TestLowBit:
    """Distances to the outputs of the same run in low bits."""

    def test_they_need_not_be_symmetric_and_come_back_from_text(self):
        plain, _, _ = recorded()
        low_bit = np.arange(36.0).reshape(6, 6)
        probe = replace(plain, low_bit=low_bit)
        again = Probe.from_json(probe.to_json())
        assert again == probe
        assert again.low_bit.tolist() == low_bit.tolist()
        assert probe != plain
        assert "low_bit" not in plain.to_json()

    @pytest.mark.parametrize(
        ("low_bit", "text"),
        [
            (np.zeros((5, 5)), r"probe\.low_bit: found shape \(5, 5\), expected \(6, 6\)"),
            (np.full((6, 6), -1.0), r"probe\.low_bit: found a negative distance"),
            (np.full((6, 6), np.nan), r"probe\.low_bit: found a number that is not finite"),
        ],
    )
    def test_what_cannot_be(self, low_bit, text):
        with pytest.raises(StudyError, match=text):
            replace(recorded()[0], low_bit=low_bit)
