"""Changes of a genome's number formats, one small function each, like those of ``_operators.py``.

Whatever the change, every call of the denoiser is another one afterwards, so a child shares none of them with its
parent. This module does not know how fast a format is, nor what is good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from schedsearch.space._genome import Genome
from schedsearch.space._space import SearchSpace


def flip_format(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Give one group of layers another format, or leave it as it is."""
    groups = _there(genome, space)
    if not groups:
        return None
    group = groups[int(rng.integers(len(groups)))]
    others = [number for number in range(len(space.precision.formats) + 1) if number != genome.formats[group]]
    return _with(genome, (group,), others[int(rng.integers(len(others)))])


def flip_format_run(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Give a run of blocks one format, or leave it as it is: all their layers, or (half the time) those of one kind."""
    axis = space.precision
    groups = [group for group in _there(genome, space) if axis.groups[group].blocks]
    if not groups:
        return None
    first, last = np.sort(rng.integers(0, len(axis.blocks), size=2)).tolist()
    if rng.random() < 0.5:
        kind = axis.groups[groups[int(rng.integers(len(groups)))]].kind
        groups = [group for group in groups if axis.groups[group].kind == kind]
    inside = [group for group in groups if all(first <= block <= last for block in axis.groups[group].blocks)]
    return _with(genome, inside, int(rng.integers(len(axis.formats) + 1))) if inside else None


def flip_format_kind(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Give the layers of one kind one format in all blocks, or leave them as they are."""
    axis = space.precision
    kinds = list(axis.kinds.values())
    groups = kinds[int(rng.integers(len(kinds)))]
    there = set(_there(genome, space))
    return _with(genome, [group for group in groups if group in there], int(rng.integers(len(axis.formats) + 1)))


def restore_format(genome: Genome, space: SearchSpace, rng: np.random.Generator) -> Genome | None:
    """Leave some layers as they are that were in a format: nearest to the ends of the model (half the time) or any.

    The first and the last blocks are where most models are hurt most.
    """
    axis = space.precision
    changed = [group for group in _there(genome, space) if genome.formats[group]]
    if not changed:
        return None
    count = int(rng.integers(1, max(2, len(changed) // 2 + 1)))
    if rng.random() < 0.5:
        last = len(axis.blocks) - 1
        changed.sort(key=lambda group: min((min(b, last - b) for b in axis.groups[group].blocks), default=0))
        return _with(genome, changed[:count], 0)
    return _with(genome, rng.choice(changed, size=count, replace=False).tolist(), 0)


def _there(genome: Genome, space: SearchSpace) -> list[int]:
    """Groups with a layer that is not removed."""
    return [group for group, is_there in enumerate(space.precision.alive(genome.pruned)) if is_there]


def _with(genome: Genome, groups: Iterable[int], number: int) -> Genome:
    formats = list(genome.formats)
    for group in groups:
        formats[group] = number
    return replace(genome, formats=tuple(formats))
