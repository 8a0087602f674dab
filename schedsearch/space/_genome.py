"""A schedule as few numbers: at each step, up to three ranges of blocks that do not compute.

Published cache schedules are low-dimensional when read along the model: ECAD's (2025, arXiv 2506.15682) two schedules
for FLUX.1-dev have 3,420 cells but only 32 and 28 constant runs, nearly all of whose ends lie between blocks. So
operators work on a `Genome`: per step its noise level, solver, the op of the whole model and at most `MAX_RANGES`
ranges over *places*, the finest rows of the model in running order; what ranges do not name computes. A place is a
component, or a block where components have no rows.

A range of level ``block`` gives its op to the row of each block that lies wholly inside it; at its ends it may cover
part of a block, whose covered components then have the op in their own rows. A range of level ``component`` speaks of
components only. What three ranges cannot say (the shorter runs of a crowded step) are single cells, so that every
canonical schedule has a genome and comes back from it unchanged. Blocks removed for the whole run keep their places,
and ranges pass over them. Formats of layers hold for the whole run as well: one number per group of them.

A schedule stays what is stored, compared and passed on; a genome is a view for the operators of ``_vary.py``. This
module does not know which genomes are good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import COMPUTE, MODEL_ROW, OPS, Schedule, Solver
from schedsearch.space._codes import Codes, codes_of, rows_of
from schedsearch.space._grid import resampled
from schedsearch.space._solvers import EULER
from schedsearch.space._space import SearchSpace
from schedsearch.types import BlockSpec

MAX_RANGES = 3
"""Ranges per step; ECAD's schedules for FLUX need no more."""
SAID_BY_RANGES = "."
"""Fills `Genome.components` where ranges say what a row does."""

Cells: TypeAlias = npt.NDArray[np.int8]
"""What places do: 0 compute, `_BLOCK` or `_PART` plus the code of an op said by the block's row or the component's."""

_BLOCK, _PART, _CODE, _MODEL = 8, 16, 7, 32
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Range:
    """Places ``first`` up to but not including ``stop`` have ``op``.

    Attributes:
        first: first place.
        stop: place after the last.
        op: a symbol other than compute.
        level: ``block``: said by the rows of whole blocks, and of components at ends inside a block; or ``component``.
    """

    first: int
    stop: int
    op: str
    level: str = "block"


@dataclass(frozen=True, slots=True)
class StepGene:
    """One step.

    Attributes:
        sigma: noise level it starts from.
        solver: how it is taken.
        op: symbol of the ``model`` row; the rest says something only if this is compute.
        ranges: in running order, apart from each other in a genome that was read from a schedule; where they overlap,
            later ones win.
        cells: pairs ``(row, symbol)`` that ranges cannot say; they win over ranges.
    """

    sigma: float
    solver: Solver = EULER
    op: str = COMPUTE
    ranges: tuple[Range, ...] = ()
    cells: tuple[tuple[str, str], ...] = ()

    @property
    def plan(self) -> tuple[str, tuple[Range, ...], tuple[tuple[str, str], ...]]:
        """What is computed at this step, without where it is and how it is taken."""
        return self.op, self.ranges, self.cells

    def planned_as(self, other: StepGene) -> StepGene:
        """This step with the plan of ``other``."""
        return replace(self, op=other.op, ranges=other.ranges, cells=other.cells)


@dataclass(frozen=True, slots=True)
class Genome:
    """A schedule for operators.

    Attributes:
        steps: the steps in order.
        end: noise level the last one goes to.
        pruned: blocks removed for the whole run, in natural order.
        formats: number of the format of every group of the space's ``precision``; none where that is closed.
    """

    steps: tuple[StepGene, ...]
    end: float
    pruned: tuple[str, ...] = ()
    formats: tuple[int, ...] = ()

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.steps)

    @property
    def sigma(self) -> tuple[float, ...]:
        """`(n_steps + 1,)` noise levels."""
        return (*(step.sigma for step in self.steps), self.end)

    @property
    def components(self) -> tuple[tuple[str, str], ...]:
        """The cells of all steps as rows ``(name, row)``, with `SAID_BY_RANGES` elsewhere."""
        rows: dict[str, list[str]] = {}
        for i, step in enumerate(self.steps):
            for name, symbol in step.cells:
                rows.setdefault(name, [SAID_BY_RANGES] * self.n_steps)[i] = symbol
        return tuple((name, "".join(row)) for name, row in rows.items())

    def with_step(self, i: int, step: StepGene) -> Genome:
        """The genome with another step ``i``."""
        return replace(self, steps=(*self.steps[:i], step, *self.steps[i + 1 :]))

    def with_sigma(self, sigma: Sequence[float]) -> Genome:
        """The genome at other noise levels `(n_steps + 1,)`."""
        steps = tuple(replace(step, sigma=level) for step, level in zip(self.steps, sigma[:-1], strict=True))
        return replace(self, steps=steps, end=sigma[-1])

    def aligned(self, sigma: Sequence[float]) -> Genome:
        """The genome with a step for each of the noise levels `(n + 1,)`: that of its steps which the level is in."""
        steps, source = [], 0
        for level in sigma[:-1]:
            while source + 1 < self.n_steps and self.steps[source + 1].sigma >= level - _SAME:
                source += 1
            steps.append(replace(self.steps[source], sigma=level))
        return replace(self, steps=tuple(steps), end=sigma[-1])

    def resampled(self, n_steps: int) -> Genome:
        """The genome with another number of steps, spaced like its own."""
        return self if n_steps == self.n_steps else self.aligned(resampled(self.sigma, n_steps))


@dataclass(frozen=True, kw_only=True)
class Places:
    """The finest rows of a space in running order.

    Attributes:
        row_names: the rows of the space.
        blocks: names of the blocks that have places.
        starts: `(n_blocks + 1,)` first place of each block, and the number of places.
        block_rows: `(n_blocks,)` index of the block's row, -1 without one.
        part_rows: `(n_places,)` index of the component's row, -1 without one.
    """

    row_names: tuple[str, ...]
    blocks: tuple[str, ...]
    starts: tuple[int, ...]
    block_rows: npt.NDArray[np.intp]
    part_rows: npt.NDArray[np.intp]

    @property
    def count(self) -> int:
        """Number of places."""
        return self.starts[-1]

    @cached_property
    def owner(self) -> npt.NDArray[np.intp]:
        """`(n_places,)` index of each place's block."""
        return np.repeat(np.arange(len(self.blocks)), np.diff(self.starts))

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """Levels at which ranges can speak."""
        said = (("block", self.block_rows), ("component", self.part_rows))
        return tuple(level for level, rows in said if bool((rows >= 0).any()))

    @cached_property
    def has_model_row(self) -> bool:
        """Whether the whole denoiser has a row, which is the first one then."""
        return MODEL_ROW in self.row_names

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.row_names)}

    def alive(self, pruned: Iterable[str]) -> npt.NDArray[np.intp]:
        """Places of the blocks that are not removed."""
        gone = set(pruned)
        kept = np.array([block not in gone for block in self.blocks], dtype=bool)
        return np.flatnonzero(kept[self.owner]) if gone else np.arange(self.count)

    def row_names_before(self, place: int) -> tuple[str, ...]:
        """Names of the rows of the blocks before the one that ``place`` begins."""
        rows = [*self.block_rows[: int(self.owner[place])], *self.part_rows[:place]]
        return tuple(self.row_names[row] for row in rows if row >= 0)

    def read(self, codes: Codes) -> Cells:
        """What places do, `(n_places, n_steps)`, according to rows of ``codes`` `(n_rows, n_steps)`."""
        padded = np.vstack([codes, np.zeros((1, codes.shape[1]), dtype=np.int8)])  # index -1 computes
        block, part = padded[self.block_rows][self.owner], padded[self.part_rows]
        said: Cells = np.where(block > 0, block + _BLOCK, np.where(part > 0, part + _PART, 0)).astype(np.int8)
        return said

    def painted(self, steps: Sequence[StepGene]) -> Cells:
        """What the ranges of ``steps`` say, `(n_places, n_steps)`."""
        cells = np.zeros((self.count, len(steps)), dtype=np.int8)
        for i, step in enumerate(steps):
            for span in step.ranges if step.op == COMPUTE else ():
                said = (_BLOCK if span.level == "block" else _PART) + OPS.index(span.op)
                cells[span.first : span.stop, i] = said
        return cells

    def written(self, cells: Cells) -> Codes:
        """The rows `(n_rows, n_steps)` that say ``cells``: blocks that lie wholly in one range by their own row."""
        codes = np.zeros((len(self.row_names), cells.shape[1]), dtype=np.int8)
        if not self.count:
            return codes
        firsts = list(self.starts[:-1])
        low, high = np.minimum.reduceat(cells, firsts, axis=0), np.maximum.reduceat(cells, firsts, axis=0)
        known = self.block_rows >= 0
        whole = (low == high) & (low > _BLOCK) & (low < _PART) & known[:, None]
        codes[self.block_rows[known]] = np.where(whole, low & _CODE, 0)[known]
        parts = self.part_rows >= 0
        codes[self.part_rows[parts]] = np.where(whole[self.owner], 0, cells & _CODE)[parts]
        return codes

    def coded(self, steps: Sequence[StepGene]) -> Codes:
        """The rows `(n_rows, n_steps)` of ``steps``."""
        codes = self.written(self.painted(steps))
        for i, step in enumerate(steps):
            for name, symbol in step.cells if step.op == COMPUTE else ():
                if name in self._index:
                    codes[self._index[name], i] = OPS.index(symbol)
            if self.has_model_row:
                codes[0, i] = OPS.index(step.op)
        return codes


def places_of(space: SearchSpace) -> Places:
    """The places of a space."""
    kept = vars(space)  # where its own derived parts are; to hash a space costs more than most operators
    if "_places" not in kept:
        kept["_places"] = _places(space.blocks, space.row_names)
    places: Places = kept["_places"]
    return places


def _places(blocks: tuple[BlockSpec, ...], row_names: tuple[str, ...]) -> Places:
    index = {name: i for i, name in enumerate(row_names)}
    names, starts, block_rows, part_rows = [], [0], [], []
    for block in blocks:
        own = index.get(block.name, -1)
        parts = [index[part] for part in (f"{block.name}.{name}" for name in block.components) if part in index]
        if not parts and own < 0:
            continue
        names.append(block.name)
        block_rows.append(own)
        part_rows += parts or [-1]
        starts.append(len(part_rows))
    return Places(
        row_names=row_names, blocks=tuple(names), starts=tuple(starts),
        block_rows=np.array(block_rows, dtype=np.intp), part_rows=np.array(part_rows, dtype=np.intp),
    )  # fmt: skip


def genome_of(schedule: Schedule, space: SearchSpace) -> Genome:
    """The genome of a canonical schedule of ``space``; rows that the space does not have are left out."""
    places, rows = places_of(space), dict(schedule.ops)
    plain = COMPUTE * schedule.n_steps
    codes = codes_of([rows.get(name, plain) for name in places.row_names]).reshape(-1, schedule.n_steps)
    whole = rows.get(MODEL_ROW, plain) if places.has_model_row else plain
    alive = places.alive(schedule.pruned)
    columns = places.read(codes)[alive].T
    steps: list[StepGene] = []
    for i, (sigma, solver, op) in enumerate(zip(schedule.sigma, schedule.solver, whole, strict=False)):
        if op == COMPUTE and i and np.array_equal(columns[i], columns[i - 1]):
            ranges = steps[-1].ranges
        else:
            ranges = tuple(_ranges(columns[i], alive, places)) if op == COMPUTE else ()
        steps.append(StepGene(sigma, solver, op, ranges))
    missing = codes != places.coded(steps)
    gone = set(schedule.pruned)
    unsaid: dict[int, list[tuple[str, str]]] = {}
    for row, step in np.argwhere(missing).tolist():
        name = places.row_names[row]
        if name not in gone and name.rpartition(".")[0] not in gone:
            unsaid.setdefault(step, []).append((name, OPS[codes[row, step]]))
    for i, cells in unsaid.items():
        steps[i] = replace(steps[i], cells=tuple(cells))
    axis = space.precision
    formats = axis.choice(schedule.precision, schedule.pruned) if axis.is_open else ()
    return Genome(tuple(steps), schedule.sigma[-1], schedule.pruned, formats)


def _ranges(column: Cells, alive: npt.NDArray[np.intp], places: Places) -> Iterator[Range]:
    """The longest `MAX_RANGES` ranges of one step, in order, over its ``column`` of places that are there."""
    if not column.any():
        return
    bounds = [0, *(np.flatnonzero(column[1:] != column[:-1]) + 1).tolist(), len(column)]
    said = column[bounds[:-1]].tolist()
    runs = [(a, b, cell) for a, b, cell in zip(bounds, bounds[1:], said, strict=False) if cell]
    joined: list[tuple[int, int, int]] = []
    for run in runs:
        if joined and (cell := _joint(joined[-1], run, alive, places)):
            joined[-1] = (joined[-1][0], run[1], cell)
        else:
            joined.append(run)
    longest = sorted(joined, key=lambda run: run[0] - run[1])[:MAX_RANGES]
    for a, b, cell in sorted(longest):
        level = "block" if cell < _PART else "component"
        yield Range(int(alive[a]), int(alive[b - 1]) + 1, OPS[cell & _CODE], level)


def _joint(left: tuple[int, int, int], right: tuple[int, int, int], alive: npt.NDArray[np.intp], places: Places) -> int:
    """What a range over both runs is, or 0: whole blocks beside part of a block with the same op are one range."""
    if left[1] != right[0] or left[2] & _CODE != right[2] & _CODE or left[2] == right[2]:
        return 0
    a, b, _ = left if left[2] >= _PART else right
    block = places.owner[alive[a]]
    inside = block == places.owner[alive[b - 1]] and b - a < places.starts[block + 1] - places.starts[block]
    return _BLOCK + (left[2] & _CODE) if inside else 0


def schedule_of(genome: Genome, space: SearchSpace) -> Schedule:
    """The canonical schedule of ``space`` that a genome stands for; the inverse of `genome_of`."""
    places = places_of(space)
    codes = places.coded(genome.steps)
    if len(codes):
        codes[:, 0] = 0
    busy, gone = np.flatnonzero(codes.any(axis=1)).tolist(), set(genome.pruned)
    ops = [
        (name, row)
        for name, row in zip([places.row_names[i] for i in busy], rows_of(codes[busy]) if busy else (), strict=True)
        if not gone or (name not in gone and name.rpartition(".")[0] not in gone)
    ]
    solver = tuple(step.solver for step in genome.steps)
    return space.build(
        sigma=genome.sigma, solver=solver, ops=ops, pruned=genome.pruned,
        precision=space.precision.rules(genome.formats, genome.pruned),
    )  # fmt: skip


def runs_of(genome: Genome, space: SearchSpace) -> int:
    """Constant runs of the cells that are there, step after step along the model: how much the genome has to say.

    A step at which the whole model does not compute is constant; a run may go on into the next step.
    """
    places = places_of(space)
    cells = places.read(places.coded(genome.steps))[places.alive(genome.pruned)]
    if not len(cells):
        cells = np.zeros((1, genome.n_steps), dtype=np.int8)
    for i, step in enumerate(genome.steps):
        if step.op != COMPUTE:
            cells[:, i] = _MODEL + OPS.index(step.op)
    along = cells.T.reshape(-1)
    return 1 + int(np.count_nonzero(along[1:] != along[:-1]))
