"""What was proposed and what was measured, as frozen records.

A failure is a record, not an exception. This module does not know where records are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from schedsearch.schedule import Schedule
from schedsearch.types import Better, Polish, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A number the search optimises: its name, unit and the direction in which it improves."""

    name: str
    unit: str
    better: Better


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule somebody proposed.

    Attributes:
        schedule: the plan.
        searcher: who proposed it.
        ask: running number of the proposal inside its study, 0 first.
        parents: ids of the schedules it was made from.
        share: of the prompts it asks to be measured on, above 0 and at most 1; a first look costs less than a
            measurement, and does not compete for the frontier.
        polish: what of its fitted steps is fitted together, to the final latents, before it is measured: nothing (each
            step is fitted by itself), their scalars, or scalars and noise levels. `schedule` is where that begins.
        origin: how the searcher came to it, in a word or two, such as ``seed fora/n3`` or ``crossed``; for people
            alone.
    """

    schedule: Schedule
    searcher: str
    ask: int
    parents: tuple[str, ...] = ()
    share: float = 1.0
    polish: Polish = ""
    origin: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Equal for candidates that come to the same measurement."""
        return f"{self.schedule.id} {self.polish}".rstrip()

    def sized(self, prompts: int, *, fewest: int = 1) -> tuple[Candidate, int]:
        """The candidate, and how many of so many prompts it is measured on, ``fewest`` or more where there are.

        A share that comes to all of them is a measurement in full, and the candidate says so.
        """
        wanted = min(prompts, max(fewest, round(prompts * self.share)))
        return (self if wanted < prompts else replace(self, share=1.0)), wanted


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One measurement of one candidate.

    Attributes:
        candidate: what was measured.
        status: ``ok``, ``failed`` or ``pruned`` (stopped early as hopeless).
        reason: why it is not ``ok``; empty otherwise.
        values: `(n_objectives,)` in the order of the evaluator's objectives; empty unless ``ok``.
        metrics: further numbers, ``(name, value)``, such as ``macs`` or ``ssim``.
        samples: per-prompt numbers, ``(metric, (value per prompt, ...))``.
        fidelity: number of prompts measured on.
        device: the machine in words.
        seconds: wall time spent.
        denoiser_evals: images times denoiser calls spent.
    """

    candidate: Candidate
    status: Status
    reason: str = ""
    values: tuple[float, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()
    samples: tuple[tuple[str, tuple[float, ...]], ...] = field(default=())
    fidelity: int = 0
    device: str = ""
    seconds: float = 0.0
    denoiser_evals: int = 0
