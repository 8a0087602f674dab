"""Search schedules that make diffusion models faster, and replay them from a file.

    schedsearch optimize --model flux --budget 4x
    schedsearch.apply(pipe, "flux-4x.json"); pipe("a red apple")

Importing this package loads nothing heavy: `apply` brings torch and diffusers in on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schedsearch.runtime import Handle, apply
    from schedsearch.schedule import Schedule, read_schedule, write_schedule

__version__ = "0.1.0"

__all__ = ["Handle", "Schedule", "__version__", "apply", "read_schedule", "write_schedule"]

_HOMES = {
    "Handle": "schedsearch.runtime",
    "apply": "schedsearch.runtime",
    "Schedule": "schedsearch.schedule",
    "read_schedule": "schedsearch.schedule",
    "write_schedule": "schedsearch.schedule",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
