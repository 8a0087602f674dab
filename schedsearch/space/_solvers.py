"""Which solvers a step may take, where it stands in its schedule; and the one nearest to a wish.

Two records that take a step in the same way have one canonical form here, so that equal plans get equal ids:

- an order looks back on computed outputs, so it is at most one more than there are before the step;
- order 1 of adams, plms, dpm and unipc without a corrector is Euler's step; what it is written in matters only where a
  pseudo corrector has moved the sample after the denoiser saw it; order 1 of table is not Euler's step, its two
  coefficients are fitted, in whatever quantity; order 1 of euler, adams or plms with an implicit corrector is heun;
- a pseudo corrector takes the output of the next call, so it is none where the step or the next one is predicted by the
  ``model`` row, and at the last step; heun and table have no corrector;
- where the last step ends at noise level 0 there is nothing left to evaluate: heun is euler there (Karras 2022,
  arXiv 2206.00364, algorithm 1) and an implicit corrector is none; and what is written in log(SNR) or in the data is
  infinite there, so dpm, unipc and adams in the data take that step at order 1;
- where the ``model`` row forecasts with order ``o``, the forecast passes through ``o + 1`` computed outputs, so order
  ``o + 2`` of table, and of adams in the velocity of a flow model, knows nothing that order ``o + 1`` does not;
- dpm and unipc know no velocity, and are written in the data then; they differ in how they estimate derivatives, and
  that only in some orders: the ones that agree are called dpm without a corrector and unipc with one.

This module does not know noise levels, nor rows other than the ``model`` row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from schedsearch.schedule import COMPUTE, Solver
from schedsearch.space._codes import needed

if TYPE_CHECKING:
    from schedsearch.space._forbidden import Forbidden

EULER = Solver()
PSEUDO = "pseudo"

_IN_OWN_VARIABLE = frozenset(("euler", "adams", "plms"))
"""Families that are one at order 1, corrector or not."""
_IN_LOG_SNR = frozenset(("dpm", "unipc"))
_MAX_HISTORY = 3
"""More computed outputs before a step than this open no further order."""

_HALVED, _SMALL, _EXACT = ("dpm", "midpoint"), ("unipc", "bh1"), ("dpm", "taylor")
_ESTIMATES = {
    2: {"midpoint": _HALVED, "bh2": _HALVED, "bh1": _SMALL, "taylor": _EXACT, "heun": _EXACT},
    3: {
        "midpoint": _HALVED,
        "heun": _HALVED,
        "bh1": ("unipc", "bh2"),
        "bh2": ("unipc", "bh2"),
        "taylor": ("unipc", "bh2"),
    },
}
"""By number of values an update is made of: the record that stands for all that estimate derivatives alike."""
_DEFAULT_ESTIMATE = {"dpm": "midpoint", "unipc": "bh2"}


class Place(NamedTuple):
    """Where a step stands, as far as its solver is concerned.

    Attributes:
        history: computed outputs before the step, 3 for more.
        symbol: what the ``model`` row says of it.
        ends_at_zero: it goes to noise level 0.
        is_followed: there is a next step, and its output is computed.
        is_moved: the step before has a pseudo corrector, which moves the sample this one starts from.
    """

    history: int
    symbol: str
    ends_at_zero: bool = False
    is_followed: bool = True
    is_moved: bool = False


def places(model_row: str, solvers: Sequence[Solver], *, to_zero: bool) -> Iterator[Place]:
    """The place of every step; ``to_zero`` says that the run ends at noise level 0.

    Of ``solvers`` only those before a step are read when its place is asked for, so the list may grow meanwhile.
    """
    history, last = 0, len(model_row) - 1
    is_moved = False
    for step, symbol in enumerate(model_row):
        is_last = step == last
        is_followed = not is_last and model_row[step + 1] == COMPUTE
        yield Place(min(history, _MAX_HISTORY), symbol, to_zero and is_last, is_followed, is_moved)
        history += symbol == COMPUTE
        is_moved = is_followed and solvers[step].corrector == PSEUDO


def settled(solver: Solver, place: Place, *, flow: bool = True) -> Solver:
    """The canonical record of what ``solver`` does at ``place``, in a flow model or another one.

    >>> settled(Solver(family="adams", order=4), Place(1, "C")).order
    2
    >>> settled(Solver(family="dpm", order=3, prediction="data"), Place(0, "C")) == Solver()
    True
    """
    family, order, prediction, corrector = solver.family, solver.order, solver.prediction, solver.corrector
    estimate = solver.estimate
    if family in ("heun", "table") or (corrector == PSEUDO and not (place.symbol == COMPUTE and place.is_followed)):
        corrector = "none"
    if place.ends_at_zero:
        corrector = "none"
        if family == "heun" or family in _IN_LOG_SNR or (family == "adams" and prediction == "data"):
            family, order = ("euler" if family == "heun" else family), 1
    if family == "table":
        prediction = EULER.prediction
    elif family in _IN_LOG_SNR and prediction == "velocity":
        prediction = "data"
    if family != "heun":
        order = min(order, place.history + 1)
    if order == needed(place.symbol) + 1 > 1 and (
        family == "table" or (flow and family == "adams" and prediction == "velocity")
    ):
        order -= 1  # a forecast of order o needs o + 1 computes, so this order is o + 2
    if order == 1 and family != "table":
        if corrector == "none":
            return replace(EULER, prediction=prediction) if place.is_moved else EULER
        if family in _IN_OWN_VARIABLE:
            family, order, corrector = ("heun", 2, "none") if corrector == "implicit" else ("euler", 1, corrector)
    if family in _IN_LOG_SNR:
        family, estimate = _estimated(family, order, corrector, estimate)
    return replace(solver, family=family, order=order, prediction=prediction, corrector=corrector, estimate=estimate)


def _estimated(family: str, order: int, corrector: str, estimate: str) -> tuple[str, str]:
    """The family and estimate that stand for all that make the same update."""
    count = 2 if order == 1 else order  # a corrector of order 1 is made of two values, and no other counts
    estimate = _DEFAULT_ESTIMATE[family] if estimate == "default" else estimate
    family, estimate = _ESTIMATES[count][estimate] if count in _ESTIMATES else _HALVED
    if count != 3 and estimate == "midpoint" and corrector != "none":
        family, estimate = "unipc", "bh2"
    return family, "default" if _DEFAULT_ESTIMATE[family] == estimate else estimate


def stretched_solvers(solver: Sequence[Solver], n_steps: int) -> Sequence[Solver]:
    """``solver`` read off at ``n_steps`` even places."""
    if len(solver) == n_steps:
        return solver
    return [solver[i * len(solver) // n_steps] for i in range(n_steps)]


def solver_like(solvers: Sequence[Solver], family: str, order: int) -> Solver | None:
    """The one of ``solvers`` of that family with the highest order up to ``order``; ``None`` if there is none.

    UniPC has its corrector if such a record is among them, without which it is another solver.
    """
    kin = [record for record in solvers if record.family == family and record.order <= order]
    wanted = PSEUDO if family == "unipc" else "none"
    return max(kin, key=lambda record: (record.order, record.corrector == wanted), default=None)


def named(solver: Solver) -> str:
    """A record in words.

    >>> named(Solver(family="unipc", order=2, prediction="data", corrector="pseudo"))
    'unipc of order 2 (data, corrector pseudo)'
    """
    notes = [solver.prediction] if solver.prediction != EULER.prediction else []
    notes += [f"corrector {solver.corrector}"] if solver.corrector != EULER.corrector else []
    notes += [f"estimate {solver.estimate}"] if solver.estimate != EULER.estimate else []
    order = "" if solver.family in ("euler", "heun") else f" of order {solver.order}"
    return f"{solver.family}{order}" + (f" ({', '.join(notes)})" if notes else "")


class SolverAxis:
    """The solvers of a space: at each place a list of canonical records, the space's default first."""

    def __init__(self, solvers: Sequence[Solver], rules: Sequence[Forbidden], *, to_zero: bool, flow: bool) -> None:
        """Open the axis.

        Args:
            solvers: the records, the default first.
            rules: what is forbidden; those that do not speak of solvers are ignored.
            to_zero: runs end at noise level 0.
            flow: noise levels are those of a flow model.
        """
        self._solvers = tuple(solvers)
        self._rules = tuple(rule for rule in rules if rule.solver)
        self._to_zero = to_zero
        self._flow = flow
        self._legal: dict[Place, tuple[Solver, ...]] = {}
        self._nearest: dict[tuple[Solver, Place], Solver] = {}

    def places(self, model_row: str, solvers: Sequence[Solver]) -> tuple[Place, ...]:
        """The place of every step of a run with this ``model`` row and these solvers."""
        return tuple(places(model_row, solvers, to_zero=self._to_zero))

    def ways(self, history: int, symbol: str, following: str, moved: int) -> tuple[int, int]:
        """How many legal records there are at a step: without and with a pseudo corrector.

        Args:
            history: computed outputs before the step.
            symbol: what the ``model`` row says of it.
            following: the next symbol, empty at the last step.
            moved: 1 if the step before has a pseudo corrector, else 0.
        """
        ends_at_zero = self._to_zero and not following
        legal = self.legal(Place(min(history, _MAX_HISTORY), symbol, ends_at_zero, following == COMPUTE, moved == 1))
        pseudo = sum(record.corrector == PSEUDO for record in legal)
        return len(legal) - pseudo, pseudo

    def legal(self, place: Place) -> tuple[Solver, ...]:
        """The canonical records a step may have at ``place``; Euler's step is among them where a rule forbids any."""
        if place not in self._legal:
            records = dict.fromkeys(self.settled(solver, place) for solver in self._solvers)
            allowed = dict.fromkeys(record for record in records if self.forbids(record, place) is None)
            if len(allowed) < len(records):
                allowed.setdefault(EULER)
            self._legal[place] = tuple(allowed)
        return self._legal[place]

    def settled(self, solver: Solver, place: Place) -> Solver:
        """The canonical record of what ``solver`` does at ``place``."""
        return settled(solver, place, flow=self._flow)

    def forbids(self, solver: Solver, place: Place) -> str | None:
        """Why a rule forbids ``solver`` at ``place``, or ``None``; Euler's step is never forbidden."""
        if solver == EULER:
            return None
        return next((r.reason for r in self._rules if place.symbol in r.symbols and r.matches(solver)), None)

    def nearest(self, wish: Solver, place: Place) -> Solver:
        """The legal record nearest to ``wish``.

        Its canonical form if that is legal; else one of the same family, with the nearest order (lower ones first) and
        the most in common; else the first one.
        """
        key = (wish, place)
        if key not in self._nearest:
            legal, record = self.legal(place), self.settled(wish, place)
            if record not in legal:
                kin = [other for other in legal if other.family in (record.family, wish.family)]
                record = min(kin, key=lambda other: _distance(wish, other), default=legal[0])
            self._nearest[key] = record
        return self._nearest[key]

    def settle(self, wishes: Sequence[Solver], model_row: str) -> tuple[Solver, ...]:
        """`nearest` for every step of a schedule."""
        found, records = self._nearest, list[Solver]()
        for wish, place in zip(wishes, places(model_row, records, to_zero=self._to_zero), strict=True):
            records.append(found.get((wish, place)) or self.nearest(wish, place))
        return tuple(records)

    def why(self, found: Solver, place: Place) -> str:
        """The rule that ``found`` breaks at ``place``."""
        record = self.settled(found, place)
        if reason := self.forbids(record, place):
            return reason
        if found.family != "heun" and found.order > place.history + 1:
            return f"an order is at most one more than the computed outputs before the step, {place.history} here"
        if record in self.legal(place) or record == EULER:
            return _same(found, record, place)
        choices = self.legal(place)
        shown = ", ".join(map(named, choices[:8])) + (", ..." if len(choices) > 8 else "")
        return f"this step may have {shown}"


def _same(found: Solver, record: Solver, place: Place) -> str:
    """Why ``found`` does at ``place`` what ``record`` does."""
    if place.ends_at_zero:
        return "nothing can be evaluated at noise level 0, and log(SNR) is infinite there"
    if found.corrector == PSEUDO != record.corrector and found.family not in ("heun", "table"):
        return "a pseudo corrector takes the output computed at the next step, and here or there none is"
    if place.symbol != COMPUTE and found.family == record.family and found.order > record.order:
        return f"the forecast {place.symbol} is made of the same outputs, so a higher order knows nothing more"
    return f"it takes the step as {named(record)} does"


def _distance(wish: Solver, other: Solver) -> tuple[bool, int, bool, bool, bool]:
    """How far ``other`` is from ``wish``, both of one family; a higher order is farther than any lower one."""
    return (
        other.order > wish.order,
        abs(other.order - wish.order),
        other.corrector != wish.corrector,
        other.prediction != wish.prediction,
        other.estimate != wish.estimate,
    )
