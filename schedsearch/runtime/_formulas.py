"""The numbers of every solver family, for one step: which multiple of the sample and of each prediction goes into the
next sample. Knows nothing of schedules, histories or arrays.

A sample at noise level ``s`` is ``x = a x0 + b eps`` with ``a = alpha(s)`` and ``b = std(s)``. Every family integrates
the same ordinary differential equation, written in one predicted quantity ``F`` (velocity, noise or data) that a
polynomial through the newest values stands in for (Liu 2023, the unified sampling framework, arXiv 2312.07243):

    velocity   dx/dt = F                    t = s (flow), t = atan(s) (variance preserving)
    noise      d(x/a)/du = F                u = b/a = exp(-lambda)
    data       d(x/b)/du = F                u = a/b = exp(lambda)

``adams`` takes the polynomial in that variable, ``dpm`` and ``unipc`` take it in ``lambda = log(a/b)`` (Lu 2022, arXiv
2206.00927 and 2211.01095; Zhao 2023, arXiv 2302.04867), ``plms`` takes the coefficients of equal gaps whatever the
gaps are (Liu 2022, arXiv 2202.09778). So a step is a small linear system: the weights ``w_j`` at nodes ``tau_j`` (0 =
where the step starts, 1 = where it ends) make ``sum_j w_j tau_j**k`` equal to the k-th moment of the integral.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Prediction = Literal["velocity", "noise", "data"]
"""What a network predicts, and the quantity an update is written in."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What a noise level ``s`` means: ``x = alpha(s) x0 + std(s) eps``.

    Attributes:
        name: ``flow`` (``x = (1 - s) x0 + s eps``, velocity ``eps - x0``) or ``vp`` (variance preserving, ``s`` is
            ``std/alpha``, velocity ``alpha eps - std x0``).
    """

    name: Literal["flow", "vp"]

    def alpha(self, s: float) -> float:
        """Returns the share of the data at level ``s``."""
        return 1.0 - s if self.name == "flow" else 1.0 / math.sqrt(1.0 + s * s)

    def std(self, s: float) -> float:
        """Returns the share of the noise at level ``s``."""
        return s if self.name == "flow" else s / math.sqrt(1.0 + s * s)

    def lam(self, s: float) -> float:
        """Returns ``log(alpha/std)``, half the logarithm of the signal-to-noise ratio; infinite at the ends."""
        if s == 0.0:
            return math.inf
        if self.name == "vp":
            return -math.log(s)
        return math.log((1.0 - s) / s) if s < 1.0 else -math.inf

    def time(self, s: float) -> float:
        """Returns the variable in which the velocity is the derivative of the sample."""
        return s if self.name == "flow" else math.atan(s)


FLOW = Levels("flow")
VP = Levels("vp")


@dataclass(frozen=True, slots=True)
class Formula:
    """A solver record with its open ends settled: what `weights` needs of it."""

    family: str
    prediction: Prediction
    estimate: str


def predicted(levels: Levels, wanted: Prediction, output: Prediction, s: float) -> tuple[float, float]:
    """Returns ``(p, q)`` such that the quantity ``wanted`` is ``p * sample + q * output`` at level ``s``."""
    if wanted == output:
        return 0.0, 1.0
    flow, a, b = levels.name == "flow", levels.alpha(s), levels.std(s)
    if wanted == "velocity":
        data, noise = predicted(levels, "data", output, s), predicted(levels, "noise", output, s)
        of_noise, of_data = (1.0, 1.0) if flow else (a, b)
        return of_noise * noise[0] - of_data * data[0], of_noise * noise[1] - of_data * data[1]
    if output == "velocity":
        if wanted == "data":
            return (1.0 if flow else a), -b
        return (1.0 if flow else b), a
    return (1.0 / a, -b / a) if wanted == "data" else (1.0 / b, -a / b)


def first_order(levels: Levels, output: Prediction, s0: float, s1: float) -> tuple[float, float]:
    """Returns the weights of sample and output in a DDIM step, which every family is at order 1 (Song 2021, arXiv
    2010.02502): data and noise are held. Finite at both ends, whatever the update is written in.
    """
    data, noise = predicted(levels, "data", output, s0), predicted(levels, "noise", output, s0)
    a, b = levels.alpha(s1), levels.std(s1)
    return a * data[0] + b * noise[0], a * data[1] + b * noise[1]


@lru_cache(maxsize=32768)  # a search meets the same gaps again and again
def weights(
    levels: Levels, formula: Formula, s0: float, s1: float, *, older: tuple[float, ...] = (), ends: bool = False
) -> tuple[Prediction, float, tuple[float, ...]]:
    """Returns the quantity ``F`` the step is written in, the weight of the sample and those of the values of ``F``.

    Args:
        levels: flow or variance preserving.
        formula: family, quantity and estimate.
        s0: level the step starts from.
        s1: level it ends at.
        older: levels of further known values, newest first.
        ends: a value at ``s1`` is known too (a corrector); its weight comes last.

    The ends of the range are limits. To level 0 ``lambda`` is infinite: families whose variable is infinite there step
    to the data prediction, at first order. From flow level 1, where ``alpha`` is 0, no update can be written in the
    noise, and the velocity is used; a value known there lies infinitely far back in ``lambda`` and weighs nothing.
    """
    prediction = formula.prediction
    if prediction == "noise" and levels.alpha(s0) == 0.0:
        formula, prediction = Formula("adams", "velocity", formula.estimate), "velocity"
    count = 1 + len(older) + ends
    if count == 1 or (s1 == 0.0 and _is_infinite_at_zero(formula)):
        of_sample, of_value = _held(levels, prediction, s0, s1)
        return prediction, of_sample, (of_value,) + (0.0,) * (count - 1)
    if formula.family == "plms":
        shares: Sequence[float] = _EQUAL_GAPS_TO_END[count] if ends else _EQUAL_GAPS[count]
        of_sample, of_value = _carried(levels, prediction, s0, s1)
        return prediction, of_sample, tuple(of_value * share for share in shares)
    nodes = [s0, *older, *([s1] if ends else [])]
    of_sample = _carried(levels, prediction, s0, s1)[0]
    if formula.family in ("dpm", "unipc"):
        return prediction, of_sample, _in_lambda(levels, formula, s0, s1, nodes)
    return prediction, of_sample, _in_own_variable(levels, prediction, s0, s1, nodes)


# Adams-Bashforth and Adams-Moulton coefficients for equal gaps, by number of values; newest first, then the end.
_EQUAL_GAPS = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
_EQUAL_GAPS_TO_END = {
    2: (1 / 2, 1 / 2),
    3: (8 / 12, -1 / 12, 5 / 12),
    4: (19 / 24, -5 / 24, 1 / 24, 9 / 24),
    5: (646 / 720, -264 / 720, 106 / 720, -19 / 720, 251 / 720),
}


_FACTORIALS = [math.factorial(k) for k in range(8)]


def _is_infinite_at_zero(formula: Formula) -> bool:
    return formula.family in ("dpm", "unipc") or (formula.family != "plms" and formula.prediction == "data")


def _held(levels: Levels, prediction: Prediction, s0: float, s1: float) -> tuple[float, float]:
    """The step that holds ``F``: exact if ``F`` is constant, and for the velocity exact if data and noise are."""
    if prediction == "velocity" and levels.name == "vp":
        angle = levels.time(s1) - levels.time(s0)
        return math.cos(angle), math.sin(angle)
    return _carried(levels, prediction, s0, s1)


def _carried(levels: Levels, prediction: Prediction, s0: float, s1: float) -> tuple[float, float]:
    """Weight of the sample, and of a constant ``F``, in the equation of that quantity."""
    if prediction == "velocity":
        return 1.0, levels.time(s1) - levels.time(s0)
    a0, b0, a1, b1 = levels.alpha(s0), levels.std(s0), levels.alpha(s1), levels.std(s1)
    if prediction == "noise":
        return a1 / a0, b1 - a1 * (b0 / a0)
    return b1 / b0, a1 - b1 * (a0 / b0)


def _in_own_variable(
    levels: Levels, prediction: Prediction, s0: float, s1: float, nodes: Sequence[float]
) -> tuple[float, ...]:
    """Adams: the polynomial lives in the variable of integration, whose moments are ``1 / (k + 1)``."""

    def variable(s: float) -> float:
        if prediction == "velocity":
            return levels.time(s)
        a, b = levels.alpha(s), levels.std(s)
        over, under = (b, a) if prediction == "noise" else (a, b)
        return over / under if under else math.inf

    start = variable(s0)
    length = variable(s1) - start
    scale = {"velocity": 1.0, "noise": levels.alpha(s1), "data": levels.std(s1)}[prediction] * length
    taus = [(variable(s) - start) / length for s in nodes]
    return _matched(taus, [scale / (k + 1) for k in range(len(nodes))])


def _in_lambda(levels: Levels, formula: Formula, s0: float, s1: float, nodes: Sequence[float]) -> tuple[float, ...]:
    """DPM-Solver and UniPC: the polynomial lives in ``lambda``, the integral has an exponential weight.

    The k-th moment is ``k! phi_{k+1}(z) h`` with ``z = h`` (noise) or ``-h`` (data). The published short cuts are other
    values of one moment: order 2 and the corrector of order 1 take half the zeroth moment (``midpoint``, ``bh2``) or
    half of ``h`` (``bh1``) for the first; the multistep third order of DPM-Solver takes half of the second.
    """
    start, h = levels.lam(s0), levels.lam(s1) - levels.lam(s0)
    noise = formula.prediction == "noise"
    scale = -levels.std(s1) if noise else levels.alpha(s1)
    if math.isinf(h):  # from flow level 1: all the weight of the exponential lies at the end, and every moment is 1
        moments = [1.0] * len(nodes)
    else:
        moments = [h * value for value in _phi_moments(h if noise else -h, len(nodes))]
    if len(nodes) == 2 and formula.estimate in ("midpoint", "bh2"):
        moments[1] = 0.5 * moments[0]
    elif len(nodes) == 2 and formula.estimate == "bh1" and not math.isinf(h):
        moments[1] = 0.5 * h
    elif len(nodes) == 3 and formula.estimate in ("midpoint", "heun") and s1 not in nodes:
        moments[2] *= 0.5
    taus = [_ratio(levels.lam(s) - start, h) if s != s0 else 0.0 for s in nodes]
    return _matched(taus, [scale * moment for moment in moments])


def _ratio(over: float, under: float) -> float:
    return 1.0 if over == under else over / under


def _phi_moments(z: float, count: int) -> list[float]:
    """Returns ``integral of exp(z (1 - tau)) tau**k`` over [0, 1] for ``k < count``: ``k! phi_{k+1}(z)``."""
    if abs(z) < 1.0:  # upwards the recursion would cancel: the highest by its series, the others downwards
        term, value = 1.0 / _FACTORIALS[count], 0.0
        for n in range(count + 1, count + 20):
            value += term
            term *= z / n
        values = [value]
        for k in range(count - 1, 0, -1):
            values.insert(0, z * values[0] + 1.0 / _FACTORIALS[k])
        return [_FACTORIALS[k] * value for k, value in enumerate(values)]
    values = [math.expm1(z) / z]
    for k in range(1, count):
        values.append((k * values[-1] - 1.0) / z)
    return values


def _matched(taus: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """Returns weights with ``sum_j w_j tau_j**k = moments[k]``; a node at infinity weighs nothing, and the last moment
    is then left out.
    """
    finite = [j for j, tau in enumerate(taus) if math.isfinite(tau)]
    rows = [[taus[j] ** k for j in finite] + [moments[k]] for k in range(len(finite))]
    solved = iter(solve(rows))
    return tuple(next(solved) if j in finite else 0.0 for j in range(len(taus)))


def solve(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Returns the solution of a small linear system whose rows end with the right-hand side, by elimination with the
    largest pivot of the column.

    Raises:
        ZeroDivisionError: the system is singular.
    """
    left = [list(row) for row in rows]
    size = len(left)
    for k in range(size):
        pivot = max(range(k, size), key=lambda i: abs(left[i][k]))
        left[k], left[pivot] = left[pivot], left[k]
        for i in range(k + 1, size):
            factor = left[i][k] / left[k][k]
            left[i] = [a - factor * b for a, b in zip(left[i], left[k], strict=True)]
    out = [0.0] * size
    for k in reversed(range(size)):
        known = sum(left[k][j] * out[j] for j in range(k + 1, size))
        out[k] = (left[k][size] - known) / left[k][k]
    return tuple(out)
