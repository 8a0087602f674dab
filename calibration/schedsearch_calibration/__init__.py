"""What a search starts from: prompt sets, and the small trained model that ships with schedsearch.

`prompt_set` and `read_prompts` give prompts, `flux_mini_path` the folder of the bundled model, `feature_net_path` that
of the network that scores its pictures. The packages ``flux_mini`` and ``flux_mini_clip`` hold the recipes that trained
them. Importing this module loads no torch.
"""

from __future__ import annotations

from pathlib import Path

from schedsearch.errors import UsageError
from schedsearch_calibration._prompts import PromptSet, digest, prompt_set, prompt_set_names, read_prompts

__all__ = [
    "PromptSet",
    "bundled_path",
    "digest",
    "feature_net_path",
    "flux_mini_path",
    "prompt_set",
    "prompt_set_names",
    "read_prompts",
]


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


def feature_net_path(name: str) -> Path:
    """Return the folder of the bundled image-text model called ``name``, a ``CLIPModel`` with its ``CLIPProcessor``.

    Raises:
        UsageError: no such network ships with schedsearch.
    """
    names = sorted(found.parent.name for found in _MODELS.glob("*/processor_config.json"))
    if name not in names:
        raise UsageError(
            f"feature network: found {name[:60]!r}, expected one of {', '.join(names)}, which ship with schedsearch."
        )
    return _MODELS / name
