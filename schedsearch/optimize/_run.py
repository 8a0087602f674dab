"""From a model's name and a budget to schedule files: the one place that puts the parts together.

The stages: load the model, measure what its parts cost on this device, search on calibration prompts, score the best
again on fresh calibration prompts, measure them on held-out prompts against plain runs of fewer steps, write. What each
stage needs to go on after an interruption lies in the study, so a run that was killed resumes where it stopped.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from schedsearch import __version__
from schedsearch.errors import EvaluationError, NotReachedError, UsageError
from schedsearch.evaluate import (
    FEWEST_FOR_KID,
    CostModel,
    MemoryModel,
    ModelCard,
    Workload,
    count_macs,
    described,
    device_name,
    find_card,
    find_metrics,
    load_pipeline,
    measure_cost,
    measure_probe,
    memory_model,
    with_linear_prices,
)
from schedsearch.optimize._bench import (
    Bench,
    OptimizeSettings,
    book,
    cheapest,
    denoiser_budgets,
    spent,
    wanted_costs,
)
from schedsearch.optimize._display import Advance, Display
from schedsearch.optimize._finals import finals, seconds_left
from schedsearch.optimize._results import SHOWN, Result, choose, further, rows, undominated, write_results
from schedsearch.optimize._starts import digest_of, read_starts, require_same_model, starts, told
from schedsearch.optimize._unfinished import remove_unfinished, write_unfinished
from schedsearch.optimize._watch import report_page, watching
from schedsearch.runtime import block_lists_of
from schedsearch.schedule import Budget, parse_budget, parse_bytes, rule_word, write_atomically
from schedsearch.search import SEARCHERS, Stop, make_searcher, run
from schedsearch.space import space_file
from schedsearch.study import Evaluation, Frontier, Objective, Probe, Study
from schedsearch_calibration import PromptSet, prompt_set, read_prompts
from schedsearch_reports import report_data, write_report

DEFAULT_TRIALS = 400
"""Schedules measured when neither a number nor a time is asked for."""

VERSIONS = ("torch", "diffusers", "transformers", "optuna", "numpy")
"""Packages whose versions a study notes."""

FORECAST_SECONDS = 1.0
"""The stages after the search are forecast no more often than this."""

RESTARTS = 1000
"""More rounds than any run has time for: the number of trials or minutes ends a search, not its algorithm."""


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


def optimize(settings: OptimizeSettings, display: Display | None = None) -> Optimized:
    """Searches schedules for a model within a budget and writes the best ones.

    Writes into ``settings.folder``: ``NAME.json`` (the schedule for the budget), ``frontier/``, ``results.csv``,
    ``pictures/``, ``report.html``, and ``study.db`` unless another storage is named. Stopped by `KeyboardInterrupt`, it
    writes what the search found so far into ``unfinished/`` there, and raises it again.

    Args:
        settings: what to do.
        display: where progress goes; the terminal by default.

    Raises:
        UsageError: an option cannot be used as given.
        ModelNotFoundError: the weights are not at hand.
        StudyError: the output folder holds another study, or this one and ``resume`` was not asked for.
        NotReachedError: the budget cannot be reached on this model, or no schedule kept it.
    """
    display = display or Display()
    name = study_name(settings)
    render = partial(report_page, storage=settings.storage, name=name if settings.storage else "")
    with watching(settings.folder, settings.watch, display, render=render):
        return _optimize(settings, display)


def _optimize(settings: OptimizeSettings, display: Display) -> Optimized:
    bench = load_bench(settings, display)
    with _open_study(bench) as study:
        try:
            _sign(bench, study)
            measure_parts(bench, study)
            _require_reachable(bench)
            _search(bench, study)
            results, scores = finals(bench, study)
        except KeyboardInterrupt:
            write_unfinished(bench, study)
            raise
        total = spent(study)
        chosen = choose(results, bench.budget, scores)
        frontier = undominated(results, bench.budget, scores)
        remove_unfinished(settings.folder)
        written = write_results(settings.folder, settings.name, results, frontier, chosen, metric=bench.quality.name)
        written.append(write_report(report_data(settings.folder, study=study), settings.folder / "report.html"))
    _report(bench, results, chosen, written)
    display.line(
        f"Spent in all: {total.denoiser_evals} counted denoiser evaluations, {total.seconds:.0f} s of measuring"
    )
    if chosen is None:
        kind = bench.budget.kind
        reached = [r.value(kind) for r in results if r.schedule is not None]
        nearest = Budget(kind=kind, value=max(reached) if kind == "speedup" else min(reached))
        raise NotReachedError(
            f"--budget: found no schedule that was measured to keep {bench.budget}; the nearest of {len(reached)} "
            f"reaches {nearest}. The frontier is written; search longer with --resume --trials, or ask for less."
        )
    return Optimized(chosen=chosen, results=results, written=tuple(written))


def load_bench(settings: OptimizeSettings, display: Display) -> Bench:
    """Checks the options, cheapest first, and loads the model.

    Raises:
        UsageError: an option cannot be used as given.
        EvaluationError: the file of sensitivities cannot be read.
        ModelNotFoundError: the weights are not at hand.
    """
    budget = parse_budget(settings.budget)
    if settings.search not in SEARCHERS:
        raise UsageError(f"--search: found {settings.search!r}, expected one of {', '.join(sorted(SEARCHERS))}.")
    space_file(settings.space)
    if settings.max_memory is not None:
        parse_bytes(settings.max_memory)
    sensitivities = read_starts(settings)
    card = find_card(settings.model)
    prompts = prompt_set(card.calibration) if settings.prompts is None else read_prompts(settings.prompts)
    held_out = prompt_set(card.held_out)
    _require_disjoint(prompts, held_out)
    _require_enough(prompts, settings, card)
    with display.stage(f"loading {card.name}"):
        pipe = load_pipeline(card, device=settings.device, dtype=settings.dtype)
    bench = Bench(
        settings=settings, card=card, pipe=pipe, prompts=prompts, held_out=held_out, budget=budget, display=display,
        sensitivities=sensitivities,
    )  # fmt: skip
    require_same_model(bench)
    return bench


def _require_disjoint(prompts: PromptSet, held_out: PromptSet) -> None:
    shared = sorted(set(prompts.prompts) & set(held_out.prompts))
    if shared:
        raise UsageError(
            f"--prompts: found {len(shared)} prompts that are also in the held-out set {held_out.name}, such as "
            f"{shared[0]!r}; expected none, because results are reported on that set. Take them out of the file."
        )


def study_name(settings: OptimizeSettings) -> str:
    """Returns the name of the study: a folder holds one, so that its files have one origin; a shared storage many."""
    return f"{settings.name}-{settings.search}-{settings.seed}" if settings.storage else "search"


def _require_enough(prompts: PromptSet, settings: OptimizeSettings, card: ModelCard) -> None:
    """Refuses a metric that is not at hand, or that says nothing of as few pictures as there are prompts."""
    weights = card.metric_weights
    for metric in find_metrics(settings.metric, settings.reference, weights=weights, device=settings.device):
        if len(prompts.prompts) < metric.fewest:
            kid = " Search by kid, which has no bias on few pictures;" if metric.fewest > FEWEST_FOR_KID else ""
            raise UsageError(
                f"--metric {metric.name}: found {len(prompts.prompts)} calibration prompts in {prompts.name}, expected "
                f"{metric.fewest} or more, because it compares sets of pictures.{kid} Give more with --prompts."
            )


def _open_study(bench: Bench) -> Study:
    settings = bench.settings
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    if settings.out is None and not (folder.parent / ".gitignore").exists():
        write_atomically(folder.parent / ".gitignore", b"*\n")
    unit = "MAC" if bench.cost_name == "macs" else "ms"
    return Study.open(
        settings.storage or (folder / "study.db"),
        study_name(settings),
        objectives=(
            Objective(name=bench.cost_name, unit=unit, better="min"),
            *(Objective(name=metric.name, unit=metric.unit, better=metric.better) for metric in bench.qualities),
        ),
        settings={
            "model": asdict(bench.plain.model),
            "steps": bench.card.steps,
            "call": asdict(Workload.from_card(bench.card)),
            "budget": str(bench.budget),
            "search": settings.search,
            "metric": settings.metric,
            "reference": settings.reference,
            "prompts": bench.prompts.sha256,
            "held_out": bench.held_out.sha256,
            "weights": bench.weights,
            "fidelity": bench.fidelity,
            "device": device_name(settings.device),
            "dtype": settings.dtype,
            "seed": settings.seed,
            # Earlier studies have no such keys.
            **({} if bench.max_bytes is None else {"max_memory": bench.max_bytes}),
            **({} if bench.sensitivities is None else {"sensitivity": digest_of(bench.sensitivities)}),
            **({} if settings.space is None else {"space": space_file(settings.space)}),
        },
        resume=settings.resume,
    )


def _sign(bench: Bench, study: Study) -> None:
    """Notes once how the study was begun."""
    if "made" not in study.notes:
        study.notes.set(
            "made",
            {
                "name": bench.settings.name,
                "model": bench.card.name,
                "command": bench.settings.command,
                "date": datetime.now(tz=UTC).date().isoformat(),
                "versions": {
                    "schedsearch": __version__,
                    **{name: version(name) for name in VERSIONS},
                    "python": platform.python_version(),
                },
            },
        )


def measure_parts(bench: Bench, study: Study) -> None:
    """Counts MACs, and measures the cost model and the probe unless the study remembers them."""
    workload = Workload.from_card(bench.card)
    bench.macs = count_macs(bench.pipe, workload, block_lists_of(bench.pipe), prompt=bench.prompts.prompts[0])
    if "cost" not in study.notes:
        started = time.monotonic()
        with bench.display.stage("measuring what each part costs", is_timing=True) as advance:
            cost = measure_cost(
                bench.pipe, workload, device=bench.settings.device, prompt=bench.prompts.prompts[0], on_round=advance
            )
        axis = bench.wide_space.precision
        if axis.is_open and cost.prices is None and bench.wants_formats:
            with bench.display.stage("timing number formats", is_timing=True):
                cost = with_linear_prices(cost, bench.pipe, bench.card, axis.formats)
        study.notes.set("cost", cost.to_json())
        book(study, "cost model", started)
    bench.cost = CostModel.from_json(str(study.notes["cost"]))
    if "reference point" not in study.notes:
        study.notes.set("reference point", list(bench.reference_point))
    bench.memory = _memory(bench, workload)
    if "probe" not in study.notes:
        started = time.monotonic()
        prompts = bench.prompts.prompts[: bench.fidelity]
        with bench.display.stage("recording what the model does"):
            probe, evals = measure_probe(bench.pipe, workload, prompts, seed=bench.settings.seed, batch=bench.batch)
        study.notes.set("probe", probe.to_json())
        book(study, "probe", started, evals)
    bench.probe = Probe.from_json(str(study.notes["probe"]))
    bench.display.line(
        f"{bench.card.name} on {bench.cost.device}: {bench.cost.full_ms:.0f} ms per image, of which "
        f"{bench.cost.floor_ms:.0f} ms no schedule can change"
    )
    if bench.space.precision.is_open:
        words = ", ".join(map(rule_word, bench.space.precision.formats))
        bench.display.line(f"Number formats that gained when timed here: {words}")


def _memory(bench: Bench, workload: Workload) -> MemoryModel | None:
    """What schedules take; nothing for a denoiser whose weights have several dtypes, which nobody has asked about."""
    try:
        return memory_model(bench.pipe, workload, bench.prompts.prompts[0], prices=bench.cost.prices)
    except EvaluationError:
        if bench.max_bytes is not None:
            raise
        return None


def _require_reachable(bench: Bench) -> None:
    """Refuses a budget that even one denoiser call does not keep, or memory that the smallest weights do not."""
    few = cheapest(bench)
    if bench.memory is not None and bench.max_bytes is not None:
        least = min(few, key=bench.memory.peak_bytes)
        if reason := bench.memory.why_not(least, bench.max_bytes):
            raise NotReachedError(
                f"--max-memory: even all layers in the smallest format searched here are too much; {reason}. Allow "
                "more, or a space file with smaller formats."
            )
    best = max(map(bench.ratio, few))
    if bench.target > best:
        raise NotReachedError(
            f"--budget: found {bench.budget}, expected one that one denoiser call can keep, about {best:.1f}x "
            f"on this model and device ({bench.cost.floor_ms:.0f} of {bench.cost.full_ms:.0f} ms are outside the "
            "steps). Ask for less."
        )


def searcher_options(bench: Bench) -> dict[str, object]:
    """Returns the options of the named searcher that follow from the budget and the number of trials."""
    if bench.settings.search == "auto":
        limit = bench.settings.trials
        few = {} if limit is None else {"n_seeds": max(5, limit // 3)}
        small = {} if bench.has_room_for(bench.plain) else {"low_bit": True}
        return {"focus": wanted_costs(bench), **few, **small, **starts(bench)}
    if bench.settings.search != "anneal":
        return {}
    trials = bench.settings.trials or DEFAULT_TRIALS
    return {
        "budgets": denoiser_budgets(bench),
        "iterations": round(0.22 * trials),
        "hill_climb_rounds": max(1, round(trials / 250)),
        "ladder_share": 0.35,
        "pinned": 1,  # the published rule spends a quarter of the computes on the first steps
        "objective": bench.quality.name,
        "restarts": RESTARTS,
    }


def _search(bench: Bench, study: Study) -> None:
    settings = bench.settings
    if "searcher" not in study.notes:
        study.notes.set("searcher", json.dumps(searcher_options(bench)))
    options = json.loads(str(study.notes["searcher"]))
    if line := told(bench, options):
        bench.display.line(line)
    evaluator = bench.evaluator(bench.prompts.prompts[: bench.fidelity], settings.seed)
    searcher = make_searcher(
        settings.search,
        bench.space,
        seed=settings.seed,
        objectives=evaluator.objectives,
        probe=bench.probe,
        **options,
    )
    trials = settings.trials or (None if settings.minutes else DEFAULT_TRIALS)
    stop = Stop(trials=trials, minutes=settings.minutes)
    bench.searching = evaluator
    with bench.display.stage(f"searching ({settings.search})") as advance:
        started = time.monotonic()
        book(study, "calibration reference", started, evaluator.prepare(bench.fidelity))
        show = _Progress(bench, study, advance, trials)

        ended = run(
            study,
            searcher,
            evaluator,
            space=bench.space,
            stop=stop,
            fidelity=bench.fidelity,
            fewest=bench.fewest,
            on_evaluation=show,
        )
    bench.display.line(
        f"{len(study)} schedules measured on {bench.fidelity} prompts: {study.spent.denoiser_evals} denoiser "
        f"evaluations, {study.spent.seconds:.0f} s; {progress_note(bench, study.frontier())}"
    )
    for quality in getattr(searcher, "predictor_quality", ()):
        bench.display.line(f"Predictor, {quality}")
    if ended in ("finished", "stalled"):
        bench.display.line(f"The search {ended} before its limit: it has nothing new to propose.")


class _Progress:
    """Shows where the search stands, and what is left of it and of the stages after it."""

    def __init__(self, bench: Bench, study: Study, advance: Advance, trials: int | None) -> None:
        self._bench = bench
        self._study = study
        self._advance = advance
        self._trials = trials
        self._before, self._started = study.spent.seconds, time.monotonic()
        self._later = 0.0
        self._forecast_at = -math.inf
        self._place()

    def __call__(self, evaluation: Evaluation) -> None:
        now = time.monotonic()
        if now - self._forecast_at >= FORECAST_SECONDS:
            self._later, self._forecast_at = seconds_left(self._bench, self._study), now
        self._place(progress_note(self._bench, self._study.frontier()))
        self._bench.display.detail(_evaluation_line(evaluation))

    def _place(self, note: str = "") -> None:
        if self._trials is not None:
            self._advance(len(self._study), self._trials, note, self._later or None)
        else:  # as the loop counts: what was spent before, and the clock since
            seconds = self._before + time.monotonic() - self._started
            self._advance(seconds, 60.0 * (self._bench.settings.minutes or 0.0), note, self._later or None)


def _evaluation_line(evaluation: Evaluation) -> str:
    candidate = evaluation.candidate
    values = ", ".join(f"{value:.4g}" for value in evaluation.values)
    told = values or f"{evaluation.status}: {evaluation.reason}"
    return f"{candidate.ask:5d} {candidate.searcher} {candidate.schedule.id[7:15]} on {evaluation.fidelity}: {told}"


def progress_note(bench: Bench, frontier: Frontier) -> str:
    """Returns the best point within the budget so far and the hypervolume, in a few words."""
    cost, *floors = bench.reference_point
    metric = bench.quality
    best = frontier.best_within(bench.cost_name, cost / bench.target, best=metric.name)
    # Of several qualities the volume is in the product of their units.
    unit = "" if metric.unit == "1" else f" {metric.unit}"
    shown = "nothing yet" if best is None else f"{best.values[1]:.4g}{unit} at {cost / best.values[0]:.2f}x"
    # As a share of the box between the reference point and nothing spent, so that numbers of any unit read alike.
    volume = frontier.hypervolume((cost, *floors)) / cost
    of = unit if len(floors) == 1 else f" ({' x '.join(found.name for found in bench.qualities)})"
    return f"best within {bench.budget}: {shown} (predicted); hypervolume {volume:.4g}{of}"


def _report(bench: Bench, results: Sequence[Result], chosen: Result | None, written: Sequence[Path]) -> None:
    ordered = sorted(results, key=lambda r: r.value("speedup"))
    emphasis = next((i for i, r in enumerate(ordered) if chosen is not None and r.name == chosen.name), None)
    # Beside what always fits: what was searched for, and what compares with the prompt.
    searched = {metric.name for metric in bench.qualities}
    more = [name for name in further(results) if name in searched or described(name).needs == "prompt"]
    columns = (*SHOWN, *more)
    bench.display.table(
        f"{bench.card.name}, {len(bench.held_out.prompts)} held-out prompts, against the full run with the same noise",
        columns,
        rows(ordered, columns),
        emphasis,
    )
    if chosen is not None:
        metric = bench.quality
        quality = f"{chosen.value(metric.name):.4g}{'' if metric.unit == '1' else f' {metric.unit}'}"
        bench.display.line(
            f"For {bench.budget}: {chosen.value('speedup'):.2f}x measured, {metric.name} {quality}, "
            f"{chosen.denoiser_calls:g} denoiser calls"
        )
    for path in written:
        bench.display.line(f"Wrote {path}{'/' if path.is_dir() else ''}")
