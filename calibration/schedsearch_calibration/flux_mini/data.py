"""Stage 1: captioned pictures from icon packages in Iconify's JSON format.

An icon is an SVG body and a name; the name with spaces for hyphens is its caption. Icons are rendered once, with
transparency, and composed on a background colour when a batch is made, so 1,280 icons give 10,240 captioned pictures.
This module does not know what is trained on them.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from schedsearch.errors import UsageError
from schedsearch_calibration.flux_mini import COLOURS, WHITE_SHARE

SIZE: Final = 64
"""Height and width of every picture, in pixels."""

PACKAGES: Final = (
    "@iconify-json/noto@1.2.9",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/fluent-emoji-flat@1.2.6",
)
"""npm packages: captions and pictures come from the first, the VAE learns from all three."""

_LEFT_OUT: Final = ("People & Body", "Flags")
_TONE: Final = re.compile(
    r"-(light|medium|dark)"
)  # skin tones; takes nine other names along, as the first training did


@dataclass(frozen=True, slots=True, kw_only=True)
class Icon:
    """One icon: its caption without the background, and a complete SVG document."""

    caption: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Rendered icons.

    Attributes:
        captions: `n` names.
        rgba: `(n, SIZE, SIZE, 4)`, 8-bit, not premultiplied.
    """

    captions: tuple[str, ...]
    rgba: NDArray[np.uint8]


def read_icons(package: Path) -> tuple[Icon, ...]:
    """Return the icons of an unpacked Iconify package, by name.

    Categories "People & Body" and "Flags" and the names of skin tones are left out where the package has categories.

    Raises:
        UsageError: the folder is no such package, or no icon is left.
    """
    path = package / "icons.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        icons: dict[str, dict[str, Any]] = content["icons"]
        names = _kept_names(package, icons)
        found = tuple(
            Icon(caption=name.replace("-", " "), svg=_document(icons[name], content)) for name in names if name in icons
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"data: {path} cannot be read as icons ({type(error).__name__}: {error}), expected an unpacked npm package "
            f"such as {PACKAGES[0]}. Run `npm pack {PACKAGES[0]}`, unpack the .tgz and give the folder `package`."
        ) from None
    if not found:
        raise UsageError(f"data: {path}: found no icon to learn from, expected at least one.")
    return found


def _kept_names(package: Path, icons: dict[str, dict[str, Any]]) -> list[str]:
    metadata = package / "metadata.json"
    if not metadata.is_file():
        return sorted(name for name, icon in icons.items() if not icon.get("hidden"))
    categories: dict[str, list[str]] = json.loads(metadata.read_text(encoding="utf-8"))["categories"]
    kept = {name for category, names in categories.items() if category not in _LEFT_OUT for name in names}
    return sorted(name for name in kept if not _TONE.search(name))


def _document(icon: dict[str, Any], defaults: dict[str, Any]) -> str:
    width, height = (icon.get(side, defaults.get(side, 16)) for side in ("width", "height"))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def render(icons: Sequence[Icon], *, progress: Callable[[int, float], None] = lambda _done, _share: None) -> Pictures:
    """Draw the icons at `SIZE` with resvg; ``progress`` gets the number and the share done, after each.

    Raises:
        UsageError: the package ``resvg-py`` is not installed, or an icon is not valid SVG.
    """
    try:
        import resvg_py
    except ImportError:
        raise UsageError(
            "data: the package resvg-py, which draws the icons, is not installed. "
            "Run `pip install schedsearch[recipe]`."
        ) from None
    from PIL import Image

    rgba = np.zeros((len(icons), SIZE, SIZE, 4), dtype=np.uint8)
    for i, icon in enumerate(icons):
        try:
            # Fonts differ between machines; no icon that is kept needs one.
            png = resvg_py.svg_to_bytes(svg_string=icon.svg, width=SIZE, height=SIZE, skip_system_fonts=True)
        except ValueError as error:
            raise UsageError(f"data: the icon {icon.caption!r} cannot be drawn ({error}).") from None
        with Image.open(io.BytesIO(bytes(png))) as picture:
            drawn = np.asarray(picture.convert("RGBA"))
        top, left = (SIZE - drawn.shape[0]) // 2, (SIZE - drawn.shape[1]) // 2  # an icon need not be square
        rgba[i, top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
        progress(i + 1, (i + 1) / len(icons))
    return Pictures(captions=tuple(icon.caption for icon in icons), rgba=rgba)


def compose(rgba: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Lay pictures on plain backgrounds.

    Args:
        rgba: `(n, h, w, 4)`, 8-bit.
        colours: `(n, 3)`, 8-bit RGB.

    Returns:
        `(n, 3, h, w)`, float32 in [-1, 1].
    """
    picture = rgba.to(torch.float32)
    alpha = picture[..., 3:] / 255.0
    mixed = picture[..., :3] * alpha + colours.to(torch.float32)[:, None, None, :] * (1.0 - alpha)
    return (mixed / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def palette() -> torch.Tensor:
    """Return the colours as `(n_colours, 3)`, 8-bit, in the order of `COLOURS`."""
    return torch.tensor(list(COLOURS.values()), dtype=torch.uint8)


def draw_colours(n: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``n`` indices into `COLOURS`: white with `WHITE_SHARE`, else one of the others, all alike."""
    white = torch.rand(n, generator=generator) < WHITE_SHARE
    other = torch.randint(1, len(COLOURS), (n,), generator=generator)
    return torch.where(white, torch.zeros_like(other), other)


@contextmanager
def packages(given: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Yield folders of unpacked packages: those given (folders or .tgz files), or else `PACKAGES` through npm.

    Raises:
        UsageError: a given path is neither, or npm is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="flux-mini-data-") as scratch:
        sources = tuple(given) or _fetch(Path(scratch))
        yield tuple(_unpacked(path, Path(scratch) / str(i)) for i, path in enumerate(sources))


def _unpacked(path: Path, target: Path) -> Path:
    if path.is_dir():
        return path
    try:
        with tarfile.open(path) as archive:
            # Python 3.11 has the filter from its fourth release on.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
            archive.extractall(target)  # noqa: S202 - filtered
    except (OSError, tarfile.TarError) as error:
        raise UsageError(
            f"data: {path} is neither a folder nor a readable .tgz file ({error}). Give the path of an unpacked npm "
            f"package, or of the file that `npm pack {PACKAGES[0]}` writes."
        ) from None
    return target / "package"


def _fetch(folder: Path) -> tuple[Path, ...]:
    by_hand = f"Run `npm pack {' '.join(PACKAGES)}` where there is a network and give the files with --data."
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(f"data: npm, which fetches the icons, is not installed. {by_hand}")
    done = subprocess.run(  # noqa: S603 -- fixed arguments
        [npm, "pack", "--silent", *PACKAGES], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    files = tuple(folder / line for line in done.stdout.split() if line.endswith(".tgz"))
    if done.returncode or len(files) != len(PACKAGES):
        why = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
        raise UsageError(f"data: npm could not fetch the icons ({why}). {by_hand}")
    return files


def save(pictures: Sequence[Pictures], path: Path) -> None:
    """Write one entry per package into the ``.npz`` file ``path``, all or nothing."""
    arrays: dict[str, Any] = {}
    for i, one in enumerate(pictures):
        arrays[f"rgba{i}"] = one.rgba
        arrays[f"captions{i}"] = np.array(one.captions)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def load(path: Path) -> tuple[Pictures, ...]:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        n = len(arrays.files) // 2
        return tuple(
            Pictures(captions=tuple(str(c) for c in arrays[f"captions{i}"]), rgba=arrays[f"rgba{i}"]) for i in range(n)
        )
