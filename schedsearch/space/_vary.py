"""Children of one schedule by small changes.

`OPERATORS` and `FORMAT_OPERATORS` are the whole of it: one small function per change, with its share and when it
applies. The changes are those that published searches were seen to need: BudCache's relocation of a computed step,
ECAD's (arXiv 2506.15682) cuts of contiguous ranges of blocks, AutoDiffusion's (arXiv 2309.10438) choice of steps and
removed blocks, and the mutations of S^3 (arXiv 2312.07243): noise levels by a Gaussian of 0.03 to 0.08, orders 1 to 4
drawn with 0.2, 0.4, 0.3 and 0.1, and steps inserted or deleted with 0.2.

Shares are those of a child's changes, among the operators that apply in the space; so every child is changed at least
once, whatever its length. Steps are drawn so that the last one is twice as likely as the first: schedules that agree up
to a step share its evaluation up to there, so a late change is a cheap one. Every child is canonical in the space and
differs from its parent. Mixtures of two are in ``_cross.py``. This module does not know what is good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from schedsearch.errors import SpaceError
from schedsearch.schedule import MODEL_ROW, Schedule
from schedsearch.space import _format_operators, _operators
from schedsearch.space._genome import Genome, genome_of, places_of, schedule_of
from schedsearch.space._operators import kind_of, symbols_at
from schedsearch.space._space import SearchSpace

_TRIES = 40

Vary: TypeAlias = Callable[[Genome, SearchSpace, np.random.Generator], Genome | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One kind of change.

    Attributes:
        name: what it does.
        share: how often it is drawn; the shares of all sum to 1.
        applies: whether the space opens the axis it changes.
        vary: the change.
        refines: whether it leaves what is computed at which step as it is, and so, nearly, the cost.
    """

    name: str
    share: float
    applies: Callable[[SearchSpace], bool]
    vary: Vary
    refines: bool = False


# ---- which axes are open


def _model_is_open(space: SearchSpace) -> bool:
    return len(space.symbols_of(MODEL_ROW)) > 1


def _ranges_are_open(space: SearchSpace) -> bool:
    return places_of(space).count > 0 and any(len(symbols_at(space, level)) > 1 for level in places_of(space).levels)


def _plans_are_open(space: SearchSpace) -> bool:
    return _model_is_open(space) or _ranges_are_open(space)


def _components_are_open(space: SearchSpace) -> bool:
    return "component" in places_of(space).levels and len(symbols_at(space, "component")) > 1


def _sigma_is_open(space: SearchSpace) -> bool:
    return space.free_sigma


def _counts_are_open(space: SearchSpace) -> bool:
    return len(space.counts) > 1


def solvers_are_open(space: SearchSpace) -> bool:
    """Whether a step may be taken in more than one way."""
    return len(space.solvers) > 1


def _families_are_open(space: SearchSpace) -> bool:
    return len({kind_of(solver) for solver in space.solvers}) > 1


def _blocks_are_removable(space: SearchSpace) -> bool:
    return space.max_pruned > 0 and bool(space.prunable)


def formats_are_open(space: SearchSpace) -> bool:
    """Whether a layer may be in more than one format."""
    return space.precision.is_open


_REFINING = (
    _operators.jitter_sigma,
    _operators.nudge_sigma,
    _operators.move_sigma,
    _operators.change_order,
    _operators.change_family,
)

OPERATORS: tuple[Operator, ...] = tuple(
    Operator(name=vary.__name__, share=share, applies=applies, vary=vary, refines=vary in _REFINING)
    for vary, share, applies in (
        (_operators.relocate_compute, 0.14, _plans_are_open),
        (_operators.flip_step, 0.08, _model_is_open),
        (_operators.change_op, 0.06, _plans_are_open),
        (_operators.resize_range, 0.12, _ranges_are_open),
        (_operators.insert_range, 0.06, _ranges_are_open),
        (_operators.delete_range, 0.04, _ranges_are_open),
        (_operators.copy_ranges, 0.03, _ranges_are_open),
        (_operators.flip_component, 0.02, _components_are_open),
        (_operators.jitter_sigma, 0.05, _sigma_is_open),
        (_operators.nudge_sigma, 0.04, _sigma_is_open),
        (_operators.move_sigma, 0.03, _sigma_is_open),
        (_operators.respace, 0.02, _sigma_is_open),
        (_operators.insert_step, 0.10, _counts_are_open),
        (_operators.delete_step, 0.10, _counts_are_open),
        (_operators.change_order, 0.05, solvers_are_open),
        (_operators.change_family, 0.03, _families_are_open),
        (_operators.remove_block, 0.02, _blocks_are_removable),
        (_operators.restore_block, 0.01, _blocks_are_removable),
    )
)


FORMAT_OPERATORS: tuple[Operator, ...] = tuple(
    Operator(name=vary.__name__, share=share, applies=formats_are_open, vary=vary)
    for vary, share in (
        (_format_operators.flip_format, 0.03),
        (_format_operators.flip_format_run, 0.04),
        (_format_operators.flip_format_kind, 0.03),
        (_format_operators.restore_format, 0.03),
    )
)
"""Changes of number formats, in shares beside those of `OPERATORS`: what the axis adds takes nothing from others."""


def operators_of(space: SearchSpace) -> tuple[Operator, ...]:
    """The operators that apply in a space."""
    return tuple(operator for operator in (*OPERATORS, *FORMAT_OPERATORS) if operator.applies(space))


def mutated(
    schedule: Schedule, space: SearchSpace, rng: np.random.Generator, *, rate: float = 1.5, refining: bool = False
) -> Schedule:
    """A child of one schedule.

    Args:
        schedule: the parent, not necessarily canonical.
        space: where the child is canonical.
        rng: all randomness.
        rate: mean number of changes, 1 or more; every child has at least one.
        refining: change noise levels and solvers only, where the space opens either.

    Returns:
        A schedule other than the canonical form of ``schedule``; that form itself only if nothing else was found.

    Raises:
        SpaceError: if ``rate`` is below 1.
    """
    if not rate >= 1.0:
        raise SpaceError(f"rate: found {rate!r}, expected 1 or more changes per child.")
    parent = space.repair(schedule)
    return changed(parent, (parent,), space, rng, rate, refining=refining)


def changed(
    parent: Schedule,
    taken: tuple[Schedule, ...],
    space: SearchSpace,
    rng: np.random.Generator,
    rate: float,
    *,
    refining: bool = False,
) -> Schedule:
    """A child of the canonical ``parent`` that is none of ``taken``."""
    start, operators = genome_of(parent, space), operators_of(space)
    if refining:
        operators = tuple(operator for operator in operators if operator.refines) or operators
    bounds = np.cumsum([operator.share for operator in operators])
    for _ in range(_TRIES if operators else 0):
        genome, wanted = start, 1 + int(rng.poisson(rate - 1.0))
        for _ in range(wanted):
            drawn = int(np.searchsorted(bounds[:-1], rng.random() * bounds[-1], side="right"))
            genome = operators[drawn].vary(genome, space, rng) or genome
        if genome is not start and (child := schedule_of(genome, space)) not in taken:
            return child
    for _ in range(_TRIES):
        if (child := space.sample(rng)) not in taken:
            return child
    return parent
