"""The scalars of ``table`` steps: least squares towards the teacher's state at the end of the step.

A step is ``x' = c0 x + c1 v + c2 v_1 + ...`` with the denoiser's outputs, newest first (Duan 2023, OLSS, arXiv
2305.14677, fits such sums of all earlier states; here the samples are those of the run itself). Inner products are
taken in double precision and added up over batches in their order, so equal runs give equal scalars, to the bit.

What is fitted is the difference to the Adams weights of the same order, with a ridge of 1e-10 on columns scaled to
length 1. Columns that depend on each other (a predicted output and those it was predicted from) therefore share their
weight and stay near Adams instead of growing without bound, and a teacher that is an Adams run gives Adams back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from schedsearch.runtime._solver import Call, fit, program
from schedsearch.schedule import TABLE_FAMILY, Schedule, Solver


def adams_weights(schedule: Schedule) -> tuple[tuple[float, ...], ...]:
    """Return, per call of ``schedule``, what an Adams step of the same order in place of a ``table`` step multiplies
    the base, the output and older outputs with; nothing for calls of other steps.
    """
    solver = tuple(
        Solver(family="adams" if s.order > 1 else "euler", order=s.order) if s.family == TABLE_FAMILY else s
        for s in schedule.solver
    )
    calls = program(dataclasses.replace(schedule, solver=solver, tables=None))
    return tuple(_plain_weights(call) if schedule.solver[call.step].family == TABLE_FAMILY else () for call in calls)


def _plain_weights(call: Call) -> tuple[float, ...]:
    weights = {(term.source, term.lag): term.weight for term in call.nxt}
    return (weights[("base", 0)], *(weights.get(("output", lag), 0.0) for lag in range(call.order)))


def solved(sums: torch.Tensor, prior: Sequence[float]) -> tuple[float, ...]:
    """Return the scalars nearest to ``prior`` among those that fit best.

    Args:
        sums: `(m + 1, m + 1)` inner products of the ``m`` columns and, last, of the target.
        prior: `(m,)` where a direction that the columns do not decide stays.
    """
    products = sums.double().cpu().numpy()
    gram, moments = products[:-1, :-1], products[:-1, -1]
    start = np.array(prior, dtype=np.float64)
    moved = fit(gram.tolist(), (moments - gram @ start).tolist())
    return tuple(float(value) for value in start + np.array(moved))
