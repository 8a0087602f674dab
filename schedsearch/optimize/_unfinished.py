"""What a search leaves when it is stopped: the frontier so far, clearly marked, in a folder of its own.

Costs in it are predicted and quality is that of the search's own prompts, so its numbers have names of their own and no
budget picks by them. The folder appears as a whole or not at all. Knows nothing of how the search was stopped.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from schedsearch.errors import SchedSearchError
from schedsearch.evaluate import device_name
from schedsearch.optimize._bench import Bench
from schedsearch.optimize._finals import finalists, provenance_of
from schedsearch.optimize._numbers import score, set_score
from schedsearch.optimize._results import CREATED_BY
from schedsearch.schedule import Measurement, Schedule, write_frontier
from schedsearch.study import Evaluation, Study
from schedsearch_reports import render, report_data

FOLDER = "unfinished"

PATIENCE = 10.0
"""Seconds for fitting what is not fitted yet, after which the rest is left out."""

_STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


def write_unfinished(bench: Bench, study: Study) -> Path | None:
    """Writes the frontier so far, and the report, into ``unfinished/`` of the output folder, and returns that.

    ``None`` if there is nothing yet.

    Another SIGINT or SIGTERM meanwhile ends the process at once, with the folder as it was before or whole.
    """
    with _impatient():
        if not hasattr(bench, "cost"):  # stopped before anything could be told
            bench.display.line("Nothing was measured yet, so there is nothing to write.")
            return None
        plain = bench.reference_point[0]
        cheaper = [e for e in study.frontier() if e.values[0] < plain and all(map(isfinite, e.values))]
        first = [id(e) for e in finalists(bench, study.frontier())]
        ordered = sorted(cheaper, key=lambda e: id(e) not in first)
        finished = dict(_finished(bench, ordered))
        found = [(e, finished[id(e)]) for e in reversed(cheaper) if id(e) in finished]
        if not found:
            bench.display.line("Nothing cheaper than the plain run was found yet, so there is nothing to write.")
            return None
        target = bench.settings.folder / FOLDER
        _write(bench, study, found, target, _page(bench, study))
    left_out = len(cheaper) - len(found)
    bench.display.line(
        f"Wrote {target}/: {len(found)} schedules"
        f"{f' ({left_out} that still need fitting are left out)' if left_out else ''}, unfinished: costs are "
        "predicted, and quality is that of the search's own prompts"
    )
    return target


def remove_unfinished(folder: Path) -> None:
    """Removes what an earlier, stopped run left in the output folder."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


@contextmanager
def _impatient() -> Iterator[None]:
    """From now on the signals that stop a program end it without asking, even in the middle of a long operation."""
    try:
        before = {number: signal.signal(number, signal.SIG_DFL) for number in _STOPPING}
    except ValueError:  # not in the main thread, which alone is told of signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Such a signal waits until the block is through; for milliseconds of writing."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _page(bench: Bench, study: Study) -> str:
    """The report so far; nothing if it cannot be made, as from a storage that was cut off in the middle of a word."""
    try:
        return render(report_data(bench.settings.folder, study=study))
    except Exception as error:  # noqa: BLE001 - the frontier is what counts, and must not be lost for a page
        bench.display.detail(f"No report: {type(error).__name__}: {error}")
        return ""


def _finished(bench: Bench, evaluations: Iterable[Evaluation]) -> Iterator[tuple[int, Schedule]]:
    """The schedules that can be run, by the identity of their evaluation; fitted as far as `PATIENCE` goes."""
    started = time.monotonic()
    for evaluation in evaluations:
        schedule = evaluation.candidate.schedule
        if schedule.unfitted:
            if bench.searching is None or time.monotonic() - started > PATIENCE:
                continue
            try:  # as the search did, which may have been stopped anywhere
                schedule = bench.searching.ready(evaluation.candidate, fidelity=bench.fidelity)
            except (SchedSearchError, ArithmeticError, LookupError, RuntimeError) as error:
                bench.display.detail(f"Left out {schedule.id[:19]}: {error}")
                continue
        yield id(evaluation), schedule


def _write(bench: Bench, study: Study, found: Iterable[tuple[Evaluation, Schedule]], target: Path, page: str) -> None:
    marked = [_marked(bench, study, evaluation, schedule) for evaluation, schedule in found]
    draft, old = (target.with_name(f".{FOLDER}-{word}-{os.getpid()}") for word in ("new", "old"))
    with _undisturbed():
        try:
            write_frontier(draft, marked, quality=f"search_{bench.quality.name}")
            if page:
                (draft / "report.html").write_text(page, encoding="utf-8")
            if target.exists():
                target.rename(old)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _marked(bench: Bench, study: Study, evaluation: Evaluation, schedule: Schedule) -> Schedule:
    """The schedule with what is known of it, under names that tell it from a measurement."""
    stamp = Measurement(
        metric="", unit="", better="min", value=0.0, low=0.0, high=0.0, n=1, device=device_name(bench.settings.device),
        dtype=bench.settings.dtype, created_by=CREATED_BY,
    )  # fmt: skip
    cost, plain = evaluation.values[0], bench.reference_point[0]
    costs: list[tuple[str, str, Any, float]] = (
        [("macs_fraction", "1", "min", cost / plain)]  # counted, not predicted
        if bench.cost_name == "macs"
        else [("predicted_speedup", "x", "max", plain / cost), ("predicted_latency_ms", "ms", "min", cost)]
    )
    known = [
        replace(stamp, metric=name, unit=unit, better=better, value=value, low=value, high=value)
        for name, unit, better, value in costs
    ]
    prompts = f"{bench.prompts.name}, {evaluation.fidelity} prompts of the search, not held out"
    for metric, value in zip(bench.qualities, evaluation.values[1:], strict=True):
        samples, on = dict(evaluation.samples).get(metric.name), replace(stamp, prompts=prompts)
        told = score(on, metric, samples) if samples else set_score(on, metric, value, evaluation.fidelity)
        known.append(replace(told, metric=f"search_{told.metric}"))
    note = f"unfinished: the search was stopped after {len(study)} schedules; nothing here is held out"
    return replace(schedule, measured=tuple(known), provenance=provenance_of(bench, evaluation.candidate, note=note))
