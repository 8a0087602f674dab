"""The rows a benchmark leaves, and the file they are appended to. Knows nothing of tensors and devices."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Where rows come from; the same for all of one run.

    Attributes:
        device: name of the device.
        torch: version.
        triton: version.
        date: ISO date and time, UTC.
        commit: short hash of the source tree, with ``-dirty`` if it has changes; empty outside a repository.
        command: what was typed.
    """

    device: str
    torch: str
    triton: str
    date: str
    commit: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One implementation of one operation at one shape.

    Attributes:
        op: the operation.
        shape: its sizes, in words.
        dtype: format or dtype of what it works on.
        implementation: ``triton``, or a peer's name.
        ms: median, milliseconds.
        rate: work per time, in ``unit``.
        unit: ``TFLOP/s`` or ``GB/s``.
        share: ``rate`` over that of the best peer, where there is one.
        device: see `Stamp`, as all that follow.
    """

    op: str
    shape: str
    dtype: str
    implementation: str
    ms: float
    rate: float
    unit: str
    share: float | None
    device: str
    torch: str
    triton: str
    date: str
    commit: str
    command: str


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What was done at a shape: the words of a row, and how much each implementation did.

    Attributes:
        op: the operation.
        shape: its sizes, in words.
        dtype: format or dtype of what it works on.
        amount: floating-point operations or bytes moved.
        unit: ``TFLOP/s`` or ``GB/s``.
    """

    op: str
    shape: str
    dtype: str
    amount: float
    unit: str

    def rate(self, ms: float) -> float:
        """Returns the work per time, in `unit`."""
        return self.amount / (ms * 1e-3) / (1e12 if self.unit == "TFLOP/s" else 1e9)


def rows_of(work: Work, medians_ms: Mapping[str, float], peers: Sequence[str], stamp: Stamp) -> tuple[Row, ...]:
    """Returns a row per implementation in the order of ``medians_ms``.

    Args:
        work: what all of them did.
        medians_ms: median time by implementation, milliseconds.
        peers: those that count for the best; the others are kernels of ours, or stand there for orientation.
        stamp: where the numbers come from.
    """
    best = min((medians_ms[name] for name in peers if name in medians_ms), default=None)
    return tuple(
        Row(
            op=work.op,
            shape=work.shape,
            dtype=work.dtype,
            implementation=name,
            ms=round(ms, 6),
            rate=round(work.rate(ms), 3),
            unit=work.unit,
            share=None if best is None else round(best / ms, 4),
            **dataclasses.asdict(stamp),
        )
        for name, ms in medians_ms.items()
    )


def append(path: Path, rows: Sequence[Row]) -> None:
    """Appends rows to a CSV file; a new one gets a heading.

    Raises:
        ValueError: the file is there with other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists() or path.stat().st_size == 0
    if not is_new:
        with path.open(newline="", encoding="utf-8") as file:
            found = tuple(next(csv.reader(file)))
        if found != COLUMNS:
            expected = ", ".join(COLUMNS)
            raise ValueError(f"{path}: found columns {', '.join(found)}, expected {expected}. Use a new file.")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def printed(row: Row) -> str:
    """Returns a row as a line to read."""
    share = "" if row.share is None else f"  {row.share:6.1%} of the best peer"
    what = f"{row.op} {row.dtype} {row.shape}"
    return f"{what:52} {row.implementation:28} {row.ms:9.4f} ms {row.rate:9.1f} {row.unit}{share}"


def commit_of(folder: Path) -> str:
    """Returns the short hash of the repository ``folder`` is in, with ``-dirty`` if tracked files have changed; empty
    where there is none.
    """
    command = ["git", "-C", os.fspath(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
