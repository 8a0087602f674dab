"""Distances between two sets of pictures, by torchmetrics, batch by batch.

The set compared with is the full run's, from the same prompts and the same noise. So the two sets are pairs, and the
distance of the full run to itself is 0. Two facts follow. The Frechet distance (FID) is too large on few pictures,
because the covariance of d features takes many more than d of them; less so the closer the pairs are. The kernel
distance (KID) has no such bias, provided that no picture is compared with its own pair: torchmetrics' estimate is for
independent sets and does so; `PairedKernelDistance` takes those terms out again. This module does not know the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_kernel
from torchmetrics.utilities.data import dim_zero_cat


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' FID; what rounding leaves below 0, where features outnumber pictures, is 0."""

    def compute(self) -> torch.Tensor:
        """Return the distance, 0 or more."""
        return super().compute().clamp(min=0.0)


class PairedKernelDistance(KernelInceptionDistance):
    """torchmetrics' KID over all pictures at once, for sets whose i-th pictures belong together.

    Gretton 2012 (JMLR 13), equation 4: without the terms k(x_i, y_i) the estimate has no bias, however much x_i and y_i
    have in common, and is 0 where all pairs are equal.
    """

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the distance, and 0 in place of a spread over subsets."""
        real, fake = dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)
        n = len(real)
        self.subsets, self.subset_size = 1, n
        with torch.random.fork_rng(devices=[]):  # it shuffles with the global generator, to no effect here
            estimate, _ = super().compute()
        cross = poly_kernel(real, fake, self.degree, self.gamma, self.coef)
        # torchmetrics has -2 sum / n^2 over all pairs; wanted is -2 (sum - own) / (n (n - 1)).
        own, total = cross.diagonal().sum(), cross.sum()
        return estimate + 2.0 * (n * own - total) / (n * n * (n - 1)), torch.zeros(())


class SetScore:
    """One metric over sets of pictures, for as many sets as are to be compared with the same pictures.

    Args:
        make: returns a metric of torchmetrics that keeps its real features when it is reset.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._known: dict[tuple[Hashable, ...], Any] = {}

    def open(self, batches: Sequence[Hashable]) -> OpenSet:
        """Begin a set of pictures that comes in these batches."""
        key = tuple(batches)
        if key not in self._known:
            self._known[key] = _Kept(self._make())
        kept = self._known[key]
        kept.metric.reset()
        return OpenSet(kept)


class _Kept:
    """A metric, and the batches of the full run it has taken."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self.real: set[Hashable] = set()


class OpenSet:
    """Takes one set batch by batch; see `SetScore.open`."""

    def __init__(self, kept: _Kept) -> None:
        self._kept = kept
        self._taken = 0

    def add(self, batch: Hashable, images: torch.Tensor, reference: torch.Tensor) -> None:
        """Take the pictures `(n, 3, h, w)` in [0, 1] of a batch, and those of the full run unless they are known."""
        if batch not in self._kept.real:
            self._kept.metric.update(reference, real=True)
            self._kept.real.add(batch)
        self._kept.metric.update(images, real=False)
        self._taken += len(images)

    def value(self) -> float:
        """Return the distance; not a number of fewer than two pictures, which have no spread."""
        if self._taken < 2:
            return float("nan")
        found = self._kept.metric.compute()
        return float(found[0] if isinstance(found, tuple) else found)


def frechet(feature: nn.Module) -> SetScore:
    """Return torchmetrics' FID through ``feature``, in double precision."""
    return SetScore(lambda: FrechetDistance(feature=feature, normalize=True, reset_real_features=False))


def kernel(feature: nn.Module) -> SetScore:
    """Return torchmetrics' KID through ``feature``, all pictures in one subset, without a picture's own pair."""

    def make() -> PairedKernelDistance:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")  # few pictures, meant
            return PairedKernelDistance(feature=feature, normalize=True, reset_real_features=False)

    return SetScore(make)
