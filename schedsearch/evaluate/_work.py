"""What a schedule executes at each step, as plain data: the one reading of rows that costs and MACs are computed from.

It reads the runtime's own plan, so what is counted is what is replayed: a prediction without history computes, orders
are clipped, a coarser decision wins over finer ones. Knows nothing of time or of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedsearch.runtime._plan import KEEP, Plan, SiteKind, plan
from schedsearch.schedule import REUSE, SKIP, Schedule
from schedsearch.types import BlockSpec

BlockLists = Sequence[Sequence[BlockSpec]]
"""The denoiser's lists of blocks, each in running order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """One step of one image.

    Attributes:
        calls: denoiser calls the sampler asks for.
        runs_denoiser: whether those calls run the denoiser, or are answered from its cache.
        blocks: names of the blocks that run.
        left_out: names of the components that do not run, in blocks that do.
        passed: number of blocks that do not run, in a denoiser that does.
        kept: per site that stores what it computed: its kind, and how many differences it takes.
        predicted: per site that predicts: its kind and the order.
    """

    calls: int
    runs_denoiser: bool
    blocks: tuple[str, ...]
    left_out: tuple[str, ...]
    passed: int
    kept: tuple[tuple[SiteKind, int], ...]
    predicted: tuple[tuple[SiteKind, int], ...]


def step_work(schedule: Schedule, block_lists: BlockLists, *, branches: int = 1) -> tuple[StepWork, ...]:
    """Return what every step of ``schedule`` executes.

    Args:
        schedule: what is run.
        block_lists: the denoiser's blocks.
        branches: denoiser calls per step under the pipeline's own guidance.
    """
    planned = plan(schedule, block_lists)
    names = tuple(block.name for blocks in block_lists for block in blocks)
    return tuple(_at_step(planned, i, names, _calls(schedule, i, branches=branches)) for i in range(schedule.n_steps))


def _at_step(planned: Plan, i: int, names: Sequence[str], calls: int) -> StepWork:
    silent: dict[SiteKind, set[str]] = {"model": set(), "segment": set(), "component": set()}
    model_answers = False
    kept: list[tuple[SiteKind, int]] = []
    predicted: list[tuple[SiteKind, int]] = []
    for site in planned.sites:
        action = site.actions[i]
        if action == KEEP:
            kept.append((site.kind, len(site.numbers[i])))
        elif _predicts(action):
            predicted.append((site.kind, 0 if action == REUSE else int(action)))
        if _predicts(action) or action == SKIP:
            silent[site.kind].update(site.modules)
            model_answers = model_answers or site.kind == "model"
    blocks = () if model_answers else tuple(name for name in names if name not in silent["segment"])
    return StepWork(
        calls=calls,
        runs_denoiser=not model_answers,
        blocks=blocks,
        left_out=tuple(sorted(silent["component"])),
        passed=0 if model_answers else len(names) - len(blocks),
        kept=tuple(kept),
        predicted=tuple(predicted),
    )


def _predicts(action: str) -> bool:
    return action == REUSE or action.isdigit()


def _calls(schedule: Schedule, i: int, *, branches: int) -> int:
    """Denoiser calls of step ``i``: an implicit corrector evaluates twice, and so does Heun but for the last step."""
    solver = schedule.solver[i]
    twice = solver.corrector == "implicit" or (solver.family == "heun" and i < schedule.n_steps - 1)
    if schedule.guidance is not None:
        branches = 1 if schedule.guidance[i] is None else 2
    return branches * (2 if twice else 1)
