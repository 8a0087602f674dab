"""Children of two schedules, after ECAD's recipe of cuts aligned with steps (2025, arXiv 2506.15682).

Solvers alone may also be crossed gene by gene, the "deep" crossover of S^3 (2024, arXiv 2312.07243). Cuts are drawn
like the steps in ``_vary.py``, rather late, and a child begins like its first parent, whose evaluation it shares up to
the first cut. This module does not know what is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schedsearch.schedule import COMPUTE, Schedule
from schedsearch.space._genome import Genome, genome_of, places_of, schedule_of
from schedsearch.space._operators import late
from schedsearch.space._space import SearchSpace
from schedsearch.space._vary import changed, solvers_are_open

_TRIES = 5
_RATE = 1.5


def crossed(a: Schedule, b: Schedule, space: SearchSpace, rng: np.random.Generator) -> Schedule:
    """A child of two schedules: each layer of the genome is crossed by its own rule.

    - *Steps* are cut at 2 to 4 noise levels and taken in turn from ``a`` and ``b``. Where noise levels are free they
      come along, if the number of steps that results is legal; else one parent gives all of them, and the other's steps
      are aligned to them in sigma.
    - At one of the cuts (a quarter of the time) the ranges change hands inside the step, between two blocks.
    - *Solvers* go with their steps, or (half the time) each is either parent's.
    - *Removed blocks* that one parent has are removed with chance 1/2.
    - *Formats* of layers are the first parent's, with all of its calls to share, or (half the time) each group has
      either parent's.

    Parents too much alike to give a third have a mutated child.

    Args:
        a: a parent, not necessarily canonical; the child begins like it.
        b: the other one.
        space: where the child is canonical.
        rng: all randomness.

    Returns:
        A schedule other than the canonical forms of both, if any was found.
    """
    first, second = space.repair(a), space.repair(b)
    one, other = genome_of(first, space), genome_of(second, space)
    for _ in range(_TRIES if first != second else 0):
        child = schedule_of(_crossed(one, other, space, rng), space)
        if child not in (first, second):
            return child
    return changed(first, (first, second), space, rng, _RATE)


def _crossed(a: Genome, b: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome:
    cuts = _cuts(a, b, rng)
    genome = None
    if space.free_sigma and rng.random() < 0.5:
        steps = [*(step for step in a.steps if not _is_second(step.sigma, cuts))]
        steps += [step for step in b.steps if _is_second(step.sigma, cuts)]
        if len(steps) in space.counts:
            genome = Genome(tuple(sorted(steps, key=lambda step: -step.sigma)), a.end)
    if genome is None:
        sigma = (a if a.n_steps == b.n_steps or rng.random() < 0.5 else b).sigma
        pairs = zip(a.aligned(sigma).steps, b.aligned(sigma).steps, strict=True)
        genome = Genome(tuple(q if _is_second(p.sigma, cuts) else p for p, q in pairs), a.end)
    if rng.random() < 0.25:
        genome = _spliced(genome, (a, b), late(rng, cuts), space, rng)
    if solvers_are_open(space) and rng.random() < 0.5:
        genome = _deep(genome, a, b, rng)
    gone = set(a.pruned) & set(b.pruned)
    either = sorted(set(a.pruned) ^ set(b.pruned))
    gone |= {name for name in either if rng.random() < 0.5}
    return replace(genome, pruned=tuple(sorted(gone)), formats=_formats(a, b, rng))


def _formats(a: Genome, b: Genome, rng: np.random.Generator) -> tuple[int, ...]:
    """Each group's format from one parent or the other, or all from the first."""
    if a.formats == b.formats or rng.random() < 0.5:
        return a.formats
    drawn = rng.random(len(a.formats)) < 0.5
    return tuple(p if of_a else q for p, q, of_a in zip(a.formats, b.formats, drawn, strict=True))


def _cuts(a: Genome, b: Genome, rng: np.random.Generator) -> list[float]:
    """2 to 4 noise levels at which the child changes parents (fewer for very short runs), falling."""
    levels = sorted({step.sigma for genome in (a, b) for step in genome.steps[1:]}, reverse=True)
    if not levels:
        return [a.end]
    wanted = min(int(rng.integers(2, 5)), len(levels))
    drawn: set[float] = set()
    for _ in range(4 * wanted):
        if len(drawn) < wanted:
            drawn.add(late(rng, levels))
    return sorted(drawn, reverse=True)


def _is_second(sigma: float, cuts: Sequence[float]) -> bool:
    """Whether the step that starts at ``sigma`` is the second parent's: an odd number of cuts lie at or above it."""
    return sum(cut >= sigma for cut in cuts) % 2 == 1


def _deep(genome: Genome, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
    """Each step's solver from one parent or the other."""
    sigma = genome.sigma
    drawn = rng.random(genome.n_steps) < 0.5
    pairs = zip(genome.steps, a.aligned(sigma).steps, b.aligned(sigma).steps, drawn, strict=True)
    return replace(
        genome, steps=tuple(replace(step, solver=(p if of_a else q).solver) for step, p, q, of_a in pairs)
    )  # fmt: skip


def _spliced(
    genome: Genome, parents: tuple[Genome, Genome], cut: float, space: SearchSpace, rng: np.random.Generator
) -> Genome:
    """The step at ``cut`` with the ranges of one parent up to some block and of the other from there on."""
    places = places_of(space)
    i = next((i for i, step in enumerate(genome.steps) if step.sigma <= cut), 0)
    p, q = (parent.aligned(genome.sigma).steps[i] for parent in parents)
    if p.op != COMPUTE or q.op != COMPUTE or len(places.blocks) < 2:
        return genome
    at = places.starts[int(rng.integers(1, len(places.blocks)))]
    head = [replace(span, stop=min(span.stop, at)) for span in p.ranges if span.first < at]
    tail = [replace(span, first=max(span.first, at)) for span in q.ranges if span.stop > at]
    before = set(places.row_names_before(at))
    cells = [cell for cell in p.cells if cell[0] in before] + [cell for cell in q.cells if cell[0] not in before]
    step = replace(genome.steps[i], op=COMPUTE, ranges=(*head, *tail), cells=tuple(cells))
    return genome.with_step(i, step)
