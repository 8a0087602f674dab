"""Metrics as plug-ins in one table: what each compares, in which direction it improves, and what it needs.

Three kinds, told apart by ``needs``: a picture against the full run's from the same noise (``pair``), a picture against
its prompt (``prompt``), and a set of pictures against the full run's set (``set``). The first two keep a number for
every picture; averages are for whoever reads them. A new metric is one entry in `METRICS`. What the feature networks
of some of them are, and where their weights lie, is the matter of ``_nets.py``. Does not know how images are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.regression import normalized_root_mean_squared_error

from schedsearch.errors import ModelNotFoundError, UsageError
from schedsearch.evaluate._net_models import clip_score, feature_module, image_reward, perceptual_distance
from schedsearch.evaluate._nets import Net, choose
from schedsearch.evaluate._set_scores import SetScore, frechet, kernel
from schedsearch.types import Better

ReferenceName = Literal["default", "converged"]

REFERENCES: tuple[ReferenceName, ...] = ("default", "converged")
"""What runs are compared with: the plain run, and what it would be with steps without end (see ``_reference.py``)."""

PSNR_CAP_DB = 100.0
"""PSNR of identical images: the true value is infinite, and records hold finite numbers only."""

SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""What keeps SSIM's fractions finite, for values from 0 to 1."""

FEWEST_FOR_KID = 16
"""Pictures below which KID says too little to search by."""

FEWEST_FOR_FID = 256
"""Pictures below which FID is too biased to search by."""

_NAME = re.compile(r"(?P<base>[a-z_]+)(?:\[(?P<net>[^\[\]]+)\])?")

Planes = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Formula = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ByPair = Callable[[Net, torch.Tensor, torch.Tensor, str], torch.Tensor]
ByPrompt = Callable[[Net, torch.Tensor, Sequence[str], str], torch.Tensor]
OverSets = Callable[[nn.Module], SetScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityMetric:
    """One way to say how good pictures are.

    Attributes:
        name: key in `METRICS`; `find_metric` adds the feature network in square brackets, and the reference.
        unit: such as ``dB``; ``1`` for a plain number.
        better: direction of improvement.
        summary: what it says, in a few words.
        floor: value at the hypervolume's reference point: as bad as makes no difference; has to be given where smaller
            is better.
        needs: what a picture is compared with: its ``pair`` in the full run, its ``prompt``, or as one of a ``set`` the
            full run's set.
        on: what it looks at: ``images`` `(n, c, h, w)` in [0, 1], or final ``latents`` `(n, ...)`.
        score: of a pair without a network, the formula, `(n, ...)` and `(n, ...)` to `(n,)`.
        by_pair: of a pair through a network.
        by_prompt: of a picture and its prompt through a network.
        over_sets: of sets through a network.
        fewest: pictures below which a search cannot go by it.
        net: feature network, once `find_metric` has chosen it.
        device: where the network runs.
    """

    name: str
    unit: str
    better: Better
    summary: str = ""
    floor: float = 0.0
    needs: Literal["pair", "prompt", "set"] = "pair"
    on: Literal["images", "latents"] = "images"
    score: Formula | None = None
    by_pair: ByPair | None = None
    by_prompt: ByPrompt | None = None
    over_sets: OverSets | None = None
    fewest: int = 1
    net: Net | None = None
    device: str = "cpu"

    def __call__(self, outputs: object, reference: object) -> tuple[float, ...]:
        """Return one number per image; of a metric of sets, one number in all.

        Args:
            outputs: images or latents, see ``on``.
            reference: the same of the reference run; for a metric that needs prompts, a sequence of them.

        Raises:
            UsageError: if the two do not fit together, images are no floats from 0 to 1, or a network was not chosen.
        """
        if not isinstance(outputs, torch.Tensor):
            raise UsageError(f"metric {self.name}: found {type(outputs).__name__}, expected a tensor.")
        self._require_unit_range(outputs)
        if self.by_prompt is not None:
            scores = self.by_prompt(self._chosen, outputs, self._texts(reference, len(outputs)), self.device)
            return _floats(scores)
        if not isinstance(reference, torch.Tensor):
            raise UsageError(f"metric {self.name}: found {type(reference).__name__} as reference, expected a tensor.")
        if outputs.shape != reference.shape:
            raise UsageError(
                f"metric {self.name}: found shapes {tuple(outputs.shape)} and {tuple(reference.shape)}, "
                "expected the same shape twice."
            )
        self._require_unit_range(reference)
        if self.by_pair is not None:
            return _floats(self.by_pair(self._chosen, outputs, reference, self.device))
        if self.over_sets is not None:
            whole = self.set_score().open(["all"])
            whole.add("all", outputs, reference)
            return (whole.value(),)
        if self.score is None:
            raise UsageError(f"metric {self.name}: found no formula, expected one. Add it to its entry.")
        # In double precision: the variances inside SSIM are differences of nearly equal squares.
        return _floats(self.score(outputs.detach().double().cpu(), reference.detach().double().cpu()))

    def against(self, reference: ReferenceName) -> QualityMetric:
        """Return this metric under its name against ``reference``; what is compared with prompts has but one name."""
        is_plain = reference == "default" or self.needs == "prompt"
        return self if is_plain else replace(self, name=f"{reference}_{self.name}")

    def set_score(self) -> SetScore:
        """Return what takes sets of pictures batch by batch.

        Raises:
            UsageError: if this is not a metric of sets, or a network was not chosen.
        """
        if self.over_sets is None:
            raise UsageError(f"metric {self.name}: found a metric of single pictures, expected one of sets.")
        return self.over_sets(feature_module(self._chosen, self.device))

    @property
    def _chosen(self) -> Net:
        if self.net is None:
            raise UsageError(
                f"metric {self.name}: found no feature network, expected one. Call find_metric({self.name!r})."
            )
        return self.net

    def _texts(self, prompts: object, n: int) -> list[str]:
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) != n:
            found = f"{len(prompts)} prompts" if isinstance(prompts, list | tuple) else type(prompts).__name__
            raise UsageError(f"metric {self.name}: found {found} for {n} images, expected one prompt for each.")
        return [str(prompt) for prompt in prompts]

    def _require_unit_range(self, images: torch.Tensor) -> None:
        """Refuse 8-bit pictures, and floats on the scale of 8-bit ones: their scores would be wrong without a word."""
        if self.on == "latents":
            return
        if not images.is_floating_point():
            raise UsageError(
                f"metric {self.name}: found images of {images.dtype}, expected floats from 0 to 1. Divide by 255."
            )
        if images.numel() and float(images.max()) > 2.0:
            raise UsageError(
                f"metric {self.name}: found values up to {float(images.max()):g}, expected 0 to 1. Divide by 255."
            )


def _floats(scores: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in scores.reshape(-1))


def _psnr(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``10 log10(1 / mean squared error)`` per image, at most `PSNR_CAP_DB`."""
    scores = peak_signal_noise_ratio(outputs, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return scores.clamp(max=PSNR_CAP_DB)


def _ssim(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Wang 2004, eq. 13, with an 11-pixel Gaussian window of sigma 1.5 and mirrored borders, per image: what
    torchmetrics computes, whose convolution is twenty times slower in double precision.
    """
    x, y = outputs.numpy(), reference.numpy()
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = np.maximum(_blurred(x * x) - mean_x**2, 0.0) + np.maximum(_blurred(y * y) - mean_y**2, 0.0)
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2.0 * covariance + SSIM_C2) / (variances + SSIM_C2)
    return torch.from_numpy((luminance * structure).mean((1, 2, 3)))


def _blurred(images: Planes) -> Planes:
    """`(n, channels, h, w)` weighted means around every pixel."""
    found: Planes = gaussian_filter(images, 1.5, mode="mirror", radius=5, axes=(-2, -1))
    return found


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
        QualityMetric(
            name="psnr", unit="dB", better="max", score=_psnr, floor=10.0,
            summary="pixel by pixel, against the full run's picture",
        ),
        QualityMetric(
            name="ssim", unit="1", better="max", score=_ssim, floor=0.0,
            summary="local structure, against the full run's picture",
        ),
        QualityMetric(
            name="latent_error", unit="1", better="min", on="latents", score=_latent_error, floor=1.0,
            summary="relative error of the final latents, against the full run's",
        ),
        QualityMetric(
            name="lpips", unit="1", better="min", by_pair=perceptual_distance, floor=1.0,
            summary="distance as a network sees it, against the full run's picture",
        ),
        QualityMetric(
            name="clip", unit="1", better="max", needs="prompt", by_prompt=clip_score, floor=0.0,
            summary="100 x cosine of picture and prompt, 0 where negative",
        ),
        QualityMetric(
            name="image_reward", unit="1", better="max", needs="prompt", by_prompt=image_reward, floor=-3.0,
            summary="what people would prefer, as a network learned it",
        ),
        QualityMetric(
            name="fid", unit="1", better="min", needs="set", over_sets=frechet, floor=1000.0, fewest=FEWEST_FOR_FID,
            summary="Frechet distance of the set's features to the full run's; too large on few pictures",
        ),
        QualityMetric(
            name="kid", unit="1", better="min", needs="set", over_sets=kernel, floor=10.0, fewest=FEWEST_FOR_KID,
            summary="kernel distance of the set's features to the full run's, without bias on few pictures",
        ),
    )
}  # fmt: skip
"""Every metric by name; those with a feature network are without it here, see `find_metric`."""


def find_metric(
    name: str, reference: ReferenceName = "default", *, weights: str = "", device: torch.device | str = "cpu"
) -> QualityMetric:
    """Return the metric called ``name``, under the name it has against ``reference``.

    >>> find_metric("psnr", "converged").name
    'converged_psnr'
    >>> find_metric("clip", weights="flux-mini-clip").name
    'clip[flux-mini-clip]'

    Args:
        name: key in `METRICS`; a feature network may follow in square brackets, by name or as a folder.
        reference: of metrics that compare with a run.
        weights: the model card's feature network, taken where ``name`` has none and it can serve; else the standard
            one of the metric.
        device: where the network runs.

    Raises:
        UsageError: if there is none, or no such reference, naming those there are.
        ModelNotFoundError: the network's weights, or a package it needs, are not at hand. Nothing is ever downloaded.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["base"] not in METRICS:
        raise UsageError(f"metric: found {name[:60]!r}, expected one of {', '.join(METRICS)}.")
    if reference not in REFERENCES:
        raise UsageError(f"reference: found {reference!r}, expected one of {', '.join(REFERENCES)}.")
    metric = METRICS[match["base"]]
    if metric.score is None:
        net = choose(metric.name, match["net"] or "", weights)
        metric = replace(metric, name=f"{metric.name}[{net.name}]", net=net, device=str(device))
    elif match["net"]:
        raise UsageError(f"metric: found {name[:60]!r}, expected {metric.name} alone: it has no feature network.")
    return metric.against(reference)


def find_metrics(
    names: str, reference: ReferenceName = "default", *, weights: str = "", device: torch.device | str = "cpu"
) -> tuple[QualityMetric, ...]:
    """Return the metrics called ``names``, separated by commas, as `find_metric` does.

    >>> find_metrics("psnr,ssim")[1].name
    'ssim'

    Raises:
        UsageError: one is unknown or stands there twice, or there is no such reference.
        ModelNotFoundError: a network's weights, or a package it needs, are not at hand.
    """
    words = [word.strip() for word in names.split(",")]
    found = tuple(find_metric(word, reference, weights=weights, device=device) for word in words)
    twice = sorted({metric.name for metric in found if [m.name for m in found].count(metric.name) > 1})
    if twice:
        raise UsageError(f"metric: found {twice[0]} twice in {names[:60]!r}, expected it once. Leave one out.")
    return found


def described(name: str) -> QualityMetric:
    """Return the entry of `METRICS` that a name in a record belongs to, under that name and without its network.

    >>> described("converged_kid[flux-mini-clip]").better
    'min'

    Raises:
        UsageError: if no metric has such a name.
    """
    plain = name
    for reference in REFERENCES:
        plain = plain.removeprefix(f"{reference}_")
    match = _NAME.fullmatch(plain)
    if match is None or match["base"] not in METRICS:
        raise UsageError(f"metric: found {name[:60]!r}, expected one of {', '.join(METRICS)}.")
    return replace(METRICS[match["base"]], name=name)


def metrics_at_hand(
    weights: str = "", *, device: torch.device | str = "cpu", of_sets: bool = True
) -> tuple[QualityMetric, ...]:
    """Return every metric whose weights and packages are on this machine, in the order of `METRICS`.

    Args:
        weights: the model card's feature network.
        device: where networks run.
        of_sets: whether metrics of sets are wanted, too.
    """
    found = []
    for name in (name for name, metric in METRICS.items() if of_sets or metric.needs != "set"):
        try:
            found.append(find_metric(name, weights=weights, device=device))
        except ModelNotFoundError:
            continue
    return tuple(found)
