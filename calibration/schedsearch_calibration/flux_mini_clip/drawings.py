"""Which drawings are learned from and which are kept for the test, and how a batch of them is made.

Every name of flux-mini's captions has up to three drawings, one per icon package. Of `N_TEST` names only the first
package's drawing is learned from; the other two are what retrieval is measured on. So a test asks whether a thing is
known in a drawing never seen, by an artist who has been seen. This module does not know the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from schedsearch_calibration.flux_mini import COLOURS, data

N_TEST: Final = 128
"""Names whose drawings of the second and third package are not learned from."""

_SEED: Final = "flux-mini-clip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawings:
    """Pictures of named things.

    Attributes:
        names: of the things, those of the first package, in its order.
        rgba: `(n, h, w, 4)`, 8-bit, all packages one after the other, without what the first does not name.
        name: `(n,)`, index into ``names`` of each drawing.
        package: `(n,)`, whose drawing it is.
        is_test: `(n,)`, whether it is kept for the test.
    """

    names: tuple[str, ...]
    rgba: torch.Tensor
    name: torch.Tensor
    package: torch.Tensor
    is_test: torch.Tensor


def gather(pictures: Sequence[data.Pictures], *, n_test: int = N_TEST) -> Drawings:
    """Return the drawings of the first package's names, ``n_test`` names of them for the test.

    The names are chosen by SHA-256 among those that every package draws, so that no generator's release matters.
    """
    names = pictures[0].captions
    place = {name: i for i, name in enumerate(names)}
    shared = set(names).intersection(*(p.captions for p in pictures))
    order = sorted(shared, key=lambda name: hashlib.sha256(f"{_SEED}/{name}".encode()).digest())
    test = {place[name] for name in order[:n_test]}
    rows = [
        (package, place[caption], i)
        for package, p in enumerate(pictures)
        for i, caption in enumerate(p.captions)
        if caption in place
    ]
    return Drawings(
        names=names,
        rgba=torch.stack([torch.from_numpy(pictures[package].rgba[i]) for package, _, i in rows]),
        name=torch.tensor([name for _, name, _ in rows]),
        package=torch.tensor([package for package, _, _ in rows]),
        is_test=torch.tensor([package > 0 and name in test for package, name, _ in rows]),
    )


def prompts(names: Sequence[str]) -> list[str]:
    """Return the caption of every name on every colour, names slowest.

    >>> prompts(["red apple"])[:2]
    ['red apple, white background', 'red apple, black background']
    """
    return [f"{name}, {colour} background" for name in names for colour in COLOURS]


def lay(rgba: torch.Tensor, colours: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Lay drawings on plain backgrounds, as ``flux_mini.data.compose`` does.

    Args:
        rgba: `(n, h, w, 4)`, 8-bit.
        colours: `(n, 3)`, 8-bit RGB.
        generator: if given, drawings are shifted and scaled a little, blurred and covered with noise: a model's
            pictures are neither as sharp nor as well centred as icons.

    Returns:
        `(n, 3, h, w)`, float32 in [-1, 1], a little beyond with noise.
    """
    if generator is None:
        return data.compose(rgba, colours)
    n = len(rgba)
    picture = rgba.to(torch.float32).permute(0, 3, 1, 2) / 255.0
    alpha = picture[:, 3:]
    premultiplied = torch.cat([picture[:, :3] * alpha, alpha], dim=1)
    scale = 1.0 + 0.3 * (torch.rand(n, generator=generator) - 0.5)
    shift = 0.3 * (torch.rand(n, 2, generator=generator) - 0.5)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = torch.nn.functional.affine_grid(theta, list(premultiplied.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(premultiplied, grid, align_corners=False)
    laid = moved[:, :3] + colours.to(torch.float32)[:, :, None, None] / 255.0 * (1.0 - moved[:, 3:])
    soft = torch.nn.functional.avg_pool2d(laid, 3, stride=1, padding=1, count_include_pad=False)
    laid = torch.lerp(laid, soft, torch.rand(n, 1, 1, 1, generator=generator))
    grain = 0.06 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(laid.shape, generator=generator)
    return 2.0 * (laid + grain) - 1.0
