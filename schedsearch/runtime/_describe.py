"""Says in words what an applied schedule does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from schedsearch.runtime._plan import Plan
from schedsearch.runtime._precision import LowBitLayers
from schedsearch.runtime._solver import Call
from schedsearch.schedule import Schedule


def describe(schedule: Schedule, plan: Plan, calls: Sequence[Call], layers: LowBitLayers, *, n_bytes: int) -> str:
    """Returns a few lines: identity, denoiser calls, solvers, one line per cached place and per run of layers in equal
    formats, patterns and memory.
    """
    ref, sigma = schedule.model, schedule.sigma
    made = f" in {len(calls)} calls" if len(calls) > plan.n_steps else ""
    runs = sum(call.computes for call in calls)
    lines = [
        f"schedule {schedule.id}",
        f"{ref.pipeline}, searched at {ref.width}x{ref.height}, batch {ref.batch}",
        f"{plan.n_steps} steps from sigma {sigma[0]:.4g} to {sigma[-1]:.4g}{made}, {runs} run the denoiser",
        *_solver_lines(schedule, calls),
    ]
    for site in plan.sites:
        name = "the whole denoiser" if site.kind == "model" else _span(site.modules)
        corrected = sum(map(bool, site.corrected))
        lines.append(f"  {site.actions}  {name}{f', corrected at {corrected} steps' if corrected else ''}")
    if plan.sites:
        lines.append("  C compute, K compute and keep, R reuse, 1-3 forecast, S skip, . not reached")
    lines.extend(layers.lines())
    distinct = set(plan.patterns)
    lines.append(f"{len(distinct)} distinct step patterns; caches hold {n_bytes / 2**20:.2f} MiB now")
    return "\n".join(lines)


def _solver_lines(schedule: Schedule, calls: Sequence[Call]) -> Iterator[str]:
    """How the steps are taken, adjacent equal ones together, and what their orders look back on."""
    words = [_solver_words(schedule, call) for call in calls if not call.extra]
    first = 0
    for text, run in groupby(words):
        last = first + len(list(run)) - 1
        yield f"  step{f' {first}' if first == last else f's {first}-{last}'}: {text}"
        first = last + 1
    if any(term.lag for call in calls if not call.extra for term in (*call.base, *call.nxt)):
        yield "  orders above 1 look back on computed outputs; a predicted one counts at its own step only"


def _solver_words(schedule: Schedule, call: Call) -> str:
    solver = schedule.solver[call.step]
    words = [solver.family if call.order == 1 else f"{solver.family} of order {call.order}"]
    if solver.family == "table" and call.family != "table":
        words = [f"adams of order {call.order}, for want of history"]
    if solver.prediction != "velocity":
        words.append(f"in {solver.prediction}")
    if solver.estimate != "default":
        words.append(f"derivatives by {solver.estimate}")
    if solver.corrector != "none":
        words.append(f"corrector {solver.corrector}")
    return ", ".join(words) + (" (not fitted yet)" if call.unfitted else "")


def _span(modules: tuple[str, ...]) -> str:
    if len(modules) == 1:
        return modules[0]
    return f"{modules[0]} .. {modules[-1]} ({len(modules)} blocks, one cache)"
