"""Opens Optuna storages the way a study needs them. Optuna is imported here on use, and kept quiet.

SQLite files are set to write-ahead logging with one commit per record: a process that is killed at any moment leaves a
file that holds exactly the records whose `add` had returned, and possibly the one in flight, whole. Others may read
while one writes. This module does not know what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schedsearch.errors import StudyError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

MEMORY = "memory:"
"""The storage that is gone with the process; for tests and trials."""

_LOCK_SECONDS = 60.0
"""How long a write waits for another process's write before it fails."""


def open_storage(url: str) -> BaseStorage:
    """The storage behind an Optuna storage URL, or `MEMORY`.

    Raises:
        StudyError: if it cannot be opened.
    """
    import optuna

    if url == MEMORY:
        return optuna.storages.InMemoryStorage()
    with quiet():
        try:
            if url.startswith("sqlite:"):
                return _open_sqlite(url)
            return optuna.storages.get_storage(url)
        except Exception as error:
            # drivers raise what they like: a missing driver, a refused connection, a file that is no database
            raise StudyError(
                f"storage {shown_url(url)}: found {type(error).__name__} ({_first_line(error)}), expected a storage "
                "that opens, such as sqlite:///study.db. Correct the URL, or install its driver."
            ) from error


def sqlite_url(path: Path) -> str:
    """The storage URL of an SQLite file, whatever characters its path has."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def _open_sqlite(url: str) -> BaseStorage:
    import optuna
    from sqlalchemy import event, make_url

    path = make_url(url).database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}})
    if path and path != ":memory:":
        event.listen(storage.engine, "connect", _tune)
        storage.remove_session()
        storage.engine.dispose()  # connections made so far were not tuned
    return storage


def _tune(connection: Any, _record: object) -> None:
    """Write-ahead logging; a file system that cannot do it stays with the rollback journal, which is as safe."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def shown_url(url: str) -> str:
    """``url`` without its password."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)


def close_storage(storage: BaseStorage) -> None:
    """Give back connections and file handles."""
    engine = getattr(storage, "engine", None)
    if engine is not None:
        storage.remove_session()
        engine.dispose()


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna logs errors only inside, as before outside."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
