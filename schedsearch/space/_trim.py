"""Makes a schedule cheaper by a given share: at some steps a run of blocks is forecast or reused instead of computed.

A budget rarely buys a whole number of denoiser calls. One call more than it buys, with some blocks left out at some
steps, keeps it as well and is often better than one call fewer. This module does not know costs: all blocks count
alike.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np

from schedsearch.schedule import COMPUTE, MODEL_ROW, REUSE, Schedule
from schedsearch.space._space import SearchSpace

FAVOURED = {"1": 8.0, "2": 2.0}
"""Odds of the symbols that take the place of a compute; all others have odds of 1."""

MOST_STEPS = 4
"""Most steps at which something is left out at once."""

LATER = 3.0
"""Odds of a step against the one before it: an error made late has no steps left to grow in."""


def trimmed(schedule: Schedule, space: SearchSpace, rng: np.random.Generator, *, share: float) -> Schedule | None:
    """``schedule`` with about ``share`` of its block computations replaced by forecasts or reuse.

    Args:
        schedule: a schedule of ``space``.
        space: where the result is legal.
        rng: source of the draw.
        share: in (0, 1), of all blocks at all computed steps.

    Returns:
        The repaired schedule, `None` where the space has no block rows that could say it, or no step after the first
        computes all blocks.
    """
    names = [
        block.name for block in space.blocks if block.name in space.row_names and block.name not in schedule.pruned
    ]
    model = schedule.row(MODEL_ROW)
    computed = [step for step, char in enumerate(model) if char == COMPUTE]
    rows = {name: schedule.row(name) for name in names}
    # The second computed step has nothing to forecast from but one value, so it is left alone where others can give.
    settled = computed[2:] or computed[1:]
    untouched = [s for s in settled if all(row[s] == COMPUTE for row in rows.values())]
    ops = sorted({char for name in names for char in space.symbols_of(name) if char == REUSE or char.isdigit()})
    if not names or not untouched or not ops:
        return None
    cells = share * len(computed) * len(names)
    fewest = ceil(cells / len(names))
    n_steps = min(len(untouched), MOST_STEPS, fewest + int(rng.geometric(0.6)) - 1)
    width = min(len(names), max(1, ceil(cells / n_steps + rng.uniform(-0.5, 1.0))))
    start = int(rng.integers(0, len(names) - width + 1)) if rng.random() < 0.6 else 0
    odds = np.array([FAVOURED.get(op, 1.0) for op in ops])
    late = LATER ** np.arange(len(untouched))
    for step in rng.choice(untouched, size=n_steps, replace=False, p=late / late.sum()):
        if rng.random() < 0.3:
            start = int(rng.integers(0, len(names) - width + 1))
        op = str(rng.choice(ops, p=odds / odds.sum()))
        for name in names[start : start + width]:
            symbol = op if op in space.symbols_of(name) else COMPUTE
            rows[name] = rows[name][:step] + symbol + rows[name][step + 1 :]
    others = tuple((name, row) for name, row in schedule.ops if name not in rows)
    changed = replace(schedule, ops=(*others, *((name, row) for name, row in rows.items())))
    return space.repair(changed)
