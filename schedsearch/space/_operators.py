"""The changes a schedule's genome can undergo, one small function each.

Each takes a genome, the space and a generator, and returns the changed genome, or ``None`` where there is nothing to
change. What comes out need not be canonical, nor differ once it is: `mutated` sees to both, and knows which changes a
space is open to. This module does not know how often which is drawn, nor what is good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from typing import TypeVar

import numpy as np

from schedsearch.errors import SpaceError
from schedsearch.schedule import COMPUTE, MODEL_ROW, OPS, Solver
from schedsearch.space._codes import Codes
from schedsearch.space._genome import MAX_RANGES, Genome, Places, Range, StepGene, places_of
from schedsearch.space._space import SearchSpace
from schedsearch.space._warps import warp

NEAR = 3
"""Steps within which a relocation counts as near."""
NEAR_SHARE = 0.7
MOST_BLOCKS = 4
"""Most blocks a range's end moves by at once."""
JITTER = (0.03, 0.08)
"""Standard deviation of a moved noise level, in gaps to its neighbours or in log(SNR) / 2."""
NUDGE = (0.05, 0.4)
"""Standard deviation of one nudged noise level, in gaps to its neighbours."""
ORDERS = (0.2, 0.4, 0.3, 0.1)
"""Chances of the orders 1 to 4."""

_INSIDE_SHARE = 0.2
"""Of the ends of a range, those that may fall inside a block."""

Item = TypeVar("Item")


# ---- draws


def late(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of ``items``, the last about twice as likely as the first."""
    u = rng.random()
    if rng.random() < 1.0 / 3.0:  # the larger of two leans to the end; the mixture's density rises from 2/3 to 4/3
        u = max(u, rng.random())
    return items[int(u * len(items))]


def _one(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(rng.integers(len(items)))]


def _span(rng: np.random.Generator, n_steps: int) -> range:
    """One step (half the time), some in a row, or (a quarter) all from one on."""
    first = late(rng, range(n_steps))
    kind = rng.random()
    if kind < 0.5:
        return range(first, first + 1)
    return range(first, n_steps if kind < 0.75 else int(rng.integers(first, n_steps)) + 1)


def symbols_at(space: SearchSpace, level: str) -> str:
    """Symbols of a level, compute first."""
    return COMPUTE + "".join(char for name, legal in space.levels if name == level for char in legal if char != COMPUTE)


# ---- plans: what is computed where


def relocate_compute(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Swap the plans of a computing step and of another, near it (70 %) or anywhere; the first step stays.

    The other one is a step at which the model does not compute, or, if there is none, one with another plan.
    """
    del space
    steps = genome.steps
    idle = [i for i in range(1, len(steps)) if steps[i].op != COMPUTE]
    busy = [i for i in range(1, len(steps)) if steps[i].op == COMPUTE]
    if not busy:
        return None
    i = late(rng, busy)
    others = idle or [j for j in busy if steps[j].plan != steps[i].plan]
    near = [j for j in others if abs(j - i) <= NEAR]
    chosen = near if near and rng.random() < NEAR_SHARE else others
    if not chosen:
        return None
    j = late(rng, chosen)
    return genome.with_step(i, steps[i].planned_as(steps[j])).with_step(j, steps[j].planned_as(steps[i]))


def flip_step(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Compute a step that does not, or no longer compute one that does."""
    if genome.n_steps < 2:
        return None
    i = late(rng, range(1, genome.n_steps))
    step = genome.steps[i]
    op = COMPUTE if step.op != COMPUTE else _one(rng, space.symbols_of(MODEL_ROW)[1:])
    return genome.with_step(i, replace(step, op=op))


def change_op(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Give a step or a range that does not compute another symbol: reuse, forecast, another order, skip."""
    whole = space.symbols_of(MODEL_ROW)
    found: list[tuple[int, int]] = []  # step, range (-1: the model)
    for i, step in enumerate(genome.steps):
        if step.op != COMPUTE:
            found += [(i, -1)] if len(whole) > 2 else []
        else:
            found += [(i, k) for k, span in enumerate(step.ranges) if len(symbols_at(space, span.level)) > 2]
    if not found:
        return None
    i, k = late(rng, found)
    step = genome.steps[i]
    if k < 0:
        return genome.with_step(i, replace(step, op=_one(rng, whole[1:].replace(step.op, ""))))
    span = step.ranges[k]
    op = _one(rng, symbols_at(space, span.level)[1:].replace(span.op, ""))
    return genome.with_step(i, _with_ranges(step, k, replace(span, op=op)))


def resize_range(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Move one end of a range by 1 to 4 blocks, or (now and then) by 1 or 2 components."""
    where = _computing(genome, at_least=1)
    if not where:
        return None
    i = late(rng, where)
    step = genome.steps[i]
    k = int(rng.integers(len(step.ranges)))
    span, places = step.ranges[k], places_of(space)
    at_head = rng.random() < 0.5
    end = span.first if at_head else span.stop
    end = _moved(end, places, rng, allowed=_may_cut_blocks(space))
    first, stop = (end, span.stop) if at_head else (span.first, end)
    if first >= stop:
        return None
    return genome.with_step(i, _with_ranges(step, k, replace(span, first=first, stop=stop)))


def insert_range(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Stop computing a range of blocks at a computing step; half of them begin at the first block or end at the last.

    Steps that have all their ranges already keep these.
    """
    where = _computing(genome, at_most=MAX_RANGES - 1)
    places = places_of(space)
    levels = [level for level in places.levels if len(symbols_at(space, level)) > 1]
    if not where or not levels:
        return None
    i, level = late(rng, where), _one(rng, levels)
    length = int(rng.integers(1, len(places.blocks) + 1))
    block = int(rng.integers(len(places.blocks) - length + 1))
    if rng.random() < 0.5:
        block = 0 if rng.random() < 0.5 else len(places.blocks) - length
    first, stop = places.starts[block], places.starts[block + length]
    if _may_cut_blocks(space) and rng.random() < _INSIDE_SHARE:
        stop = max(first + 1, stop - int(rng.integers(3)))
    span = Range(first, stop, _one(rng, symbols_at(space, level)[1:]), level)
    step = genome.steps[i]
    return genome.with_step(i, replace(step, ranges=(*step.ranges, span)))


def delete_range(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Compute a range of blocks that was not."""
    del space
    where = _computing(genome, at_least=1)
    if not where:
        return None
    i = late(rng, where)
    step = genome.steps[i]
    k = int(rng.integers(len(step.ranges)))
    return genome.with_step(i, replace(step, ranges=step.ranges[:k] + step.ranges[k + 1 :]))


def copy_ranges(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Give a computing step the ranges and cells of another computing step."""
    del space
    where = _computing(genome)
    if not where:
        return None
    i = late(rng, where)
    others = [j for j in where if genome.steps[j].plan != genome.steps[i].plan]
    if not others:
        return None
    return genome.with_step(i, genome.steps[i].planned_as(genome.steps[_one(rng, others)]))


def flip_component(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Give one component of a computing block another symbol, which ranges need not be able to say."""
    where, places = _computing(genome), places_of(space)
    if not where:
        return None
    i = late(rng, where)
    codes = places.coded(genome.steps[i : i + 1])[:, 0]
    alive = [place for place in places.alive(genome.pruned) if places.part_rows[place] >= 0]
    free = [place for place in alive if not _block_is_idle(codes, places, int(place))]
    if not free:
        return None
    row = int(places.part_rows[_one(rng, free)])
    name = places.row_names[row]
    legal = space.symbols_of(name)
    now = OPS[codes[row]]
    if len(legal) < 2:
        return None
    step = genome.steps[i]
    kept = tuple(cell for cell in step.cells if cell[0] != name)
    return genome.with_step(i, replace(step, cells=(*kept, (name, _one(rng, legal.replace(now, ""))))))


def _block_is_idle(codes: Codes, places: Places, place: int) -> bool:
    row = int(places.block_rows[places.owner[place]])
    return row >= 0 and bool(codes[row])


def _computing(genome: Genome, *, at_least: int = 0, at_most: int = MAX_RANGES) -> list[int]:
    """Steps but the first at which the model computes, with so many ranges."""
    return [
        i for i in range(1, genome.n_steps)
        if genome.steps[i].op == COMPUTE and at_least <= len(genome.steps[i].ranges) <= at_most
    ]  # fmt: skip


def _with_ranges(step: StepGene, k: int, span: Range) -> StepGene:
    """``step`` with ``span`` for its range ``k``; it comes last, so that it wins where it has grown over another."""
    return replace(step, ranges=(*step.ranges[:k], *step.ranges[k + 1 :], span))


def _may_cut_blocks(space: SearchSpace) -> bool:
    return "component" in places_of(space).levels


def _moved(end: int, places: Places, rng: np.random.Generator, *, allowed: bool) -> int:
    """Another place for the end of a range: some block edges on, or (where ``allowed``) some components."""
    sign = -1 if rng.random() < 0.5 else 1
    if allowed and rng.random() < _INSIDE_SHARE:
        return min(max(end + sign * int(rng.integers(1, 3)), 0), places.count)
    by = int(rng.integers(1, MOST_BLOCKS + 1))
    beyond = [edge for edge in places.starts if (edge > end if sign > 0 else edge < end)]
    if not beyond:
        return end
    ordered = beyond if sign > 0 else beyond[::-1]
    return ordered[min(by, len(ordered)) - 1]


# ---- noise levels


def jitter_sigma(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Move all inner noise levels from a drawn one on, each a little: in gaps to its neighbours, or in log(SNR) / 2."""
    del space
    sigma = genome.sigma
    if genome.n_steps < 2:
        return None
    scale, relative = rng.uniform(*JITTER), rng.random() < 0.5
    moved = list(sigma)
    for i in range(late(rng, range(1, genome.n_steps)), genome.n_steps):
        above, level, below = sigma[i - 1 : i + 2]
        noise = float(rng.normal()) * scale
        wish = level + noise * min(above - level, level - below) if relative else _in_lambda(level, noise, sigma[0])
        # Less than half way to both neighbours, so that levels stay in order however they all move.
        moved[i] = min(max(wish, level - 0.45 * (level - below)), level + 0.45 * (above - level))
    return genome.with_sigma(moved)


def move_sigma(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Move one inner noise level anywhere between its neighbours."""
    del space
    if genome.n_steps < 2:
        return None
    i = late(rng, range(1, genome.n_steps))
    above, below = genome.sigma[i - 1], genome.sigma[i + 1]
    level = below + float(rng.uniform(0.05, 0.95)) * (above - below)
    return genome.with_sigma((*genome.sigma[:i], level, *genome.sigma[i + 1 :]))


def nudge_sigma(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Move one inner noise level by a Gaussian of `NUDGE` gaps to its neighbours: between a jitter and a move."""
    del space
    if genome.n_steps < 2:
        return None
    i = late(rng, range(1, genome.n_steps))
    above, level, below = genome.sigma[i - 1 : i + 2]
    wish = level + float(rng.normal()) * rng.uniform(*NUDGE) * min(above - level, level - below)
    level = min(max(wish, below + 0.05 * (above - below)), below + 0.95 * (above - below))
    return genome.with_sigma((*genome.sigma[:i], level, *genome.sigma[i + 1 :]))


def respace(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Replace all noise levels by those of a family of spacings, with drawn parameters."""
    n = genome.n_steps
    if n < 2:
        return None
    first, last = space.sigma[0], space.sigma[-1]
    default = space.grid(n)
    name, params = _one(rng, _SPACINGS)
    drawn = {key: exp(rng.uniform(log(low), log(high))) for key, (low, high) in params.items()}
    floor = last + (default[-2] - last) * exp(rng.uniform(-1.0, 0.5)) if rng.random() < 0.5 else None
    try:
        return genome.with_sigma(warp(name, n, first=first, last=last, floor=floor, kind=None, **drawn))
    except SpaceError:  # levels of extreme parameters can coincide
        return None


_SPACINGS: tuple[tuple[str, dict[str, tuple[float, float]]], ...] = (
    ("shift", {"shift": (0.5, 8.0)}), ("karras", {"rho": (0.7, 7.0)}),
    ("beta", {"alpha": (0.4, 1.5), "beta": (0.4, 1.5)}), ("quadratic", {"power": (0.5, 2.5)}), ("cosine", {}),
    ("exponential", {}), ("logsnr", {}), ("ays", {}),
)  # fmt: skip


def _in_lambda(level: float, change: float, first: float) -> float:
    """``level`` with ``change`` taken from log(alpha / sigma); the level is one of a flow model if ``first`` <= 1."""
    ratio = (level / (1.0 - level) if first <= 1.0 else level) * exp(change)
    return ratio / (1.0 + ratio) if first <= 1.0 else ratio


# ---- number of steps


def insert_step(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Divide a step; the new one has the plan of the step before it or of the one after it, or computes.

    Where one step more is not legal, the genome is resampled to the next larger number that is.
    """
    wanted = next((count for count in space.counts if count > genome.n_steps), None)
    if wanted is None:
        return None
    if wanted != genome.n_steps + 1:
        return genome.resampled(wanted)
    i = late(rng, range(genome.n_steps))
    sigma, before = genome.sigma, genome.steps[i]
    after = genome.steps[min(i + 1, genome.n_steps - 1)]
    plan = _one(rng, (before, after, StepGene(0.0)))
    level = sigma[i] + float(rng.uniform(0.3, 0.7)) * (sigma[i + 1] - sigma[i])
    new = replace(before, sigma=level).planned_as(plan)
    return _on_grid(replace(genome, steps=(*genome.steps[: i + 1], new, *genome.steps[i + 1 :])), space)


def delete_step(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Join a step to the one before it.

    Where one step less is not legal, the genome is resampled to the next smaller number that is.
    """
    wanted = next((count for count in reversed(space.counts) if count < genome.n_steps), None)
    if wanted is None:
        return None
    if wanted != genome.n_steps - 1:
        return genome.resampled(wanted)
    i = late(rng, range(1, genome.n_steps))
    return _on_grid(replace(genome, steps=genome.steps[:i] + genome.steps[i + 1 :]), space)


def _on_grid(genome: Genome, space: SearchSpace) -> Genome:
    """The genome at the default noise levels, unless they are free."""
    return genome if space.free_sigma else genome.with_sigma(space.grid(genome.n_steps))


# ---- solvers


def change_order(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Take some steps with the order drawn from `ORDERS`, in the family they have; Euler's is order 1 of any family.

    Steps taken with Euler's method join the family that most others of the schedule have, or a drawn one.
    """
    order = 1 + int(np.searchsorted(np.cumsum(ORDERS)[:-1], rng.random(), side="right"))
    kinds = Counter(kind_of(step.solver) for step in genome.steps if step.solver.order > 1)
    known = [kind_of(solver) for solver in space.solvers if solver.order > 1]
    if not known:
        return None
    usual = kinds.most_common(1)[0][0] if kinds and rng.random() < 0.8 else _one(rng, known)
    other = genome
    for i in _span(rng, genome.n_steps):
        own = kind_of(genome.steps[i].solver)
        record = _with_order(space.solvers, own if own in known else usual, order)
        other = other.with_step(i, replace(genome.steps[i], solver=record))
    return other


def change_family(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Take some steps with another family, prediction or corrector, at the order nearest to theirs."""
    span = _span(rng, genome.n_steps)
    mine = kind_of(genome.steps[span[-1]].solver)
    others = list(dict.fromkeys(kind for solver in space.solvers if (kind := kind_of(solver)) != mine))
    if not others:
        return None
    kind = _one(rng, others)
    top = max(step.solver.order for step in genome.steps)
    other = genome
    for i in span:
        # An order clipped to what history there was says nothing about the order that was wanted.
        wanted = max(genome.steps[i].solver.order, top if i < top else 1)
        other = other.with_step(i, replace(genome.steps[i], solver=_with_order(space.solvers, kind, wanted)))
    return other


def kind_of(solver: Solver) -> Solver:
    """A record without its order."""
    return replace(solver, order=1)


def _with_order(solvers: Sequence[Solver], kind: Solver, order: int) -> Solver:
    """The legal record of this kind whose order is nearest; order 1 is Euler's step where the kind has none."""
    if order == 1 and Solver() in solvers and kind not in solvers:
        return Solver()
    kin = [solver for solver in solvers if kind_of(solver) == kind]
    return min(kin, key=lambda solver: (abs(solver.order - order), solver.order))


# ---- removed blocks


def remove_block(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Remove one more block for the whole run, or another one in place of one that was removed."""
    kept = [name for name in space.prunable if name not in genome.pruned]
    if not kept:
        return None
    pruned = list(genome.pruned)
    if len(pruned) >= space.max_pruned:
        pruned.pop(int(rng.integers(len(pruned))))
    return replace(genome, pruned=(*pruned, _one(rng, kept)))


def restore_block(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Keep a block that was removed."""
    del space
    if not genome.pruned:
        return None
    back = _one(rng, genome.pruned)
    return replace(genome, pruned=tuple(name for name in genome.pruned if name != back))
