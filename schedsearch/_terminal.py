"""How much the program says, where it says it, and JSON for other programs.

The command line sets a `Manner` for the call; whoever prints asks for it here. Colour and moving bars are for terminals
alone; ``NO_COLOR`` takes the colour out of those, too. `rich` is imported on use. Knows nothing of what is said.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 4096
"""Columns of what goes into a file or a pipe: nothing is folded, so that ids and paths stay whole."""

JSON_FORMAT, JSON_VERSION = "schedsearch.cli", 1

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"


class Talk(IntEnum):
    """How much is said."""

    QUIET = 0
    """What was asked for, and errors."""
    NORMAL = 1
    """Progress, remarks and tables as well."""
    VERBOSE = 2
    """Every measurement, the time of every stage, and the traceback of an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How this call of the program talks.

    Attributes:
        talk: how much.
        aside: progress, remarks and tables go to standard error, because standard output is for another program.
    """

    talk: Talk = Talk.NORMAL
    aside: bool = False


MANNER: ContextVar[Manner] = ContextVar("MANNER", default=Manner())  # noqa: B039 - it is frozen
"""The manner of the call under way; as a library, everything is said on standard output."""


def talk_of() -> Talk:
    """Return how much is to be said."""
    return MANNER.get().talk


def set_talk(talk: Talk) -> Callable[[], None]:
    """Say as much as ``talk`` from now on; return what takes that back."""
    return partial(MANNER.reset, MANNER.set(dataclasses.replace(MANNER.get(), talk=talk)))


def set_aside() -> Callable[[], None]:
    """Keep standard output free for `print_json` from now on; return what takes that back."""
    return partial(MANNER.reset, MANNER.set(dataclasses.replace(MANNER.get(), aside=True)))


def console() -> Console:
    """Return where progress, remarks and tables go."""
    from rich.console import Console

    aside = MANNER.get().aside
    stream = sys.stderr if aside else sys.stdout
    return Console(highlight=False, markup=False, stderr=aside, width=None if stream.isatty() else PIPE_WIDTH)


def moves(where: Console) -> bool:
    """Return whether bars may move there: a terminal that can, whatever ``FORCE_COLOR`` says."""
    is_terminal = getattr(where.file, "isatty", lambda: False)()
    return bool(is_terminal) and os.environ.get("TERM", "") != "dumb" and talk_of() > Talk.QUIET


def plain(value: Any) -> Plain:
    """Return a record as JSON can hold it: dataclasses as objects, numbers that are not finite as ``None``.

    >>> from pathlib import Path
    >>> plain({"a": (1, 2.5), "b": float("inf"), "c": Path("x")})
    {'a': [1, 2.5], 'b': None, 'c': 'x'}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(member) for member in value]
    return str(value)


def print_json(command: str, **payload: object) -> None:
    """Print the answer of ``command`` as one JSON document on standard output; ``docs/command-line.md`` has the shapes.

    Args:
        command: the verb.
        payload: what it has to say, as `plain` can turn it into JSON.
    """
    document = {"format": JSON_FORMAT, "version": JSON_VERSION, "command": command, **payload}
    sys.stdout.write(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
