"""Steps from one format version to the next.

A step takes the JSON document of its version and returns the document of the next one. The ``id`` is dropped, as an
id vouches for the bytes of its own version only. No version before 1.0 was ever released, so the table is empty; the
first entry arrives with version 2.0. This module does not know what the parts of a document mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from schedsearch.errors import UnsupportedVersionError
from schedsearch.schedule._vocabulary import VERSION

Version: TypeAlias = tuple[int, int]
Document: TypeAlias = dict[str, object]
Step: TypeAlias = tuple[Version, Callable[[Document], Document]]

STEPS: Mapping[Version, Step] = MappingProxyType({})
"""Version a step starts from -> (version it leads to, the function)."""


def migrate(document: Document, version: Version, steps: Mapping[Version, Step] | None = None) -> Document:
    """``document`` of an older major ``version`` brought to the major version of this release.

    Raises:
        UnsupportedVersionError: if no chain of steps leads there.
    """
    table = STEPS if steps is None else steps
    current, at = dict(document), version
    while at[0] < VERSION[0]:
        if at not in table:
            raise UnsupportedVersionError(
                f"version: found {version[0]}.{version[1]}, expected {VERSION[0]}.x. No step leads from version "
                f"{at[0]}.{at[1]} to it; write the schedule again with this release. (FORMAT.md R3)"
            )
        following, step = table[at]
        if following <= at:
            raise ValueError(f"the migration from {at} must lead to a later version, not to {following}")
        current, at = step(dict(current)), following
        current["version"] = f"{at[0]}.{at[1]}"
        current.pop("id", None)
    return current
