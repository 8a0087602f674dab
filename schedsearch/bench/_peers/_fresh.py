"""A pipeline of one's own for every peer: new modules and a new scheduler around the same weights.

What a library leaves behind on modules, or on the scheduler, stays there and never meets another one; weights are
shared, so it costs no memory. Does not know what peers do.
"""

from __future__ import annotations

import copy
from typing import Any


def fresh(pipe: Any) -> Any:
    """Returns a pipeline of the same class whose denoiser is a copy of ``pipe``'s that shares every weight.

    Args:
        pipe: a pipeline with nothing put on it.
    """
    denoiser = pipe.transformer
    shared = {id(tensor): tensor for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    parts = {
        **pipe.components,
        "transformer": copy.deepcopy(denoiser, shared),
        "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config),
    }
    made = type(pipe)(**parts)
    made.set_progress_bar_config(disable=True)
    return made
