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
