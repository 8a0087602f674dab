"""Scores of runs by several metrics at once, batch by batch: a number per picture, and a number per set.

A `Scoring` stays with the prompts of a search; a `Tally` is one run over some of them. Does not know how pictures are
made, nor what is done with the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import torch

from schedsearch.evaluate._quality import QualityMetric, ReferenceName
from schedsearch.evaluate._set_scores import OpenSet, SetScore

Batch = tuple[int, int]
Samples = dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What a run produced: final packed ``latents`` `(n, tokens, channels)` and ``images`` `(n, 3, h, w)` in [0, 1]."""

    latents: torch.Tensor
    images: torch.Tensor


def score_pictures(
    metrics: Sequence[QualityMetric], outputs: Pictures, reference: Pictures, prompts: Sequence[str] = ()
) -> Samples:
    """Return each metric's numbers, one per image, under the metric's name; metrics of sets are left out."""
    scores: Samples = {}
    for metric in metrics:
        if metric.needs == "prompt":
            scores[metric.name] = metric(outputs.images, list(prompts))
        elif metric.needs == "pair":
            scores[metric.name] = metric(getattr(outputs, metric.on), getattr(reference, metric.on))
    return scores


class Scoring:
    """Scores any number of runs of the same prompts by the same metrics.

    Args:
        metrics: under their names against the default reference.
        references: names of the reference runs.
        prompts: texts, in the order of the runs.
    """

    def __init__(
        self, metrics: Sequence[QualityMetric], references: Sequence[ReferenceName], prompts: Sequence[str]
    ) -> None:
        self._metrics = tuple(metrics)
        self._references = tuple(references)
        self._prompts = tuple(prompts)
        self._sets: dict[str, SetScore] = {
            metric.against(name).name: metric.set_score()
            for name in references
            for metric in metrics
            if metric.needs == "set"
        }

    def tally(self, batches: Sequence[Batch]) -> Tally:
        """Begin the scores of a run that comes in these batches, ranges of prompts."""
        return Tally(
            self._metrics, self._references, self._prompts,
            {name: score.open(batches) for name, score in self._sets.items()},
        )  # fmt: skip


class Tally:
    """The scores of one run; one at a time of a `Scoring`."""

    def __init__(
        self,
        metrics: Sequence[QualityMetric],
        references: Sequence[ReferenceName],
        prompts: Sequence[str],
        sets: Mapping[str, OpenSet],
    ) -> None:
        self._metrics = metrics
        self._references = references
        self._prompts = prompts
        self._open = sets
        self.samples: Samples = {
            metric.against(name).name: () for name in references for metric in metrics if metric.needs != "set"
        }
        """Numbers per picture by metric, in the order of the prompts."""

    def add(self, batch: Batch, outputs: Pictures, references: Mapping[ReferenceName, Pictures]) -> None:
        """Take the pictures of a batch, and those of every reference run."""
        done: set[str] = set()
        prompts = self._prompts[batch[0] : batch[1]]
        for name in self._references:
            metrics = [m for m in self._metrics if m.against(name).name not in done]
            scores = score_pictures(metrics, outputs, references[name], prompts)
            for metric in metrics:
                key = metric.against(name).name
                done.add(key)
                if metric.needs == "set":
                    self._open[key].add(batch, outputs.images, references[name].images)
                else:
                    self.samples[key] += scores[metric.name]

    def sets(self) -> dict[str, float]:
        """Return the numbers of whole sets by metric; none of a single picture."""
        found = {name: score.value() for name, score in self._open.items()}
        return {name: value for name, value in found.items() if not isnan(value)}

    def means(self) -> dict[str, float]:
        """Return one number per metric: the mean over pictures, or that of the set."""
        return {name: sum(values) / len(values) for name, values in self.samples.items()} | self.sets()
