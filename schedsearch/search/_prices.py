"""What schedules cost, learnt from those that were told: a sum of prices of the calls and blocks they compute.

Costs (wall time, multiply-accumulates) are sums over what runs, so a few dozen records settle them far better than any
general predictor could. A layer in another number format saves something each time it runs: a price per kind of layer
and format. This module does not know what the numbers measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import COMPUTE, MODEL_ROW, SKIP, Schedule
from schedsearch.space import SearchSpace

Floats = npt.NDArray[np.float64]

RIDGE = 1e-6
"""Pull of every price towards 0, relative to the mean square of what it counts."""


class Prices:
    """A linear model of a cost, fitted by least squares.

    Args:
        space: whose blocks have prices.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._blocks = space.blocks
        self._axis = space.precision
        self._parts = sorted({(_kind(b.name), part) for b in space.blocks for part in b.components})
        self._known = {b.name: b.name for b in space.blocks}
        self._known |= {f"{b.name}.{part}": b.name for b in space.blocks for part in b.components}
        self._owners: dict[str, str] = {}
        self._rows: dict[str, Floats] = {}
        self._weights: Floats | None = None
        self.error = float("inf")
        """Relative residual that nine in ten of the fitted records keep."""

    def fit(self, schedules: Sequence[Schedule], costs: Floats) -> None:
        """Learn from the positive ``costs`` `(n,)` of ``schedules``."""
        amounts = self._amounts(schedules)
        weighted = amounts / costs[:, None]  # relative errors are what matters
        scale = np.sqrt((weighted**2).mean(axis=0))
        used = scale > 0.0
        design = weighted[:, used] / scale[used]
        gram = design.T @ design + RIDGE * len(design) * np.eye(int(used.sum()))
        weights = np.zeros(amounts.shape[1])
        weights[used] = np.linalg.solve(gram, design.T @ np.ones(len(design))) / scale[used]
        self._weights = weights
        self.error = float(np.quantile(np.abs(weighted @ weights - 1.0), 0.9))

    def predict(self, schedules: Sequence[Schedule]) -> Floats:
        """Costs `(n,)` of ``schedules``; the model must have been fitted."""
        assert self._weights is not None, "fit first"  # noqa: S101
        found: Floats = self._amounts(schedules) @ self._weights
        return found

    def _amounts(self, schedules: Sequence[Schedule]) -> Floats:
        for schedule in schedules:
            if schedule.id not in self._rows:
                self._rows[schedule.id] = self._amounts_of(schedule)
        return np.array([self._rows[schedule.id] for schedule in schedules])

    def _amounts_of(self, schedule: Schedule) -> Floats:
        """How often each thing is paid for: the call, steps, outputs, solver terms, predictions, every block."""
        model = schedule.row(MODEL_ROW)
        twice = [s.family == "heun" or s.corrector == "implicit" for s in schedule.solver]
        calls = [step for step, char in enumerate(model) if char == COMPUTE]
        passes = {step: 1.0 + twice[step] for step in calls}
        gone = set(schedule.pruned)
        left_out = dict.fromkeys(self._parts, 0.0)
        computed, predicted = [], 0.0
        for block in self._blocks:
            row = schedule.row(block.name)
            running = [step for step in calls if row[step] == COMPUTE and block.name not in gone]
            computed.append(sum(passes[step] for step in running))
            predicted += sum(passes[step] for step in calls if row[step] not in (COMPUTE, SKIP))
            for part in block.components:
                inner = schedule.row(f"{block.name}.{part}")
                missing = [step for step in running if inner[step] != COMPUTE]
                left_out[_kind(block.name), part] += sum(passes[step] for step in missing)
                predicted += sum(passes[step] for step in missing if inner[step] != SKIP)
        terms = float(sum(s.order - 1 for s in schedule.solver))
        once = (1.0, schedule.n_steps, sum(passes.values()), terms, predicted)
        return np.array([*once, *computed, *left_out.values(), *self._in_formats(schedule, passes)])

    def _in_formats(self, schedule: Schedule, passes: Mapping[int, float]) -> Floats:
        """How often layers run in each format, by kind of group."""
        axis = self._axis
        if not axis.is_open:
            return np.zeros(0)
        kinds = {kind: i for i, kind in enumerate(axis.kinds)}
        runs = np.zeros((len(kinds), len(axis.formats)))
        known: dict[str, float] = {}
        for group, number in zip(axis.groups, axis.choice(schedule.precision, schedule.pruned), strict=True):
            for layer in group.layers if number else ():
                around = self._around(layer)
                if around not in known:
                    known[around] = self._runs(schedule, passes, around)
                runs[kinds[group.kind], number - 1] += known[around]
        return runs.reshape(-1)

    def _around(self, layer: str) -> str:
        """The component a layer is in, else its block, else nothing."""
        if layer not in self._owners:
            heads = [layer[:i] for i, char in enumerate(layer) if char == "."]
            inside = [name for name in (layer, *reversed(heads)) if name in self._known]
            self._owners[layer] = inside[0] if inside else ""
        return self._owners[layer]

    def _runs(self, schedule: Schedule, passes: Mapping[int, float], name: str) -> float:
        """How often what is in module ``name`` runs; all calls if it is in none."""
        if not name:
            return sum(passes.values())
        block = self._known[name]
        if block in schedule.pruned:
            return 0.0
        rows = [schedule.row(row) for row in dict.fromkeys((block, name))]
        return sum(count for step, count in passes.items() if all(row[step] == COMPUTE for row in rows))


def _kind(name: str) -> str:
    """The list a block belongs to, such as ``transformer_blocks``: its components cost alike."""
    return name.rpartition(".")[0]
