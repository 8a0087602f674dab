"""Chooses the prompt sets of flux-mini from its training captions, the same ones every time.

``python -m schedsearch_calibration.choose`` writes ``prompts/flux-mini-*.jsonl`` and ``prompts/index.json`` again.
Order comes from SHA-256 keys, never from a random generator, so no release of Python can change the choice. This
module does not judge how well the model draws a caption: a set picked for good looks would flatter every schedule.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from schedsearch_calibration._prompts import digest, read_prompts
from schedsearch_calibration.flux_mini import COLOURS, WHITE_SHARE

SEED = 2025
SIZE = 64
_FOLDER = Path(__file__).resolve().parent / "prompts"
_ORIGINS = {
    "flux-mini-calibration": "chosen from flux-mini's training captions by schedsearch_calibration.choose",
    "flux-mini-held-out": "chosen from flux-mini's training captions by schedsearch_calibration.choose",
    "general-calibration": "written for schedsearch",
    "general-held-out": "written for schedsearch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A training caption: the icon's name with spaces, and its category in Noto Emoji."""

    name: str
    category: str


def captions() -> tuple[Caption, ...]:
    """Return the 1,280 captions flux-mini was trained on, sorted by name."""
    lines = (_FOLDER / "flux-mini-captions.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(Caption(name=name, category=category) for name, category in (line.split("\t") for line in lines))


def choose(
    pool: Sequence[Caption], *, sets: int = 2, size: int = SIZE, seed: int = SEED
) -> tuple[tuple[str, ...], ...]:
    """Return ``sets`` tuples of ``size`` prompts "NAME, COLOUR background", no name in two of them.

    Every category gets its share of the pool in every set (largest remainders), `WHITE_SHARE` of the prompts are on
    white and the other colours differ in number by one at most.

    Raises:
        ValueError: a category of the pool is too small to give every set its share.
    """
    quota = _quota(Counter(caption.category for caption in pool), size)
    chosen: list[list[str]] = [[] for _ in range(sets)]
    for category, count in sorted(quota.items()):
        names = _shuffled((c.name for c in pool if c.category == category), f"{seed}/{category}")
        if len(names) < sets * count:
            raise ValueError(f"category {category!r} has {len(names)} captions, {sets * count} are needed")
        for index in range(sets):
            chosen[index] += names[index * count : (index + 1) * count]
    return tuple(_coloured(names, f"{seed}/set {index}") for index, names in enumerate(chosen))


def _quota(counts: Counter[str], size: int) -> dict[str, int]:
    """Share ``size`` among categories by largest remainder, ties by name."""
    total = counts.total()
    exact = {category: size * count / total for category, count in counts.items()}
    quota = {category: int(share) for category, share in exact.items()}
    by_remainder = sorted(exact, key=lambda category: (quota[category] - exact[category], category))
    for category in by_remainder[: size - sum(quota.values())]:
        quota[category] += 1
    return quota


def _shuffled(names: Iterable[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())


def _coloured(names: Sequence[str], salt: str) -> tuple[str, ...]:
    """Give each name a background, then mix the order so that any prefix of the set is varied too."""
    order = _shuffled(names, f"{salt}/colour")
    n_white = round(WHITE_SHARE * len(order))
    white, *others = COLOURS
    pairs = [(name, white if i < n_white else others[(i - n_white) % len(others)]) for i, name in enumerate(order)]
    return tuple(_shuffled((f"{name}, {colour} background" for name, colour in pairs), f"{salt}/order"))


def write(folder: Path = _FOLDER) -> None:
    """Write the two chosen sets and the index of all sets into ``folder``."""
    names = ("flux-mini-calibration", "flux-mini-held-out")
    for name, prompts in zip(names, choose(captions()), strict=True):
        text = "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    index = {}
    for name, origin in _ORIGINS.items():
        prompts = read_prompts(folder / f"{name}.jsonl").prompts
        index[name] = {"size": len(prompts), "sha256": digest(prompts), "origin": origin}
    (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
