"""Bounded reads (FORMAT.md R1) and atomic writes (FORMAT.md R19). This module does not know what the bytes mean."""

from __future__ import annotations

import glob
import os
import secrets
import stat
from pathlib import Path

from schedsearch.errors import ScheduleError, ScheduleFormatError
from schedsearch.schedule._checks import quote
from schedsearch.schedule._vocabulary import MAX_FILE_BYTES


def label(path: str | os.PathLike[str]) -> str:
    """The file's name, printable on one line, for the front of an error."""
    name = os.fspath(path)
    shown = Path(name).name or name
    return shown if shown.isprintable() and len(shown) <= 100 else quote(shown, 100)


def read_bounded(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file within `MAX_FILE_BYTES`.

    Raises:
        ScheduleFormatError: if it is missing, cannot be read, is a folder, a pipe or a device, or is too big.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:  # Path.open() takes none
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                data = file.read(MAX_FILE_BYTES + 1)
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
    if len(data) > MAX_FILE_BYTES:
        raise ScheduleFormatError(
            "", found=f"{max(status.st_size, len(data))} bytes", expected=f"at most {MAX_FILE_BYTES}", rule="R1",
            fix="This is not a schedule, or its tensors belong into a .safetensors file.", file=label(path),
        )  # fmt: skip
    return data


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at ``path`` as a whole: at any moment it holds all of the old bytes or all of ``data``.

    Raises:
        ScheduleError: if it cannot be written; the old file is then untouched and nothing is left behind.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        for left in target.parent.glob(f".{glob.escape(target.name[:100])}.{'[0-9a-f]' * 12}.tmp"):
            left.unlink(missing_ok=True)  # of a writer that was killed
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except (OSError, ValueError) as error:
        draft.unlink(missing_ok=True)
        raise ScheduleError(
            f"{label(path)}: cannot be written ({_reason(error)}). Nothing was changed; check that the folder "
            f"{quote(str(target.parent), 300)} exists and may be written to."
        ) from error


def _without_waiting(path: str, flags: int) -> int:
    """Open as `open` does, but do not wait for ever for somebody to write to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _reason(error: OSError | ValueError) -> str:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split())
