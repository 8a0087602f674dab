"""Keeps a few of the pictures that the held-out measurement draws, small, so that a report needs no model.

The prompts are chosen by their place in the set, before anything is drawn: no picture is picked for its looks. Small
pictures are kept exactly; larger ones are shrunk and compressed as far as a page can carry. Knows nothing of pages.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from schedsearch.evaluate import HeldOutRow, Pictures
from schedsearch.schedule import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "schedsearch.pictures"
VERSION = 1
INDEX = "pictures.json"
SHOWN = 8
"""Prompts whose pictures are kept."""
SIDE = 384
"""Pixels of the longer side, at most."""
EXACT = 128
"""Pixels of the longer side up to which pictures are stored without loss, where that fits."""
TOTAL_BYTES = 2_000_000
"""Of all pictures together, about."""

_QUALITIES = (92, 85, 75, 62, 48)
_MADE = re.compile(r"\d{3}-\d{2}\.webp")


def shown_prompts(n: int) -> tuple[int, ...]:
    """Return the numbers of the prompts whose pictures are kept: evenly spaced, the first among them.

    >>> shown_prompts(64)
    (0, 8, 16, 24, 32, 40, 48, 56)
    """
    kept = min(n, SHOWN)
    return tuple(i * n // kept for i in range(kept))


@dataclass(kw_only=True)
class KeptPictures:
    """Pictures while they are drawn.

    Attributes:
        prompts: all held-out prompts.
        metric: whose number is kept with each picture.
    """

    prompts: tuple[str, ...]
    metric: str
    _drawn: dict[str, list[Image]] = field(default_factory=dict)
    _size: tuple[int, int] = (0, 0)

    def keep(self, run: str, start: int, pictures: Pictures) -> None:
        """Take what was drawn for the prompts from ``start`` on."""
        for place in shown_prompts(len(self.prompts)):
            if start <= place < start + len(pictures.images):
                image = _image(pictures, place - start)
                self._size = image.size
                image.thumbnail((SIDE, SIDE))
                self._drawn.setdefault(run, []).append(image)

    def write(self, folder: Path, rows: Sequence[HeldOutRow], names: Mapping[str, str]) -> None:
        """Write the pictures and their index into ``folder``, and remove what an earlier call left there.

        Args:
            folder: made if it is missing.
            rows: the runs, of which only those are written that were drawn.
            names: what a run is called in the index, where that is not its name.
        """
        shown = shown_prompts(len(self.prompts))
        drawn = [row for row in rows if row.name in self._drawn]
        if not drawn:
            return
        room = TOTAL_BYTES // (len(drawn) * len(shown))
        folder.mkdir(parents=True, exist_ok=True)
        runs, kept = [], set()
        for number, row in enumerate(drawn):
            files = [f"{number:03d}-{i:02d}.webp" for i in range(len(shown))]
            for file, image in zip(files, self._drawn[row.name], strict=True):
                write_atomically(folder / file, encoded(image, room))
            kept.update(files)
            scores = row.values(self.metric)
            runs.append(
                {"run": names.get(row.name, row.name), "files": files, "scores": [scores[place] for place in shown]}
            )
        index = {
            "format": FORMAT,
            "version": VERSION,
            "metric": self.metric,
            "width": self._size[0],
            "height": self._size[1],
            "prompts": [self.prompts[place] for place in shown],
            "runs": runs,
        }
        write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())
        for old in folder.iterdir():
            if _MADE.fullmatch(old.name) and old.name not in kept:
                old.unlink(missing_ok=True)


def _image(pictures: Pictures, place: int) -> Image:
    from PIL import Image

    values = pictures.images[place].clamp(0.0, 1.0).mul(255.0).round().byte().permute(1, 2, 0)
    return Image.fromarray(values.contiguous().numpy())


def encoded(image: Image, room: int) -> bytes:
    """Return a picture as WebP in at most ``room`` bytes: exactly if it is small, else in the best quality that fits.

    What fits in no quality comes in the least one.
    """
    out = io.BytesIO()
    if max(image.size) <= EXACT:
        # Method 6 at full effort makes files 2 % smaller and takes forty times as long.
        image.save(out, format="WEBP", lossless=True, method=4, quality=50)
        if out.tell() <= room:
            return out.getvalue()
    for quality in _QUALITIES:
        out = io.BytesIO()
        image.save(out, format="WEBP", quality=quality, method=4)
        if out.tell() <= room:
            break
    return out.getvalue()
