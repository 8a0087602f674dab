"""The study: an append-only record of what was tried, behind an Optuna storage URL.

Each record is one atomic write, so a study that was killed at any moment opens again with whole records only.
Everything else (`Study.frontier`, `Study.spent`) is derived from them. This module does not know who proposes or who
measures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from schedsearch.errors import StudyError, StudyMismatchError
from schedsearch.study._codec import evaluation_of, trial_of
from schedsearch.study._frontier import Frontier
from schedsearch.study._records import Evaluation, Objective
from schedsearch.study._storage import MEMORY, close_storage, open_storage, quiet, shown_url, sqlite_url

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_SETTINGS = "schedsearch:settings"
_NOTE = "schedsearch:note:"
STUDY_FILE = "study.db"
"""Name of the study's file in a folder that `optimize` wrote."""

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")  # two letters at least: a single one is a drive of Windows
_METRIC_NAMES = "study:metric_names"  # optuna's own key; its tools show these names


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the records of a study cost together: wall ``seconds`` of measuring and ``denoiser_evals``."""

    seconds: float = 0.0
    denoiser_evals: int = 0


class Study:
    """An append-only record of evaluations.

    One process writes; any number may read. Open one with `Study.open` (to write) or `Study.load` (to read what is
    there), and `close` it, or use it in a ``with`` statement.
    """

    def __init__(self, storage: BaseStorage, study_id: int, name: str, header: Mapping[str, Any], url: str) -> None:
        self.name = name
        self.url = url
        self.objectives = tuple(Objective(**objective) for objective in header["objectives"])
        self.settings: Mapping[str, JSON] = header["settings"]
        self.notes = Notes(storage, study_id)
        self._storage = storage
        self._study_id = study_id
        self._by_ask: dict[int, Evaluation] = {}
        self._by_key: dict[str, Evaluation] = {}
        self._spent = Spent()
        records = [evaluation_of(trial) for trial in storage.get_all_trials(study_id, deepcopy=False)]
        for record in sorted(records, key=lambda record: record.candidate.ask):
            self._keep(record)
        self._frontier = Frontier.of(self.objectives, [record for record in records if record.candidate.share == 1.0])

    @classmethod
    def open(
        cls,
        storage: str | Path | BaseStorage,
        name: str,
        *,
        objectives: Sequence[Objective],
        settings: Mapping[str, JSON],
        resume: bool,
    ) -> Study:
        """Start a study, or go on with the one of that name.

        Args:
            storage: an Optuna storage URL, the path of an SQLite file, ``memory:``, or an Optuna storage.
            name: the study's name in the storage.
            objectives: what is optimised, in the order of the values of its evaluations.
            settings: everything that decides what the study finds, such as model, seed and searcher.
            resume: go on with an existing study; if there is none, start it.

        Raises:
            StudyError: if the storage cannot be opened, or holds the study and ``resume`` is false.
            StudyMismatchError: if the study was started with other objectives or settings.
        """
        import optuna

        backend, url = _backend(storage)
        header = {"objectives": [_as_json(objective) for objective in objectives], "settings": _plain(settings)}
        with quiet():
            try:
                study_id = backend.get_study_id_from_name(name)
            except KeyError:
                way = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
                study_id = backend.create_new_study([way[o.better] for o in objectives], name)
        found = backend.get_study_user_attrs(study_id).get(_SETTINGS)
        if found is None:
            # new, or its maker was killed before it wrote the header; then it holds no record either
            backend.set_study_system_attr(study_id, _METRIC_NAMES, [objective.name for objective in objectives])
            backend.set_study_user_attr(study_id, _SETTINGS, header)
        else:
            if not resume:
                records = len(backend.get_all_trials(study_id, deepcopy=False))
                raise StudyError(
                    f"study {name!r} in {shown_url(url)}: found {records} records, expected no such study yet. Pass "
                    "--resume to go on with it, or another --out to start a new one."
                )
            _require_same(name, url, found, header)
        return cls(backend, study_id, name, header, url)

    @classmethod
    def load(cls, storage: str | Path | BaseStorage, name: str = "") -> Study:
        """The study of that name as it stands, or the only one there is if ``name`` is empty.

        Args:
            storage: as in `open`; also the folder that `optimize` wrote, which has the study in ``study.db``.
            name: the study's name in the storage.

        Raises:
            StudyError: if the storage cannot be opened, or holds no such study; nothing is made where nothing is.
        """
        backend, url = _backend(_existing(storage))
        ours = {s.study_name: s for s in backend.get_all_studies() if _SETTINGS in s.user_attrs}
        if not name and len(ours) == 1:
            name = next(iter(ours))
        if name not in ours:
            known = ", ".join(sorted(ours)) or "none"
            raise StudyError(
                f"storage {shown_url(url)}: found the studies {known}, expected {name or 'exactly one'!r}."
            )
        return cls(backend, ours[name]._study_id, name, ours[name].user_attrs[_SETTINGS], url)

    # ---- records

    def append(self, evaluation: Evaluation) -> None:
        """Record ``evaluation`` for good, in one atomic write.

        Raises:
            StudyError: if its ask number is taken, or its values do not fit the objectives.
        """
        candidate = evaluation.candidate
        if candidate.ask in self._by_ask:
            raise StudyError(f"ask {candidate.ask}: found a record already, expected each ask recorded once.")
        wanted = len(self.objectives) if evaluation.status == "ok" else 0
        if len(evaluation.values) != wanted or any(isnan(value) for value in evaluation.values):
            raise StudyError(
                f"ask {candidate.ask}: found the values {evaluation.values} with status {evaluation.status}, expected "
                f"{wanted} numbers. Record what could not be measured as failed, with the reason."
            )
        self._storage.create_new_trial(self._study_id, template_trial=trial_of(evaluation))
        self._keep(evaluation)
        if evaluation.status == "ok" and candidate.share == 1.0:
            self._frontier = self._frontier.add(evaluation)

    def evaluations(self) -> tuple[Evaluation, ...]:
        """All records in the order in which they were asked for."""
        return tuple(self._by_ask[ask] for ask in sorted(self._by_ask))

    def lookup(self, ask: int) -> Evaluation | None:
        """The record of an ask number, if there is one."""
        return self._by_ask.get(ask)

    def find(self, key: str) -> Evaluation | None:
        """The latest record of a `Candidate.key`, if there is one; that of a plain candidate is its schedule's id."""
        return self._by_key.get(key)

    def frontier(self) -> Frontier:
        """The non-dominated records among those measured on all prompts."""
        return self._frontier

    @property
    def spent(self) -> Spent:
        """What all records cost."""
        return self._spent

    def __len__(self) -> int:
        return len(self._by_ask)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the storage's connections; the records stay in memory."""
        close_storage(self._storage)

    def _keep(self, evaluation: Evaluation) -> None:
        self._by_ask[evaluation.candidate.ask] = evaluation
        self._by_key[evaluation.candidate.key] = evaluation
        self._spent = Spent(
            seconds=self._spent.seconds + evaluation.seconds,
            denoiser_evals=self._spent.denoiser_evals + evaluation.denoiser_evals,
        )


class Notes(Mapping[str, JSON]):
    """Named JSON values kept beside the records, such as a measured cost model; each is written in one piece."""

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id

    def set(self, name: str, value: JSON) -> None:
        """Write the note ``name``, over what stood there."""
        self._storage.set_study_user_attr(self._study_id, _NOTE + name, _plain(value))

    def __getitem__(self, name: str) -> JSON:
        value: JSON = self._storage.get_study_user_attrs(self._study_id)[_NOTE + name]
        return value

    def __iter__(self) -> Iterator[str]:
        attrs = self._storage.get_study_user_attrs(self._study_id)
        return (key.removeprefix(_NOTE) for key in attrs if key.startswith(_NOTE))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _path_of(storage: str | Path | BaseStorage) -> Path | None:
    """The file a storage is named by, ``None`` if it is named by a URL or is one."""
    if isinstance(storage, str) and storage != MEMORY and not _URL.match(storage):
        return Path(storage)
    return storage if isinstance(storage, Path) else None


def _existing(storage: str | Path | BaseStorage) -> str | Path | BaseStorage:
    """The storage to read, which must be there: opening an SQLite file that is not makes an empty one."""
    path = _path_of(storage)
    if path is None:
        return storage
    file = path / STUDY_FILE if path.is_dir() else path
    if not file.is_file():
        raise StudyError(
            f"storage {file}: found no such file, expected a study that schedsearch wrote. Name its file, the folder "
            "with it, or a storage URL such as postgresql://HOST/NAME."
        )
    return file


def _backend(storage: str | Path | BaseStorage) -> tuple[BaseStorage, str]:
    """The storage itself, and how messages name it."""
    path = _path_of(storage)
    if path is not None:
        storage = path
    if isinstance(storage, Path):
        storage = sqlite_url(storage)
    if isinstance(storage, str):
        return open_storage(storage), storage
    return storage, type(storage).__name__


def _require_same(name: str, url: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if the header of an existing study is not the one asked for, naming each difference."""
    before = {"objectives": found["objectives"], **found["settings"]}
    now = {"objectives": wanted["objectives"], **wanted["settings"]}
    differing = [
        f"{key} (found {_shown(before, key)}, expected {_shown(now, key)})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) or (key in before) != (key in now)
    ]
    if differing:
        raise StudyMismatchError(
            f"study {name!r} in {shown_url(url)}: found other settings than this run's: {'; '.join(differing)}. "
            "Resume with the settings it was started with, or pass another --out to start a new study."
        )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key])[:200] if key in settings else "nothing"


def _as_json(objective: Objective) -> dict[str, str]:
    return {"name": objective.name, "unit": objective.unit, "better": objective.better}


def _plain(value: Any) -> Any:
    """``value`` as JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(value))
