"""Parts of the row axis of a space: which levels and symbols stay.

This module does not know schedules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schedsearch.errors import SpaceError
from schedsearch.schedule import COMPUTE


def narrowed_levels(
    levels: Sequence[tuple[str, str]], kept: Sequence[str] | None, symbols: str | Mapping[str, str] | None
) -> tuple[tuple[str, str], ...]:
    """Pairs ``(level, symbols)`` of which only some stay; compute always does.

    Args:
        levels: what there is.
        kept: the levels to keep, all by default.
        symbols: the symbols to keep, for all levels or by level.

    Raises:
        SpaceError: if something asked for is not there.
    """
    names = tuple(kept) if kept is not None else tuple(level for level, _ in levels)
    require_known("levels", names, [level for level, _ in levels])
    wished = dict.fromkeys(names, symbols) if isinstance(symbols, str) else dict(symbols or {})
    require_known("symbols", tuple(wished), names)
    narrowed = []
    for level, legal in levels:
        if level in names:
            wanted = wished.get(level, legal)
            if not isinstance(symbols, str):
                require_known(f"symbols.{level}", wanted, legal)
            narrowed.append((level, "".join(char for char in legal if char in wanted or char == COMPUTE)))
    return tuple(narrowed)


def require_known(path: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse what is not ``known``.

    Raises:
        SpaceError: if one of ``wanted`` is not.
    """
    for item in wanted:
        if item not in known:
            raise SpaceError(f"{path}: found {item!r}, expected one of {', '.join(known)}; a part cannot be larger.")
