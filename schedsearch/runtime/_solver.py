"""Turns a schedule into the denoiser calls of a run and the linear combinations between them, before anything runs.

Everything a solver does is linear in what was recorded: per call the *sample* the denoiser saw, its *output*, and the
*base* the next step starts from (the sample, unless a corrector moved it). `program` settles families, orders, warm-up
and the ends of the range in floating point of double precision; `advance` carries it out on arrays or tensors of any
library. A run is

    for call in program(schedule):
        sample, history = advance(call, history, sample, denoiser(sample, call.sigma))

The rule of history and reuse: the history holds computed outputs only. Where the ``model`` row predicts the output, the
prediction counts as the value of its own step, at that step's level, and is forgotten after the step. So a forecast of
order ``o`` under Adams of order ``o + 1`` integrates that forecast exactly, and a reused output under any order of
Adams is an Euler step with the old value. The second call of a step (``heun``, corrector ``implicit``) is never kept.
Orders are clipped to the history plus one. Knows nothing of torch, numpy, diffusers or pipelines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from schedsearch.runtime._formulas import FLOW, VP, Formula, Levels, Prediction, first_order, predicted, weights
from schedsearch.runtime._formulas import solve as _solve
from schedsearch.schedule import COMPUTE, MODEL_ROW, Schedule, Solver

__all__ = [
    "FLOW",
    "VP",
    "Call",
    "History",
    "Levels",
    "Prediction",
    "Record",
    "Term",
    "advance",
    "call_sigmas",
    "columns",
    "fit",
    "fitted",
    "n_calls",
    "n_evaluations",
    "program",
]

HISTORY = 4
"""Records kept: an order of 4 needs three older values, its corrector four."""

Array = Any
"""A numpy array or a torch tensor."""


@dataclass(frozen=True, slots=True)
class Term:
    """One summand: ``weight`` times a part of the record ``lag`` records back; lag 0 is the call's own."""

    source: Literal["sample", "base", "output"]
    lag: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the denoiser (or of its prediction) and what comes of it.

    Attributes:
        step: index of the step it belongs to.
        sigma: noise level of the call.
        target: noise level of the sample it leads to.
        extra: the second call of its step.
        computes: the denoiser really runs; otherwise the ``model`` row predicts its output.
        keep: its record enters the history.
        drop: after it, the newest record leaves the history (an own call that was kept for its second call only).
        base: where the step starts, as a combination; empty means at the sample itself.
        nxt: the next sample, as a combination; empty for a ``table`` step that is not fitted yet.
        delta: for a plain Euler step ``x + delta * output`` its length ``s1 - s0``, else `None`.
        family: solver family after fall-backs.
        order: order after clipping; for a ``table`` step the number of outputs it combines.
    """

    step: int
    sigma: float
    target: float
    extra: bool = False
    computes: bool = True
    keep: bool = True
    drop: bool = False
    base: tuple[Term, ...] = ()
    nxt: tuple[Term, ...] = ()
    delta: float | None = None
    family: str = "euler"
    order: int = 1

    @property
    def unfitted(self) -> bool:
        """Whether the scalars of this ``table`` step are still to be found."""
        return not self.nxt


@dataclass(frozen=True, slots=True)
class Record:
    """What one call saw and gave."""

    sample: Array
    base: Array
    output: Array


History = tuple[Record, ...]
"""Newest first."""


def program(
    schedule: Schedule,
    *,
    levels: Levels = FLOW,
    output: Prediction = "velocity",
    begin: int = 0,
    weights: Sequence[Sequence[float]] | None = None,
) -> tuple[Call, ...]:
    """Returns the calls of a run of ``schedule`` in order.

    Args:
        schedule: a valid schedule.
        levels: what its noise levels mean.
        output: what the network predicts.
        begin: first step that is executed; the history is empty there.
        weights: `(n_steps, 1 + max order)`, the scalars of ``table`` steps: row i is ``c0, c1, ...`` of step i. `None`
            leaves them open (`Call.unfitted`).

    ``dpm`` and ``unipc`` know no velocity: asked for it, they are written in the data.

    A ``table`` step without enough history for its order, and every one in a run that begins later than step 0, is an
    Adams step of the order that the history allows: its scalars were fitted to another situation.
    """
    return tuple(_Writer(schedule, levels, output, begin, weights).calls())


def call_sigmas(schedule: Schedule, *, begin: int = 0) -> tuple[float, ...]:
    """Returns the noise level of every call."""
    sigma = schedule.sigma
    return tuple(s for i in range(begin, schedule.n_steps) for s in _step_sigmas(schedule.solver[i], *sigma[i : i + 2]))


def n_calls(schedule: Schedule, *, begin: int = 0) -> int:
    """Returns how many calls a run makes, predicted outputs included."""
    return len(call_sigmas(schedule, begin=begin))


def n_evaluations(schedule: Schedule, *, begin: int = 0) -> int:
    """Returns how often a run really evaluates the denoiser."""
    row, sigma = schedule.row(MODEL_ROW), schedule.sigma
    computing = [i for i in range(begin, schedule.n_steps) if row[i] == COMPUTE or i == begin]
    return sum(len(_step_sigmas(schedule.solver[i], *sigma[i : i + 2])) for i in computing)


def advance(
    call: Call, history: History, sample: Array, output: Array, *, delta: Array | None = None
) -> tuple[Array, History]:
    """Returns the next sample, in the type of ``output``, and the history after ``call``.

    Args:
        call: the call that was made.
        history: records of the calls before it, as this function returned them.
        sample: what the denoiser saw.
        output: what it gave.
        delta: replaces the number `Call.delta`, for a caller who needs its own rounding of it.

    Computes in single precision at least. Nothing is changed in place.

    Raises:
        ValueError: if the call is a ``table`` step that has no scalars yet.
    """
    if call.unfitted:
        raise ValueError(
            f"steps.solver[{call.step}]: found a table step without scalars, expected a fitted one. Fit it with "
            "`columns` and `fitted`, or replay a schedule whose tables are filled."
        )
    base = _summed(call.base, (Record(sample, sample, output), *history)) if call.base else sample
    record = Record(sample, base, output)
    if call.delta is not None:
        step = call.delta if delta is None else delta
        following = _wide(base) + step * output
    else:
        following = _summed(call.nxt, (record, *history))
    kept = (record, *history)[:HISTORY] if call.keep else history
    return _as(following, output), kept[1:] if call.drop else kept


def columns(call: Call, history: History, sample: Array, output: Array) -> list[Array]:
    """Returns what the scalars of the ``table`` step ``call`` multiply: its base, its output, older outputs."""
    base = _summed(call.base, (Record(sample, sample, output), *history)) if call.base else sample
    return [base, output, *(record.output for record in history[: call.order - 1])]


def fitted(call: Call, coefficients: Sequence[float]) -> Call:
    """Returns the ``table`` step ``call`` with ``coefficients`` ``c0`` (base), ``c1`` (output), ``c2`` ... (older).

    Raises:
        ValueError: if their number is not the order plus one.
    """
    if len(coefficients) != call.order + 1:
        raise ValueError(
            f"steps.solver[{call.step}]: found {len(coefficients)} scalars, expected {call.order + 1}: one for the "
            f"sample and {call.order} for outputs."
        )
    c0, *rest = coefficients
    nxt = (Term("base", 0, float(c0)), *(Term("output", lag, float(c)) for lag, c in enumerate(rest)))
    return replace(call, nxt=nxt, delta=None)


def fit(gram: Sequence[Sequence[float]], moments: Sequence[float]) -> tuple[float, ...]:
    """Returns the scalars ``c`` that bring ``sum_k c_k column_k`` nearest to a target, in the least squares sense.

    Args:
        gram: inner products of the columns.
        moments: inner products of each column with the target.

    Columns are scaled to length 1 and a ridge of 1e-10 of that is added, so that columns that depend on each other
    (a reused output and the value it repeats) share their weight instead of failing.
    """
    lengths = [float(gram[i][i]) ** 0.5 or 1.0 for i in range(len(moments))]
    rows = [
        [float(value) / (lengths[i] * lengths[j]) + (1e-10 if i == j else 0.0) for j, value in enumerate(row)]
        + [float(moments[i]) / lengths[i]]
        for i, row in enumerate(gram)
    ]
    return tuple(c / length for c, length in zip(_solve(rows), lengths, strict=True))


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one step is taken, after fall-backs: the formula, its order and its corrector."""

    formula: Formula
    order: int
    corrector: str
    table: bool


@dataclass(frozen=True, slots=True)
class _Pending:
    """A step that the next computed call corrects."""

    formula: Formula
    start: float
    older: tuple[float, ...]
    moved: bool


class _Writer:
    """Walks the steps once; ``_known`` are the levels of the computed outputs so far, newest first."""

    def __init__(
        self,
        schedule: Schedule,
        levels: Levels,
        output: Prediction,
        begin: int,
        table: Sequence[Sequence[float]] | None,
    ) -> None:
        self._schedule = schedule
        self._levels = levels
        self._output: Prediction = output
        self._begin = begin
        self._table = table
        self._known: list[float] = []
        self._pending: _Pending | None = None

    def calls(self) -> Iterator[Call]:
        for step in range(self._begin, self._schedule.n_steps):
            yield from self._step(step)

    def _step(self, step: int) -> Iterator[Call]:
        s0, s1 = self._schedule.sigma[step : step + 2]
        computes = self._schedule.row(MODEL_ROW)[step] == COMPUTE or not self._known
        rule = self._rule(step)
        older = tuple(self._known[: rule.order - 1])
        base = self._corrected(s0) if computes else ()
        moved = bool(base)
        two = len(_step_sigmas(self._schedule.solver[step], s0, s1)) == 2
        own = Call(
            step=step,
            sigma=s0,
            target=s1,
            computes=computes,
            keep=computes or two,
            base=base,
            family="table" if rule.table else rule.formula.family,
            order=rule.order,
        )
        if rule.table:
            if self._table is not None:
                own = fitted(own, self._table[step][: rule.order + 1])
        else:
            own = self._predicted(own, rule, older)
        yield own
        if two:
            nxt = self._combined(rule.formula, s0, s1, older=older, first_lag=1, end=True, moved=moved)
            yield replace(own, sigma=s1, extra=True, keep=False, drop=not computes, base=(), nxt=nxt, delta=None)
        pseudo = computes and rule.corrector == "pseudo"
        self._pending = _Pending(rule.formula, s0, older, moved=moved) if pseudo else None
        if computes:
            self._known.insert(0, s0)

    def _rule(self, step: int) -> _Rule:
        """Settles a step's record: what the names leave open, and what the history does not allow."""
        solver = self._schedule.solver[step]
        order = min(solver.order, len(self._known) + 1)
        if solver.family == "table" and order == solver.order and self._begin == 0:
            return _Rule(Formula("table", "velocity", "taylor"), order, "none", table=True)
        if solver.family in ("table", "euler", "heun"):
            prediction = "velocity" if solver.family == "table" else solver.prediction
            corrector = solver.corrector if solver.family == "euler" else "none"
            order = order if solver.family == "table" else 1
            return _Rule(Formula("adams", cast("Prediction", prediction), "taylor"), order, corrector, table=False)
        estimate = getattr(solver, "estimate", "default")
        if estimate == "default":
            estimate = "midpoint" if solver.family == "dpm" else "bh2"
        in_lambda = solver.family in ("dpm", "unipc")
        prediction = "data" if in_lambda and solver.prediction == "velocity" else solver.prediction
        formula = Formula(solver.family, cast("Prediction", prediction), estimate)
        return _Rule(formula, order, solver.corrector, table=False)

    def _predicted(self, own: Call, rule: _Rule, older: tuple[float, ...]) -> Call:
        s0, s1 = own.sigma, own.target
        if older or own.base:
            moved = bool(own.base)
            nxt = self._combined(rule.formula, s0, s1, older=older, first_lag=0, end=False, moved=moved)
            return replace(own, nxt=nxt)
        if self._levels.name == "flow" and self._output == "velocity":
            delta = s1 - s0
            return replace(own, nxt=(Term("base", 0, 1.0), Term("output", 0, delta)), delta=delta)
        of_sample, of_output = first_order(self._levels, self._output, s0, s1)
        return replace(own, nxt=(Term("base", 0, of_sample), Term("output", 0, of_output)))

    def _corrected(self, s0: float) -> tuple[Term, ...]:
        """The base of a call that corrects the step before it; both calls are computed ones."""
        if self._pending is None:
            return ()
        last = self._pending
        return self._combined(last.formula, last.start, s0, older=last.older, first_lag=1, end=True, moved=last.moved)

    def _combined(
        self,
        formula: Formula,
        s0: float,
        s1: float,
        *,
        older: tuple[float, ...],
        first_lag: int,
        end: bool,
        moved: bool,
    ) -> tuple[Term, ...]:
        """Terms of a step from ``s0`` to ``s1`` whose newest value lies ``first_lag`` records back; with ``end``, lag 0
        is the value at ``s1``. Where nothing ``moved`` the base, it is the sample, and one term serves both.
        """
        quantity, of_base, shares = weights(self._levels, formula, s0, s1, older=older, ends=end)
        nodes = [(first_lag + i, s) for i, s in enumerate((s0, *older))] + ([(0, s1)] if end else [])
        terms: list[Term] = []
        for (lag, s), share in zip(nodes, shares, strict=True):
            if share:
                of_sample, of_output = predicted(self._levels, quantity, self._output, s)
                if lag == first_lag and not moved:
                    of_base, of_sample = of_base + share * of_sample, 0.0
                terms += [Term("sample", lag, share * of_sample), Term("output", lag, share * of_output)]
        return tuple(term for term in (Term("base", first_lag, of_base), *terms) if term.weight)


def _step_sigmas(solver: Solver, s0: float, s1: float) -> tuple[float, ...]:
    """Levels a step calls the denoiser at; at level 0 there is nothing to ask it."""
    two = solver.family == "heun" or (solver.corrector == "implicit" and solver.family != "table")
    return (s0, s1) if two and s1 > 0.0 else (s0,)


def _summed(terms: Sequence[Term], records: Sequence[Record]) -> Array:
    """The combination in single precision at least, in the order of the terms."""
    total: Array = None
    for term in terms:
        value = term.weight * _wide(getattr(records[term.lag], term.source))
        total = value if total is None else total + value
    return total


def _wide(value: Array) -> Array:
    """``value`` in single precision if it had less; torch and numpy spell that differently."""
    if value.dtype.itemsize >= 4:
        return value
    return value.float() if hasattr(value, "float") else value.astype("float32")


def _as(value: Array, like: Array) -> Array:
    if value.dtype == like.dtype:
        return value
    return value.to(like.dtype) if hasattr(value, "to") else value.astype(like.dtype)
