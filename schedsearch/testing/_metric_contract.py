"""What every quality metric must do, as a test class to inherit from.

    class TestMine(MetricContract):
        def make(self):
            return QualityMetric(name="mine", unit="1", better="min", on="images", score=mine)

This module does not know any metric.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from schedsearch.errors import UsageError
from schedsearch.evaluate import QualityMetric


class MetricContract:
    """Inherit, and say how the metric is made.

    Attributes:
        shape: of the tensors that are compared; the first length is the number of images.
        noise: strengths of noise on the reference, each of which has to be worse than the one before.
    """

    shape: tuple[int, ...] = (4, 3, 32, 32)
    noise: tuple[float, ...] = (0.02, 0.1, 0.4)

    def make(self) -> QualityMetric:
        """The metric under test."""
        raise NotImplementedError

    def pictures(self, seed: int = 0) -> Tensor:
        """Smooth pictures in [0, 1], `shape`; latents look like this, too."""
        coarse = torch.rand((self.shape[0], 3, 4, 4), generator=torch.Generator().manual_seed(seed))
        fine = torch.nn.functional.interpolate(coarse, size=self.shape[-2:], mode="bilinear")
        return fine[:, : self.shape[1]].expand(self.shape).clone()

    def noisy(self, strength: float) -> Tensor:
        """The pictures with noise of this standard deviation, in [0, 1]."""
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(7))
        return (self.pictures() + strength * noise).clamp(0.0, 1.0)

    def test_says_what_it_is(self) -> None:
        """Name, unit and direction are there."""
        metric = self.make()
        assert metric.name.isidentifier()
        assert metric.unit
        assert metric.better in {"min", "max"}
        assert metric.on in {"images", "latents"}

    def test_gives_one_finite_number_per_image(self) -> None:
        """Also for identical pictures, where a formula may divide by zero."""
        for outputs in (self.pictures(), self.noisy(0.1)):
            scores = self.make()(outputs, self.pictures())
            assert len(scores) == self.shape[0]
            assert all(isinstance(score, float) and math.isfinite(score) for score in scores)

    def test_each_image_counts_for_itself(self) -> None:
        """A batch gives what its images give one by one, in any order."""
        metric, outputs, reference = self.make(), self.noisy(0.1), self.pictures()
        together = metric(outputs, reference)
        alone = [metric(a[None], b[None])[0] for a, b in zip(outputs, reference, strict=True)]
        assert together == pytest.approx(alone, rel=1e-9, abs=1e-12)
        assert metric(outputs.flip(0), reference.flip(0)) == pytest.approx(together[::-1], rel=1e-9, abs=1e-12)

    def test_nothing_is_better_than_the_same_picture(self) -> None:
        """And the stronger the noise, the worse it says."""
        metric, reference = self.make(), self.pictures()
        sign = 1.0 if metric.better == "max" else -1.0
        ladder = [reference, *map(self.noisy, self.noise)]
        means = [sign * sum(metric(outputs, reference)) for outputs in ladder]
        assert means == sorted(means, reverse=True)
        assert len(set(means)) == len(means)

    def test_says_the_same_again_and_changes_nothing(self) -> None:
        """No randomness, and its arguments stay as they are."""
        metric, outputs, reference = self.make(), self.noisy(0.1), self.pictures()
        kept = outputs.clone(), reference.clone()
        assert metric(outputs, reference) == metric(outputs, reference)
        assert torch.equal(outputs, kept[0])
        assert torch.equal(reference, kept[1])

    def test_is_computed_in_double_precision(self) -> None:
        """Pictures in bfloat16 give what the same numbers give in float64."""
        metric, outputs, reference = self.make(), self.noisy(0.1).bfloat16(), self.pictures().bfloat16()
        assert metric(outputs, reference) == pytest.approx(metric(outputs.double(), reference.double()), rel=1e-9)

    def test_refuses_what_cannot_be_compared(self) -> None:
        """Other shapes, and what is no tensor."""
        with pytest.raises(UsageError, match=r"expected the same shape twice"):
            self.make()(self.pictures(), self.pictures()[:1])
        with pytest.raises(UsageError, match=r"expected (a tensor|tensors)"):
            self.make()(self.pictures(), None)
