"""The full run of every prompt, made once: what candidates are compared with.

Latents are kept for all prompts; images only up to a number of bytes, and are decoded again beyond it. Everything lies
in main memory, whatever the device. Does not know schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from schedsearch.evaluate._noise import initial_latents
from schedsearch.evaluate._quality import Pictures
from schedsearch.evaluate._workload import (
    Pipeline,
    TextEmbeds,
    Workload,
    decode_latents,
    encode_prompts,
    pipeline_kwargs,
)

IMAGE_BYTES = 2 * 1024**3
"""Memory for reference images."""


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
        self.workload = workload
        self._pipe = pipe
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
        latents = self._latents(start, stop, steps=steps)
        images = decode_latents(self._pipe, self.workload, latents)
        return Pictures(latents=latents.float().cpu(), images=images.float().cpu())

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images `(n, 3, h, w)` of packed ``latents``, in main memory."""
        return decode_latents(self._pipe, self.workload, latents.to(self._embeds.tokens.device)).float().cpu()

    def _latents(self, start: int, stop: int, *, steps: int | None) -> torch.Tensor:
        embeds: TextEmbeds = self._embeds.rows(start, stop)
        noise = initial_latents(
            self._pipe,
            self.workload,
            seed=self._seed,
            indices=self._indices[start:stop],
            device=embeds.tokens.device,
            dtype=embeds.tokens.dtype,
        )
        kwargs = pipeline_kwargs(self.workload, embeds, latents=noise, steps=steps, output_type="latent")
        with torch.inference_mode():
            latents: torch.Tensor = self._pipe(**kwargs)[0]
        return latents


class Reference:
    """The plain runs of `PairedRuns`, made when first asked for and in its batches.

    Args:
        runs: how prompts are run; the pipeline must carry no schedule while `pictures` is called for new prompts.
        image_bytes: memory for images.
    """

    def __init__(self, runs: PairedRuns, *, image_bytes: int = IMAGE_BYTES) -> None:
        self._runs = runs
        self._room = image_bytes
        self._latents: dict[int, torch.Tensor] = {}
        self._images: dict[int, torch.Tensor] = {}

    def prepare(self, n: int, *, on_images: Callable[[int], None] | None = None) -> None:
        """Make the first ``n`` prompts' runs, as far as they are not made.

        Args:
            n: number of prompts.
            on_images: called with the number of images made, batch by batch.
        """
        # Whole batches, so that a prompt's reference does not depend on how many prompts were asked for first.
        for start, stop in self._runs.batches(len(self._runs)):
            if start < n and start not in self._latents:
                pictures = self._runs.run(start, stop)
                for i in range(start, stop):
                    self._latents[i] = pictures.latents[i - start]
                    self._keep_image(i, pictures.images[i - start])
                if on_images is not None:
                    on_images(stop - start)

    def pictures(self, start: int, stop: int) -> Pictures:
        """Return the plain run of the prompts ``start`` to ``stop - 1``, which `prepare` has made."""
        latents = torch.stack([self._latents[i] for i in range(start, stop)])
        if all(i in self._images for i in range(start, stop)):
            images = torch.stack([self._images[i] for i in range(start, stop)])
        else:
            images = self._runs.decode(latents)
        return Pictures(latents=latents, images=images)

    def _keep_image(self, i: int, image: torch.Tensor) -> None:
        size = image.numel() * image.element_size()
        if size <= self._room:
            self._room -= size
            self._images[i] = image.clone()
