"""Which objective a search for one number improves. Knows nothing of any algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from schedsearch.errors import UsageError
from schedsearch.study import Objective

COST_UNITS = frozenset({"ms", "s", "x", "MAC", "calls", "MiB"})
"""Units of what a schedule costs; the quality has another."""


def quality_place(objectives: Sequence[Objective], name: str) -> int:
    """Position of the objective called ``name``, or of the first that is not a cost where no name is given.

    Raises:
        UsageError: if there is no objective of that name.
    """
    names = [objective.name for objective in objectives]
    if name and name not in names:
        raise UsageError(f"objective: found {name!r}, expected one of {', '.join(names)}.")
    if name:
        return names.index(name)
    return next((i for i, objective in enumerate(objectives) if objective.unit not in COST_UNITS), 0)


def may_be_negative(objective: Objective) -> bool:
    """Whether values below 0 are in order: an estimate without bias of a distance that is 0 lies as often below.

    >>> may_be_negative(Objective(name="converged_kid[flux-mini-clip]", unit="1", better="min"))
    True
    """
    return objective.name.removeprefix("converged_").partition("[")[0] == "kid"
