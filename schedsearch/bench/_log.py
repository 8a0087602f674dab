"""What a long run has measured so far, as lines of JSON that are only ever added to.

The first line says what the run is about; another run's file is refused. A last line that was cut off by a kill is
taken away. Does not know what the values mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from schedsearch.errors import UsageError
from schedsearch.study import JSON


class Log:
    """Values by name, kept in a file.

    Args:
        path: the file; made where it does not exist.
        header: what the run is about.

    Raises:
        UsageError: the file belongs to another run, or is none of these.
    """

    def __init__(self, path: Path, header: Mapping[str, JSON]) -> None:
        self._path = path
        self._values: dict[str, JSON] = {}
        wanted = json.loads(json.dumps(dict(header)))
        lines = self._lines()
        if not lines:
            path.write_text(_line(wanted), encoding="utf-8")
            return
        if lines[0] != wanted:
            changed = sorted(key for key in {*wanted, *lines[0]} if lines[0].get(key) != wanted.get(key))
            raise UsageError(
                f"{path}: found another run, which differs in {', '.join(changed)}; expected the same one. Name "
                "another --out, or remove the file."
            )
        for record in lines[1:]:
            self._values[str(record["name"])] = record["value"]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> JSON:
        return self._values[name]

    def get(self, name: str, otherwise: JSON = None) -> JSON:
        """Returns a value, or ``otherwise`` where there is none."""
        return self._values.get(name, otherwise)

    def put(self, name: str, value: JSON) -> None:
        """Adds a value, on the disk before this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"name": name, "value": value}))
        self._values[name] = json.loads(json.dumps(value))

    def _lines(self) -> list[dict[str, JSON]]:
        if not self._path.exists():
            return []
        whole, ended, _ = self._path.read_text(encoding="utf-8").rpartition("\n")
        self._path.write_text(whole + ended, encoding="utf-8")
        try:
            found = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UsageError(f"{self._path}: found a line that is no JSON ({error}); remove the file.") from error
        return found


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"
