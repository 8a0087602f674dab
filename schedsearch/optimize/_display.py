"""What a long run shows while it works: one progress bar per stage, and lines that stay.

Knows nothing of searching; `optimize.py` says what to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

Advance = Callable[..., None]
"""``advance(done, total, note)``: where a stage stands, and a few words beside the bar."""


class Display:
    """Prints to ``console``; on anything but a terminal the bars are left out and the lines stay."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Shows a bar called ``title`` while the block runs."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=total, note="")

            def advance(done: float, of: float | None = None, note: str = "") -> None:
                progress.update(task, completed=done, total=of, note=note)

            yield advance

    def line(self, text: str) -> None:
        """Prints one line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], emphasis: int | None = None
    ) -> None:
        """Prints a table; the row numbered ``emphasis`` is set in bold."""
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for i, row in enumerate(rows):
            table.add_row(*row, style="bold" if i == emphasis else None)
        self.console.print(table)
