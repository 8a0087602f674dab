"""Where drawn pictures go: names made of their prompts, and never over another file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_SLUG_LENGTH = 60


def slug(text: str) -> str:
    """Return a short file name made of the words of ``text``.

    >>> slug("Red apple, blue background!")
    'red-apple-blue-background'
    """
    words = re.sub(r"\W+", "-", text.lower()).strip("-_")
    return words[:_SLUG_LENGTH].rstrip("-") or "picture"


def write_new(image: Any, folder: Path, stem: str) -> Path:
    """Save a Pillow ``image`` under a name that is not taken: ``stem.png``, else ``stem-2.png`` and so on."""
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            with path.open("xb") as file:
                image.save(file, format="PNG")
        except FileExistsError:
            number += 1
        else:
            return path
