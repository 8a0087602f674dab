"""How a pipeline is called: the one place that turns a model card into the arguments of ``pipe(...)``.

Latency, the cost model, the evaluator and the command line all call the pipeline through `pipeline_kwargs`, so a number
measured in one of them is about the same call as in the others. Does not know schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from schedsearch.errors import UsageError
from schedsearch.evaluate._models import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The settings of one call that change its cost and its pictures.

    Attributes:
        height: pixels.
        width: pixels.
        steps: denoising steps of the plain run.
        guidance_scale: distilled guidance, ignored by models without it.
        max_sequence_length: tokens of the long text encoder.
        true_cfg_scale: classifier-free guidance with a second denoiser call per step where above 1.
    """

    height: int
    width: int
    steps: int
    guidance_scale: float
    max_sequence_length: int
    true_cfg_scale: float = 1.0

    @property
    def branches(self) -> int:
        """Denoiser calls per step of the plain run."""
        return 2 if self.true_cfg_scale > 1.0 else 1

    @classmethod
    def from_card(cls, card: ModelCard) -> Workload:
        """Return the call settings that ``card`` recommends."""
        return cls(
            height=card.height,
            width=card.width,
            steps=card.steps,
            guidance_scale=card.guidance_scale,
            max_sequence_length=card.max_sequence_length,
            true_cfg_scale=card.true_cfg_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEmbeds:
    """Encoded prompts.

    Attributes:
        tokens: `(n, max_sequence_length, d)` embedding per token.
        pooled: `(n, p)` embedding per prompt.
        negative: the same of the negative prompt, for a workload with two branches.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor
    negative: TextEmbeds | None = None

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def rows(self, start: int, stop: int) -> TextEmbeds:
        """Return the prompts ``start`` to ``stop - 1``."""
        negative = None if self.negative is None else self.negative.rows(start, stop)
        return TextEmbeds(tokens=self.tokens[start:stop], pooled=self.pooled[start:stop], negative=negative)


Pipeline = Any
"""A live diffusers pipeline: what it offers beyond `DiffusionPipeline` differs by family and has no common type."""

Prompt = str | Sequence[str] | TextEmbeds
"""What a call can be about: one text, several texts, or their embeddings."""


def pipeline_kwargs(
    workload: Workload,
    prompt: Prompt,
    *,
    latents: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    steps: int | None = None,
    output_type: str = "pt",
) -> dict[str, Any]:
    """Return the keyword arguments of ``pipe(...)`` for this workload; the call answers with a tuple.

    Args:
        workload: settings of the call.
        prompt: one text, several, or their embeddings.
        latents: `(n, tokens, channels)` packed initial noise, see `initial_latents`.
        generator: source of the noise where ``latents`` is not given.
        steps: denoising steps, where they are not the workload's own; a schedule asks for its own number.
        output_type: ``pt``, ``latent``, ``pil`` or ``np``.
    """
    kwargs: dict[str, Any] = {
        "height": workload.height,
        "width": workload.width,
        "num_inference_steps": workload.steps if steps is None else steps,
        "guidance_scale": workload.guidance_scale,
        "max_sequence_length": workload.max_sequence_length,
        "output_type": output_type,
        "return_dict": False,
    }
    if isinstance(prompt, TextEmbeds):
        kwargs |= {"prompt_embeds": prompt.tokens, "pooled_prompt_embeds": prompt.pooled}
    else:
        kwargs["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    if workload.branches == 2:
        kwargs |= {"true_cfg_scale": workload.true_cfg_scale, **_negative_kwargs(prompt)}
    if latents is not None:
        kwargs["latents"] = latents
    if generator is not None:
        kwargs["generator"] = generator
    return kwargs


def _negative_kwargs(prompt: Prompt) -> dict[str, Any]:
    """Return the arguments of the unconditional pass: the empty text."""
    if isinstance(prompt, TextEmbeds):
        negative = prompt.negative
        if negative is None:
            raise UsageError(
                "pipeline_kwargs: found embeddings without negative ones, expected both for true_cfg_scale above 1. "
                "Make them with encode_prompts."
            )
        return {"negative_prompt_embeds": negative.tokens, "negative_pooled_prompt_embeds": negative.pooled}
    return {"negative_prompt": "" if isinstance(prompt, str) else [""] * len(prompt)}


def encode_prompts(pipe: Pipeline, workload: Workload, prompts: Sequence[str]) -> TextEmbeds:
    """Return the embeddings of ``prompts``, encoded one by one so that a prompt's numbers never depend on the others.

    Raises:
        UsageError: if ``prompts`` is empty.
    """
    if not prompts:
        raise UsageError("encode_prompts: found no prompts, expected at least one.")
    n = len(prompts)
    pairs = [_encode(pipe, workload, prompt) for prompt in prompts]
    negative = None
    if workload.branches == 2:
        tokens, pooled = _encode(pipe, workload, "")
        negative = TextEmbeds(tokens=tokens.expand(n, -1, -1), pooled=pooled.expand(n, -1))
    return TextEmbeds(
        tokens=torch.cat([tokens for tokens, _ in pairs]),
        pooled=torch.cat([pooled for _, pooled in pairs]),
        negative=negative,
    )


def _encode(pipe: Pipeline, workload: Workload, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        answer = pipe.encode_prompt(prompt=prompt, prompt_2=None, max_sequence_length=workload.max_sequence_length)
    return answer[0], answer[1]


def decode_latents(pipe: Pipeline, workload: Workload, latents: torch.Tensor) -> torch.Tensor:
    """Return the images `(n, 3, height, width)` in [0, 1] that ``output_type="pt"`` would have given.

    Args:
        pipe: owner of the VAE.
        workload: settings of the call.
        latents: `(n, tokens, channels)` packed, as ``output_type="latent"`` returns them.
    """
    rows, columns = latent_grid(pipe, workload)
    config = pipe.vae.config
    with torch.inference_mode():
        grid = unpack_latents(latents, rows=rows, columns=columns)
        grid = grid.to(device=pipe.vae.device, dtype=pipe.vae.dtype) / config.scaling_factor + config.shift_factor
        decoded = pipe.vae.decode(grid, return_dict=False)[0]
        images: torch.Tensor = pipe.image_processor.postprocess(decoded, output_type="pt")
    return images


def latent_grid(pipe: Pipeline, workload: Workload) -> tuple[int, int]:
    """Return the rows and columns of the unpacked latent picture (both even)."""
    # A FLUX token is a patch of 2 x 2 latents, so the grid is rounded down to whole patches, as the pipeline does.
    patch = int(pipe.vae_scale_factor) * 2
    return 2 * (workload.height // patch), 2 * (workload.width // patch)


def pack_latents(grid: torch.Tensor) -> torch.Tensor:
    """Return `(n, rows / 2 * columns / 2, 4 c)` tokens of 2 x 2 patches from latents `(n, c, rows, columns)`.

    >>> pack_latents(torch.arange(4.0).reshape(1, 1, 2, 2)).tolist()
    [[[0.0, 1.0, 2.0, 3.0]]]
    """
    n, c, rows, columns = grid.shape
    patches = grid.reshape(n, c, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, (rows // 2) * (columns // 2), c * 4)


def unpack_latents(packed: torch.Tensor, *, rows: int, columns: int) -> torch.Tensor:
    """Return latents `(n, c, rows, columns)` from packed tokens; the inverse of `pack_latents`."""
    n, _, width = packed.shape
    patches = packed.reshape(n, rows // 2, columns // 2, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(n, width // 4, rows, columns)
