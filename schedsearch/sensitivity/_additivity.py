"""Do effects add up? Sums of single effects beside what the same changes do together."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from schedsearch.errors import EvaluationError
from schedsearch.sensitivity._records import Pick, Sensitivities, SubsetKind

ENOUGH = 0.8
"""Rank correlation below which an assignment by sums is no more than a place to begin."""

_SHARES = (0.25, 0.5, 0.75, 1.0)
_MOST_REMOVED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Additivity:
    """How well sums predict.

    Attributes:
        kind: of the changes.
        n: subsets.
        spearman: rank correlation of predicted and measured effects.
        pearson: correlation of their values.
        ratio: median of measured over predicted; 1 where effects add up, above where they make each other worse.
    """

    kind: SubsetKind
    n: int
    spearman: float
    pearson: float
    ratio: float

    @property
    def holds(self) -> bool:
        """Whether sums order choices well enough to rely on."""
        return self.spearman >= ENOUGH


def additivity(found: Sensitivities, kind: SubsetKind) -> Additivity:
    """Return how the sums of single effects compare with the measured subsets of that kind.

    Raises:
        EvaluationError: there are fewer than three.
    """
    subsets = [subset for subset in found.subsets if subset.kind == kind]
    if len(subsets) < 3:
        raise EvaluationError(f"additivity: found {len(subsets)} subsets of kind {kind}, expected three or more.")
    predicted = [found.predicted(subset.picks) for subset in subsets]
    measured = [subset.effect for subset in subsets]
    ratios = sorted(b / a for a, b in zip(predicted, measured, strict=True) if a > 0)
    return Additivity(
        kind=kind,
        n=len(subsets),
        spearman=correlation(rankdata(predicted).tolist(), rankdata(measured).tolist()),
        pearson=correlation(predicted, measured),
        ratio=ratios[len(ratios) // 2] if ratios else 0.0,
    )


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Pearson's correlation; 0 where one of the two does not vary.

    >>> correlation([1.0, 2.0, 3.0], [2.0, 1.0, 0.0]), correlation([1.0, 1.0], [1.0, 2.0])
    (-1.0, 0.0)
    """
    x, y = (np.asarray(column) - np.mean(column) for column in (a, b))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / size, -1.0, 1.0)) if size > 0.0 else 0.0


def draw_subsets(
    found: Sensitivities, kind: SubsetKind, n: int, *, words: Sequence[str] = (), seed: int = 0
) -> tuple[tuple[Pick, ...], ...]:
    """Return ``n`` random sets of changes; the first of more are the same.

    Formats: a quarter, half, three quarters or all of the layers, each with a word of its own. Blocks: one to half of
    them.

    Args:
        found: what the changes are taken from.
        kind: of the changes.
        n: how many sets.
        words: formats to draw from.
        seed: decides all draws.
    """
    return tuple(_drawn(found, kind, words, _source(seed, kind, i), i) for i in range(n))


def _source(seed: int, kind: str, i: int) -> random.Random:
    return random.Random(hashlib.sha256(f"subset:{seed}:{kind}:{i}".encode()).digest())


def _drawn(
    found: Sensitivities, kind: SubsetKind, words: Sequence[str], source: random.Random, i: int
) -> tuple[Pick, ...]:
    if kind == "removed":
        size = source.randint(1, max(1, int(len(found.blocks) * _MOST_REMOVED)))
        taken = set(source.sample(found.blocks, size))
        return tuple((block, "") for block in found.blocks if block in taken)
    names = [layer.name for layer in found.layers]
    size = max(1, round(len(names) * _SHARES[i % len(_SHARES)]))
    chosen = set(source.sample(names, size))
    return tuple((name, source.choice(list(words))) for name in names if name in chosen)
