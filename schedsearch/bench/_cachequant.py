"""`schedsearch bench cachequant`: reuse and low bits chosen together against one after the other, corrected and not.

For every number format and number of computed steps, so at equal MACs and bits: evenly spaced steps; the dynamic
programme on the full-precision run, then rounding; the same on what the low-bit run gives; and on what is left of that
after the best correction. Each as it is, with corrected rows, and with corrected layers and rows. What counts is the
final error on held-out prompts. What was measured is kept, so a run that was stopped goes on. Does not know how
anything is fitted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch

from schedsearch.bench._tables import markdown, write_rows
from schedsearch.errors import UsageError
from schedsearch.evaluate import (
    LatentErrors,
    PairedRuns,
    Workload,
    correct_layers,
    correct_rows,
    device_name,
    measure_probe,
)
from schedsearch.optimize import HELD_OUT_SEED, Bench, Display, OptimizeSettings, load_bench
from schedsearch.schedule import COMPUTE, MODEL_ROW, REUSE, PrecisionRule, Schedule, write_atomically, write_schedule
from schedsearch.search import CacheQuant, CacheQuantConfig
from schedsearch.search._paths import spearman
from schedsearch.space import SearchSpace
from schedsearch.study import Objective, Probe, Study

EDGES = ("time_text_embed.*", "*norm*", "x_embedder", "context_embedder", "proj_out")
"""Layers that stay at 8 bits beside 4-bit ones: embeddings, modulations, the first and the last."""

FORMATS: Mapping[str, tuple[PrecisionRule, ...]] = {
    "W8A8": (PrecisionRule(pattern="*", weight="int8", activation="int8"),),
    "W4A8": (
        *(PrecisionRule(pattern=edge, weight="int8", activation="int8") for edge in EDGES),
        PrecisionRule(pattern="*", weight="int4", activation="int8"),
    ),
}
"""Precision rules by the name of a format."""

UNIFORM, APART, JOINT, TOLD = "even steps", "DP, then rounding", "joint DP", "joint DP, correction counted"
PLANS = (UNIFORM, APART, JOINT, TOLD)

CORRECTIONS = ("none", "rows", "layers and rows")

OBJECTIVE = Objective(name="latent_error", unit="1", better="min")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheQuantSettings:
    """What the comparison is asked for.

    Attributes:
        model: as in `OptimizeSettings`.
        out: folder of what is measured, and of the corrected schedules.
        formats: names in `FORMATS`.
        computed: numbers of steps that run the denoiser.
        prompts: calibration prompts the probes and the corrections are made on.
        held_out: held-out prompts the errors are measured on.
        into: Markdown file whose ``cachequant`` markers get the table.
        device: as in `OptimizeSettings`.
        dtype: as in `OptimizeSettings`.
    """

    model: str
    out: Path
    formats: tuple[str, ...] = tuple(FORMATS)
    computed: tuple[int, ...] = (14, 9, 7, 5)
    prompts: int = 16
    held_out: int = 32
    into: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise UsageError(f"--only: found {name!r}, expected some of {', '.join(FORMATS)}.")
        for name in ("prompts", "held_out"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}: found {getattr(self, name)}, expected 1 or more.")
        if not self.computed or min(self.computed) < 1:
            raise UsageError(f"--computed: found {list(self.computed)}, expected numbers of 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheQuantRow:
    """One plan in one format with one number of computed steps.

    Attributes:
        format: its name.
        computed: steps that run the denoiser.
        plan: one of `PLANS`.
        mask: the ``model`` row.
        cost: what the joint programme's sum says of it.
        errors: per entry of `CORRECTIONS` the mean relative error of the final latents on held-out prompts.
    """

    format: str
    computed: int
    plan: str
    mask: str
    cost: float
    errors: tuple[float, ...]


def run_cachequant(settings: CacheQuantSettings, display: Display | None = None) -> tuple[CacheQuantRow, ...]:
    """Measures what is missing in ``settings.out``, and writes ``cachequant.csv``, ``cachequant.md`` and the corrected
    schedules there; returns all rows.

    Raises:
        UsageError: an option cannot be used as given.
        ModelNotFoundError: the weights are not at hand.
        EvaluationError: a run gave values that are no numbers.
    """
    display = display or Display()
    settings.out.mkdir(parents=True, exist_ok=True)
    bench = load_bench(
        OptimizeSettings(model=settings.model, budget="4x", device=settings.device, dtype=settings.dtype), display
    )
    n_steps = bench.plain.n_steps
    if max(settings.computed) > n_steps:
        raise UsageError(f"--computed: found {max(settings.computed)}, expected at most {n_steps}, the model's steps.")
    with _study(bench, settings) as study, torch.inference_mode():
        rows = _Comparison(bench, settings, study).rows()
    _write(bench, settings, rows)
    return rows


def _study(bench: Bench, settings: CacheQuantSettings) -> AbstractContextManager[Study]:
    """Where probes and errors are kept."""
    header: dict[str, Any] = {
        "model": asdict(bench.plain.model), "weights": bench.weights, "dtype": settings.dtype,
        "calibration": f"{bench.prompts.sha256}, first {settings.prompts}",
        "held out": f"{bench.held_out.sha256}, first {settings.held_out}",
    }  # fmt: skip
    return Study.open(
        settings.out / "cachequant.db", "cachequant", objectives=(OBJECTIVE,), settings=header, resume=True
    )


class _Comparison:
    """The plans and what they come to, measured unless the study remembers."""

    def __init__(self, bench: Bench, settings: CacheQuantSettings, study: Study) -> None:
        self._bench = bench
        self._settings = settings
        self._study = study
        self._workload = Workload.from_card(bench.card)

    def rows(self) -> tuple[CacheQuantRow, ...]:
        """Return all rows: formats, then computed steps from many to few, then plans."""
        settings = self._settings
        found: list[CacheQuantRow] = []
        places = [(name, n) for name in settings.formats for n in sorted(set(settings.computed), reverse=True)]
        with self._bench.display.stage("comparing plans", len(places) * len(PLANS)) as advance:
            for name, n in places:
                for plan, mask in self._masks(name, n).items():
                    advance(len(found), len(places) * len(PLANS), f"{name}, {n} steps: {plan}")
                    found.append(self._row(name, n, plan, mask))
        return tuple(found)

    def _row(self, name: str, n: int, plan: str, mask: str) -> CacheQuantRow:
        ops = ((MODEL_ROW, mask),) if REUSE in mask else ()
        schedule = replace(self._bench.plain, ops=ops, precision=FORMATS[name])
        errors = tuple(self._error(schedule, word, f"{name}-{n}-{plan}") for word in CORRECTIONS)
        cost = _sum_of(mask, self._searcher(self._probe(name), n).losses)
        return CacheQuantRow(format=name, computed=n, plan=plan, mask=mask, cost=cost, errors=errors)

    # ---- plans

    def _masks(self, name: str, n: int) -> dict[str, str]:
        n_steps = self._bench.plain.n_steps
        starts = {i * n_steps // n for i in range(n)}
        masks = {UNIFORM: "".join(COMPUTE if i in starts else REUSE for i in range(n_steps))}
        low_bit = self._probe(name)
        probes = {APART: replace(low_bit, low_bit=None), JOINT: low_bit, TOLD: self._probe(name, is_corrected=True)}
        for plan, probe in probes.items():
            for path in self._searcher(probe, n).plans():
                masks[plan] = path.mask()
        return masks

    def _searcher(self, probe: Probe, n: int) -> CacheQuant:
        config = CacheQuantConfig(cost="l1", budgets=(n,))
        return CacheQuant(self._space, seed=0, objectives=(OBJECTIVE,), config=config, probe=probe)

    def _probe(self, name: str, *, is_corrected: bool = False) -> Probe:
        key = f"probe {name}{' corrected' if is_corrected else ''}"
        if key not in self._study.notes:
            probe, _ = measure_probe(
                self._bench.pipe,
                self._workload,
                self._bench.prompts.prompts[: self._settings.prompts],
                batch=self._bench.batch,
                precision=FORMATS[name],
                is_corrected=is_corrected,
            )
            self._study.notes.set(key, probe.to_json())
        return Probe.from_json(cast("str", self._study.notes[key]))

    # ---- measurements

    def _error(self, schedule: Schedule, correction: str, name: str) -> float:
        """The mean final error of ``schedule`` with a correction; plans with the same mask share it."""
        key = f"error {schedule.id} {correction}"
        if key not in self._study.notes:
            whole = self._corrected(schedule, correction)
            errors = self._errors.of(whole)
            if correction == CORRECTIONS[-1]:
                write_schedule(whole, self._settings.out / f"{name.replace(',', '').replace(' ', '-')}.json")
            self._study.notes.set(key, list(errors))
        return statistics.fmean(cast("list[float]", self._study.notes[key]))

    def _corrected(self, schedule: Schedule, correction: str) -> Schedule:
        steps: dict[str, Sequence[Callable[[PairedRuns, Schedule], Any]]] = {
            "none": (), "rows": (correct_rows,), "layers and rows": (correct_layers, correct_rows),
        }  # fmt: skip
        for fitted in steps[correction]:
            schedule = fitted(self._fitting, schedule).schedule
        return schedule

    @cached_property
    def _space(self) -> SearchSpace:
        # Number formats are this bench's own.
        return self._bench.wide_space.restrict(precision="frozen")

    @cached_property
    def _fitting(self) -> PairedRuns:
        prompts = self._bench.prompts.prompts[: self._settings.prompts]
        return PairedRuns(self._bench.pipe, self._workload, prompts, seed=0, batch=self._bench.batch)

    @cached_property
    def _errors(self) -> LatentErrors:
        prompts = self._bench.held_out.prompts[: self._settings.held_out]
        return LatentErrors(
            PairedRuns(self._bench.pipe, self._workload, prompts, seed=HELD_OUT_SEED, batch=self._bench.batch)
        )


def _sum_of(mask: str, losses: Any) -> float:
    """What the groups of a mask lose together."""
    nodes = [*(i for i, char in enumerate(mask) if char == COMPUTE), len(mask)]
    return float(sum(losses[i, j] for i, j in pairwise(nodes)))


# ---- what is written


HEADER = ("format", "computed", "plan", *(f"error, corrected: {word}" for word in CORRECTIONS))


def summary(rows: Sequence[CacheQuantRow]) -> str:
    """What the rows say, in words: the joint claim, the correction's part, and how far sums agree with errors."""
    groups: dict[tuple[str, int], dict[str, CacheQuantRow]] = {}
    for row in rows:
        groups.setdefault((row.format, row.computed), {})[row.plan] = row
    lines = []
    for plan in (JOINT, TOLD):
        ratios = [g[plan].errors[-1] / g[APART].errors[0] for g in groups.values() if {plan, APART} <= g.keys()]
        if ratios:
            mean = 100.0 * (statistics.fmean(ratios) - 1.0)
            lines.append(
                f"{plan[0].upper()}{plan[1:]}, corrected, has a lower error than uncorrected {APART!r} in "
                f"{sum(r < 1.0 for r in ratios)} of {len(ratios)} groups, on average by {-mean:.1f} %."
            )
    worse = sum(row.errors[0] > row.errors[-1] for row in rows)
    lines.append(f"Without its correction a plan is worse in {worse} of {len(rows)} rows.")
    for name in dict.fromkeys(row.format for row in rows):
        mine = [row for row in rows if row.format == name]
        rank = spearman([row.cost for row in mine], [row.errors[0] for row in mine])
        lines.append(f"Rank correlation of the joint sums with uncorrected errors, {name}: {rank:.2f}.")
    return " ".join(lines)


def _write(bench: Bench, settings: CacheQuantSettings, rows: Sequence[CacheQuantRow]) -> None:
    from schedsearch_reports.figures import put_table

    cells = [[row.format, str(row.computed), row.plan, *(f"{error:.4f}" for error in row.errors)] for row in rows]
    exact = [
        [row.format, str(row.computed), row.plan, row.mask, repr(row.cost), *map(repr, row.errors)] for row in rows
    ]
    write_rows(settings.out / "cachequant.csv", (*HEADER[:3], "mask", "joint cost", *HEADER[3:]), exact)
    n = min(settings.held_out, len(bench.held_out.prompts))
    fitted_on = min(settings.prompts, len(bench.prompts.prompts))
    origin = (
        f"Relative error of the final latents against the plain full-precision run of {bench.plain.n_steps} steps, "
        f"{n} held-out prompts ({bench.held_out.name} sha256:{bench.held_out.sha256[:16]}), probes and corrections "
        f"from {fitted_on} calibration prompts; {device_name(settings.device)}, "
        f"{settings.dtype}. Rows of one format and number of computed steps have equal MACs and bits."
    )
    text = f"{markdown(HEADER, cells)}\n\n{summary(rows)}\n\n{origin}"
    write_atomically(settings.out / "cachequant.md", f"{text}\n".encode())
    bench.display.table(f"{settings.model}: final error at equal MACs and bits", HEADER, cells)
    bench.display.line(summary(rows))
    for name in ("cachequant.csv", "cachequant.md"):
        bench.display.line(f"Wrote {settings.out / name}")
    if settings.into is not None:
        put_table(settings.into, text, name="cachequant")
        bench.display.line(f"Wrote the table into {settings.into}")
