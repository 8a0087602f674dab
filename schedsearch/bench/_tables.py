"""Result tables as files: CSV for programs, Markdown for the README and the docs.

Knows nothing of what the rows mean.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from schedsearch.schedule import write_atomically


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes a table as CSV, as a whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; all columns but the first are aligned to the right.

    >>> print(markdown(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    rule = ["---", *["--:"] * (len(header) - 1)]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(rule) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
