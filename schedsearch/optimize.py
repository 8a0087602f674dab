"""From a model's name and a budget to schedule files: the one place that puts searching, measuring and writing together.

The stages: load the model, measure what its parts cost on this device, search on calibration prompts, score the best
again on fresh calibration prompts, measure them on held-out prompts against plain runs of fewer steps, write. What each
stage needs to go on after an interruption lies in the study, so a run that was killed resumes where it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from schedsearch._display import Display
from schedsearch._results import CREATED_BY, HEADER, QUALITY, Result, choose, rows, write_results, write_text
from schedsearch.errors import EvaluationError, UsageError
from schedsearch.evaluate import (
    CostModel,
    HeldOutRow,
    MacTable,
    ModelCard,
    PipelineEvaluator,
    Workload,
    count_macs,
    device_name,
    evaluate_held_out,
    find_card,
    find_metric,
    load_pipeline,
    measure_cost,
    schedule_macs,
)
from schedsearch.runtime import block_lists_of, default_sigmas, identity_schedule, model_ref
from schedsearch.schedule import MODEL_ROW, Budget, Measurement, Provenance, Schedule, parse_budget
from schedsearch.search import SEARCHERS, Stop, make_searcher, run
from schedsearch.space import SearchSpace, load_space
from schedsearch.study import Candidate, Evaluation, Frontier, Objective, Study
from schedsearch_calibration import PromptSet, prompt_set, read_prompts

DEFAULT_TRIALS = 400
"""Schedules measured when neither a number nor a time is asked for."""

FIDELITY = 8
"""Calibration prompts a candidate is measured on while the search runs."""

FRESH = 24
"""Further calibration prompts the finalists are scored on again, with another seed."""

FINALISTS = 12
"""Most schedules that are measured on held-out prompts."""

HELD_OUT_SEED = 1_000_003
"""Seed of the held-out noise; no search uses it."""

LADDER = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Speed-ups at which a frontier should have something to offer."""

MARGIN = 0.03
"""Head start over a time budget that predictions must have, so that measurements keep it."""

FLOORS = {"psnr": 10.0, "ssim": 0.0, "latent_error": 1.0}
"""Quality at the reference point of the hypervolume; the cost there is the plain run's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeSettings:
    """What `optimize` is asked for; the command line's options by the same names."""

    model: str
    budget: str
    search: str = "anneal"
    trials: int | None = None
    minutes: float | None = None
    prompts: Path | None = None
    metric: str = "psnr"
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    storage: str | None = None
    out: Path | None = None
    resume: bool = False

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.out if self.out is not None else Path("runs") / self.name

    @property
    def name(self) -> str:
        """Name of the chosen schedule, such as ``flux-4x``."""
        model = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(self.model).name).strip("-.") or "model"
        return f"{model}-{str(parse_budget(self.budget)).replace('%', 'pct')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimized:
    """What `optimize` found.

    Attributes:
        chosen: the schedule for the budget, ``None`` if no schedule was measured to keep it.
        results: all measured rows, the plain run first.
        written: files and folders.
    """

    chosen: Result | None
    results: tuple[Result, ...]
    written: tuple[Path, ...]


@dataclass(kw_only=True)
class _Bench:
    """The loaded model and everything measured once on this device."""

    settings: OptimizeSettings
    card: ModelCard
    pipe: Any
    prompts: PromptSet
    held_out: PromptSet
    budget: Budget
    display: Display
    cost: CostModel = field(init=False)
    macs: MacTable = field(init=False)

    @cached_property
    def plain(self) -> Schedule:
        """The plain run as a schedule."""
        return identity_schedule(self.pipe, self.card.steps, height=self.card.height, width=self.card.width)

    @cached_property
    def space(self) -> SearchSpace:
        """What may be searched for this model."""
        return load_space(
            self.card.family,
            model=model_ref(self.pipe, height=self.card.height, width=self.card.width),
            blocks=[block for blocks in block_lists_of(self.pipe) for block in blocks],
            sigma=default_sigmas(self.pipe, self.card.steps, height=self.card.height, width=self.card.width),
        )

    def count(self, schedule: Schedule) -> float:
        """MACs of one image."""
        branches = Workload.from_card(self.card).branches
        return schedule_macs(schedule, self.macs, block_lists_of(self.pipe), branches=branches)

    def ratio(self, schedule: Schedule) -> float:
        """How many times cheaper than the plain run ``schedule`` is predicted to be, in what the budget limits."""
        if self.budget.kind == "macs_fraction":
            return self.count(self.plain) / self.count(schedule)
        return self.cost.speedup(schedule)

    @property
    def target(self) -> float:
        """The budget as such a ratio, with a margin where it is a matter of measured time."""
        if self.budget.kind == "macs_fraction":
            return 1.0 / self.budget.value
        wanted = self.budget.value if self.budget.kind == "speedup" else self.cost.full_ms / self.budget.value
        return wanted * (1.0 + MARGIN)

    @property
    def cost_name(self) -> str:
        """Name of the cost objective."""
        return "macs" if self.budget.kind == "macs_fraction" else "latency_ms"

    def evaluator(self, prompts: Sequence[str], seed: int) -> PipelineEvaluator:
        """Measures candidates on ``prompts``."""
        return PipelineEvaluator(
            self.pipe,
            self.card,
            tuple(prompts),
            cost_model=self.cost,
            mac_table=self.macs,
            metric=self.settings.metric,
            cost="macs" if self.cost_name == "macs" else "latency_ms",
            seed=seed,
            device=self.settings.device,
            batch=FIDELITY,
        )


def optimize(settings: OptimizeSettings, display: Display | None = None) -> Optimized:
    """Searches schedules for a model within a budget and writes the best ones.

    Writes into ``settings.folder``: ``NAME.json`` (the schedule for the budget), ``frontier/``, ``results.csv``, and
    ``study.db`` unless another storage is named.

    Args:
        settings: what to do.
        display: where progress goes; the terminal by default.

    Raises:
        UsageError: an option cannot be used as given.
        ModelNotFoundError: the weights are not at hand.
        StudyError: the output folder holds another study, or this one and ``resume`` was not asked for.
        EvaluationError: the budget cannot be reached on this model, or no schedule kept it.
    """
    display = display or Display()
    bench = _load(settings, display)
    with _open_study(bench) as study:
        _measure_parts(bench, study)
        _require_reachable(bench)
        _search(bench, study)
        results, scores = _finals(bench, study)
    chosen = choose(results, bench.budget, scores)
    written = write_results(settings.folder, settings.name, results, chosen, metric=settings.metric)
    _report(bench, results, chosen, written)
    if chosen is None:
        nearest = max((r for r in results if r.schedule is not None), key=lambda r: r.value("speedup"))
        raise EvaluationError(
            f"--budget: found no schedule that was measured to keep {bench.budget}; the fastest of {len(scores)} reaches "
            f"{nearest.value('speedup'):.2f}x. The frontier is written; search longer with --resume --trials, or ask for "
            "less."
        )
    return Optimized(chosen=chosen, results=results, written=tuple(written))


# ---- the stages


def _load(settings: OptimizeSettings, display: Display) -> _Bench:
    """Checks the options, cheapest first, and loads the model."""
    budget = parse_budget(settings.budget)
    if settings.search not in SEARCHERS:
        raise UsageError(f"--search: found {settings.search!r}, expected one of {', '.join(sorted(SEARCHERS))}.")
    find_metric(settings.metric)
    card = find_card(settings.model)
    prompts = prompt_set(card.calibration) if settings.prompts is None else read_prompts(settings.prompts)
    held_out = prompt_set(card.held_out)
    _require_disjoint(prompts, held_out)
    with display.stage(f"loading {card.name}"):
        pipe = load_pipeline(card, device=settings.device, dtype=settings.dtype)
    return _Bench(
        settings=settings, card=card, pipe=pipe, prompts=prompts, held_out=held_out, budget=budget, display=display
    )


def _require_disjoint(prompts: PromptSet, held_out: PromptSet) -> None:
    shared = sorted(set(prompts.prompts) & set(held_out.prompts))
    if shared:
        raise UsageError(
            f"--prompts: found {len(shared)} prompts that are also in the held-out set {held_out.name}, such as "
            f"{shared[0]!r}; expected none, because results are reported on that set. Take them out of the file."
        )


def _open_study(bench: _Bench) -> Study:
    settings = bench.settings
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    if folder.parent.name == "runs" and not (folder.parent / ".gitignore").exists():
        write_text(folder.parent / ".gitignore", "*\n")
    unit = "MAC" if bench.cost_name == "macs" else "ms"
    metric = find_metric(settings.metric)
    return Study.open(
        settings.storage or (folder / "study.db"),
        f"{settings.name}-{settings.search}-{settings.seed}",
        objectives=(
            Objective(name=bench.cost_name, unit=unit, better="min"),
            Objective(name=metric.name, unit=metric.unit, better=metric.better),
        ),
        settings={
            "model": asdict(bench.plain.model),
            "steps": bench.card.steps,
            "call": asdict(Workload.from_card(bench.card)),
            "budget": str(bench.budget),
            "search": settings.search,
            "metric": settings.metric,
            "prompts": bench.prompts.sha256,
            "fidelity": FIDELITY,
            "device": settings.device,
            "dtype": settings.dtype,
            "seed": settings.seed,
        },
        resume=settings.resume,
    )


def _measure_parts(bench: _Bench, study: Study) -> None:
    """Counts MACs, and measures the cost model unless the study remembers it."""
    workload = Workload.from_card(bench.card)
    bench.macs = count_macs(bench.pipe, workload, block_lists_of(bench.pipe), prompt=bench.prompts.prompts[0])
    if "cost" not in study.notes:
        with bench.display.stage("measuring what each part costs") as advance:
            cost = measure_cost(
                bench.pipe, workload, device=bench.settings.device, prompt=bench.prompts.prompts[0], on_round=advance
            )
        study.notes.set("cost", cost.to_json())
    bench.cost = CostModel.from_json(str(study.notes["cost"]))
    bench.display.line(
        f"{bench.card.name} on {bench.cost.device}: {bench.cost.full_ms:.0f} ms per image, of which "
        f"{bench.cost.floor_ms:.0f} ms no schedule can change"
    )


def _require_reachable(bench: _Bench) -> None:
    """Refuses a budget that even one denoiser call does not keep."""
    best = bench.ratio(_masked(bench, 1))
    if bench.target > best:
        raise EvaluationError(
            f"--budget: found {bench.budget}, expected one that one denoiser call can keep, which is about {best:.1f}x on "
            f"this model and device ({bench.cost.floor_ms:.0f} of {bench.cost.full_ms:.0f} ms are outside the steps). "
            "Ask for less."
        )


def _masked(bench: _Bench, computed: int) -> Schedule:
    """A schedule that runs the denoiser at its first ``computed`` steps; its cost is that of any such schedule."""
    row = "C" * computed + "R" * (bench.card.steps - computed)
    return replace(bench.plain, ops=((MODEL_ROW, row),))


def denoiser_budgets(bench: _Bench) -> tuple[int, ...]:
    """Returns how many steps may run the denoiser: for the budget, one less, then for each rung of the ladder.

    One less is there because the budget is a matter of measurement: if it is missed by a hair, the next one keeps it.
    """
    ratios = {n: bench.ratio(_masked(bench, n)) for n in range(1, bench.card.steps)}

    def most(ratio: float) -> int:
        return max((n for n, reached in ratios.items() if reached >= ratio), default=1)

    wanted = most(bench.target)
    rungs = sorted((most(r) for r in LADDER if r < max(ratios.values())), key=lambda n: abs(n - wanted))
    return tuple(dict.fromkeys([wanted, max(1, wanted - 1), *rungs]))


def searcher_options(bench: _Bench) -> dict[str, object]:
    """Returns the options of the named searcher that follow from the budget and the number of trials."""
    if bench.settings.search != "anneal":
        return {}
    trials = bench.settings.trials or DEFAULT_TRIALS
    return {
        "budgets": denoiser_budgets(bench),
        "iterations": round(0.3 * trials),
        "hill_climb_rounds": max(1, round(trials / 100)),
        "ladder_share": 0.25,
        "objective": bench.settings.metric,
    }


def _search(bench: _Bench, study: Study) -> None:
    settings = bench.settings
    if "searcher" not in study.notes:
        study.notes.set("searcher", json.dumps(searcher_options(bench)))
    options = json.loads(str(study.notes["searcher"]))
    evaluator = bench.evaluator(bench.prompts.prompts[:FIDELITY], settings.seed)
    searcher = make_searcher(
        settings.search, bench.space, seed=settings.seed, objectives=evaluator.objectives, **options
    )
    trials = settings.trials or (None if settings.minutes else DEFAULT_TRIALS)
    stop = Stop(trials=trials, minutes=settings.minutes)
    before = study.spent.seconds
    with bench.display.stage(f"searching ({settings.search})") as advance:
        evaluator.prepare(FIDELITY)

        def show(_: Evaluation) -> None:
            note = progress_note(bench, study.frontier())
            if trials is not None:
                advance(len(study), trials, note)
            else:
                advance(study.spent.seconds - before, 60.0 * (settings.minutes or 0.0), note)

        run(study, searcher, evaluator, space=bench.space, stop=stop, fidelity=FIDELITY, on_evaluation=show)
    bench.display.line(
        f"{len(study)} schedules measured on {FIDELITY} prompts: {study.spent.denoiser_evals} denoiser evaluations, "
        f"{study.spent.seconds:.0f} s; {progress_note(bench, study.frontier())}"
    )


def reference_point(bench: _Bench) -> tuple[float, float]:
    """Returns the hypervolume's reference point: the plain run's cost, and a floor of quality."""
    cost = bench.count(bench.plain) if bench.cost_name == "macs" else bench.cost.full_ms
    return cost, FLOORS[bench.settings.metric]


def progress_note(bench: _Bench, frontier: Frontier) -> str:
    """Returns the best point within the budget so far and the hypervolume, in a few words."""
    cost, floor = reference_point(bench)
    best = frontier.best_within(bench.cost_name, cost / bench.target)
    metric = find_metric(bench.settings.metric)
    unit = "" if metric.unit == "1" else f" {metric.unit}"
    shown = "nothing yet" if best is None else f"{best.values[1]:.4g}{unit} at {cost / best.values[0]:.2f}x"
    # As a share of the box between the reference point and nothing spent, so that numbers of any unit read alike.
    volume = frontier.hypervolume((cost, floor)) / cost
    return f"best within {bench.budget}: {shown} (predicted); hypervolume {volume:.4g}{unit}"


# ---- the finals


def finalists(bench: _Bench, frontier: Frontier) -> list[Evaluation]:
    """Returns the schedules worth measuring: around the budget the best few, elsewhere spread over the frontier."""
    cost, _ = reference_point(bench)
    members = [e for e in frontier if cost / e.values[0] > 1.0]
    near = [e for e in members if bench.target <= cost / e.values[0] <= 1.25 * bench.target]
    near.sort(key=lambda e: -e.values[0])
    kept = {id(e): e for e in near[: FINALISTS // 3]}
    far = [e for e in members if id(e) not in kept]
    room = FINALISTS - len(kept)
    kept |= {id(e): e for e in far[:: max(1, ceil(len(far) / room))]}
    return sorted(kept.values(), key=lambda e: -e.values[0])


def _finals(bench: _Bench, study: Study) -> tuple[tuple[Result, ...], dict[str, float]]:
    """Scores the finalists on fresh prompts and measures them on held-out ones, unless the study remembers both."""
    found = finalists(bench, study.frontier())
    if not found:
        raise EvaluationError(
            f"search {bench.settings.search}: found no schedule cheaper than the plain run in {len(study)} trials. Search "
            "longer with --resume --trials, or take another --search."
        )
    names = _labels([reference_point(bench)[0] / e.values[0] for e in found])
    schedules = {name: _signed(bench, study, e) for name, e in zip(names, found, strict=True)}
    key = f"finals {len(study)}"
    if key not in study.notes:
        scores = _fresh_scores(bench, schedules)
        study.notes.set(key, {"scores": scores, "rows": _held_out(bench, schedules)})
    note: Any = study.notes[key]
    return _results(note["rows"], schedules), dict(note["scores"])


def _labels(ratios: Sequence[float]) -> list[str]:
    """Names such as ``4.12x``, told apart where two are equal."""
    names: list[str] = []
    for ratio in ratios:
        name, n = f"{ratio:.2f}x", 2
        while name in names:
            name, n = f"{ratio:.2f}x-{n}", n + 1
        names.append(name)
    return names


def _signed(bench: _Bench, study: Study, evaluation: Evaluation) -> Schedule:
    candidate = evaluation.candidate
    provenance = Provenance(
        study=study.name,
        searcher=candidate.searcher,
        seed=bench.settings.seed,
        ask=candidate.ask,
        parents=candidate.parents,
        created_by=CREATED_BY,
    )
    return replace(candidate.schedule, provenance=provenance)


def _fresh_scores(bench: _Bench, schedules: Mapping[str, Schedule]) -> dict[str, float]:
    """Scores on calibration prompts the search has not seen, with another seed; higher is better."""
    fresh = bench.prompts.prompts[FIDELITY : FIDELITY + FRESH] or bench.prompts.prompts
    evaluator = bench.evaluator(fresh, bench.settings.seed + 1)
    sign = 1.0 if evaluator.objectives[1].better == "max" else -1.0
    scores: dict[str, float] = {}
    with bench.display.stage("scoring the best on fresh prompts", len(schedules)) as advance:
        for i, (name, schedule) in enumerate(schedules.items()):
            candidate = Candidate(schedule=schedule, searcher=bench.settings.search, ask=i)
            evaluation = evaluator.evaluate(candidate, fidelity=len(fresh))
            scores[name] = sign * evaluation.values[1] if evaluation.status == "ok" else float("-inf")
            advance(i + 1)
    return scores


def plain_steps(bench: _Bench) -> list[int]:
    """Returns the step numbers of the plain runs that schedules are compared with: around the budget, and the ladder."""
    total = bench.card.steps
    wanted = denoiser_budgets(bench)[0]
    near = [wanted - 1, wanted, wanted + 1]
    return sorted({n for n in (*near, *(round(total / r) for r in LADDER)) if 1 <= n < total}, reverse=True)


def _held_out(bench: _Bench, schedules: Mapping[str, Schedule]) -> list[dict[str, Any]]:
    """Measures the plain run, the schedules and plain runs of fewer steps; returns rows as the study keeps them."""
    with bench.display.stage("measuring on held-out prompts") as advance:
        measured = evaluate_held_out(
            bench.pipe,
            bench.card,
            schedules,
            bench.held_out.prompts,
            mac_table=bench.macs,
            fewer_steps=plain_steps(bench),
            seeds=(HELD_OUT_SEED,),
            device=bench.settings.device,
            on_progress=advance,
        )
    return [_row(bench, row) for row in measured]


def _row(bench: _Bench, row: HeldOutRow) -> dict[str, Any]:
    origin = {
        "prompts": f"{bench.held_out.name} sha256:{bench.held_out.sha256[:16]}",
        "device": device_name(bench.settings.device),
        "dtype": bench.settings.dtype,
        "created_by": CREATED_BY,
    }
    numbers: list[Measurement] = [
        Measurement(
            metric="speedup", unit="x", better="max", value=row.speedup.median, low=row.speedup.low,
            high=row.speedup.high, n=row.speedup.n, **origin,
        ),
        Measurement(
            metric="latency_ms", unit="ms", better="min", value=row.latency.median_ms, low=row.latency.quantile(0.1),
            high=row.latency.quantile(0.9), n=len(row.latency.ms), **origin,
        ),
        Measurement(
            metric="macs_fraction", unit="1", better="min", value=row.macs_fraction, low=row.macs_fraction,
            high=row.macs_fraction, n=1, **origin,
        ),
    ]  # fmt: skip
    for name in QUALITY:
        metric, values = find_metric(name), sorted(row.values(name))
        tenth = len(values) // 10
        numbers.append(
            Measurement(
                metric=name, unit=metric.unit, better=metric.better, value=row.mean(name), low=values[tenth],
                high=values[-1 - tenth], n=len(values), **origin,
            )
        )  # fmt: skip
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


def _report(bench: _Bench, results: Sequence[Result], chosen: Result | None, written: Sequence[Path]) -> None:
    ordered = sorted(results, key=lambda r: r.value("speedup"))
    emphasis = next((i for i, r in enumerate(ordered) if chosen is not None and r.name == chosen.name), None)
    bench.display.table(
        f"{bench.card.name} on {len(bench.held_out.prompts)} held-out prompts, against the full run with the same noise",
        HEADER[:-1],
        [row[:-1] for row in rows(ordered)],
        emphasis,
    )
    for path in written:
        bench.display.line(f"Wrote {path}{'/' if path.is_dir() else ''}")
