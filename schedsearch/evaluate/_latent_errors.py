"""How far schedules lie from one of them, in the final latents of the same prompts and noise.

What is compared with is the plain pipeline, or a schedule: one that is cheaper, say, and carries changes whose own
effect is wanted. No image is decoded. Does not know what the schedules differ in.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch

from schedsearch.evaluate._quality import METRICS
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.runtime import apply
from schedsearch.schedule import Schedule

LOST = 1e3
"""The relative error of latents that are no numbers: beyond anything that is one."""


class LatentErrors:
    """Runs schedules on prompts and compares them with one run.

    Args:
        runs: the pipeline, without a schedule applied, and the prompts.
        base: the schedule that the others are compared with; the plain pipeline where left out.
    """

    def __init__(self, runs: PairedRuns, *, base: Schedule | None = None) -> None:
        self._runs = runs
        self._base = base
        self._wanted: torch.Tensor | None = None

    def of(self, schedule: Schedule) -> tuple[float, ...]:
        """Return the relative latent error of each prompt, at most `LOST`.

        Raises:
            ApplyError: the schedule cannot be put on the pipeline.
        """
        if self._wanted is None:
            self._wanted = self._ends(self._base)
        found = METRICS["latent_error"](self._ends(schedule), self._wanted)
        return tuple(min(error, LOST) if math.isfinite(error) else LOST for error in found)

    def _ends(self, schedule: Schedule | None) -> torch.Tensor:
        runs = self._runs
        steps = None if schedule is None else schedule.n_steps
        with nullcontext() if schedule is None else apply(runs.pipe, schedule):
            ends = [runs.latents(start, stop, steps=steps).float().cpu() for start, stop in runs.batches(len(runs))]
        return torch.cat(ends)
