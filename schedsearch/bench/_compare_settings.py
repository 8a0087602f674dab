"""What a comparison is asked for: options, families by name, and how much of everything.

Knows nothing of how it is carried out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf
from pathlib import Path

from schedsearch.bench._families import FAMILIES
from schedsearch.bench._peers import peers
from schedsearch.errors import UsageError
from schedsearch.study import Family

BUDGETS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Speeds that are asked for."""

REACH = 1.35
"""Settings predicted faster than a budget by more than this are not swept for it: slower ones nearly always win."""

MASK_PROMPTS = 4
"""Calibration prompts that hand-made settings are swept on."""

PEER_PROMPTS = 2
"""Calibration prompts that settings of other libraries are tried on, one by one."""

DRAWN = 4
"""Calibration prompts for libraries that calibrate themselves."""

MASK_SHARE, SWEEP_SHARE = 0.3, 0.6
"""Shares of ``--minutes`` after which no further hand-made setting is tried, and none at all."""

FEWEST = 4
"""Held-out prompts that are run whatever the time."""

LIBRARIES = ("torch", "diffusers", "transformers", "cache-dit")
"""Whose versions are recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """What is to be compared.

    Attributes:
        model: as in `OptimizeSettings`.
        out: folder of scores and results.
        schedules: files of ours.
        frontier: folder of ours.
        only: families; all of them where empty.
        prompts: held-out prompts.
        minutes: after 60 per cent of it no further setting is tried, and after all of it no further prompt begun.
        into: Markdown file whose ``compare`` markers get the table.
        device: as in `OptimizeSettings`.
        dtype: as in `OptimizeSettings`.
        command: what the user called, for the record.
    """

    model: str
    out: Path
    schedules: tuple[Path, ...] = ()
    frontier: Path | None = None
    only: tuple[str, ...] = ()
    prompts: int = 12
    minutes: float | None = None
    into: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    command: str = ""

    def __post_init__(self) -> None:
        known = families()
        for name in self.only:
            if name not in known:
                raise UsageError(f"--only: found {name!r}, expected some of {', '.join(known)}.")
        if self.prompts < 1:
            raise UsageError(f"--prompts: found {self.prompts}, expected 1 or more.")
        if self.minutes is not None and not 0.0 < self.minutes < inf:
            raise UsageError(f"--minutes: found {self.minutes:g}, expected a number above 0.")

    @property
    def names(self) -> tuple[str, ...]:
        """The families that take part."""
        return self.only or tuple(families())


def families() -> dict[str, Family]:
    """Returns everything that can be compared, in the order of tables."""
    known = peers()
    compiled = known["compiled"]
    first = {"compiled": Family(name="compiled", title=compiled.title, source="peer", library="torch", swept=0)}
    masks = {
        name: Family(name=name, title=family.title, source="schedules", library="", swept=0)
        for name, family in FAMILIES.items()
        if not family.search
    }
    rest = {
        name: Family(name=name, title=peer.title, source="peer", library=peer.library, swept=0)
        for name, peer in known.items()
        if name not in first
    }
    return {**first, **masks, **rest}


def families_named(only: str) -> tuple[str, ...]:
    """Returns the families that ``only`` names, separated by commas; the name of a library stands for all of its own.

    Raises:
        UsageError: there is no such family.
    """
    known = families()
    found: list[str] = []
    for word in filter(None, (word.strip() for word in only.split(","))):
        own = [name for name in known if name == word or name.startswith(f"{word}-")]
        if not own:
            raise UsageError(f"--only: found {word!r}, expected some of {', '.join(known)}.")
        found += [word] if word in own else own
    return tuple(dict.fromkeys(found))


class Clock:
    """Time since the program began to compare, against what it was given."""

    def __init__(self, minutes: float | None) -> None:
        self._start = time.monotonic()
        self._seconds = inf if minutes is None else 60.0 * minutes

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._start

    def is_past(self, share: float) -> bool:
        """Whether this share of the time is over."""
        return self.elapsed >= share * self._seconds
