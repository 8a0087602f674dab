"""A schedule's denoiser calls alone, each the beginning of one fitted step.

A forecast of the whole model between two calls is a linear sum of outputs, and so is what a multistep solver makes of
them: calls, forecasts and solver steps together are one step of a multistep method whose weights nobody chose. Fitted
weights are as good as any at each step: on flux-mini masks of order-1 forecasts gain 1 to 9 dB at the same calls. This
module does not know what is good.
"""

from __future__ import annotations

from dataclasses import replace

from schedsearch.schedule import COMPUTE, MODEL_ROW, TABLE_FAMILY, Schedule
from schedsearch.space._solvers import solver_like
from schedsearch.space._space import SearchSpace


def calls_of(schedule: Schedule) -> tuple[int, ...]:
    """The steps at which the denoiser is called."""
    return tuple(step for step, op in enumerate(schedule.row(MODEL_ROW)) if op == COMPUTE)


def fused(schedule: Schedule, space: SearchSpace, *, order: int = 4) -> Schedule | None:
    """``schedule`` with one fitted step for each of its calls, from where it calls to where it calls next.

    Rows of blocks and components, removed blocks and number formats stay as they are at the calls.

    Args:
        schedule: a schedule of ``space``.
        space: where the result is legal.
        order: most outputs that a step is fitted on.

    Returns:
        `None` where the space has no fitted steps, not so few steps, or not at these noise levels.
    """
    calls = calls_of(schedule)
    record = solver_like(space.solvers, TABLE_FAMILY, order)
    is_there = len(calls) == schedule.n_steps or (space.free_sigma and len(calls) in space.counts)
    if record is None or not is_there:
        return None
    made = space.build(
        sigma=(*(schedule.sigma[i] for i in calls), schedule.sigma[-1]),
        solver=(record,) * len(calls),
        ops=[(name, "".join(row[i] for i in calls)) for name, row in schedule.ops if name != MODEL_ROW],
        pruned=schedule.pruned,
        precision=schedule.precision,
    )
    return replace(made, provenance=schedule.provenance)
