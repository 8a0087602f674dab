"""The legal set of schedules for one model: what may be searched, and the canonical form of everything in it.

A space is made of axes. Rows of ops exist at up to three levels (``model``, ``block``, ``component``), each with its
legal symbols; the number of steps is the default one or lies in a range; noise levels are the default ones or lie on a
lattice; every step has one of some solvers; blocks may be removed up to a limit; linear layers have one of some number
formats. All other parts of a schedule are frozen at their defaults. Every schedule has one canonical form in the space,
`SearchSpace.repair`, so equal plans get equal ids. This module does not know files (``_load.py``) nor any algorithm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb

import numpy as np

from schedsearch.errors import SpaceError
from schedsearch.schedule import COMPUTE, MODEL_ROW, OPS, ModelRef, PrecisionRule, Provenance, Schedule, Solver
from schedsearch.space._around import around
from schedsearch.space._codes import PRUNED_CODE, Codes, both, canonical_row, codes_of, resampled_row, rows_of
from schedsearch.space._count import CountedBlock, count_schedules
from schedsearch.space._draw import random_cells, random_sigma, random_solvers
from schedsearch.space._forbidden import Forbidden, banned, must_stay
from schedsearch.space._grid import Lattice, resampled, stretched
from schedsearch.space._narrow import narrowed_levels, require_known
from schedsearch.space._precision import PrecisionAxis, random_choice
from schedsearch.space._solvers import SolverAxis, named, stretched_solvers
from schedsearch.space._why import PARTS, brief, difference
from schedsearch.types import BlockSpec

LEVELS = ("model", "block", "component")
"""Levels of rows, coarse first."""

MAX_LATTICE = 65_536
_NOWHERE = Provenance()
CLOSED = PrecisionAxis()
"""The precision axis of a space that keeps all layers as they are."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The legal set of schedules for one model.

    Attributes:
        name: which space file this came from.
        model: the denoiser.
        blocks: its schedulable blocks, in order of execution.
        sigma: `(n + 1,)` the model's default noise levels.
        levels: pairs ``(level, symbols)``, coarse first; a level that is not searched is absent.
        counts: legal numbers of steps, ascending.
        prunable: blocks that may be removed for the whole run, unless ``forbidden`` says they may not be skipped.
        max_pruned: most blocks that may be removed at once.
        forbidden: exceptions to ``levels`` and ``solvers``.
        solvers: what a step may be taken with, the default first. Orders clipped to the history that exists, and
            Euler's step where all orders come to it, are legal besides.
        free_sigma: inner noise levels may be any of a lattice; else those of the default grid.
        lattice: parts the lattice cuts the range of noise levels into; the default levels are on it besides.
        precision: which linear layers may have which number formats; closed by default.

    Raises:
        SpaceError: if ``solvers`` is empty or ``lattice`` too coarse or too fine.
    """

    name: str
    model: ModelRef
    blocks: tuple[BlockSpec, ...]
    sigma: tuple[float, ...]
    levels: tuple[tuple[str, str], ...]
    counts: tuple[int, ...]
    prunable: tuple[str, ...] = ()
    max_pruned: int = 0
    forbidden: tuple[Forbidden, ...] = ()
    solvers: tuple[Solver, ...] = (Solver(),)
    free_sigma: bool = False
    lattice: int = 2048
    precision: PrecisionAxis = CLOSED

    def __post_init__(self) -> None:
        if not self.solvers:
            raise SpaceError("solvers: found none, expected at least one.")
        if not 2 <= self.lattice <= MAX_LATTICE:
            raise SpaceError(f"lattice: found {self.lattice}, expected 2..{MAX_LATTICE}.")

    # ---- what there is

    @cached_property
    def n_steps(self) -> int:
        """The model's default number of steps; where that is not legal, the legal one nearest to it."""
        return self._count_near(len(self.sigma) - 1)

    @cached_property
    def base(self) -> Schedule:
        """The plain run: the default grid and solver, everything computed."""
        return self.build(sigma=self.grid(self.n_steps), solver=self.solvers[:1] * self.n_steps)

    @cached_property
    def row_names(self) -> tuple[str, ...]:
        """Names of the rows that are searched: ``model``, then each block followed by its components."""
        searched = dict(self.levels)
        names = [MODEL_ROW] if "model" in searched else []
        for block in self.blocks:
            names += [block.name] if "block" in searched else []
            names += [f"{block.name}.{part}" for part in block.components] if "component" in searched else []
        return tuple(names)

    def level_of(self, row: str) -> str:
        """The level a row belongs to.

        Raises:
            SpaceError: if the model has no row of that name.
        """
        if row == MODEL_ROW:
            return "model"
        if row in self._block_names:
            return "block"
        if row in self._owner:
            return "component"
        raise SpaceError(f"{row}: found a row this model does not have, expected one of {len(self.row_names)} rows")

    def symbols_of(self, row: str) -> str:
        """Legal symbols of a row, compute first; only compute where the row's level is not searched."""
        legal = dict(self.levels).get(self.level_of(row), COMPUTE)
        without = banned(self.forbidden, row)
        return "".join(char for char in OPS if char in legal and char not in without)

    def grid(self, n_steps: int) -> tuple[float, ...]:
        """`(n_steps + 1,)` the default noise levels for that number of steps, spaced like the model's own."""
        if n_steps not in self._grids:
            self._grids[n_steps] = resampled(self.sigma, n_steps)
        return self._grids[n_steps]

    def sigma_lattice(self, n_steps: int) -> Lattice:
        """The legal inner noise levels of a run of ``n_steps``, numbered, where they are free."""
        if n_steps not in self._lattices:
            self._lattices[n_steps] = Lattice(self.grid(n_steps), self.sigma, self.lattice)
        return self._lattices[n_steps]

    @cached_property
    def solver_axis(self) -> SolverAxis:
        """Which solvers are legal where."""
        to_zero, flow = self.sigma[-1] == 0.0, self.sigma[0] <= 1.0
        return SolverAxis(self.solvers, self.forbidden, to_zero=to_zero, flow=flow)

    def solvers_at(self, schedule: Schedule, step: int) -> tuple[Solver, ...]:
        """Legal solvers of one step of a schedule of this space, the default first."""
        return self.solver_axis.legal(self.solver_axis.places(schedule.row(MODEL_ROW), schedule.solver)[step])

    def cardinality(self) -> int:
        """The exact number of schedules in the space (canonical forms)."""
        blocks = [
            CountedBlock(
                symbols=self.symbols_of(block.name),
                components=tuple(self.symbols_of(f"{block.name}.{part}") for part in block.components),
                prunable=block.name in self._removable,
            )
            for block in self.blocks
        ]
        groups = [frozenset(group.blocks) for group in self.precision.groups] if self.precision.is_open else []
        sigmas = {n: comb(len(self.sigma_lattice(n).levels), n - 1) if self.free_sigma else 1 for n in self.counts}
        return count_schedules(
            self.symbols_of(MODEL_ROW), blocks, sigmas=sigmas, max_pruned=self.max_pruned,
            solvers=self.solver_axis.ways, groups=groups, choices=1 + len(self.precision.formats),
        )  # fmt: skip

    # ---- schedules and arrays

    def encode(self, schedule: Schedule) -> Codes:
        """Codes `(n_rows, n_steps)` of a schedule's rows: positions in ``CR123S``, -1 throughout for a removed block.

        Rows only: noise levels and solvers are not among them. A schedule from elsewhere is read as far as the space
        can say it: unknown rows are left out and an illegal number of steps is resampled to the nearest legal one.
        """
        plain = COMPUTE * schedule.n_steps
        rows = dict(schedule.ops)
        codes = codes_of([rows.get(name, plain) for name in self.row_names]).reshape(-1, schedule.n_steps)
        wanted = self._count_near(schedule.n_steps)
        if wanted != schedule.n_steps:
            codes = codes[:, np.arange(wanted) * schedule.n_steps // wanted]
        removed = set(schedule.pruned)
        if removed:
            codes[[row in removed or self._owner.get(row) in removed for row in self.row_names]] = PRUNED_CODE
        return codes

    def decode(self, codes: Codes, *, like: Schedule | None = None) -> Schedule:
        """The schedule that ``codes`` `(n_rows, n_steps)` stand for, in canonical form.

        Noise levels, solvers and formats are those of ``like``, or the default ones. On the codes of a repaired
        schedule ``decode(codes, like=schedule)`` is the inverse of `encode`; any other codes are repaired on the way.

        Raises:
            SpaceError: if the shape is not one of this space, or a code is unknown.
        """
        if codes.ndim != 2 or codes.shape[0] != len(self.row_names) or codes.shape[1] not in self.counts:
            raise SpaceError(
                f"codes: found shape {codes.shape}, expected ({len(self.row_names)}, n) with n in {brief(self.counts)}."
            )
        if codes.size and (codes.min() < PRUNED_CODE or codes.max() >= len(OPS)):
            raise SpaceError(f"codes: found {codes.min()}..{codes.max()}, expected -1..{len(OPS) - 1} ({OPS})")
        n_steps = codes.shape[1]
        busy = np.flatnonzero(codes.any(axis=1)) if n_steps else np.empty(0, dtype=np.intp)
        rows = rows_of(np.maximum(codes[busy], 0)) if len(busy) else []
        sigma, solver = (
            (self.grid(n_steps), self.solvers[:1] * n_steps)
            if like is None
            else (stretched(like.sigma, n_steps), stretched_solvers(like.solver, n_steps))
        )
        return self.build(
            sigma=sigma, solver=solver, pruned=self._removed(codes),
            ops=[(self.row_names[i], row) for i, row in zip(busy, rows, strict=True)],
            precision=() if like is None else like.precision,
        )  # fmt: skip

    def build(
        self, *, sigma: Sequence[float], solver: Sequence[Solver], ops: Iterable[tuple[str, str]] = (),
        pruned: Iterable[str] = (), precision: Sequence[PrecisionRule] = (),
    ) -> Schedule:  # fmt: skip
        """The canonical schedule nearest to these parts, which need not make a legal schedule before.

        Args:
            sigma: `(n + 1,)` noise levels, in any order.
            solver: `(n,)` records.
            ops: rows ``(name, row)`` of ``n`` known characters.
            pruned: names of removed blocks.
            precision: rules, the first that matches a layer counts.
        """
        n_steps = self._count_near(len(solver))
        removed = self._removed_among(pruned)
        rows = self._canonical_rows(dict(ops), n_steps, removed)
        return Schedule(
            sigma=self._canonical_sigma(sigma, n_steps),
            solver=self._canonical_solver(solver, dict(rows).get(MODEL_ROW, COMPUTE * n_steps)),
            model=self.model, ops=rows, pruned=removed, precision=self.precision.canonical(precision, removed),
        )  # fmt: skip

    def repair(self, schedule: Schedule) -> Schedule:
        """The canonical schedule of this space nearest to ``schedule``; repairing twice changes nothing more.

        An illegal number of steps becomes the nearest legal one. Rows: step 0 computes everywhere; a forecast is
        lowered to the order its history carries; a symbol its row may not hold becomes the nearest lower one; finer
        rows say compute where a coarser one does not compute. Noise levels: the ends are pinned, inner ones go to the
        nearest level of the lattice. Solvers: the nearest legal record, its order clipped to the history. Precision:
        the canonical rules, without formats that the space does not open and without removed blocks. Parts that are
        frozen return to their defaults. Results, origin and fitted tables are dropped: a space holds plans.
        """
        n_steps = self._count_near(schedule.n_steps)
        removed = self._removed_among(schedule.pruned)
        rows = self._canonical_rows(dict(schedule.ops), n_steps, removed)
        sigma = self._canonical_sigma(schedule.sigma, n_steps)
        solver = self._canonical_solver(schedule.solver, dict(rows).get(MODEL_ROW, COMPUTE * n_steps))
        precision = self.precision.canonical(schedule.precision, removed)
        if (
            sigma == schedule.sigma and solver == schedule.solver and rows == schedule.ops
            and removed == schedule.pruned and precision == schedule.precision and schedule.model == self.model
            and _is_bare(schedule)
        ):  # fmt: skip
            return schedule
        return Schedule(
            sigma=sigma, solver=solver, model=self.model, ops=rows, pruned=removed, precision=precision
        )  # fmt: skip

    def sample(self, rng: np.random.Generator) -> Schedule:
        """A random schedule: any of the space can come out, and all shares of computed cells are equally likely.

        Some of the levels (at least one) are drawn to be active. In each, the share of cells that compute is uniform in
        [0, 1], rows move together or each on its own, and the rest holds one symbol or a mix. Free noise levels are the
        default ones, warped, jittered or anywhere; solvers are one throughout, two, or a mix; half leave all formats as
        they are.
        """
        n_steps = int(rng.choice(self.counts))
        codes = np.zeros((len(self.row_names), n_steps), dtype=np.int8)
        searched = [(level, symbols) for level, symbols in self.levels if len(symbols) > 1]
        active = rng.random(len(searched)) < 0.5
        if searched and not active.any() and not self._is_open:
            active[rng.integers(len(searched))] = True
        for (level, symbols), is_active in zip(searched, active, strict=True):
            if is_active:
                rows = self._level_rows[level]
                codes[rows] = random_cells(rng, symbols, (len(rows), n_steps))
        most = min(self.max_pruned, len(self._removable))
        if most and rng.random() < 0.25:
            names = rng.choice(self._removable, size=rng.integers(1, most + 1), replace=False)
            removed = {str(name) for name in names}
            codes[[row in removed or self._owner.get(row) in removed for row in self.row_names]] = PRUNED_CODE
        if not self._is_open:
            return self.decode(codes)
        busy = np.flatnonzero(codes.any(axis=1))
        texts = rows_of(np.maximum(codes[busy], 0)) if len(busy) else []
        grid = self.grid(n_steps)
        return self.build(
            sigma=random_sigma(rng, grid) if self.free_sigma else grid,
            solver=random_solvers(rng, self.solvers, n_steps),
            ops=[(self.row_names[i], row) for i, row in zip(busy, texts, strict=True)],
            pruned=self._removed(codes),
            precision=self._random_precision(rng),
        )

    def neighbours(self, schedule: Schedule) -> Iterator[Schedule]:
        """Distinct schedules one choice away from ``schedule`` (after repair).

        One cell, row by row and step by step; then the solver of one step; then one inner noise level, moved to the
        next one of the lattice on either side; then the format of one group of layers.
        """
        start = self.repair(schedule)
        seen = {start}
        for neighbour in around(self, start):
            if neighbour not in seen:
                seen.add(neighbour)
                yield neighbour

    # ---- legality

    def check(self, schedule: Schedule) -> str | None:
        """Why ``schedule`` is not a canonical member of this space, or ``None`` if it is one."""
        repaired = self.repair(schedule)
        if repaired is schedule or all(getattr(repaired, part) == getattr(schedule, part) for part in PARTS):
            return None
        return difference(self, schedule, repaired)

    # ---- smaller spaces

    def restrict(
        self,
        *,
        levels: Sequence[str] | None = None,
        symbols: str | Mapping[str, str] | None = None,
        counts: Sequence[int] | None = None,
        max_pruned: int | None = None,
        solvers: Sequence[Solver] | None = None,
        free_sigma: bool | None = None,
        precision: str | Sequence[PrecisionRule] | None = None,
    ) -> SearchSpace:
        """A part of this space: every schedule of it is one of this space.

        Args:
            levels: the levels to keep.
            symbols: the symbols to keep, for all levels or by level; compute always stays.
            counts: the numbers of steps to keep.
            max_pruned: a lower limit on removed blocks.
            solvers: the solvers to keep, the default first.
            free_sigma: ``False`` for the default noise levels only.
            precision: the formats to keep; ``frozen`` for none, so that all layers stay as they are.

        Raises:
            SpaceError: if something asked for is not in this space.
        """
        narrowed = narrowed_levels(self.levels, levels, symbols)
        if counts is not None:
            require_known("counts", tuple(map(str, counts)), [str(count) for count in self.counts])
            if not counts:
                raise SpaceError("counts: found none, expected at least one number of steps.")
        if solvers is not None:
            require_known("solvers", [named(s) for s in solvers], [named(s) for s in self.solvers])
        if free_sigma and not self.free_sigma:
            raise SpaceError("free_sigma: found True, expected False; a part cannot be larger.")
        axis = self.precision
        if precision is not None:
            if isinstance(precision, str) and precision != "frozen":
                raise SpaceError(f"precision: found {precision!r}, expected 'frozen' or the formats to keep.")
            axis = axis.narrowed(() if isinstance(precision, str) else precision)
        return replace(
            self,
            levels=narrowed,
            counts=tuple(sorted(set(counts))) if counts is not None else self.counts,
            max_pruned=self.max_pruned if max_pruned is None else min(max_pruned, self.max_pruned),
            solvers=tuple(dict.fromkeys(solvers)) if solvers is not None else self.solvers,
            free_sigma=self.free_sigma if free_sigma is None else free_sigma,
            precision=axis,
        )

    # ---- parts

    def _random_precision(self, rng: np.random.Generator) -> tuple[PrecisionRule, ...]:
        if not self.precision.is_open or rng.random() < 0.5:
            return ()
        return self.precision.rules(random_choice(rng, self.precision))

    def _count_near(self, n_steps: int) -> int:
        """The legal number of steps nearest to ``n_steps``."""
        if n_steps in self._count_set:
            return n_steps
        return min(self.counts, key=lambda count: (abs(count - n_steps), count))

    def _canonical_sigma(self, sigma: Sequence[float], n_steps: int) -> tuple[float, ...]:
        if not self.free_sigma:
            return self.grid(n_steps)
        return self.sigma_lattice(n_steps).snapped(stretched(sigma, n_steps))

    def _canonical_solver(self, solver: Sequence[Solver], model_row: str) -> tuple[Solver, ...]:
        wishes = stretched_solvers(solver, len(model_row))
        return self.solver_axis.settle(wishes, model_row)

    def _canonical_rows(
        self, wished: Mapping[str, str], n_steps: int, removed: Sequence[str]
    ) -> tuple[tuple[str, str], ...]:
        """Rows that do not only compute, in the order of ``wished``: coarse ones settle before finer ones."""
        plain = COMPUTE * n_steps
        settled: dict[str, str] = {}
        for level in LEVELS:
            for name, row in wished.items():
                if self._level.get(name) != level or name in removed or self._owner.get(name) in removed:
                    continue
                above = settled.get(MODEL_ROW, plain)
                owner = settled.get(self._owner.get(name, ""))
                if owner is not None:
                    above = both(above, owner)
                wish = row if len(row) == n_steps else resampled_row(row, n_steps)
                settled[name] = canonical_row(wish, above, self._symbols[name])
        return tuple([(name, settled[name]) for name in wished if settled.get(name, plain) != plain])

    def _removed_among(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` that may be removed, as far as they may be: the first ones in order of execution."""
        wished = tuple(names)
        if not wished:
            return ()
        chosen = [name for name in self._removable if name in wished][: self.max_pruned]
        return tuple([name for name in wished if name in chosen])

    def _removed(self, codes: Codes) -> list[str]:
        """Blocks whose rows all say removed."""
        if not len(codes) or not (codes[:, 0] == PRUNED_CODE).any():
            return []
        kept = {
            self._owner.get(name, name)
            for name, first in zip(self.row_names, codes[:, 0], strict=True)
            if first != PRUNED_CODE
        }
        return [name for name in self._removable if name not in kept]

    # ---- derived once

    @cached_property
    def _count_set(self) -> frozenset[int]:
        return frozenset(self.counts)

    @cached_property
    def _block_names(self) -> frozenset[str]:
        return frozenset(block.name for block in self.blocks)

    @cached_property
    def _owner(self) -> dict[str, str]:
        return {f"{block.name}.{part}": block.name for block in self.blocks for part in block.components}

    @cached_property
    def _level(self) -> dict[str, str]:
        """The level of every row that is searched."""
        return {name: self.level_of(name) for name in self.row_names}

    @cached_property
    def _symbols(self) -> dict[str, str]:
        return {name: self.symbols_of(name) for name in self.row_names}

    @cached_property
    def _level_rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {level: [] for level in LEVELS}
        for i, name in enumerate(self.row_names):
            rows[self._level[name]].append(i)
        return rows

    @cached_property
    def _removable(self) -> tuple[str, ...]:
        """Blocks that may be removed and have a row to say it in; not those whose row must not skip."""
        owners = {self._owner.get(name, name) for name in self.row_names}
        return tuple(name for name in self.prunable if name in owners and not must_stay(self.forbidden, name))

    @cached_property
    def _is_open(self) -> bool:
        """Whether there is more to choose than rows, removed blocks and the number of steps."""
        return self.free_sigma or len(self.solvers) > 1 or self.precision.is_open

    @cached_property
    def _grids(self) -> dict[int, tuple[float, ...]]:
        return {}

    @cached_property
    def _lattices(self) -> dict[int, Lattice]:
        return {}


def _is_bare(schedule: Schedule) -> bool:
    """Whether a schedule has no part that every space leaves out."""
    return (
        schedule.guidance is None and schedule.tables is None and not schedule.measured
        and schedule.provenance == _NOWHERE
    )  # fmt: skip
