"""What a schedule executes at each step, as plain data: the one reading of rows that costs and MACs are computed from.

It reads the runtime's own plan and program, so what is counted is what is replayed: a prediction without history
computes, orders are clipped, a coarser decision wins over finer ones, and the second call of a two-call step does what
the first does but keeps nothing. Knows nothing of time or of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedsearch.runtime._plan import KEEP, Plan, SiteKind, plan
from schedsearch.runtime._solver import Call, program
from schedsearch.schedule import REUSE, SKIP, Schedule, corrections
from schedsearch.types import BlockSpec

BlockLists = Sequence[Sequence[BlockSpec]]
"""The denoiser's lists of blocks, each in running order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """One step of one image.

    Attributes:
        calls: denoiser calls the sampler asks for: one, twice that in a two-call step, each per guidance pass.
        passes: guidance passes of one call.
        terms: tensors the sampler sums beyond the two of an Euler step, over all calls of the step.
        runs_denoiser: whether those calls run the denoiser, or are answered from its cache.
        blocks: names of the blocks that run.
        left_out: names of the components that do not run, in blocks that do.
        passed: number of blocks that do not run, in a denoiser that does.
        kept: per site that stores what it computed: its kind, and how many differences it takes.
        predicted: per site that predicts: its kind and its multiply-adds, the order and one for a correction.
    """

    calls: int
    passes: int
    terms: int
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
    calls = program(schedule)
    second = {call.step: call.sigma for call in calls if call.extra}
    planned = plan(schedule, block_lists, second=second, corrections=corrections(schedule))
    names = tuple(block.name for blocks in block_lists for block in blocks)
    own: list[list[Call]] = [[] for _ in range(schedule.n_steps)]
    for call in calls:
        own[call.step].append(call)
    passes = [_passes(schedule, i, branches=branches) for i in range(schedule.n_steps)]
    return tuple(_at_step(planned, i, names, own[i], passes[i]) for i in range(schedule.n_steps))


def _at_step(planned: Plan, i: int, names: Sequence[str], calls: Sequence[Call], passes: int) -> StepWork:
    silent: dict[SiteKind, set[str]] = {"model": set(), "segment": set(), "component": set()}
    model_answers = False
    kept: list[tuple[SiteKind, int]] = []
    predicted: list[tuple[SiteKind, int]] = []
    for site in planned.sites:
        action = site.actions[i]
        if action == KEEP:
            kept.append((site.kind, len(site.numbers[i])))
        elif _predicts(action):
            order = 0 if action == REUSE else int(action)
            predicted.append((site.kind, order + bool(site.correction_at(i))))
        if _predicts(action) or action == SKIP:
            silent[site.kind].update(site.modules)
            model_answers = model_answers or site.kind == "model"
    blocks = () if model_answers else tuple(name for name in names if name not in silent["segment"])
    return StepWork(
        calls=len(calls) * passes,
        passes=passes,
        terms=sum(_terms(call) for call in calls),
        runs_denoiser=not model_answers,
        blocks=blocks,
        left_out=tuple(sorted(silent["component"])),
        passed=0 if model_answers else len(names) - len(blocks),
        kept=tuple(kept),
        predicted=tuple(predicted),
    )


def _predicts(action: str) -> bool:
    return action == REUSE or action.isdigit()


def _passes(schedule: Schedule, i: int, *, branches: int) -> int:
    """Guidance passes at step ``i``."""
    if schedule.guidance is not None:
        return 1 if schedule.guidance[i] is None else 2
    return branches


def _terms(call: Call) -> int:
    """Tensors summed for the step of ``call`` beyond sample and output; a ``table`` step sums all its columns."""
    return len(call.base) + (len(call.nxt) or call.order + 1) - 2
