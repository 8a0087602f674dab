"""Names for the plain values that cross seams, with their units. Knows nothing of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType

Sigma = NewType("Sigma", float)
"""Post-shift noise level: in [0, 1] for flow models, ``sigma_t / alpha_t`` for variance-preserving ones."""

StepIndex = NewType("StepIndex", int)
"""Position in the denoising loop, 0 first."""

ModuleName = NewType("ModuleName", str)
"""Dotted name of a module inside the denoiser, such as ``transformer_blocks.3.attn``."""

Better = Literal["min", "max"]
"""Direction in which an objective improves."""

Status = Literal["ok", "failed", "pruned"]
"""How an evaluation ended."""


Polish = Literal["", "scalars", "levels"]
"""What of a schedule's fitted steps is fitted together: nothing, their scalars, or their noise levels as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """A schedulable block of a denoiser: its dotted name and the components that can be scheduled inside it.

    The dotted name of a component is ``f"{name}.{component}"``, such as ``transformer_blocks.3.attn``.
    """

    name: str
    components: tuple[str, ...]
