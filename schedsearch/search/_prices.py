"""What schedules cost, learnt from those that were told: a sum of prices of the calls and blocks they compute.

Costs (wall time, multiply-accumulates) are sums over what runs, so a few dozen records settle them far better than any
general predictor could. This module does not know what the numbers measure.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self._parts = sorted({(_kind(b.name), part) for b in space.blocks for part in b.components})
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
        return np.array([*once, *computed, *left_out.values()])


def _kind(name: str) -> str:
    """The list a block belongs to, such as ``transformer_blocks``: its components cost alike."""
    return name.rpartition(".")[0]
