"""The rows that `schedsearch sensitivity` shows, as text. Knows nothing of how they are measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from schedsearch.sensitivity import Additivity, Ranked

RANKING_COLUMNS = ("what", "layers", "effect", "saves KB", "effect / MB", "saves ms", "effect / ms")
ADDITIVITY_COLUMNS = ("sets of", "n", "Spearman", "Pearson", "measured / sum")
BITS_COLUMNS = (
    "uniform", "average bits", "its latent error", "mixed: bits", "rules", "latent error", "better on", "sum, uniform",
    "sum, mixed",
)  # fmt: skip
PROTECTION_COLUMNS = ("protected at", "layers", "rank", "average bits", "latent error", "mixed at these bits")
SPEED_COLUMNS = ("of what formats can save", "saves ms per call", "average bits", "rules", "latent error")
REMOVAL_COLUMNS = ("of the blocks' bytes", "removed", "saved", "sum of effects", "latent error squared", "latent error")


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsRow:
    """Uniform against mixed formats.

    Attributes:
        word: the uniform format.
        limit: its average bits, scales included, which the mixed formats keep.
        bits: average bits of the mixed formats.
        rules: precision rules these take.
        uniform: latent error of each held-out prompt.
        mixed: the same of the mixed formats.
        predicted: sum of their effects on calibration prompts.
        predicted_uniform: the same of the uniform format.
    """

    word: str
    limit: float
    bits: float
    rules: int
    uniform: tuple[float, ...]
    mixed: tuple[float, ...]
    predicted: float
    predicted_uniform: float

    @property
    def wins(self) -> int:
        """Prompts on which the mixed formats are better."""
        return sum(a < b for a, b in zip(self.mixed, self.uniform, strict=True))

    def cells(self) -> list[str]:
        """Return the row of `BITS_COLUMNS`."""
        return [
            self.word, f"{self.limit:.3f}", _mean(self.uniform), f"{self.bits:.3f}", str(self.rules),
            _mean(self.mixed), f"{self.wins} of {len(self.mixed)}", f"{self.predicted_uniform:.2e}",
            f"{self.predicted:.2e}",
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionRow:
    """One level of protection and one rank.

    Attributes:
        protection: at what the protected layers are kept.
        kept: how many there are.
        rank: of the branch beside all other layers.
        bits: average bits.
        errors: latent error of each held-out prompt.
        mixed: the same of freely mixed formats at no more bits.
    """

    protection: str
    kept: int
    rank: int
    bits: float
    errors: tuple[float, ...]
    mixed: tuple[float, ...]

    def cells(self) -> list[str]:
        """Return the row of `PROTECTION_COLUMNS`."""
        return [
            self.protection, str(self.kept), str(self.rank), f"{self.bits:.3f}", _mean(self.errors), _mean(self.mixed),
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """Formats mixed for time.

    Attributes:
        share: of the milliseconds that formats can save.
        saved_ms: what these save per denoiser call, by the latency table.
        bits: their average bits.
        rules: precision rules they take.
        errors: latent error of each held-out prompt.
    """

    share: float
    saved_ms: float
    bits: float
    rules: int
    errors: tuple[float, ...]

    def cells(self) -> list[str]:
        """Return the row of `SPEED_COLUMNS`."""
        return [
            f"{self.share:.0%}",
            f"{self.saved_ms:.4g}",
            f"{self.bits:.3f}",
            str(self.rules),
            _mean(self.errors),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalRow:
    """Blocks left out.

    Attributes:
        share: of all blocks' bytes that is to be saved.
        removed: the blocks.
        saved: share that they save.
        predicted: sum of their effects on calibration prompts.
        errors: latent error of each held-out prompt.
    """

    share: float
    removed: tuple[str, ...]
    saved: float
    predicted: float
    errors: tuple[float, ...]

    def cells(self) -> list[str]:
        """Return the row of `REMOVAL_COLUMNS`."""
        square = statistics.fmean(error * error for error in self.errors)
        return [
            f"{self.share:.0%}", ", ".join(self.removed), f"{self.saved:.1%}", f"{self.predicted:.2e}", f"{square:.2e}",
            _mean(self.errors),
        ]  # fmt: skip


def ranking_cells(rows: Sequence[Ranked]) -> list[list[str]]:
    """Return rows of `RANKING_COLUMNS`."""
    return [
        [
            row.name, str(row.n), f"{row.effect:.2e}", f"{row.saved_bytes / 1e3:.1f}", _number(row.per_megabyte),
            _number(row.saved_ms), _number(row.per_ms),
        ]
        for row in rows
    ]  # fmt: skip


def additivity_cells(row: Additivity) -> list[str]:
    """Return the row of `ADDITIVITY_COLUMNS`."""
    what = {"formats": "formats", "removed": "removed blocks"}[row.kind]
    return [what, str(row.n), f"{row.spearman:.3f}", f"{row.pearson:.3f}", f"{row.ratio:.2f}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _mean(errors: Sequence[float]) -> str:
    return f"{statistics.fmean(errors):.4g}"
