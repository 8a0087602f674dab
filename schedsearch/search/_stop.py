"""When a run ends. This module does not know what is searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ended = Literal["finished", "trials", "minutes", "evals", "stalled"]
"""Why a run ended: the searcher had no more to ask, a limit was met, or it only repeated itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Limits counted over resumed runs; ``None`` is no limit.

    Attributes:
        trials: measurements made.
        minutes: time spent.
        evals: denoiser evaluations spent, images times denoiser calls.
    """

    trials: int | None = None
    minutes: float | None = None
    evals: int | None = None

    def met(self, *, trials: int, seconds: float, evals: int) -> Ended | None:
        """The limit that is met after so many trials, seconds and denoiser evaluations, if one is."""
        if self.trials is not None and trials >= self.trials:
            return "trials"
        if self.evals is not None and evals >= self.evals:
            return "evals"
        return "minutes" if self.minutes is not None and seconds >= self.minutes * 60.0 else None
