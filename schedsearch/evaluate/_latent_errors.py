"""How far schedules lie from one of them, in the final latents of the same prompts and noise.

What is compared with is a schedule too: the full run, or a cheaper one that carries changes whose own effect is wanted.
No image is decoded. Does not know what the schedules differ in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from schedsearch.errors import UsageError
from schedsearch.evaluate._quality import METRICS
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import apply
from schedsearch.schedule import Schedule

LOST = 1e3
"""The relative error of latents that are no numbers: beyond anything that is one."""


class LatentErrors:
    """Runs schedules on prompts and compares them with one.

    Args:
        pipe: the pipeline, without a schedule applied.
        workload: how it is called.
        prompts: texts.
        base: the schedule that the others are compared with.
        seed: of the noise.
        batch: images per call.

    Raises:
        UsageError: there are no prompts.
    """

    def __init__(
        self,
        pipe: Pipeline,
        workload: Workload,
        prompts: Sequence[str],
        *,
        base: Schedule,
        seed: int = 0,
        batch: int = 8,
    ) -> None:
        if not prompts:
            raise UsageError("latent errors: found no prompts, expected one or more.")
        self.base = base
        self._runs = PairedRuns(pipe, workload, tuple(prompts), seed=seed, batch=batch)
        self._wanted: torch.Tensor | None = None

    def of(self, schedule: Schedule) -> tuple[float, ...]:
        """Return the relative latent error of each prompt, at most `LOST`.

        Raises:
            ApplyError: the schedule cannot be put on the pipeline.
        """
        if self._wanted is None:
            self._wanted = self._ends(self.base)
        found = METRICS["latent_error"](self._ends(schedule), self._wanted)
        return tuple(min(error, LOST) if math.isfinite(error) else LOST for error in found)

    def _ends(self, schedule: Schedule) -> torch.Tensor:
        runs = self._runs
        with apply(runs.pipe, schedule):
            ends = [
                runs.latents(start, stop, steps=schedule.n_steps).float().cpu()
                for start, stop in runs.batches(len(runs))
            ]
        return torch.cat(ends)
