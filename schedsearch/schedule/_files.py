"""Bounded reads (FORMAT.md R1) and atomic writes (FORMAT.md R19). This module does not know what the bytes mean."""

from __future__ import annotations

import glob
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from schedsearch.errors import ScheduleError, ScheduleFormatError
from schedsearch.schedule._checks import quote
from schedsearch.schedule._vocabulary import MAX_FILE_BYTES, SIDE_ENDING


def label(path: str | os.PathLike[str]) -> str:
    """The file's name, printable on one line, for the front of an error."""
    name = os.fspath(path)
    shown = Path(name).name or name
    return shown if shown.isprintable() and len(shown) <= 100 else quote(shown, 100)


def side_file(path: str | os.PathLike[str]) -> Path:
    """Where the tensors of the schedule file at ``path`` lie: beside it, under its name (FORMAT.md R15)."""
    file = Path(path)
    return file.with_name(f"{file.name.removesuffix('.json')}{SIDE_ENDING}")


def read_bounded(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises:
        ScheduleFormatError: if it is missing, cannot be read, is a folder, a pipe or a device, or is too big.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:  # Path.open() takes none
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                data = file.read(min(status.st_size, limit) + 1)  # memory is taken for all that is asked for
    except FileNotFoundError:
        raise ScheduleFormatError(
            "", found="no such file", expected="a schedule file", fix=f"Looked for {quote(os.fspath(path), 300)}.",
            rule="R1", file=label(path),
        ) from None  # fmt: skip
    except (OSError, ValueError) as error:
        reason = "a folder" if isinstance(error, IsADirectoryError) else _reason(error)
        raise ScheduleFormatError("", found=reason, expected="a readable file", rule="R1", file=label(path)) from None
    if not stat.S_ISREG(status.st_mode):
        raise ScheduleFormatError(
            "", found="a pipe or a device", expected="a regular file", rule="R1", file=label(path)
        )
    if len(data) > limit:
        is_schedule = limit == MAX_FILE_BYTES
        raise ScheduleFormatError(
            "" if is_schedule else "tables", found=f"{max(status.st_size, len(data))} bytes",
            expected=f"at most {limit}", rule="R1" if is_schedule else "R15", file=label(path),
            fix="This is not a schedule, or its tensors belong into a .safetensors file." if is_schedule else "",
        )  # fmt: skip
    return data


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at ``path`` as a whole: at any moment it holds all of the old bytes or all of ``data``.

    Raises:
        ScheduleError: if it cannot be written; the old file is then untouched and nothing is left behind.
    """
    write_together([(path, data)])


def write_together(files: Sequence[tuple[str | os.PathLike[str], bytes]]) -> None:
    """Replace each file as a whole, in this order, once the drafts of all of them are on the disk.

    Raises:
        ScheduleError: if one cannot be written; the old files are then untouched and nothing is left behind.
    """
    drafts: list[tuple[Path, Path]] = []
    target = Path()
    try:
        for path, data in files:
            target = Path(path)
            drafts.append((_new_draft(target), target))
            with drafts[-1][0].open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for draft, target in drafts:
            draft.replace(target)
    except (OSError, ValueError) as error:
        for draft, _ in drafts:
            draft.unlink(missing_ok=True)
        raise ScheduleError(
            f"{label(target)}: cannot be written ({_reason(error)}). Nothing was changed; check that the folder "
            f"{quote(str(target.parent), 300)} exists and may be written to."
        ) from error


def _new_draft(target: Path) -> Path:
    """A free name beside ``target``, after removing what a writer left there that was killed."""
    for left in target.parent.glob(f".{glob.escape(target.name[:100])}.{'[0-9a-f]' * 12}.tmp"):
        left.unlink(missing_ok=True)
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")


def _without_waiting(path: str, flags: int) -> int:
    """Open as `open` does, but do not wait for ever for somebody to write to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _reason(error: OSError | ValueError) -> str:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split())
