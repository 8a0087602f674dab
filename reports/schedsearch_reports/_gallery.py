"""Reads the pictures that a search kept beside its results."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from schedsearch.errors import UsageError
from schedsearch_reports._data import Gallery, RunPictures

INDEX = "pictures.json"
FORMAT, VERSION = "schedsearch.pictures", 1
CARRIED_BYTES = 2_400_000
"""Of all pictures in one page, before they are put into text; runs beyond that come without."""

_TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}


def read_gallery(folder: Path) -> Gallery | None:
    """Return the pictures in ``folder``, or `None` if none were kept.

    Raises:
        UsageError: the index is there and cannot be read, or a picture that it names.
    """
    index = folder / INDEX
    if not index.is_file():
        return None
    try:
        document: dict[str, Any] = json.loads(index.read_bytes())
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise ValueError(f"{document['format']} {document['version']}")
        room = CARRIED_BYTES
        runs: list[RunPictures] = []
        for run in document["runs"]:
            files = [_inside(folder, file) for file in run["files"]]
            room -= sum(file.stat().st_size for file in files)
            if room < 0:
                break
            images = tuple(map(_data_uri, files))
            runs.append(RunPictures(run=run["run"], images=images, scores=tuple(map(float, run["scores"]))))
        return Gallery(
            prompts=tuple(map(str, document["prompts"])),
            metric=document["metric"],
            width=int(document["width"]),
            height=int(document["height"]),
            shown=max(_size(_inside(folder, document["runs"][0]["files"][0]))),
            runs=tuple(runs),
        )
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UsageError(
            f"{index}: found pictures that cannot be read ({type(error).__name__}: {error}), expected those "
            "`schedsearch optimize` keeps. Remove the folder to make a report without pictures."
        ) from error


def _inside(folder: Path, file: str) -> Path:
    if Path(file).name != file:
        raise ValueError(f"{file!r} is not a bare file name")
    return folder / file


def _data_uri(file: Path) -> str:
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _size(file: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(file) as image:
        return image.size
