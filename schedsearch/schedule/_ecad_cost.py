"""The cost that ECAD's published files state: multiply-accumulates of a FLUX run, linear layers only.

ECAD (arXiv 2506.15682) counts with calflops, which leaves out the attention products. The formula here gives its
``total_macs_T`` to every digit from the block structure alone, so it checks an import without a model. It is not how
schedsearch measures cost. This module does not know files.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedsearch.schedule._model import Schedule
from schedsearch.schedule._vocabulary import COMPUTE, MODEL_ROW


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxStructure:
    """The sizes of a FLUX denoiser; the defaults are FLUX.1-dev.

    Attributes:
        double_blocks: blocks with separate image and text streams.
        single_blocks: blocks with one joined stream.
        width: features per token, d.
        channels: features of a packed latent token.
        text_width: features of a T5 token.
        pooled_width: features of the pooled CLIP embedding.
        time_width: sinusoidal features of the timestep and of the guidance scale.
    """

    double_blocks: int = 19
    single_blocks: int = 38
    width: int = 3072
    channels: int = 64
    text_width: int = 4096
    pooled_width: int = 768
    time_width: int = 256


FLUX_DEV = FluxStructure()


def component_macs(structure: FluxStructure, *, image_tokens: int, text_tokens: int) -> dict[str, int]:
    """Multiply-accumulates of every component row for one sample: its linear layers, gates and norms left out."""
    d, img, txt = structure.width, image_tokens, text_tokens
    n = img + txt
    double = {"attn": 4 * d * d * n, "ff": 8 * d * d * img, "ff_context": 8 * d * d * txt}
    single = {"attn": 3 * d * d * n, "proj_mlp": 4 * d * d * n, "proj_out": 5 * d * d * n}
    costs = {
        f"transformer_blocks.{i}.{part}": cost for i in range(structure.double_blocks) for part, cost in double.items()
    }
    for i in range(structure.single_blocks):
        costs.update({f"single_transformer_blocks.{i}.{part}": cost for part, cost in single.items()})
    return costs


def fixed_macs(structure: FluxStructure, *, image_tokens: int, text_tokens: int) -> int:
    """What every executed step costs for one sample besides the components: embeddings, modulations, output layer."""
    d = structure.width
    modulations = (12 * structure.double_blocks + 3 * structure.single_blocks + 2) * d * d
    tokens = 2 * structure.channels * d * image_tokens + structure.text_width * d * text_tokens
    conditioning = 3 * d * d + (2 * structure.time_width + structure.pooled_width) * d
    return modulations + tokens + conditioning


def ecad_macs(
    schedule: Schedule,
    *,
    image_tokens: int,
    text_tokens: int = 512,
    batch: int = 2,
    structure: FluxStructure = FLUX_DEV,
) -> tuple[int, ...]:
    """Multiply-accumulates of each step, `(n_steps,)`, as ECAD counts them (at its batch of 2 by default).

    Args:
        schedule: its rows at all three levels count; a pruned module costs nothing.
        image_tokens: 256 for 256 x 256 pixels, 4096 for 1024 x 1024.
        text_tokens: length of the T5 prompt.
        batch: samples per call.
        structure: sizes of the denoiser.
    """
    fixed = fixed_macs(structure, image_tokens=image_tokens, text_tokens=text_tokens)
    totals = [fixed if op == COMPUTE else 0 for op in schedule.row(MODEL_ROW)]
    gone = set(schedule.pruned)
    for name, cost in component_macs(structure, image_tokens=image_tokens, text_tokens=text_tokens).items():
        block = name.rpartition(".")[0]
        if name in gone or block in gone:
            continue
        levels = zip(schedule.row(MODEL_ROW), schedule.row(block), schedule.row(name), strict=True)
        for step, ops in enumerate(levels):
            if ops == (COMPUTE, COMPUTE, COMPUTE):
                totals[step] += cost
    return tuple(batch * total for total in totals)
