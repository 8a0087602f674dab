"""What a search starts from: prompt sets, and the small trained model that ships with schedsearch.

`prompt_set` and `read_prompts` give prompts, `flux_mini_path` the folder of the bundled model, and the package
``schedsearch_calibration.flux_mini`` holds the recipe that trained it. Importing this module loads no torch.
"""

from __future__ import annotations

from pathlib import Path

from schedsearch.errors import UsageError
from schedsearch_calibration._prompts import PromptSet, digest, prompt_set, prompt_set_names, read_prompts

__all__ = ["PromptSet", "bundled_path", "digest", "flux_mini_path", "prompt_set", "prompt_set_names", "read_prompts"]


_MODELS = Path(__file__).resolve().parent / "models"


def bundled_path(name: str) -> Path:
    """Return the folder of the bundled model called ``name``, a complete pipeline in diffusers layout.

    Raises:
        UsageError: no model of that name ships with schedsearch.
    """
    names = sorted(index.parent.name for index in _MODELS.glob("*/model_index.json"))
    if name not in names:
        raise UsageError(
            f"bundled: found {name[:60]!r}, expected one of {', '.join(names)}, which ship with schedsearch."
        )
    return _MODELS / name


def flux_mini_path() -> Path:
    """Return the folder of flux-mini, a complete diffusers ``FluxPipeline`` (see its ``MODEL_CARD.md``)."""
    return bundled_path("flux-mini")
