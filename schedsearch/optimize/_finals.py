"""The last stages: which schedules are worth measuring, their score on fresh prompts, and their held-out numbers.

Knows nothing of how the schedules were found.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, islice
from math import isfinite
from typing import Any, TypeVar

from schedsearch.errors import NotReachedError
from schedsearch.evaluate import (
    REFINEMENT,
    HeldOutRow,
    QualityMetric,
    described,
    device_name,
    evaluate_held_out,
    find_metrics,
    metrics_at_hand,
)
from schedsearch.optimize._bench import LADDER, MARGIN, Bench, book, denoiser_budgets
from schedsearch.optimize._fitting import FIT, fitted, fitting_evals
from schedsearch.optimize._forecast import Forecast
from schedsearch.optimize._numbers import score, set_score, timings
from schedsearch.optimize._pictures import KeptPictures
from schedsearch.optimize._results import CREATED_BY, QUALITY, Result
from schedsearch.schedule import Measurement, Provenance, Schedule, dumps, loads, solver_table, with_solver_table
from schedsearch.study import Candidate, Evaluation, Frontier, Study, speed_labels

T = TypeVar("T")

FRESH = 24
"""Further calibration prompts the finalists are scored on again, with another seed."""

AROUND = (-0.01, 0.0, 0.01, 0.02, MARGIN, 0.06, 0.12)
"""Head starts over the budget whose best is measured on held-out prompts: predictions miss by as much."""

BACKUP = 0.12
"""Head start over a rung of the ladder of one more finalist for it: on another day the others may miss it by a hair."""

WORTH_MORE = 2.0
"""Speed-up from which on a rung gets that, and a plain run to compare with: slower ones take longest and say least."""

OWN = 0.48
"""Share of these head starts and rungs that end up with a schedule of their own; early in a search many share one."""

HELD_OUT_SEED = 1_000_003
"""Seed of the held-out noise; no search uses it."""


def finalists(bench: Bench, frontier: Frontier) -> list[Evaluation]:
    """Returns the schedules worth measuring, slowest first: the best around the budget, and the best of every rung of
    the ladder as predicted, with the margin that a prediction needs, and with a greater one; in each quality that is
    searched for.
    """
    cost = bench.reference_point[0]
    bounds = [*(bench.ahead(margin) for margin in AROUND), *_rungs()]
    qualities = [objective.name for objective in frontier.objectives if objective.name != bench.cost_name]
    best = [frontier.best_within(bench.cost_name, cost / bound, best=name) for bound in bounds for name in qualities]
    fastest = min((e for e in frontier if e.values[0] < cost), key=lambda e: e.values[0], default=None)
    kept = {id(e): e for e in (*best, fastest) if e is not None}
    return sorted(kept.values(), key=lambda e: -e.values[0])


def _rungs() -> list[float]:
    """Predicted speed-ups at which a rung of the ladder takes its best: one that just keeps it, and surer ones."""
    return [
        *LADDER,
        *(rung * (1.0 + MARGIN) for rung in LADDER),
        *(rung * (1.0 + BACKUP) for rung in LADDER if rung >= WORTH_MORE),
    ]


def awaited(found: Sequence[T]) -> list[T]:
    """Returns these finalists of an unfinished search, and as many like them as are to be expected besides."""
    wanted = round(OWN * (len(AROUND) + len(_rungs())))
    return list(islice(cycle(found), max(len(found), wanted))) if found else []


def finals(bench: Bench, study: Study) -> tuple[tuple[Result, ...], dict[str, tuple[float, ...]]]:
    """Scores the finalists on fresh prompts and measures them on held-out ones, unless the study remembers both."""
    found = finalists(bench, study.frontier())
    if not found:
        raise NotReachedError(
            f"search {bench.settings.search}: found no schedule cheaper than the plain run in {len(study)} trials. "
            "Search longer with --resume --trials, or take another --search."
        )
    plans = {f"schedule {i}": _signed(bench, e) for i, e in enumerate(found)}
    key = f"finals {len(study)}"
    known: Any = study.notes.get(key, {})
    if "schedules" not in known:  # nor are they in what an earlier release kept
        started = time.monotonic()
        told = forecast(bench, study)
        later = told.after_fitting(list(plans.values()), plain_steps(bench))
        schedules, spent_fitting = fitted(bench, _known(bench), plans, told, later=later)
        scores, spent_scoring = _fresh_scores(bench, schedules, told)
        kept, spent_measuring = _held_out(bench, {name: schedules[name] for name in scores}, told)
        finished = {name: _kept(schedule) for name, schedule in schedules.items()}
        study.notes.set(key, {"schedules": finished, "scores": scores, "rows": kept})
        book(study, key, started, spent_fitting + spent_scoring + spent_measuring)
    note: Any = study.notes[key]
    schedules = {name: _restored(*kept) for name, kept in note["schedules"].items()}
    results = _results(note["rows"], schedules)
    labels = _labels([r for r in results if r.schedule is not None])
    fresh = {labels[name]: tuple(numbers) for name, numbers in note["scores"].items() if name in labels}
    return tuple(replace(r, name=labels.get(r.name, r.name)) for r in results), fresh


def forecast(bench: Bench, study: Study) -> Forecast:
    """Returns what can be said about the time that `finals` will take."""
    prompts = (len(_known(bench)), len(_fresh(bench)) or 1, len(bench.held_out.prompts))
    return Forecast(bench, study, prompts, fitting_evals=partial(fitting_evals, bench.space))


def seconds_left(bench: Bench, study: Study) -> float:
    """Returns the seconds that `finals` will take, by the finalists there are and those that are to be expected."""
    plans = awaited([e.candidate.schedule for e in finalists(bench, study.frontier())])
    return forecast(bench, study).finals(plans, plain_steps(bench))


def _fresh(bench: Bench) -> tuple[str, ...]:
    """Calibration prompts the search has not seen; all if there are too few others."""
    prompts = bench.prompts.prompts
    fresh = prompts[bench.fidelity : bench.fidelity + max(FRESH, bench.fewest)]
    return fresh if len(fresh) >= bench.fewest else prompts


def _known(bench: Bench) -> tuple[str, ...]:
    """Calibration prompts to fit on: none of those that score."""
    prompts = bench.prompts.prompts
    return (*prompts[: bench.fidelity], *prompts[bench.fidelity + max(FRESH, bench.fewest) :])[:FIT]


def _kept(schedule: Schedule) -> tuple[str, Sequence[Sequence[float]]]:
    """A finished schedule as the study keeps it: the file without its side file, and the scalars that are in that."""
    return dumps(replace(schedule, tables=None)), solver_table(schedule) or ()


def _restored(text: str, scalars: Sequence[Sequence[float]]) -> Schedule:
    """The inverse of `_kept`."""
    return with_solver_table(loads(text), scalars) if scalars else loads(text)


def _labels(results: Sequence[Result]) -> dict[str, str]:
    """Returns for every name the measured speed-up as a label, such as ``4.12x``."""
    speedups = [result.value("speedup") for result in results]
    return dict(zip((result.name for result in results), speed_labels(speedups), strict=True))


def provenance_of(bench: Bench, candidate: Candidate, *, note: str = "") -> Provenance:
    """Returns where a candidate of this run came from."""
    return Provenance(
        study=bench.settings.name,
        searcher=candidate.searcher,
        seed=bench.settings.seed,
        ask=candidate.ask,
        parents=candidate.parents,
        created_by=CREATED_BY,
        note=note,
    )


def _signed(bench: Bench, evaluation: Evaluation) -> Schedule:
    candidate = evaluation.candidate
    return replace(candidate.schedule, provenance=provenance_of(bench, candidate))


def _fresh_scores(
    bench: Bench, schedules: Mapping[str, Schedule], told: Forecast
) -> tuple[dict[str, list[float]], int]:
    """Scores on calibration prompts the search has not seen, with another seed, and denoiser evaluations spent.

    One number per quality, higher is better; a schedule that fails has none.
    """
    fresh = _fresh(bench)
    scores: dict[str, list[float]] = {}
    units = told.scoring(schedules.values())
    later = sum(unit.seconds for unit in told.measuring(schedules.values(), plain_steps(bench)))
    with bench.display.stage("scoring the best on fresh prompts", len(units), plan=units) as advance:
        evaluator = bench.evaluator(fresh, bench.settings.seed + 1, both=False)
        signs = [1.0 if objective.better == "max" else -1.0 for objective in evaluator.objectives[1:]]
        evals = evaluator.prepare(len(fresh))
        advance(1, later=later)
        for i, (name, schedule) in enumerate(schedules.items(), start=1):
            candidate = Candidate(schedule=schedule, searcher=bench.settings.search, ask=i - 1)
            evaluation = evaluator.evaluate(candidate, fidelity=len(fresh))
            evals += evaluation.denoiser_evals
            if evaluation.status == "ok":
                scores[name] = [sign * value for sign, value in zip(signs, evaluation.values[1:], strict=True)]
            else:
                bench.display.line(f"Left out {name}: {evaluation.reason} on fresh prompts")
            advance(i + 1, later=later)
    return scores, evals


def plain_steps(bench: Bench) -> list[int]:
    """Returns the step numbers of the plain runs to compare with: around the budget, and at the ladder's speed-ups."""
    total = bench.card.steps
    wanted = denoiser_budgets(bench)[0]
    rungs = (round(total / rung) for rung in LADDER if rung >= WORTH_MORE)
    return sorted({n for n in (wanted - 1, wanted, wanted + 1, *rungs) if 1 <= n < total}, reverse=True)


def _held_out(bench: Bench, schedules: Mapping[str, Schedule], told: Forecast) -> tuple[list[dict[str, Any]], int]:
    """Measures the plain run, the schedules and plain runs of fewer steps.

    Returns rows as the study keeps them, and the denoiser evaluations spent on quality, both references included.
    """
    # Beside each picture stands a number of its own, which a metric of sets has not.
    shown = next((metric.name for metric in bench.qualities if metric.needs != "set"), "psnr")
    pictures = KeptPictures(prompts=bench.held_out.prompts, metric=shown)
    plan = told.measuring(schedules.values(), plain_steps(bench))
    with bench.display.stage("measuring on held-out prompts", plan=plan, is_timing=True) as advance:
        measured = evaluate_held_out(
            bench.pipe,
            bench.card,
            schedules,
            bench.held_out.prompts,
            mac_table=bench.macs,
            fewer_steps=plain_steps(bench),
            metrics=_all_metrics(bench),
            seeds=(HELD_OUT_SEED,),
            device=bench.settings.device,
            batch=bench.batch,
            on_progress=lambda done, total: advance(done, total, later=0.0),
            on_pictures=pictures.keep,
        )
    sound = [row for row in measured if all(isfinite(row.mean(name)) for name in QUALITY)]
    for row in measured:
        if row not in sound:
            bench.display.line(f"Left out {row.name}: its held-out pictures hold values that are not numbers")
    names = {name: schedule.id for name, schedule in schedules.items()}
    pictures.write(bench.settings.folder / "pictures", sound, names)
    images = len(bench.held_out.prompts)
    converged = REFINEMENT * measured[0].denoiser_calls
    evals = round(images * (converged + sum(row.denoiser_calls for row in measured)))
    return [_row(bench, row, schedules.get(row.name, bench.plain)) for row in sound], evals


def _all_metrics(bench: Bench) -> tuple[QualityMetric, ...]:
    """Everything at hand for this model, and what was searched for."""
    weights, device = bench.card.metric_weights, bench.settings.device
    searched = find_metrics(bench.settings.metric, weights=weights, device=device)
    return tuple({metric.name: metric for metric in (*metrics_at_hand(weights, device=device), *searched)}.values())


def _row(bench: Bench, row: HeldOutRow, schedule: Schedule) -> dict[str, Any]:
    """What the study keeps of a run; ``schedule`` says what the denoiser's weights are in it."""
    stamp = Measurement(
        metric="", unit="", better="min", value=0.0, low=0.0, high=0.0, n=1,
        prompts=f"{bench.held_out.name} sha256:{bench.held_out.sha256[:16]}",
        device=device_name(bench.settings.device),
        dtype=bench.settings.dtype,
        created_by=CREATED_BY,
    )  # fmt: skip
    macs = row.macs_fraction
    numbers = [
        *timings(stamp, row.speedup, row.latency),
        replace(stamp, metric="macs_fraction", unit="1", value=macs, low=macs, high=macs),
    ]
    if bench.memory is not None:
        memory = bench.memory
        sizes = {"checkpoint_bytes": memory.checkpoint_bytes(schedule), "peak_bytes": memory.peak_bytes(schedule)}
        numbers += [
            replace(stamp, metric=name, unit="B", value=float(size), low=float(size), high=float(size))
            for name, size in sizes.items()
        ]
    searched = {metric.name for metric in bench.qualities}
    wanted = [name for name, _ in row.samples if name in QUALITY or name in searched or "converged_" not in name]
    numbers += [score(stamp, described(name), row.values(name)) for name in wanted]
    numbers += [
        set_score(stamp, described(name), value, len(bench.held_out.prompts))
        for name, value in row.sets
        if name in searched or "converged_" not in name
    ]
    return {
        "name": row.name,
        "kind": row.kind,
        "steps": row.n_steps,
        "denoiser_calls": row.denoiser_calls,
        "measured": [asdict(m) for m in numbers],
    }


def _results(kept: Sequence[Mapping[str, Any]], schedules: Mapping[str, Schedule]) -> tuple[Result, ...]:
    return tuple(
        Result(
            name=row["name"],
            kind=row["kind"],
            steps=row["steps"],
            denoiser_calls=row["denoiser_calls"],
            measured=tuple(Measurement(**m) for m in row["measured"]),
            schedule=schedules.get(row["name"]),
        )
        for row in kept
    )
