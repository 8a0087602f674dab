"""Which decisions mattered: what tells schedules near the frontier, at their own speed, from the others.

A *gene* is one number read off a schedule. A schedule's *gap* is how far its quality lies behind the best that was
measured at its cost or below, so that fast schedules do not count as bad ones. The importance of a gene is that of
PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv 2304.10255) as Optuna has it: how much its distribution among the
tenth of the schedules with the smallest gap differs from its distribution among all. It says what good schedules have
in common here, not what would happen if one gene were changed alone.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from schedsearch.schedule import COMPUTE, FORECASTS, MODEL_ROW, REUSE, Schedule
from schedsearch.study import Evaluation, Frontier
from schedsearch_reports._data import Gene

FEWEST = 80
"""Schedules measured on all prompts below which no importance is told: a tenth of fewer says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Genes:
    """Genes, most important first, and how many schedules that was computed from."""

    genes: tuple[Gene, ...] = ()
    schedules: int = 0


def _share(ops: str, wanted: str) -> float:
    return 100.0 * sum(op in wanted for op in ops) / max(1, len(ops))


def _rows(schedule: Schedule, *, parts: bool) -> list[str]:
    """Rows of blocks, or of parts of blocks."""
    return [row for name, row in schedule.ops if name != MODEL_ROW and (name.count(".") > 1) == parts]


def _saved(schedule: Schedule, *, parts: bool) -> float:
    return float(sum(len(row) - row.count(COMPUTE) for row in _rows(schedule, parts=parts))) / schedule.n_steps


def _early(schedule: Schedule) -> float:
    sigma = schedule.sigma
    return 100.0 * (sigma[0] - sigma[len(sigma) // 2]) / (sigma[0] - sigma[-1])


_GENES: Mapping[str, tuple[str, Callable[[Schedule], float]]] = {
    "Steps": ("", lambda s: float(s.n_steps)),
    "Share of the noise removed by the first half of the steps": ("%", _early),
    "Mean order of the solvers": ("", lambda s: statistics.fmean(solver.order for solver in s.solver)),
    "Steps with fitted coefficients": ("%", lambda s: 100.0 * statistics.fmean(x.family == "table" for x in s.solver)),
    "Steps that predict the clean picture": (
        "%", lambda s: 100.0 * statistics.fmean(x.prediction == "data" for x in s.solver)
    ),
    "Steps with a corrector": ("%", lambda s: 100.0 * statistics.fmean(x.corrector != "none" for x in s.solver)),
    "Steps that reuse the whole denoiser's output": ("%", lambda s: _share(s.row(MODEL_ROW), REUSE)),
    "Steps that forecast the whole denoiser's output": ("%", lambda s: _share(s.row(MODEL_ROW), FORECASTS)),
    "Blocks reused, forecast or skipped, per step": ("", lambda s: _saved(s, parts=False)),
    "Parts of blocks reused, forecast or skipped, per step": ("", lambda s: _saved(s, parts=True)),
    "Blocks removed": ("", lambda s: float(len(s.pruned))),
    "Rules about number formats": ("", lambda s: float(len(s.precision))),
}  # fmt: skip


def genes(records: Iterable[Evaluation], frontier: Frontier, plain_cost: float) -> Genes:
    """Return the genes that differ, by importance; none if too few schedules were measured on all prompts.

    Args:
        records: of one study with two objectives, cost first.
        frontier: of the same study.
        plain_cost: of the plain run; schedules that cost as much have nothing to tell.
    """
    if len(frontier.objectives) != 2 or not plain_cost:
        return Genes()
    latest = {
        record.candidate.schedule.id: record
        for record in records
        if record.status == "ok"
        and record.candidate.share == 1.0
        and all(map(isfinite, record.values))
        and record.values[0] < 0.98 * plain_cost
    }
    found = list(latest.values())
    if len(found) < FEWEST:
        return Genes()
    gaps = [_gap(record, frontier) for record in found]
    values = {name: [read(r.candidate.schedule) for r in found] for name, (_, read) in _GENES.items()}
    varying = {name: column for name, column in values.items() if max(column) > min(column)}
    importance = _importance(varying, gaps)
    bound = sorted(gaps)[max(0, len(gaps) // 10 - 1)]
    near = [i for i, gap in enumerate(gaps) if gap <= bound]
    told = [
        Gene(
            label=name,
            share=importance.get(name, 0.0),
            near=statistics.fmean(column[i] for i in near),
            rest=statistics.fmean(column),
            unit=_GENES[name][0],
        )
        for name, column in varying.items()
    ]
    return Genes(genes=tuple(sorted(told, key=lambda gene: -gene.share)), schedules=len(found))


def _gap(record: Evaluation, frontier: Frontier) -> float:
    """How far the record's quality lies behind the best at its cost or below, 0 or more."""
    cost, quality, *_ = (objective.name for objective in frontier.objectives)
    best = frontier.best_within(cost, record.values[0], best=quality)
    return 0.0 if best is None else abs(best.values[1] - record.values[1])


def _importance(values: Mapping[str, Sequence[float]], gaps: Sequence[float]) -> dict[str, float]:
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if not values:
        return {}
    ranges = {name: FloatDistribution(min(column), max(column)) for name, column in values.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(direction="minimize")
            study.add_trials(
                optuna.trial.create_trial(
                    params={name: column[i] for name, column in values.items()}, distributions=dict(ranges), value=gap
                )
                for i, gap in enumerate(gaps)
            )
            return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
        finally:
            optuna.logging.set_verbosity(level)
