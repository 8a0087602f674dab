"""Replays a schedule on a live diffusers pipeline, with torch and diffusers alone.

What runs pipelines is brought in on first use; the solvers' numbers (`_solver`) need neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schedsearch.runtime._apply import Handle, apply
    from schedsearch.runtime._precision import LowBitCache
    from schedsearch.runtime._topology import (
        TOPOLOGIES,
        BlockList,
        Topology,
        adapters_of,
        block_lists_of,
        blocks_of,
        default_sigmas,
        denoiser_of,
        identity_schedule,
        model_ref,
        tokens,
        topology_of,
    )

__all__ = [
    "TOPOLOGIES",
    "BlockList",
    "Handle",
    "LowBitCache",
    "Topology",
    "adapters_of",
    "apply",
    "block_lists_of",
    "blocks_of",
    "default_sigmas",
    "denoiser_of",
    "identity_schedule",
    "model_ref",
    "tokens",
    "topology_of",
]

_IN_APPLY = ("Handle", "LowBitCache", "apply")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "_apply" if name in _IN_APPLY else "_topology"
    return getattr(import_module(f"schedsearch.runtime.{home}"), name)
