"""Hand-made settings swept on calibration prompts: what each family makes, its scores, and the best of them per speed.

Speeds are predicted by the cost model; what is chosen here is measured elsewhere. This module does not know who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Protocol, TypeVar

from schedsearch.bench._families import FAMILIES, Family, found_by
from schedsearch.errors import SchedSearchError
from schedsearch.evaluate import PipelineEvaluator
from schedsearch.optimize import Bench
from schedsearch.schedule import Schedule
from schedsearch.study import Candidate, Study

LEEWAYS = (1.0, 1.08)
"""Predictions and short measurements miss by a few per cent, so the best beyond a speed, and the best beyond enough
more to reach it in any case, are both measured: nobody falls to the next speed by a hair.
"""

FIT_PROMPTS = 32
"""Calibration prompts the coefficients of other searchers' table steps are fitted on."""


class Scored(Protocol):
    """What can be chosen: a setting with a speed and a score, more of which is better."""

    @property
    def family(self) -> str:
        """Name of its family."""

    @property
    def key(self) -> str:
        """What makes it another run than its neighbours."""

    @property
    def speedup(self) -> float:
        """Predicted or roughly measured."""

    @property
    def score(self) -> float | None:
        """On calibration prompts; ``None`` before it is measured, or where it failed."""


S = TypeVar("S", bound=Scored)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One setting of one family.

    Attributes:
        family: its name.
        setting: in words.
        schedule: what it makes.
        speedup: predicted.
        score: PSNR in dB on calibration prompts; ``None`` before it is measured.
    """

    family: str
    setting: str
    schedule: Schedule
    speedup: float
    score: float | None = None

    @property
    def key(self) -> str:
        """What makes it another run than its neighbours."""
        return self.schedule.id


def entries_of(
    bench: Bench, families: Iterable[str], studies: Path | None, *, slowest: float, reach: float = inf
) -> list[Entry]:
    """All settings of ``families`` that may be wanted.

    Args:
        bench: the model, measured.
        families: names in `FAMILIES`.
        studies: the folder of `bench search`; without one the searchers have no settings.
        slowest: predicted speed below which nothing is wanted.
        reach: predicted speed beyond which nothing is wanted.
    """
    found = []
    for name in families:
        for setting, schedule in _settings(bench, name, FAMILIES[name], studies):
            speedup = bench.ratio(schedule)
            if slowest <= speedup <= reach:
                found.append(Entry(family=name, setting=setting, schedule=schedule, speedup=speedup))
    return found


def _settings(bench: Bench, name: str, family: Family, studies: Path | None) -> Iterable[tuple[str, Schedule]]:
    if family.make is not None:
        return family.make(bench.space)
    if family.make_probed is not None:
        return family.make_probed(bench.space, bench.probe)
    found = () if studies is None else tuple(found_by(family.search, studies))
    if not found:
        where = "without --studies" if studies is None else f"in {studies}"
        bench.display.line(f"Left out {name}: found no study of it {where}; `schedsearch bench search` makes them")
    return found


def sweep_study(bench: Bench, out: Path, prompts: int) -> Study:
    """Where scores are kept, so that a sweep that was stopped goes on.

    Args:
        bench: the model.
        out: an existing folder.
        prompts: calibration prompts settings are swept on.
    """
    return Study.open(
        out / "sweep.db",
        "sweep",
        objectives=bench.evaluator(bench.prompts.prompts[:1], 0).objectives,
        settings={
            "bench": "speeds",
            "model": asdict(bench.plain.model),
            "weights": bench.weights,
            "prompts": bench.prompts.sha256,
            "fidelity": prompts,
            "dtype": bench.settings.dtype,
        },
        resume=True,
    )


def in_turns(entries: Sequence[Entry]) -> list[Entry]:
    """The entries family by family in turns, of each first some that lie far apart, then those between them.

    So a sweep that is ended early has seen a little of everything.
    """
    families: dict[str, list[Entry]] = {}
    for entry in entries:
        families.setdefault(entry.family, []).append(entry)
    ranked = []
    for place, members in enumerate(families.values()):
        members.sort(key=lambda entry: entry.speedup)
        ranked += [(turn, place, members[i]) for turn, i in enumerate(far_first(len(members)))]
    return [entry for _, _, entry in sorted(ranked, key=lambda each: each[:2])]


def far_first(n: int) -> list[int]:
    """The numbers below ``n``: first some that lie far apart, then those between them.

    >>> far_first(6)
    [0, 4, 2, 1, 5, 3]
    """
    bits = n.bit_length()
    return sorted(range(n), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))


def never() -> bool:
    """That time is not up."""
    return False


def swept(
    bench: Bench,
    evaluator: PipelineEvaluator,
    study: Study,
    entries: Sequence[Entry],
    fidelity: int,
    *,
    is_over: Callable[[], bool] = never,
) -> list[Entry]:
    """The entries with their scores; those that fail are left out.

    Args:
        bench: the model, measured.
        evaluator: takes scores.
        study: what has a score already is not run again, and what gets one is kept.
        entries: in the order of trying.
        fidelity: calibration prompts.
        is_over: tells when time is up; what has no score by then is left out.
    """
    scored = []
    with bench.display.stage("sweeping on calibration prompts", len(entries)) as advance:
        for done, entry in enumerate(entries):
            found = study.find(entry.schedule.id)
            if found is None and is_over():
                continue
            if found is None:
                candidate = Candidate(schedule=entry.schedule, searcher=entry.family, ask=len(study))
                found = evaluator.evaluate(candidate, fidelity=fidelity)
                study.append(found)
            if found.status == "ok":
                scored.append(replace(entry, score=found.values[1]))
            advance(done + 1, len(entries), f"{FAMILIES[entry.family].title}: {entry.setting}")
    bench.display.line(
        f"Swept {len(entries)} settings, {len(entries) - len(scored)} of them hopeless or left out: "
        f"{study.spent.denoiser_evals} denoiser evaluations"
    )
    return scored


def chosen(entries: Iterable[S], *, speeds: Sequence[float], leeways: Sequence[float] = LEEWAYS) -> tuple[S, ...]:
    """Per family, the best scored entry for each speed with each leeway, every one once."""
    families: dict[str, list[S]] = {}
    for entry in entries:
        families.setdefault(entry.family, []).append(entry)
    kept: dict[tuple[str, str], S] = {}
    for family, members in families.items():
        for bound in (speed * leeway for speed in speeds for leeway in leeways):
            fast = [e for e in members if e.speedup >= bound and e.score is not None]
            if fast:
                best = max(fast, key=lambda e: (e.score or 0.0, e.speedup))
                kept.setdefault((family, best.key), best)
    return tuple(kept.values())


def fitted(bench: Bench, evaluator: PipelineEvaluator, entries: Iterable[Entry]) -> list[Entry]:
    """The entries as a runtime can follow them; one that cannot be fitted is left out."""
    found = []
    for entry in entries:
        try:
            found.append(replace(entry, schedule=evaluator.fit(entry.schedule, FIT_PROMPTS)))
        except (SchedSearchError, FloatingPointError) as error:
            bench.display.line(f"Left out {entry.family}, {entry.setting}: {error}")
    return found
