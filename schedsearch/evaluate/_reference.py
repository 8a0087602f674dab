"""What candidates are compared with: runs of every prompt from the same noise, made once.

There are two. ``default`` is the plain pipeline. ``converged`` is what it would be with steps without end: every step
of the plain run cut in `REFINEMENT` and second-order Adams on that grid. Latents are kept for all prompts; images, and
the latents along the way, up to a number of bytes each. Everything lies in main memory, whatever the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch

from schedsearch.evaluate._noise import initial_latents
from schedsearch.evaluate._quality import ReferenceName
from schedsearch.evaluate._scoring import Pictures
from schedsearch.evaluate._trajectory import Trajectory, kept_points
from schedsearch.evaluate._workload import (
    Pipeline,
    TextEmbeds,
    Workload,
    decode_latents,
    encode_prompts,
    pipeline_kwargs,
)
from schedsearch.runtime import apply, default_sigmas, model_ref
from schedsearch.schedule import Schedule, Solver

REFINEMENT = 2
"""Steps of the converged run per step of the plain run.

On flux-mini (28 steps, 8 prompts) cutting every step once more changes the images by 64.7 dB PSNR on average, 53.3 dB
for the worst; the plain run itself lies at 39 dB. Second-order Adams settles faster than orders 3 and 4 there: the same
comparison gives 61.4 and 59.8 dB with twice the steps."""

IMAGE_BYTES = 1024**3
"""Memory for the images of one reference."""

TRAJECTORY_BYTES = 2 * 1024**3
"""Memory for the latents along the way of one reference."""


class PairedRuns:
    """Runs a pipeline on prompts, each from its own noise, in batches.

    Args:
        pipe: the pipeline.
        workload: how it is called.
        prompts: texts.
        seed: of the noise.
        batch: images per call.
        indices: index of each prompt in the noise's numbering; 0, 1, ... by default.
    """

    def __init__(
        self,
        pipe: Pipeline,
        workload: Workload,
        prompts: tuple[str, ...],
        *,
        seed: int,
        batch: int,
        indices: tuple[int, ...] | None = None,
    ) -> None:
        self.pipe = pipe
        self.workload = workload
        self._seed = seed
        self._batch = batch
        self._indices = tuple(range(len(prompts))) if indices is None else indices
        self._embeds = encode_prompts(pipe, workload, prompts)

    def __len__(self) -> int:
        return len(self._indices)

    def batches(self, n: int) -> Iterator[tuple[int, int]]:
        """Return the first ``n`` prompts as ranges ``start, stop`` of one call each."""
        return ((start, min(start + self._batch, n)) for start in range(0, n, self._batch))

    def run(self, start: int, stop: int, *, steps: int | None = None) -> Pictures:
        """Return what the pipeline, in its present state, makes of the prompts ``start`` to ``stop - 1``.

        Args:
            start: first prompt.
            stop: one past the last.
            steps: denoising steps, where they are not the workload's own.
        """
        return self.pictures(self.latents(start, stop, steps=steps))

    def pictures(self, latents: torch.Tensor) -> Pictures:
        """Return final ``latents`` and their images, in main memory."""
        images = decode_latents(self.pipe, self.workload, latents)
        return Pictures(latents=latents.float().cpu(), images=images.float().cpu())

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images `(n, 3, h, w)` of packed ``latents``, in main memory."""
        return decode_latents(self.pipe, self.workload, latents.to(self._embeds.tokens.device)).float().cpu()

    def noise(self, start: int, stop: int) -> torch.Tensor:
        """Return the initial latents `(n, tokens, channels)` of these prompts, on the device."""
        return initial_latents(
            self.pipe,
            self.workload,
            seed=self._seed,
            indices=self._indices[start:stop],
            device=self._embeds.tokens.device,
            dtype=self._embeds.tokens.dtype,
        )

    def latents(
        self, start: int, stop: int, *, steps: int | None = None, begin: torch.Tensor | None = None, **more: Any
    ) -> torch.Tensor:
        """Return the final latents `(n, tokens, channels)` of these prompts.

        Args:
            start: first prompt.
            stop: one past the last.
            steps: denoising steps, where they are not the workload's own.
            begin: latents to begin with in place of the noise.
            more: further arguments of ``pipe(...)``.
        """
        embeds: TextEmbeds = self._embeds.rows(start, stop)
        first = self.noise(start, stop) if begin is None else begin
        kwargs = pipeline_kwargs(self.workload, embeds, latents=first, steps=steps, output_type="latent")
        with torch.inference_mode():
            found: torch.Tensor = self.pipe(**kwargs, **more)[0]
        return found

    def recorded(self, start: int, stop: int, *, steps: int, kept: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """Return the latents before step 0, 1, ... and after the last, as far as their numbers are in ``kept``; in
        single precision and main memory. The run itself does not notice.
        """
        states: dict[int, torch.Tensor] = {0: self.noise(start, stop).float().cpu()}

        def note(_pipe: Pipeline, step: int, _time: object, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
            if step + 1 in kept:
                # Cloned: on the CPU nothing else would copy it, and a later step may write in place.
                states[step + 1] = tensors["latents"].detach().float().cpu().clone()
            return {}

        self.latents(start, stop, steps=steps, callback_on_step_end=note)
        return tuple(states[i] for i in kept)


class Reference:
    """Runs of `PairedRuns` to compare with, made when first asked for and in its batches.

    Args:
        runs: how prompts are run; the pipeline must carry no schedule while new prompts are prepared.
        name: which of the two references.
        image_bytes: memory for images.
        trajectory_bytes: memory for the latents along the way; where it does not suffice for all prompts and levels,
            every second level is kept, or every third, ...
    """

    def __init__(
        self,
        runs: PairedRuns,
        *,
        name: ReferenceName = "default",
        image_bytes: int = IMAGE_BYTES,
        trajectory_bytes: int = TRAJECTORY_BYTES,
    ) -> None:
        self.name = name
        self._runs = runs
        self._room = image_bytes
        self._trajectory_room = trajectory_bytes
        self._along: dict[int, Trajectory] = {}
        self._images: dict[int, torch.Tensor] = {}
        size = {"height": runs.workload.height, "width": runs.workload.width}
        sigma = default_sigmas(runs.pipe, runs.workload.steps, **size)
        self._schedule = None if name == "default" else converged_schedule(runs.pipe, runs.workload)
        self.sigma = sigma if self._schedule is None else self._schedule.sigma

    def prepare(self, n: int, *, on_images: Callable[[int], None] | None = None) -> None:
        """Make the first ``n`` prompts' runs, as far as they are not made.

        Args:
            n: number of prompts.
            on_images: called with the number of images made, batch by batch.
        """
        # Whole batches, so that a prompt's reference does not depend on how many prompts were asked for first.
        for start, stop in self._runs.batches(len(self._runs)):
            if start < n and start not in self._along:
                with self._applied():
                    self._along[start] = self._record(start, stop)
                images = self._runs.decode(self._along[start].states[-1])
                for i in range(start, stop):
                    self._keep_image(i, images[i - start])
                if on_images is not None:
                    on_images(stop - start)

    def trajectory(self, start: int, stop: int) -> Trajectory:
        """Return the latents along the runs of the prompts ``start`` to ``stop - 1``: a batch that `prepare` has made,
        or its beginning.
        """
        along = self._along[start]
        return along if stop - start == along.states[0].shape[0] else along.rows(0, stop - start)

    def pictures(self, start: int, stop: int) -> Pictures:
        """Return the runs of the prompts ``start`` to ``stop - 1``, which `prepare` has made."""
        ends = torch.cat([self._along[first].states[-1] for first in sorted(self._along)])
        latents = ends[start:stop]
        if all(i in self._images for i in range(start, stop)):
            images = torch.stack([self._images[i] for i in range(start, stop)])
        else:
            images = self._runs.decode(latents)
        return Pictures(latents=latents, images=images)

    def _applied(self) -> AbstractContextManager[object]:
        return nullcontext() if self._schedule is None else apply(self._runs.pipe, self._schedule)

    def _record(self, start: int, stop: int) -> Trajectory:
        point = self._runs.noise(0, 1).numel() * torch.float32.itemsize
        kept = kept_points(len(self.sigma), point * len(self._runs), self._trajectory_room)
        states = self._runs.recorded(start, stop, steps=len(self.sigma) - 1, kept=kept)
        return Trajectory(sigma=tuple(self.sigma[i] for i in kept), states=states)

    def _keep_image(self, i: int, image: torch.Tensor) -> None:
        size = image.numel() * image.element_size()
        if size <= self._room:
            self._room -= size
            self._images[i] = image.clone()


def converged_schedule(pipe: Pipeline, workload: Workload, *, refinement: int = REFINEMENT) -> Schedule:
    """Return the schedule of the converged run: every step of the plain run cut in ``refinement``, Adams of order 2."""
    size = {"height": workload.height, "width": workload.width}
    coarse = default_sigmas(pipe, workload.steps, **size)
    fine = [a + (b - a) * j / refinement for a, b in pairwise(coarse) for j in range(refinement)]
    sigma = (*fine, coarse[-1])
    solver = (Solver(family="adams", order=2),) * (len(sigma) - 1)
    return Schedule(sigma=sigma, solver=solver, model=model_ref(pipe, **size))
