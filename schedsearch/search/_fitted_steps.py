"""What is tried as fitted steps: the calls of the best schedules, and few calls at common spacings.

With a handful of calls how steps are fitted decides: each by itself, or all scalars and noise levels together to the
final latents. The latter takes ten times as many evaluations, so only what is on the frontier is polished, once. This
module does not know what is on the frontier, nor what anything costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from schedsearch.schedule import Schedule
from schedsearch.search._rule_seeds import spaced_levels, stepped
from schedsearch.space import SearchSpace, calls_of, fused
from schedsearch.types import Polish

MANY_ORDER, FEW_ORDER = 4, 3
"""Most outputs that a step is fitted on, with many calls and with as few as are polished."""

FEW_SPACINGS = ("shift1.5", "shift2")
"""Spacings of few calls from which polishing begins, beside those found; it often ends at a better place."""


def respaced(schedule: Schedule, space: SearchSpace) -> Iterator[Schedule]:
    """``schedule`` at each of `FEW_SPACINGS` that the space has."""
    for name in FEW_SPACINGS:
        if sigma := spaced_levels(space, name, schedule.n_steps):
            yield replace(space.repair(replace(schedule, sigma=sigma)), provenance=schedule.provenance)


class FittedPlan(NamedTuple):
    """A schedule of fitted steps, the ids of those it was made from, and what of it is fitted together."""

    schedule: Schedule
    parents: tuple[str, ...]
    polish: Polish


class FittedSteps:
    """Makes each such schedule once.

    Args:
        space: where they are legal.
        few: most denoiser calls of a schedule that is polished.
    """

    def __init__(self, space: SearchSpace, few: int) -> None:
        self._space = space
        self._few = few
        self._polish: Polish = "levels" if space.free_sigma else "scalars"
        self._seen: set[str] = set()
        self._made: set[tuple[str, Polish]] = set()

    def of(self, schedules: Iterable[Schedule], *, polishing: bool) -> Iterator[FittedPlan]:
        """``schedules`` as fitted steps, each the first time it comes; those of few calls wait until ``polishing``."""
        for schedule in schedules:
            is_few = len(calls_of(schedule)) <= self._few
            if schedule.id in self._seen or (is_few and not polishing):
                continue
            self._seen.add(schedule.id)
            made = fused(schedule, self._space, order=FEW_ORDER if is_few else MANY_ORDER)
            if made is not None and (is_few or made.id != schedule.id):
                yield from self._once(made, () if made.id == schedule.id else (schedule.id,), is_few=is_few)

    def spaced(self) -> Iterator[FittedPlan]:
        """Fitted steps of few calls at `FEW_SPACINGS`."""
        for n in (n for n in self._space.counts if n <= self._few):
            plain = stepped(self._space, self._space.grid(n), self._space.solvers[:1] * n)
            made = fused(plain, self._space, order=FEW_ORDER)
            for one in respaced(made, self._space) if made is not None else ():
                yield from self._once(one, (), is_few=True)

    def _once(self, made: Schedule, parents: tuple[str, ...], *, is_few: bool) -> Iterator[FittedPlan]:
        polish: Polish = self._polish if is_few else ""
        if (made.id, polish) not in self._made:
            self._made.add((made.id, polish))
            yield FittedPlan(made, parents, polish)
