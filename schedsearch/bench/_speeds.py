"""Who is best at a given speed: our schedules against fewer steps, hand-made masks and the other searchers.

Every family is swept over its settings on calibration prompts with the cost model's predicted speeds; for each speed its
best setting goes on to the held-out prompts, where everything is measured in one run, interleaved. A setting counts for
a speed only if it was measured to reach it. This module does not know how our schedules were found.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from schedsearch.evaluate import HeldOutRow, PipelineEvaluator, evaluate_held_out
from schedsearch.optimize import HELD_OUT_SEED, Bench
from schedsearch.schedule import Schedule, Solver
from schedsearch.search import fora, scm, taylorseer, delta_dit
from schedsearch.space import SearchSpace, warp
from schedsearch.study import Candidate

SPEEDS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Measured speed-ups of the table."""

SHIFTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Shifts the few-step runs are swept over, on top of the model's own."""

LEEWAYS = (1.0, 1.04)
"""Predictions miss by a few per cent, so the best setting beyond the speed, and beyond a little more, are both measured."""

Settings = Iterator[tuple[str, Schedule]]
