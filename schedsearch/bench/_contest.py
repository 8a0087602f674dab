"""Searches side by side on one model: same prompts, noise, cost model and metric, several seeds each.

Every run is a study of its own in the output folder, so a contest that was stopped goes on where it stopped, and the
numbers behind a curve can be read by anyone. Who enters, what it searches, and with which options, is data:
`CONTESTANTS` are the searchers against each other, `ABLATION` is the default search confined to one axis at a time.
This module does not know how curves are compared (`_curves.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from schedsearch.errors import UsageError
from schedsearch.optimize import (
    Bench,
    Display,
    OptimizeSettings,
    booked,
    denoiser_budgets,
    load_bench,
    measure_parts,
    wanted_costs,
)
from schedsearch.schedule import Solver
from schedsearch.search import Stop, make_searcher, run
from schedsearch.space import SearchSpace
from schedsearch.study import Objective, Spent, Study

EULER = (Solver(),)

PARTS = "parts.db"
"""Study of what is measured once for all entries."""

NOTE = "contest"
"""Name of the note that a finished run leaves in its study."""

Narrow = Callable[[SearchSpace], SearchSpace]
Options = Callable[[Bench], Mapping[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One entry of a contest.

    Attributes:
        what: the space in words, for tables.
        search: name of the searcher; empty is the entry's own name.
        space: the part of the model's space that it searches.
        options: of the searcher's ``Config``, other than the published ones.
        to_the_end: whether it runs until it is finished, whatever it costs.
        is_probed: whether it is given the recorded plain runs of the probe, and charged for them.
    """

    what: str
    search: str = ""
    space: Narrow = field(default=lambda space: space)
    options: Options = field(default=lambda _: {})
    to_the_end: bool = False
    is_probed: bool = False


def _components(space: SearchSpace) -> SearchSpace:
    n = space.n_steps
    return space.restrict(levels=("component",), counts=(n,), solvers=EULER, free_sigma=False, max_pruned=0,
                          precision="frozen")  # fmt: skip


def _model_row(space: SearchSpace) -> SearchSpace:
    return space.restrict(levels=("model",), counts=(space.n_steps,), solvers=EULER, free_sigma=False, max_pruned=0,
                          precision="frozen")  # fmt: skip


def _steps_and_blocks(space: SearchSpace) -> SearchSpace:
    return space.restrict(levels=("block",), symbols={"block": "CS"}, solvers=EULER, max_pruned=0,
                          precision="frozen")  # fmt: skip


def _steps_and_solvers(space: SearchSpace) -> SearchSpace:
    known = [solver for solver in space.solvers if solver.family != "table"]  # fitted steps are not its idea
    return space.restrict(levels=(), solvers=known, max_pruned=0, precision="frozen")


def _steps(space: SearchSpace) -> SearchSpace:
    return space.restrict(levels=(), solvers=EULER, max_pruned=0, precision="frozen")


def _caches(space: SearchSpace) -> SearchSpace:
    return space.restrict(counts=(space.n_steps,), solvers=EULER, free_sigma=False, max_pruned=0, precision="frozen")


def _solvers(space: SearchSpace) -> SearchSpace:
    return space.restrict(levels=(), free_sigma=False, max_pruned=0, precision="frozen")


def _pruning(space: SearchSpace) -> SearchSpace:
    return space.restrict(levels=("block",), symbols={"block": "CS"}, counts=(space.n_steps,), solvers=EULER,
                          free_sigma=False, precision="frozen")  # fmt: skip


def _formats(space: SearchSpace) -> SearchSpace:
    return space.restrict(levels=(), counts=(space.n_steps,), solvers=EULER, free_sigma=False, max_pruned=0)


def _without_formats(space: SearchSpace) -> SearchSpace:
    return space.restrict(precision="frozen")


def _auto(bench: Bench) -> Mapping[str, object]:
    return {"focus": wanted_costs(bench), "first_look": 0.5, "n_seeds": 80}


CONTESTANTS: dict[str, Contestant] = {
    "auto": Contestant(what="everything but number formats", space=_without_formats, options=_auto, is_probed=True),
    "ecad": Contestant(
        what="component reuse on the default steps (its own)",
        space=_components,
        options=lambda _: {"population": 24, "generations": 50},
        to_the_end=True,
    ),
    "s3": Contestant(what="steps, noise levels and solvers (its own)", space=_steps_and_solvers),
    "autodiffusion": Contestant(what="noise levels and skipped blocks (its own)", space=_steps_and_blocks),
    "bayes": Contestant(what="everything but number formats", space=_without_formats, is_probed=True),
    "anneal": Contestant(
        what="model reuse and forecasts on the default steps (its own)",
        space=_model_row,
        options=lambda bench: {"budgets": denoiser_budgets(bench), "pinned": 1, "objective": bench.quality.name,
                               "restarts": 1000, "iterations": 40, "hill_climb_rounds": 1},
    ),
    "cachequant": Contestant(what="model reuse on the default steps (its own)", space=_model_row, is_probed=True),
    "random": Contestant(what="everything but number formats", space=_without_formats),
}  # fmt: skip
"""The searchers against each other. None of the published ones knows number formats, so they are frozen for all."""

ABLATION: dict[str, Contestant] = {
    name: Contestant(search="auto", options=_auto, what=what, space=space, is_probed=True)
    for name, what, space in (
        ("joint", "everything", lambda space: space),
        ("steps", "number and place of steps, Euler", _steps),
        ("solver", "number of steps and solver of each, default spacing", _solvers),
        ("cache", "reuse, forecasts and skips on the default steps, Euler", _caches),
        ("pruning", "removed and skipped blocks on the default steps, Euler", _pruning),
        ("formats", "number formats of layers, all else plain", _formats),
        ("joint without formats", "everything but number formats", _without_formats),
    )
}
"""The default search on one axis at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContestSettings:
    """What a contest is asked for.

    Attributes:
        model: as in `OptimizeSettings`.
        out: folder of the studies.
        entries: who takes part.
        seeds: of the searchers; prompts and noise are the same for all.
        prompts: calibration prompts candidates are measured on.
        evals: denoiser evaluations after which a run ends.
        jobs: processes; each loads the model.
        device: as in `OptimizeSettings`.
        dtype: as in `OptimizeSettings`.
    """

    model: str
    out: Path
    entries: tuple[str, ...] = tuple(CONTESTANTS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    prompts: int = 4
    evals: int = 6720
    jobs: int = 1
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        known = {**CONTESTANTS, **ABLATION}
        for name in self.entries:
            if name not in known:
                raise UsageError(f"--only: found {name!r}, expected some of {', '.join(known)}.")
        for name in ("prompts", "evals", "jobs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name}: found {getattr(self, name)}, expected 1 or more.")
        if not self.seeds:
            raise UsageError("--seeds: found none, expected at least one.")

    def study(self, entry: str, seed: int) -> Path:
        """Where the study of one run lies."""
        return self.out / f"{entry}-{seed}.db"


def open_bench(model: str, out: Path, *, device: str, dtype: str, display: Display) -> Bench:
    """The loaded model with what is measured once for all entries, which a study of its own in ``out`` remembers.

    Args:
        model: as in `OptimizeSettings`.
        out: an existing folder.
        device: as in `OptimizeSettings`.
        dtype: as in `OptimizeSettings`.
        display: where progress goes.
    """
    bench = load_bench(OptimizeSettings(model=model, budget="4x", device=device, dtype=dtype), display)
    objectives = (Objective(name="latency_ms", unit="ms", better="min"),)
    header: dict[str, Any] = {"model": asdict(bench.plain.model), "weights": bench.weights, "dtype": dtype}
    with Study.open(out / PARTS, "parts", objectives=objectives, settings=header, resume=True) as parts:
        measure_parts(bench, parts)
    return bench


def contest(settings: ContestSettings, display: Display | None = None) -> Mapping[str, Spent]:
    """Runs everything that is not in the folder yet.

    Returns:
        What each entry was given that was measured once for all, so that it can be charged for it. The reference runs
        that quality is measured against are the same for all and charged to nobody.
    """
    display = display or Display()
    settings.out.mkdir(parents=True, exist_ok=True)
    bench = _opened(settings, display)  # measures cost and probe before processes share them
    runs = [(name, seed) for seed in settings.seeds for name in settings.entries]
    if settings.jobs == 1:
        for name, seed in runs:
            _run_one(settings, bench, name, seed)
    else:
        from joblib import Parallel, delayed

        runs.sort(key=lambda run: not _entry(run[0]).to_the_end)  # the longest first, so that none is left for the end
        Parallel(n_jobs=settings.jobs)(delayed(_run_apart)(settings, name, seed) for name, seed in runs)
    with Study.load(settings.out / PARTS) as parts:
        probe = booked(parts, "probe")
    return {name: probe for name in settings.entries if _entry(name).is_probed}


def _opened(settings: ContestSettings, display: Display) -> Bench:
    return open_bench(settings.model, settings.out, device=settings.device, dtype=settings.dtype, display=display)


@cache
def _bench_here(settings: ContestSettings) -> Bench:
    """The bench of this process."""
    import torch

    torch.set_num_threads(1)
    return _opened(settings, Display())


def _run_apart(settings: ContestSettings, name: str, seed: int) -> None:
    """One run in a process that keeps its model for the next one."""
    _run_one(settings, _bench_here(settings), name, seed)


def _entry(name: str) -> Contestant:
    return CONTESTANTS.get(name) or ABLATION[name]


def _run_one(settings: ContestSettings, bench: Bench, name: str, seed: int) -> None:
    """One searcher with one seed, on an evaluator of its own, so that no run profits from another's work."""
    contestant = _entry(name)
    evaluator = bench.evaluator(bench.prompts.prompts[: settings.prompts], 0)
    header: dict[str, Any] = {
        "bench": "search",
        "model": asdict(bench.plain.model),
        "weights": bench.weights,
        "dtype": settings.dtype,
        "searcher": name,
        "seed": seed,
        "prompts": bench.prompts.sha256,
        "fidelity": settings.prompts,
    }
    with Study.open(
        settings.study(name, seed), name, objectives=evaluator.objectives, settings=header, resume=True
    ) as study:
        if not _is_done(study, settings):
            searcher = make_searcher(
                contestant.search or name,
                contestant.space(bench.space),
                seed=seed,
                objectives=evaluator.objectives,
                probe=bench.probe if contestant.is_probed else None,
                **contestant.options(bench),
            )
            stop = Stop() if contestant.to_the_end else Stop(evals=settings.evals)
            ended = run(study, searcher, evaluator, space=bench.space, stop=stop, fidelity=settings.prompts)
            study.notes.set(
                NOTE, {"ended": ended, "evals": settings.evals, "reference_point": list(bench.reference_point)}
            )
        note: Any = study.notes[NOTE]
        bench.display.line(
            f"{name}, seed {seed}: {note['ended']} after {len(study)} measurements, {study.spent.denoiser_evals} "
            f"denoiser evaluations, {study.spent.seconds:.0f} s; hypervolume "
            f"{study.frontier().hypervolume(note['reference_point']):.4g}"
        )


def _is_done(study: Study, settings: ContestSettings) -> bool:
    """Whether a run ended by itself, or was allowed as many evaluations before."""
    if NOTE not in study.notes:
        return False
    note: Any = study.notes[NOTE]
    return note["ended"] in ("finished", "stalled") or note["evals"] >= settings.evals
