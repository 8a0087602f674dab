"""The recipe that trained flux-mini: data, VAE, tokenizer, transformer with its text encoders, pipeline folder.

Run ``python -m schedsearch_calibration.flux_mini --out DIR`` (needs the extra ``schedsearch[recipe]``). Each stage is a
module of this package, and each can be used by itself. Importing this package loads no torch.
"""

from __future__ import annotations

from typing import Final

COLOURS: Final = {
    "white": (255, 255, 255),
    "black": (20, 20, 24),
    "red": (220, 60, 60),
    "blue": (60, 120, 220),
    "green": (70, 170, 80),
    "yellow": (250, 210, 60),
    "purple": (150, 90, 190),
    "orange": (240, 140, 60),
}
"""Background colours, 8-bit RGB; white first."""

WHITE_SHARE: Final = 0.4
"""Share of white backgrounds, in training and in the prompt sets; the others share the rest evenly."""
