"""Replays a schedule on a live diffusers pipeline, with torch and diffusers alone."""

from schedsearch.runtime._apply import Handle, apply
from schedsearch.runtime._topology import (
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
    "Handle",
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
