"""A schedule as numbers: one vector of fixed length per schedule, so that predictors can compare schedules.

What decides the error of a run is known in kind: a step from ``a`` to ``b`` that integrates the polynomial through its
nodes errs in proportion to ``|b - a| * prod |middle - node|`` (interpolation error, one factor per node). The vector
holds logarithms of these errors, by noise level and by number of nodes, beside plain descriptions: the noise levels at
fixed fractions of the run, shares of families and symbols, per row how much it computes and how stale it gets, and of
each number format which share of the layers of a kind, or of a block, has it. This module does not know how good any
schedule is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import MODEL_ROW, OPS, Schedule, Solver
from schedsearch.schedule._vocabulary import CORRECTORS, ESTIMATES, FAMILIES, PREDICTIONS
from schedsearch.space import PrecisionAxis

Array = npt.NDArray[np.float64]

WORDS = (FAMILIES, PREDICTIONS, CORRECTORS, ESTIMATES)
"""What a solver record is made of besides its order."""

_LEVELS = 9
"""Fractions of the run at which noise levels are read."""
_ZONES = 6
"""Zones of noise level over which errors are summed."""
_NODES = 4
"""Most nodes a step looks back on."""
_FLOOR = 1e-6
"""Added before logarithms."""
_CELL_OF = np.zeros(256, dtype=np.int8)
_CELL_OF[np.frombuffer(OPS.encode(), dtype=np.uint8)] = np.arange(len(OPS), dtype=np.int8)


class Features:
    """Vectors that tell schedules apart by the rows and removed modules named in a few of them."""

    def __init__(self, schedules: Sequence[Schedule], axis: PrecisionAxis | None = None) -> None:
        """Take the vocabulary from ``schedules``; what others name beside it only counts in the shares.

        Args:
            schedules: what is to be told apart.
            axis: of number formats; without one they are not looked at.
        """
        self._axis = axis if axis is not None and axis.is_open else None
        self.rows = frozenset(name for schedule in schedules for name, _ in schedule.ops) - {MODEL_ROW}
        self.pruned = frozenset(name for schedule in schedules for name in schedule.pruned)
        self.is_flow = all(schedule.sigma[0] <= 1.0 for schedule in schedules)
        self._rows = {name: i for i, name in enumerate(sorted(self.rows))}
        self._removed = {name: i for i, name in enumerate(sorted(self.pruned))}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Features):
            return NotImplemented
        return (self.rows, self.pruned, self.is_flow) == (other.rows, other.pruned, other.is_flow)

    def __hash__(self) -> int:
        return hash((self.rows, self.pruned, self.is_flow))

    def of(self, schedules: Sequence[Schedule]) -> Array:
        """`(n_schedules, n_features)`; each vector depends on its own schedule alone."""
        vectors: list[Array | None] = [None] * len(schedules)
        for n_steps in sorted({schedule.n_steps for schedule in schedules}):
            places = [i for i, schedule in enumerate(schedules) if schedule.n_steps == n_steps]
            for place, vector in zip(places, self._group([schedules[i] for i in places], n_steps), strict=True):
                vectors[place] = vector
        return np.array(vectors, dtype=np.float64)

    def _group(self, schedules: Sequence[Schedule], n_steps: int) -> Array:
        """Vectors of schedules of equally many steps."""
        sigma = np.array([schedule.sigma for schedule in schedules])
        cells = cells_of([schedule.row(MODEL_ROW) for schedule in schedules], n_steps)
        nodes, calls, words = solver_table(schedules)
        computes = cells == 0
        work = (computes * calls).sum(axis=1)
        parts = [
            _counts(np.full(len(schedules), float(n_steps)), work),
            self._depths(sigma) @ _reading(n_steps),
            self._errors(sigma, computes, np.where(computes, nodes, np.maximum(cells, 1))),
            np.stack([(cells == code).mean(axis=1) for code in range(1, len(OPS) - 1)], axis=1),
            nodes @ _reading(n_steps - 1)[:, ::2],
            np.einsum("mnk,nf->mkf", words, _thirds(n_steps)).reshape(len(schedules), -1),
            np.array([float(len(schedule.pruned)) for schedule in schedules])[:, None],
        ]
        if self._rows:
            finer = self._finer(schedules, sigma)
            parts += [*finer, _counts(work * (1.0 - finer[0][:, 0]))]
        if self._removed:
            parts.append(self._pruned(schedules))
        if self._axis is not None:
            parts.append(_format_shares(schedules, self._axis))
        return np.concatenate(parts, axis=1)

    def _depths(self, sigma: Array) -> Array:
        """Half the log signal-to-noise ratio, kept finite at both ends; `(n, n_steps + 1)` as ``sigma``."""
        if not self.is_flow:
            return -np.log(sigma + 0.01)
        return np.log((1.0 - sigma + 0.01) / (sigma + 0.01))

    def _errors(self, sigma: Array, computes: npt.NDArray[np.bool_], nodes: Array) -> Array:
        """Logarithms of the interpolation errors `(n, _ZONES + _NODES + 1)`: by zone, by number of nodes, and all."""
        n, n_steps = computes.shape
        history = np.zeros((n, _NODES))
        known = np.zeros(n)
        zones, by_nodes = np.zeros((n, _ZONES)), np.zeros((n, _NODES))
        centres = np.linspace(0.0, 1.0, _ZONES)
        for step in range(n_steps):
            here = computes[:, step]
            history[here, 1:] = history[here, :-1]
            history[here, 0] = sigma[here, step]
            known += here
            used = np.minimum(nodes[:, step], known)
            middle = 0.5 * (sigma[:, step] + sigma[:, step + 1])
            error = sigma[:, step] - sigma[:, step + 1]
            for k in range(_NODES):
                error = np.where(k < used, error * np.abs(middle - history[:, k]), error)
            place = middle if self.is_flow else np.log1p(middle) / np.log1p(sigma[:, 0])
            hats = np.maximum(0.0, 1.0 - np.abs(place[:, None] - centres) * (_ZONES - 1))
            zones += hats * error[:, None]
            by_nodes[np.arange(n), np.clip(used - 1, 0, _NODES - 1).astype(int)] += error
        total = by_nodes.sum(axis=1, keepdims=True)
        return np.log(np.concatenate([zones, by_nodes, total], axis=1) + _FLOOR)

    def _finer(self, schedules: Sequence[Schedule], sigma: Array) -> list[Array]:
        """Per row of blocks and components: share of steps that do not compute, and noise level lived through stale."""
        n, n_steps = sigma.shape[0], sigma.shape[1] - 1
        idle, stale = np.zeros((n, len(self._rows))), np.zeros((n, len(self._rows)))
        rows = [
            (i, self._rows[name], row)
            for i, schedule in enumerate(schedules)
            for name, row in schedule.ops
            if name in self._rows
        ]
        if rows:
            owner, row = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
            cells = cells_of([r[2] for r in rows], n_steps)
            spans = (-np.diff(sigma, axis=1) / sigma[:, :1])[owner]
            gap, total = np.zeros(len(rows)), np.zeros(len(rows))
            for step in range(n_steps):
                gap = np.where(cells[:, step] == 0, 0.0, gap + spans[:, step])
                relief = np.where((cells[:, step] > 1) & (cells[:, step] < len(OPS) - 1), 0.5, 1.0)
                total += relief * gap * spans[:, step]
            idle[owner, row] = (cells > 0).mean(axis=1)
            stale[owner, row] = total
        overall = np.column_stack([idle.mean(axis=1), np.log(stale.mean(axis=1) + 1e-4)])
        return [overall, idle, stale]

    def _pruned(self, schedules: Sequence[Schedule]) -> Array:
        flags = np.zeros((len(schedules), len(self._removed)))
        for i, schedule in enumerate(schedules):
            for name in schedule.pruned:
                if name in self._removed:
                    flags[i, self._removed[name]] = 1.0
        return flags


def _format_shares(schedules: Sequence[Schedule], axis: PrecisionAxis) -> Array:
    """Shares `(n, n_formats * (1 + n_kinds + n_blocks))` of layers in each format: of all, of a kind, of a block."""
    choices = np.array([axis.choice(schedule.precision, schedule.pruned) for schedule in schedules])
    sizes = np.array([float(len(group.layers)) for group in axis.groups])
    kinds = {kind: i for i, kind in enumerate(axis.kinds)}
    members = np.zeros((len(axis.groups), 1 + len(kinds) + len(axis.blocks)))
    members[:, 0] = sizes
    for i, group in enumerate(axis.groups):
        members[i, 1 + kinds[group.kind]] = sizes[i]
        for block in group.blocks:
            members[i, 1 + len(kinds) + block] = sizes[i] / len(group.blocks)
    members /= np.maximum(members.sum(axis=0), _FLOOR)
    return np.concatenate([(choices == number) @ members for number in range(1, len(axis.formats) + 1)], axis=1)


def _counts(*counts: Array) -> Array:
    """Counts `(n,)` and their logarithms as columns: costs are sums of them, errors powers."""
    return np.column_stack([*counts, *(np.log(np.maximum(count, _FLOOR)) for count in counts)])


def cells_of(rows: Sequence[str], n_steps: int) -> npt.NDArray[np.int8]:
    """Codes `(n_rows, n_steps)` of rows of equal length."""
    return _CELL_OF[np.frombuffer("".join(rows).encode(), dtype=np.uint8)].reshape(-1, n_steps)


def _reading(n_steps: int) -> Array:
    """Weights `(n_steps + 1, _LEVELS)` that read a series at evenly spaced fractions, linearly between its points."""
    at = np.linspace(0.0, n_steps, _LEVELS)
    out: Array = np.maximum(0.0, 1.0 - np.abs(np.arange(n_steps + 1)[:, None] - at))
    return out


def _thirds(n_steps: int) -> Array:
    """Weights `(n_steps, 3)` of averages over the beginning, the middle and the end."""
    weights = np.maximum(0.0, 1.0 - np.abs(np.linspace(0.0, 2.0, n_steps)[:, None] - np.arange(3)))
    out: Array = weights / np.maximum(weights.sum(axis=0), _FLOOR)
    return out


def solver_table(schedules: Sequence[Schedule]) -> tuple[Array, Array, Array]:
    """Of schedules of equally many steps: nodes and calls `(n, n_steps)`, and words one-hot `(n, n_steps, n_words)`."""
    rows: dict[Solver, int] = {}
    by_object: dict[int, int] = {}  # hashing a record takes longer than all else here
    places = []
    for schedule in schedules:
        for solver in schedule.solver:
            key = id(solver)
            if key not in by_object:
                by_object[key] = rows.setdefault(solver, len(rows))
            places.append(by_object[key])
    index = np.array(places).reshape(len(schedules), -1)
    nodes = np.array([min(float(solver.order + (solver.corrector != "none")), float(_NODES)) for solver in rows])
    calls = np.array([2.0 if solver.family == "heun" or solver.corrector == "implicit" else 1.0 for solver in rows])
    return nodes[index], calls[index], np.array([_words(solver) for solver in rows])[index]


def _words(solver: Solver) -> list[float]:
    said = (solver.family, solver.prediction, solver.corrector, solver.estimate)
    return [float(one == word) for words, one in zip(WORDS, said, strict=True) for word in words]
