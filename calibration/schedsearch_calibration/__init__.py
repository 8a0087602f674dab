"""What a search starts from: prompt sets, and the small trained model that ships with schedsearch.

`prompt_set` and `read_prompts` give prompts, `flux_mini_path` the folder of the bundled model, and the package
``schedsearch_calibration.flux_mini`` holds the recipe that trained it. Importing this module loads no torch.
"""

from __future__ import annotations

from pathlib import Path

from schedsearch_calibration._prompts import PromptSet, digest, prompt_set, prompt_set_names, read_prompts

__all__ = ["PromptSet", "digest", "flux_mini_path", "prompt_set", "prompt_set_names", "read_prompts"]


def flux_mini_path() -> Path:
    """Return the folder of the bundled model, a complete diffusers ``FluxPipeline`` (see its ``MODEL_CARD.md``)."""
    return Path(__file__).resolve().parent / "models" / "flux-mini"
