"""How close a run came to the full run with the same noise: metrics as plug-ins in one table.

Every metric compares image by image and keeps each image's number; averages are for whoever reads them. A new metric is
one entry in `METRICS`. Does not know how images are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.regression import normalized_root_mean_squared_error

from schedsearch.errors import EvaluationError, UsageError
from schedsearch.types import Better

ReferenceName = Literal["default", "converged"]

REFERENCES: tuple[ReferenceName, ...] = ("default", "converged")
"""What runs are compared with: the plain run, and what it would be with steps without end (see ``_reference.py``)."""

PSNR_CAP_DB = 100.0
"""PSNR of identical images: the true value is infinite, and records hold finite numbers only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityMetric:
    """A per-image score against the reference.

    Attributes:
        name: key in `METRICS`.
        unit: such as ``dB``; ``1`` for a plain number.
        better: direction of improvement.
        on: what it looks at: ``images`` `(n, c, h, w)` in [0, 1], or final ``latents`` `(n, ...)`.
        score: the formula, `(n, ...)` and `(n, ...)` to `(n,)`.
    """

    name: str
    unit: str
    better: Better
    on: Literal["images", "latents"]
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def __call__(self, outputs: object, reference: object) -> tuple[float, ...]:
        """Return one number per image.

        Raises:
            UsageError: if the two are not tensors of one shape.
        """
        if not isinstance(outputs, torch.Tensor) or not isinstance(reference, torch.Tensor):
            raise UsageError(
                f"metric {self.name}: found {type(outputs).__name__} and {type(reference).__name__}, expected tensors."
            )
        if outputs.shape != reference.shape:
            raise UsageError(
                f"metric {self.name}: found shapes {tuple(outputs.shape)} and {tuple(reference.shape)}, "
                "expected the same shape twice."
            )
        # In double precision: the variances inside SSIM are differences of nearly equal squares.
        scores = self.score(outputs.detach().double().cpu(), reference.detach().double().cpu())
        return tuple(float(value) for value in scores.reshape(-1))


def _psnr(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``10 log10(1 / mean squared error)`` per image, at most `PSNR_CAP_DB`."""
    scores = peak_signal_noise_ratio(outputs, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return scores.clamp(max=PSNR_CAP_DB)


def _ssim(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Wang et al. 2004 with an 11-pixel Gaussian window of sigma 1.5, per image."""
    # Image by image: on the CPU torch's grouped convolution in double precision is six times slower on a batch.
    return torch.cat([_ssim_of_one(a, b) for a, b in zip(outputs.split(1), reference.split(1), strict=True)])


def _ssim_of_one(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    scores = structural_similarity_index_measure(outputs, reference, data_range=1.0, reduction="none")
    if isinstance(scores, tuple):
        raise EvaluationError("metric ssim: torchmetrics answered with a tuple, expected one score per image.")
    return scores.reshape(1)


def _latent_error(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``|outputs - reference|_2 / |reference|_2`` per image."""
    n = reference.shape[0]
    size = reference.numel() // n
    columns = (outputs.reshape(n, size).T.contiguous(), reference.reshape(n, size).T.contiguous())
    if n == 1:
        columns = (columns[0].reshape(-1), columns[1].reshape(-1))
    # torchmetrics divides the root *mean* square by the norm of the target; sqrt(size) makes both of them norms.
    ratio: torch.Tensor = normalized_root_mean_squared_error(*columns, normalization="l2", num_outputs=n)
    return ratio.mul(float(size) ** 0.5)


METRICS: Mapping[str, QualityMetric] = {
    metric.name: metric
    for metric in (
        QualityMetric(name="psnr", unit="dB", better="max", on="images", score=_psnr),
        QualityMetric(name="ssim", unit="1", better="max", on="images", score=_ssim),
        QualityMetric(name="latent_error", unit="1", better="min", on="latents", score=_latent_error),
    )
}
"""Every metric by name."""


def find_metric(name: str, reference: ReferenceName = "default") -> QualityMetric:
    """Return the metric called ``name``, under the name it has against ``reference``.

    >>> find_metric("psnr", "converged").name
    'converged_psnr'

    Raises:
        UsageError: if there is none, or no such reference, naming those there are.
    """
    if name == "lpips":
        raise UsageError(
            "metric: found lpips, which needs the weights of a feature network that this release does not carry; "
            f"expected one of {', '.join(METRICS)}."
        )
    if name not in METRICS:
        raise UsageError(f"metric: found {name!r}, expected one of {', '.join(METRICS)}.")
    if reference not in REFERENCES:
        raise UsageError(f"reference: found {reference!r}, expected one of {', '.join(REFERENCES)}.")
    metric = METRICS[name]
    return metric if reference == "default" else replace(metric, name=f"{reference}_{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What a run produced: final packed ``latents`` `(n, tokens, channels)` and ``images`` `(n, 3, h, w)` in [0, 1]."""

    latents: torch.Tensor
    images: torch.Tensor


def score_pictures(
    metrics: Sequence[QualityMetric], outputs: Pictures, reference: Pictures
) -> dict[str, tuple[float, ...]]:
    """Return each metric's numbers, one per image, under the metric's name."""
    scores: dict[str, tuple[float, ...]] = {}
    for metric in metrics:
        if metric.on == "images":
            scores[metric.name] = metric(outputs.images, reference.images)
        else:
            scores[metric.name] = metric(outputs.latents, reference.latents)
    return scores
