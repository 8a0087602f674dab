"""The legal set of schedules for one model: what may be searched, and the canonical form of everything in it.

A space is made of axes. Rows of ops exist at up to three levels (``model``, ``block``, ``component``), each with its
legal symbols; the number of steps is the default one or lies in a range; blocks may be removed up to a limit. All other
parts of a schedule are frozen at their defaults. Every schedule has one canonical form in the space,
`SearchSpace.repair`, so equal plans get equal ids. This module does not know files (``_load.py``) nor any algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from schedsearch.errors import SpaceError
from schedsearch.schedule import COMPUTE, MODEL_ROW, OPS, SKIP, ModelRef, Schedule, Solver
from schedsearch.space._codes import PRUNED_CODE, Codes, canonical, codes_of, landing_table, rows_of
from schedsearch.space._count import CountedBlock, count_schedules
from schedsearch.space._grid import resampled
from schedsearch.types import BlockSpec

LEVELS = ("model", "block", "component")
"""Levels of rows, coarse first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forbidden:
    """Symbols that rows matching a glob may not hold, and why."""

    rows: str
    symbols: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The legal set of schedules for one model.

    Attributes:
        name: which space file this came from.
        model: the denoiser.
        blocks: its schedulable blocks, in order of execution.
        sigma: `(n_steps + 1,)` the default noise levels.
        levels: pairs ``(level, symbols)``, coarse first; a level that is not searched is absent.
        counts: legal numbers of steps, ascending; the default one is among them.
        prunable: blocks that may be removed for the whole run, unless ``forbidden`` says they may not be skipped.
        max_pruned: most blocks that may be removed at once.
        forbidden: exceptions to ``levels``.
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

    # ---- what there is

    @property
    def n_steps(self) -> int:
        """The default number of steps."""
        return len(self.sigma) - 1

    @cached_property
    def base(self) -> Schedule:
        """The identity: the default grid, everything computed."""
        return self._schedule(self.n_steps, (), ())

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
        banned = {char for rule in self.forbidden if fnmatchcase(row, rule.rows) for char in rule.symbols}
        return "".join(char for char in OPS if char in legal and char not in banned)

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
        return count_schedules(self.symbols_of(MODEL_ROW), blocks, counts=self.counts, max_pruned=self.max_pruned)

    # ---- schedules and arrays

    def encode(self, schedule: Schedule) -> Codes:
        """Codes `(n_rows, n_steps)` of a schedule's rows: positions in ``CR123S``, -1 throughout for a removed block.

        A schedule from elsewhere is read as far as the space can say it: unknown rows are left out and an illegal
        number of steps is resampled to the nearest legal one.
        """
        plain = COMPUTE * schedule.n_steps
        rows = dict(schedule.ops)
        codes = codes_of([rows.get(name, plain) for name in self.row_names]).reshape(-1, schedule.n_steps)
        wanted = min(self.counts, key=lambda count: (abs(count - schedule.n_steps), count))
        if wanted != schedule.n_steps:
            codes = codes[:, np.arange(wanted) * schedule.n_steps // wanted]
        removed = set(schedule.pruned)
        if removed:
            codes[[row in removed or self._owner.get(row) in removed for row in self.row_names]] = PRUNED_CODE
        return codes

    def decode(self, codes: Codes) -> Schedule:
        """The schedule that ``codes`` `(n_rows, n_steps)` stand for, in canonical form.

        On the codes of a repaired schedule this is the inverse of `encode`; any other codes are repaired on the way.

        Raises:
            SpaceError: if the shape is not one of this space, or a code is unknown.
        """
        if codes.ndim != 2 or codes.shape[0] != len(self.row_names) or codes.shape[1] not in self.counts:
            raise SpaceError(
                f"codes: found shape {codes.shape}, expected ({len(self.row_names)}, n) "
                f"with n in {_brief(self.counts)}."
            )
        if codes.size and (codes.min() < PRUNED_CODE or codes.max() >= len(OPS)):
            raise SpaceError(f"codes: found {codes.min()}..{codes.max()}, expected -1..{len(OPS) - 1} ({OPS})")
        removed = self._removed(codes)
        gone = [row in removed or self._owner.get(row) in removed for row in self.row_names] if removed else None
        plain = np.maximum(codes, 0).astype(np.int8, copy=False)
        if gone is not None:
            plain[gone] = 0
        if len(plain):
            plain = canonical(plain, parents=self._parents, has_model_row=self._has_model_row, landing=self._landing)
        if gone is not None:
            plain[gone] = 0
        busy = np.flatnonzero(plain.any(axis=1))
        rows = rows_of(plain[busy]) if len(busy) else []
        ops = tuple((self.row_names[i], row) for i, row in zip(busy, rows, strict=True))
        return self._schedule(codes.shape[1], ops, tuple(removed))

    def repair(self, schedule: Schedule) -> Schedule:
        """The canonical schedule of this space nearest to ``schedule``; repairing twice changes nothing more.

        Step 0 computes everywhere; a forecast is lowered to the order its history carries; a symbol its row may not
        hold becomes the nearest lower one; finer rows say compute where a coarser one does not compute; parts that are
        frozen return to their defaults. Results and origin are dropped: they belong to the schedule that came in.
        """
        return self.decode(self.encode(schedule))

    def sample(self, rng: np.random.Generator) -> Schedule:
        """A random schedule: any of the space can come out, and all shares of computed cells are equally likely.

        Some of the levels (at least one) are drawn to be active. In each, the share of cells that compute is uniform in
        [0, 1], rows move together or each on its own, and the rest holds one symbol or a mix.
        """
        n_steps = int(rng.choice(self.counts))
        codes = np.zeros((len(self.row_names), n_steps), dtype=np.int8)
        searched = [(level, symbols) for level, symbols in self.levels if len(symbols) > 1]
        active = rng.random(len(searched)) < 0.5
        if searched and not active.any():
            active[rng.integers(len(searched))] = True
        for (level, symbols), is_active in zip(searched, active, strict=True):
            if is_active:
                rows = self._rows_at(level)
                codes[rows] = _random_cells(rng, symbols, (len(rows), n_steps))
        most = min(self.max_pruned, len(self._removable))
        if most and rng.random() < 0.25:
            names = rng.choice(self._removable, size=rng.integers(1, most + 1), replace=False)
            removed = {str(name) for name in names}
            codes[[row in removed or self._owner.get(row) in removed for row in self.row_names]] = PRUNED_CODE
        return self.decode(codes)

    def neighbours(self, schedule: Schedule) -> Iterator[Schedule]:
        """Distinct schedules one cell away from ``schedule`` (after repair), row by row, step by step."""
        start = self.repair(schedule)
        codes = self.encode(start)
        seen = {start}
        for row, name in enumerate(self.row_names):
            legal = [OPS.index(char) for char in self.symbols_of(name)]
            for step in range(1, codes.shape[1]):
                for code in legal if codes[row, step] != PRUNED_CODE else ():
                    changed = codes.copy()
                    changed[row, step] = code
                    neighbour = self.decode(changed)
                    if neighbour not in seen:
                        seen.add(neighbour)
                        yield neighbour

    # ---- legality

    def check(self, schedule: Schedule) -> str | None:
        """Why ``schedule`` is not a canonical member of this space, or ``None`` if it is one."""
        bare = replace(schedule, measured=self.base.measured, provenance=self.base.provenance)
        repaired = self.repair(schedule)
        return None if bare == repaired else self._difference(bare, repaired)

    def _difference(self, found: Schedule, legal: Schedule) -> str:
        if found.model != legal.model:
            return f"model: found {found.model}, expected {legal.model}"
        if found.n_steps != legal.n_steps:
            return f"steps: found {found.n_steps} steps, expected one of {_brief(self.counts)}"
        for part in ("sigma", "solver", "guidance", "precision", "tables", "pruned"):
            if getattr(found, part) != getattr(legal, part):
                note = "frozen in this space"
                if part == "pruned":
                    reasons = [reason for name in found.pruned if (reason := self._must_stay(name))]
                    note = reasons[0] if reasons else f"at most {self.max_pruned} prunable blocks"
                return f"{part}: found {getattr(found, part)!r}, expected {getattr(legal, part)!r} ({note})"
        for name, row in found.ops:
            if name not in self.row_names:
                return (
                    f"ops.{name}: found a row, expected none: it is not among the {len(self.row_names)} rows searched"
                )
            for step, (char, wanted) in enumerate(zip(row, legal.row(name), strict=True)):
                if char != wanted:
                    return f"ops.{name}[{step}]: found {char}, expected {wanted}: {self._rule(name, step, char, legal)}"
        return f"ops: found {found.ops}, expected {legal.ops}"

    def _rule(self, name: str, step: int, char: str, legal: Schedule) -> str:
        """The rule that ``char`` breaks at ``step`` of row ``name``."""
        if char not in self.symbols_of(name):
            reasons = [r.reason for r in self.forbidden if fnmatchcase(name, r.rows) and char in r.symbols]
            return reasons[0] if reasons else f"row {name} may hold {self.symbols_of(name)}"
        if step == 0:
            return "the first step computes everything"
        for coarser in (MODEL_ROW, self._owner.get(name, name)):
            if coarser != name and legal.row(coarser)[step] != COMPUTE:
                return f"row {coarser} does not compute at this step"
        return "a forecast of order o needs o + 1 earlier computes"

    # ---- smaller spaces

    def restrict(
        self,
        *,
        levels: Sequence[str] | None = None,
        symbols: str | Mapping[str, str] | None = None,
        counts: Sequence[int] | None = None,
        max_pruned: int | None = None,
    ) -> SearchSpace:
        """A part of this space.

        Args:
            levels: the levels to keep.
            symbols: the symbols to keep, for all levels or by level; compute always stays.
            counts: the numbers of steps to keep.
            max_pruned: a lower limit on removed blocks.

        Raises:
            SpaceError: if something asked for is not in this space.
        """
        kept = tuple(levels) if levels is not None else tuple(level for level, _ in self.levels)
        _require_known("levels", kept, [level for level, _ in self.levels])
        wished = dict.fromkeys(kept, symbols) if isinstance(symbols, str) else dict(symbols or {})
        _require_known("symbols", tuple(wished), kept)
        narrowed = []
        for level, legal in self.levels:
            if level in kept:
                wanted = wished.get(level, legal)
                if not isinstance(symbols, str):
                    _require_known(f"symbols.{level}", wanted, legal)
                narrowed.append((level, "".join(char for char in legal if char in wanted or char == COMPUTE)))
        if counts is not None:
            _require_known("counts", tuple(map(str, counts)), [str(count) for count in self.counts])
            if not counts:
                raise SpaceError("counts: found none, expected at least one number of steps.")
        chosen = tuple(sorted(set(counts))) if counts is not None else self.counts
        grid = self.sigma if self.n_steps in chosen else self._grid(chosen[-1])
        limit = self.max_pruned if max_pruned is None else min(max_pruned, self.max_pruned)
        return replace(self, levels=tuple(narrowed), counts=chosen, sigma=grid, max_pruned=limit)

    # ---- derived once

    @cached_property
    def _block_names(self) -> frozenset[str]:
        return frozenset(block.name for block in self.blocks)

    @cached_property
    def _owner(self) -> dict[str, str]:
        return {f"{block.name}.{part}": block.name for block in self.blocks for part in block.components}

    @cached_property
    def _removable(self) -> tuple[str, ...]:
        """Blocks that may be removed and have a row to say it in; not those whose row must not skip."""
        owners = {self._owner.get(name, name) for name in self.row_names}
        return tuple(name for name in self.prunable if name in owners and not self._must_stay(name))

    def _must_stay(self, block: str) -> str:
        """Why ``block`` may not be skipped, and so not be removed either; empty if it may."""
        return next((r.reason for r in self.forbidden if SKIP in r.symbols and fnmatchcase(block, r.rows)), "")

    @cached_property
    def _has_model_row(self) -> bool:
        return MODEL_ROW in self.row_names

    @cached_property
    def _parents(self) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
        place = {name: i for i, name in enumerate(self.row_names)}
        return np.array([place.get(self._owner.get(name, ""), -1) for name in self.row_names], dtype=np.intp)

    @cached_property
    def _landing(self) -> Codes:
        return landing_table([self.symbols_of(name) for name in self.row_names])

    @cached_property
    def _grids(self) -> dict[int, tuple[float, ...]]:
        return {self.n_steps: self.sigma}

    @cached_property
    def _level_rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {level: [] for level in LEVELS}
        for i, name in enumerate(self.row_names):
            rows[self.level_of(name)].append(i)
        return rows

    def _rows_at(self, level: str) -> list[int]:
        return self._level_rows[level]

    def _grid(self, n_steps: int) -> tuple[float, ...]:
        if n_steps not in self._grids:
            self._grids[n_steps] = resampled(self.sigma, n_steps)
        return self._grids[n_steps]

    def _removed(self, codes: Codes) -> list[str]:
        """Blocks whose rows all say removed, as far as they may be, the first ones in order of execution."""
        if not self.max_pruned or not len(codes) or not (codes[:, 0] == PRUNED_CODE).any():
            return []
        kept = {
            self._owner.get(name, name)
            for name, first in zip(self.row_names, codes[:, 0], strict=True)
            if first != PRUNED_CODE
        }
        return [name for name in self._removable if name not in kept][: self.max_pruned]

    def _schedule(self, n_steps: int, ops: tuple[tuple[str, str], ...], pruned: tuple[str, ...]) -> Schedule:
        return Schedule(
            sigma=self._grid(n_steps), solver=(Solver(),) * n_steps, model=self.model, ops=ops, pruned=pruned
        )


def _random_cells(rng: np.random.Generator, symbols: str, shape: tuple[int, int]) -> Codes:
    """Cells `(n_rows, n_steps)`: a uniform share computes; rows alike or not; the rest one symbol or a mix."""
    idle = [OPS.index(char) for char in symbols if char != COMPUTE]
    share, together, one_symbol = rng.random(), rng.random() < 0.5, rng.random() < 0.5
    computes = np.broadcast_to(rng.random((1, shape[1]) if together else shape) < share, shape)
    filling = rng.choice(idle) if one_symbol else rng.choice(idle, size=shape)
    return np.where(computes, 0, filling).astype(np.int8)


def _require_known(path: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    for item in wanted:
        if item not in known:
            raise SpaceError(f"{path}: found {item!r}, expected one of {', '.join(known)}; a part cannot be larger.")


def _brief(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}..{counts[-1]}"
