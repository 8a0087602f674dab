"""What a contest's studies say: hypervolume against cost, and who got where with how much.

Volumes are shares of the volume of the best frontier known, the one of all runs together, so 1 is the best that
anybody found. This module does not know searchers.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from schedsearch.bench._contest import NOTE
from schedsearch.errors import UsageError
from schedsearch.schedule import write_atomically
from schedsearch.study import Evaluation, Frontier, Spent, Study

HEADER = ("searcher", "seed", "evals", "seconds", "volume")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's progress.

    Attributes:
        searcher: its name.
        seed: its seed.
        evals: denoiser evaluations spent when the volume grew, ascending; the last entry is the end of the run.
        seconds: time spent then.
        volume: share of the best known volume reached then, never falling.
        front: non-dominated evaluations at the end.
    """

    searcher: str
    seed: int
    evals: tuple[int, ...]
    seconds: tuple[float, ...]
    volume: tuple[float, ...]
    front: Frontier

    def volume_at(self, evals: float) -> float:
        """The volume reached with so many denoiser evaluations."""
        place = int(np.searchsorted(self.evals, evals, side="right")) - 1
        return self.volume[place] if place >= 0 else 0.0

    def evals_to(self, volume: float) -> float:
        """Denoiser evaluations after which the volume was reached; infinite if it never was."""
        return next((float(e) for e, v in zip(self.evals, self.volume, strict=True) if v >= volume), float("inf"))


def curves_of(files: Iterable[Path], outset: Mapping[str, Spent] | None = None) -> tuple[Curve, ...]:
    """The curves of finished runs, one study per file.

    Args:
        files: named ``SEARCHER-SEED.db``.
        outset: what a searcher, by its name, had spent before its first candidate.

    Raises:
        UsageError: if there is no finished run among them.
    """
    runs = []
    for file in sorted(files):
        with Study.load(file) as study:
            if NOTE in study.notes:
                note: Any = study.notes[NOTE]
                runs.append((file.stem, study.evaluations(), study.frontier(), tuple(note["reference_point"])))
    if not runs:
        raise UsageError("contest: found no finished run, expected at least one study. Run the contest first.")
    corner = runs[0][3]
    union = runs[0][2]
    for _, _, front, _ in runs[1:]:
        union = union.merge(front)
    best = union.hypervolume(corner) or 1.0  # nobody found anything
    found = []
    for stem, records, front, _ in runs:
        before = (outset or {}).get(stem.rsplit("-", 1)[0], Spent())
        found.append(_curve(stem, records, front, corner=corner, best=best, outset=before))
    return tuple(found)


def _curve(
    stem: str, records: Sequence[Evaluation], front: Frontier, *, corner: Sequence[float], best: float, outset: Spent
) -> Curve:
    searcher, seed = stem.rsplit("-", 1)
    so_far = Frontier(objectives=front.objectives)
    evals, seconds, volume = [], [], []
    spent, clock, reached = outset.denoiser_evals, outset.seconds, 0.0
    for record in records:
        spent, clock = spent + record.denoiser_evals, clock + record.seconds
        if record.status == "ok" and record.candidate.share == 1.0:
            so_far = so_far.add(record)
            now = so_far.hypervolume(corner) / best
            if now > reached:
                reached = now
                evals.append(spent)
                seconds.append(clock)
                volume.append(now)
    return Curve(
        searcher=searcher,
        seed=int(seed),
        evals=(*evals, spent),
        seconds=(*seconds, clock),
        volume=(*volume, reached),
        front=front,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One searcher over its seeds, medians.

    Attributes:
        searcher: its name.
        seeds: how many runs.
        volume: final share of the best known volume; low and high over seeds beside it.
        low: smallest.
        high: largest.
        evals: denoiser evaluations spent.
        seconds: time spent.
        rival_evals: denoiser evaluations the rival needed to reach ``volume`` (infinite: it did not).
        behind: share of this searcher's front points that the rival's front of the same seed dominates or equals.
        ahead: share of the rival's front points that this searcher's front of the same seed dominates; of the seeds the
            one that is worst for the rival.
    """

    searcher: str
    seeds: int
    volume: float
    low: float
    high: float
    evals: float
    seconds: float
    rival_evals: float
    behind: float
    ahead: float


def summary_of(curves: Sequence[Curve], *, rival: str = "auto") -> tuple[Standing, ...]:
    """One standing per searcher, the best volume first; ``rival`` is whom they are compared with."""
    by_name: dict[str, list[Curve]] = {}
    for curve in curves:
        by_name.setdefault(curve.searcher, []).append(curve)
    rivals = by_name.get(rival, [])
    found = [_standing(name, runs, rivals) for name, runs in by_name.items()]
    return tuple(sorted(found, key=lambda s: -s.volume))


def _standing(name: str, runs: Sequence[Curve], rivals: Sequence[Curve]) -> Standing:
    finals = [run.volume[-1] for run in runs]
    middle = statistics.median(finals)
    fronts = {run.seed: run.front for run in rivals}
    pairs = [(run.front, fronts[run.seed]) for run in runs if run.seed in fronts]
    behind = [covered(mine, theirs) for mine, theirs in pairs]
    ahead = [covered(theirs, mine, strictly=True) for mine, theirs in pairs]
    return Standing(
        searcher=name,
        seeds=len(runs),
        volume=middle,
        low=min(finals),
        high=max(finals),
        evals=statistics.median(run.evals[-1] for run in runs),
        seconds=statistics.median(run.seconds[-1] for run in runs),
        rival_evals=statistics.median(run.evals_to(middle) for run in rivals) if rivals else float("inf"),
        behind=statistics.median(behind) if behind else float("nan"),
        ahead=max(ahead, default=float("nan")),
    )


def covered(front: Frontier, by: Frontier, *, strictly: bool = False) -> float:
    """Share of the points of ``front`` that some point of ``by`` dominates, or equals unless ``strictly``.

    Zitzler 1999, coverage C.
    """
    if not len(front):
        return 1.0
    signs = np.array([1.0 if o.better == "min" else -1.0 for o in front.objectives])
    mine, theirs = signs * front.values(), signs * by.values()
    reached = [(theirs <= point).all(axis=1) & (((theirs < point).any(axis=1)) | (not strictly)) for point in mine]
    return float(np.mean([bool(some.any()) for some in reached]))


def write_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Writes all curves as CSV, one row per growth of a run's volume."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for c in curves:
        for e, s, v in zip(c.evals, c.seconds, c.volume, strict=True):
            writer.writerow([c.searcher, c.seed, e, f"{s:.2f}", f"{v:.6f}"])
    write_atomically(path, text.getvalue().encode())


COLUMNS = ("searcher", "searches", "seeds", "volume", "low", "high", "evals", "seconds", "auto needs", "behind auto",
           "ahead of auto")  # fmt: skip

SHOWN = ("searcher", "seeds", "volume", "evals", "auto needs", "behind auto", "ahead of auto")
"""Columns that fit a terminal; the file has all."""


def rows_of(standings: Sequence[Standing], what: Mapping[str, str]) -> list[list[str]]:
    """The standings as text, with the columns `COLUMNS`."""
    return [
        [
            s.searcher,
            what.get(s.searcher, ""),
            str(s.seeds),
            f"{s.volume:.4f}",
            f"{s.low:.4f}",
            f"{s.high:.4f}",
            f"{s.evals:.0f}",
            f"{s.seconds:.0f}",
            "never" if s.rival_evals == float("inf") else f"{s.rival_evals:.0f}",
            *("" if isnan(share) else f"{100 * share:.0f} %" for share in (s.behind, s.ahead)),
        ]
        for s in standings
    ]
