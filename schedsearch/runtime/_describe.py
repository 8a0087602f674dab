"""Says in words what an applied schedule does."""

from __future__ import annotations

from schedsearch.runtime._plan import RUNS, Plan
from schedsearch.schedule import Schedule


def describe(schedule: Schedule, plan: Plan, *, n_bytes: int) -> str:
    """Returns a few lines: identity, denoiser calls, one line per cached place, patterns and memory."""
    model = next((site for site in plan.sites if site.kind == "model"), None)
    calls = plan.n_steps if model is None else sum(a in RUNS for a in model.actions)
    ref, sigma = schedule.model, schedule.sigma
    lines = [
        f"schedule {schedule.id}",
        f"{ref.pipeline}, searched at {ref.width}x{ref.height}, batch {ref.batch}",
        f"{plan.n_steps} steps from sigma {sigma[0]:.4g} to {sigma[-1]:.4g}, {calls} run the denoiser",
    ]
    for site in plan.sites:
        name = "the whole denoiser" if site.kind == "model" else _span(site.modules)
        lines.append(f"  {site.actions}  {name}")
    if plan.sites:
        lines.append("  C compute, K compute and keep, R reuse, 1-3 forecast, S skip, . not reached")
    distinct = set(plan.patterns)
    lines.append(f"{len(distinct)} distinct step patterns; caches hold {n_bytes / 2**20:.2f} MiB now")
    return "\n".join(lines)


def _span(modules: tuple[str, ...]) -> str:
    if len(modules) == 1:
        return modules[0]
    return f"{modules[0]} .. {modules[-1]} ({len(modules)} blocks, one cache)"
