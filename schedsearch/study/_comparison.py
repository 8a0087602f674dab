"""What `schedsearch compare` found, as records in one file: ways to be faster side by side on one machine.

Everything a table, a picture or a report shows of a comparison is in here, down to the numbers of every prompt. JSON of
format ``schedsearch.comparison``, version 1; the reader is strict. This module does not know how numbers are measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from schedsearch.errors import StudyError
from schedsearch.schedule import write_atomically
from schedsearch.study._tree import decoded, encoded
from schedsearch.types import Better

FORMAT = "schedsearch.comparison"
VERSION = 1
MAX_BYTES = 64 * 2**20

OURS = "ours"
"""Family of the schedules that are compared with everything else."""

PLAIN = "plain"
"""Family of the full run as it is; its row is what the noise of the measurement looks like."""

Source = Literal["plain", "schedules", "peer", "ours"]
"""Who runs a family: the pipeline by itself, our runtime with hand-made schedules, another library, ours with ours."""

Cause = Literal["not installed", "not applicable", "failed", "no effect", "too slow", "not reached"]
"""Why something has no row: no such library; the library says so, or has nothing for this model; it raised, or gave no
numbers; it changes nothing; it stays below every budget; time was up before it was tried."""

Outcome = Literal["ahead", "level", "behind", "alone", "out of reach", "nobody"]
"""How ours stand: the interval of the difference is above 0, holds it, or is below; only ours reach the speed, only
others do, or neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A quality metric: ``name``, ``unit`` and the direction in which it improves."""

    name: str
    unit: str
    better: Better


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A library that took part, and its version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What holds for every row.

    Attributes:
        model: name of the model.
        weights: fingerprint of the denoiser's weights.
        width: pixels.
        height: pixels.
        steps: of the plain run.
        batch: pictures per call.
        dtype: of the weights.
        device: the machine in words.
        prompts: name of the held-out set.
        prompts_sha256: of the whole set.
        n_prompts: how many of it were used, from the first on.
        seed: of the noise.
        versions: of the libraries.
    """

    model: str
    weights: str
    width: int
    height: int
    steps: int
    batch: int
    dtype: str
    device: str
    prompts: str
    prompts_sha256: str
    n_prompts: int
    seed: int
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number over prompts, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Quality in one metric: the mean over prompts with its interval, and the value of every prompt."""

    metric: str
    mean: Interval
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting of one family, measured.

    Attributes:
        family: its name.
        setting: in words.
        schedule: id of the schedule that was run, empty for what is none.
        speedup: wall time of the plain run over this one's, prompt by prompt; the median over prompts.
        latency_ms: median over prompts.
        work: multiply-accumulates in linear layers over the plain run's, counted while it ran.
        scores: one per metric.
        ratios: the speedup of every prompt.
        note: what has to be known beside the numbers; mostly empty.
    """

    family: str
    setting: str
    schedule: str
    speedup: Interval
    latency_ms: float
    work: float
    scores: tuple[Score, ...]
    ratios: tuple[float, ...]
    note: str

    def score(self, metric: str) -> Score:
        """Returns the score in ``metric``.

        Raises:
            StudyError: it was not measured.
        """
        for each in self.scores:
            if each.metric == metric:
                return each
        known = ", ".join(each.metric for each in self.scores)
        raise StudyError(f"metric: found {metric!r}, expected one of {known}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """Something that has no row: the family, the setting (empty for all of them), and why."""

    family: str
    setting: str
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A way to be faster.

    Attributes:
        name: as ``--only`` takes it.
        title: in tables.
        source: who runs it.
        library: name of the package it belongs to, empty for our own.
        swept: settings tried on calibration prompts.
    """

    name: str
    title: str
    source: Source
    library: str
    swept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How ours stand at one budget in one metric.

    Attributes:
        budget: the speedup that both have to reach as measured.
        metric: name of the metric.
        outcome: in a word.
        ours: our best setting, empty if none reaches the budget.
        rival: name of the best other family, empty if none reaches it.
        setting: its setting.
        lead: by how much ours are better, with its interval over prompts; negative where worse, ``None`` where only
            one side reaches the budget.
    """

    budget: float
    metric: str
    outcome: Outcome
    ours: str
    rival: str
    setting: str
    lead: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The whole of it.

    Attributes:
        format: always `FORMAT`.
        version: always `VERSION`.
        created_by: program and version.
        created: ISO time.
        command: what the user called.
        seconds: wall time of the runs that went into it.
        conditions: what holds for every row.
        metrics: quality metrics; the first is the one settings were chosen by.
        budgets: speeds that verdicts are given for.
        families: all that were asked for, in the order of tables; ours first.
        rows: what was measured.
        absent: what was not.
        verdicts: per metric and budget; none without rows of ours.
    """

    format: str
    version: int
    created_by: str
    created: str
    command: str
    seconds: float
    conditions: Conditions
    metrics: tuple[Measure, ...]
    budgets: tuple[float, ...]
    families: tuple[Family, ...]
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...]
    verdicts: tuple[Verdict, ...]

    def rows_of(self, family: str) -> tuple[Row, ...]:
        """Returns the rows of one family."""
        return tuple(row for row in self.rows if row.family == family)

    def family(self, name: str) -> Family:
        """Returns the family called ``name``.

        Raises:
            StudyError: there is none.
        """
        for each in self.families:
            if each.name == name:
                return each
        raise StudyError(f"family: found {name!r}, expected one of {', '.join(f.name for f in self.families)}.")

    def measure(self, name: str) -> Measure:
        """Returns the metric called ``name``.

        Raises:
            StudyError: there is none.
        """
        for each in self.metrics:
            if each.name == name:
                return each
        raise StudyError(f"metric: found {name!r}, expected one of {', '.join(m.name for m in self.metrics)}.")


def write_comparison(comparison: Comparison, path: str | PathLike[str]) -> None:
    """Writes ``comparison``; at any moment the file is the old one or the new one as a whole."""
    write_atomically(path, (json.dumps(encoded(comparison), indent=1, allow_nan=False) + "\n").encode())


def read_comparison(path: str | PathLike[str]) -> Comparison:
    """Returns the comparison in the file ``path``.

    Raises:
        StudyError: there is no such file, or it is none of this format.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise StudyError(f"{file}: found {file.stat().st_size} bytes, expected at most {MAX_BYTES}.")
        document: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(
            f"{file}: found no comparison ({error}), expected the file `schedsearch compare` writes."
        ) from error
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise StudyError(f"{file}: found another kind of file, expected format {FORMAT}, version {VERSION}.")
    try:
        return decoded(Comparison, document)
    except StudyError as error:
        raise StudyError(f"{file}: {error}") from error
