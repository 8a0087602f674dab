"""How a search went, from its records: hypervolume and best at the budget, what was tried, who found what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from schedsearch.errors import UsageError
from schedsearch.schedule import Budget, parse_budget
from schedsearch.study import Evaluation, Frontier, Study
from schedsearch_reports._data import Origin, Progress, Search, Tried
from schedsearch_reports._genes import genes

_FLOORS = {"psnr": 10.0, "ssim": 0.0, "latent_error": 1.0}
"""Quality at the reference point, for studies that do not note it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What costs and qualities of a study's records are measured against.

    Attributes:
        cost: of the plain run, in the unit of the first objective; 0 if unknown.
        floor: quality at the reference point of the hypervolume.
        budget: what was asked for.
    """

    cost: float
    floor: float
    budget: Budget | None

    @property
    def bound(self) -> float | None:
        """Most cost that keeps the budget."""
        if self.budget is None or not self.cost:
            return None
        by_kind = {
            "speedup": self.cost / self.budget.value,
            "latency_ms": self.budget.value,
            "macs_fraction": self.cost * self.budget.value,
        }
        return by_kind[self.budget.kind]


def scale_of(study: Study) -> Scale:
    """Return the scale of a study; of one from an earlier release as far as it can be known."""
    budget = None
    if isinstance(asked := study.settings.get("budget"), str):
        try:
            budget = parse_budget(asked)
        except UsageError:
            budget = None
    point: Any = study.notes.get("reference point")
    if point is not None:
        return Scale(cost=float(point[0]), floor=float(point[1]), budget=budget)
    quality = study.objectives[:2][-1].name.removeprefix("converged_")
    cost = 0.0
    if study.objectives[0].name == "latency_ms" and "cost" in study.notes:
        cost = float(json.loads(str(study.notes["cost"]))["full_ms"])
    else:
        cost = max((e.values[0] for e in study.evaluations() if e.status == "ok"), default=0.0)
    return Scale(cost=cost, floor=_FLOORS.get(quality, 0.0), budget=budget)


def search_of(study: Study, scale: Scale, handed_over: Iterable[int]) -> Search:
    """Return how the search of ``study`` went.

    Args:
        study: finished or not.
        scale: see `scale_of`.
        handed_over: ask numbers of the schedules in the frontier folder.
    """
    records = study.evaluations()
    words = _origins(records)
    found = genes(records, study.frontier(), scale.cost)
    stages = [study.notes[name] for name in study.notes if name.startswith("spent ")]
    spent: list[Mapping[str, Any]] = [stage for stage in stages if isinstance(stage, Mapping)]
    fidelity = study.settings.get("fidelity")
    return Search(
        measured=len(records),
        wanted=None,
        evals=study.spent.denoiser_evals + sum(int(stage["denoiser_evals"]) for stage in spent),
        seconds=study.spent.seconds + sum(float(stage["seconds"]) for stage in spent),
        prompts=fidelity if isinstance(fidelity, int) else max((r.fidelity for r in records), default=0),
        metric=study.objectives[:2][-1].name,
        budget="" if scale.budget is None else str(scale.budget),
        progress=tuple(_progress(study, records, scale)),
        tried=_tried(study, records, scale, words),
        origins=_who_found_what(study, records, words, set(handed_over)),
        genes=found.genes,
        genes_from=found.schedules,
        statuses=tuple(Counter(record.status for record in records if record.status != "ok").items()),
    )


def _progress(study: Study, records: Sequence[Evaluation], scale: Scale) -> Iterable[Progress]:
    """Yield where the search stood after every measurement that changed the frontier, and at the end."""
    point: Any = study.notes.get("reference point") or (scale.cost, scale.floor)
    if not scale.cost or len(study.objectives) < 2 or len(point) != len(study.objectives):
        return
    cost_name, quality, *_ = (objective.name for objective in study.objectives)
    frontier = Frontier.of(study.objectives, ())
    evals, seconds, last = 0, 0.0, None
    for number, record in enumerate(records, 1):
        evals, seconds = evals + record.denoiser_evals, seconds + record.seconds
        grown = frontier
        if record.status == "ok" and record.candidate.share == 1.0 and isfinite(record.values[:2][-1]):
            grown = frontier.add(record)
        if grown is not frontier and grown.evaluations != frontier.evaluations:
            frontier = grown
            bound = scale.bound
            best = None if bound is None else frontier.best_within(cost_name, bound, best=quality)
            last = Progress(
                ask=number,
                evals=evals,
                seconds=seconds,
                volume=frontier.hypervolume((scale.cost, *point[1:])) / scale.cost,
                best=None if best is None else best.values[:2][-1],
            )
            yield last
    if last is not None and last.ask != len(records):
        yield Progress(ask=len(records), evals=evals, seconds=seconds, volume=last.volume, best=last.best)


def _tried(study: Study, records: Sequence[Evaluation], scale: Scale, words: Mapping[int, str]) -> tuple[Tried, ...]:
    best = {record.candidate.ask for record in study.frontier()}
    return tuple(
        Tried(
            ask=record.candidate.ask,
            speed=scale.cost / record.values[0],
            quality=record.values[:2][-1],
            origin=words[record.candidate.ask],
            is_best=record.candidate.ask in best,
        )
        for record in records
        if record.status == "ok"
        and record.candidate.share == 1.0
        and scale.cost
        and record.values[0] > 0.0
        and all(map(isfinite, record.values))
    )


def _origins(records: Sequence[Evaluation]) -> dict[int, str]:
    """Return in a word how each record's schedule came about; a second look is at what the first look found."""
    first: dict[str, str] = {}
    found: dict[int, str] = {}
    for record in records:
        candidate = record.candidate
        word = candidate.origin.partition("/")[0] or _by_parents(len(candidate.parents), candidate.searcher)
        found[candidate.ask] = first.setdefault(candidate.key, word)
    return found


def _by_parents(parents: int, searcher: str) -> str:
    if parents == 0:
        return "seed or fresh draw" if searcher != "random" else "fresh draw"
    return "one parent, changed" if parents == 1 else "two parents, crossed"


def _who_found_what(
    study: Study, records: Sequence[Evaluation], words: Mapping[int, str], handed_over: set[int]
) -> tuple[Origin, ...]:
    best = {record.candidate.ask for record in study.frontier()}
    rows: dict[str, dict[str, set[str] | int]] = {}
    for record in records:
        ask, schedule = record.candidate.ask, record.candidate.schedule.id
        row = rows.setdefault(words[ask], {"tried": set(), "full": set(), "best": set(), "handed": set(), "evals": 0})
        marks = {
            "tried": True,
            "full": record.candidate.share == 1.0 and record.status == "ok",
            "best": ask in best,
            "handed": ask in handed_over,
        }
        for name, holds in marks.items():
            group = row[name]
            if holds and isinstance(group, set):
                group.add(schedule)
        row["evals"] = int(row["evals"]) + record.denoiser_evals if isinstance(row["evals"], int) else 0
    return tuple(
        sorted((_origin(name, row) for name, row in rows.items()), key=lambda o: (-o.handed_over, -o.best, -o.tried))
    )


def _origin(name: str, row: Mapping[str, set[str] | int]) -> Origin:
    def size(key: str) -> int:
        value = row[key]
        return value if isinstance(value, int) else len(value)

    return Origin(
        name=name, tried=size("tried"), full=size("full"), best=size("best"), handed_over=size("handed"),
        evals=size("evals"),
    )  # fmt: skip
