"""What a long run shows while it works: one progress bar per stage, and lines that stay.

Knows nothing of searching; who calls it says what to show, and `schedsearch._terminal` how much of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from schedsearch import _terminal
from schedsearch._terminal import Talk
from schedsearch.optimize._eta import Clock, Pace, Unit, clock_text

Advance = Callable[..., None]
"""``advance(done, total, note, later)``: where a stage stands, a few words beside the bar, and the seconds that the
stages after it will take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a run stands.

    Attributes:
        stage: what is under way; empty between stages.
        done: units done.
        total: units in all, if known.
        note: a few words.
        eta_seconds: to the end of the stage, if known.
        all_seconds: to the end of the run, if known.
        is_timing: whether wall times are being measured, which other work would disturb.
    """

    stage: str = ""
    done: float = 0.0
    total: float | None = None
    note: str = ""
    eta_seconds: float | None = None
    all_seconds: float | None = None
    is_timing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A table that was shown: its title, the names of its columns, and per row a cell each, numbers as numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


class Watcher(Protocol):
    """Someone who wants to know where a run stands, such as a live view."""

    def __call__(self, status: Status) -> None:
        """Take note of ``status``."""


class Display:
    """Prints to ``console``; on anything but a terminal the bars are left out and the lines stay.

    Args:
        console: where to; by default as the command line was asked.
        talk: how much; likewise.
        clock: for what is left to do.

    Attributes:
        tables: what was shown as tables so far, also where nothing is printed.
        watcher: is told of every step.
    """

    def __init__(
        self, console: Console | None = None, *, talk: Talk | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.console = console or _terminal.console()
        self.talk = _terminal.talk_of() if talk is None else talk
        self.tables: list[Shown] = []
        self.watcher: Watcher | None = None
        self._clock = clock

    @contextmanager
    def stage(
        self, title: str, total: int | None = None, *, plan: Sequence[Unit] = (), is_timing: bool = False
    ) -> Iterator[Advance]:
        """Shows a bar called ``title`` while the block runs.

        Args:
            title: what is done.
            total: units in all, if known.
            plan: the units one by one, if it is known what they take; so many as ``total``.
            is_timing: wall times are measured.
        """
        began, pace = self._clock(), Pace(plan, clock=self._clock)
        moves = self.talk > Talk.QUIET and _terminal.moves(self.console)
        with Progress(*_columns(), console=self.console, transient=True, disable=not moves) as progress:
            task = progress.add_task(title, total=total, note="", pace=pace, later=None)

            def advance(done: float, of: float | None = None, note: str = "", later: float | None = None) -> None:
                whole = of if of is not None else total
                pace.update(done, whole)
                progress.update(task, completed=done, total=whole, note=note, later=later)
                self._tell(title, done, whole, note, pace, later, is_timing=is_timing)

            self._tell(title, 0.0, total, "", pace, None, is_timing=is_timing)
            yield advance
        if self.watcher is not None:
            self.watcher(Status())
        self.detail(f"{title}: {self._clock() - began:.1f} s")

    def _tell(  # noqa: PLR0917 - the fields of a status in their order
        self, title: str, done: float, total: float | None, note: str, pace: Pace, later: float | None,
        *, is_timing: bool,
    ) -> None:  # fmt: skip
        if self.watcher is None:
            return
        eta = pace.remaining()
        whole = None if eta is None or later is None else eta + later
        self.watcher(
            Status(
                stage=title, done=done, total=total, note=note, eta_seconds=eta, all_seconds=whole, is_timing=is_timing
            )
        )

    def line(self, text: str) -> None:
        """Prints one line that stays."""
        if self.talk > Talk.QUIET:
            self.console.print(text, markup=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Prints one line that only those want who asked for more."""
        if self.talk is Talk.VERBOSE:
            self.console.print(text, markup=False, soft_wrap=True, style="dim")

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], emphasis: int | None = None
    ) -> None:
        """Prints a table; the row numbered ``emphasis`` is set in bold."""
        cells = tuple(tuple(map(_number_or_text, row)) for row in rows)
        self.tables.append(Shown(title=title, columns=tuple(header), rows=cells))
        if self.talk is Talk.QUIET:
            return
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for i, row in enumerate(rows):
            table.add_row(*row, style="bold" if i == emphasis else None)
        self.console.print(table)


def _number_or_text(cell: str) -> str | float:
    try:
        return float(cell)
    except ValueError:
        return cell


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _EtaColumn(),
        TextColumn("{task.fields[note]}"),
    )


class _EtaColumn(ProgressColumn):
    """What is left of the stage and, where known, of the whole run."""

    def render(self, task: Task) -> Text:
        """Return the two as on a clock."""
        eta: float | None = task.fields["pace"].remaining()
        later: float | None = task.fields["later"]
        whole = "" if eta is None or later is None else f" all {clock_text(eta + later)}"
        return Text(f"eta {clock_text(eta)}{whole}", style="progress.remaining")
