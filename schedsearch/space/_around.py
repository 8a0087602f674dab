"""Schedules one choice away from another: the neighbourhood that local searches walk.

This module does not know what is good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from schedsearch.schedule import OPS, Schedule
from schedsearch.space._codes import PRUNED_CODE

if TYPE_CHECKING:
    from schedsearch.space._space import SearchSpace


def around(space: SearchSpace, start: Schedule) -> Iterator[Schedule]:
    """Canonical schedules one choice away from the canonical ``start``; some may come twice, or be ``start`` itself.

    Cells first, then solvers, then noise levels, then formats, as `SearchSpace.neighbours` says.
    """
    codes = space.encode(start)
    for row, name in enumerate(space.row_names):
        legal = [OPS.index(char) for char in space.symbols_of(name)]
        for step in range(1, codes.shape[1]):
            for code in legal if codes[row, step] != PRUNED_CODE else ():
                if code != codes[row, step]:
                    changed = codes.copy()
                    changed[row, step] = code
                    yield space.decode(changed, like=start)
    for step in range(start.n_steps):
        for record in space.solvers_at(start, step):
            if record != start.solver[step]:
                solver = (*start.solver[:step], record, *start.solver[step + 1 :])
                yield space.build(
                    sigma=start.sigma, solver=solver, ops=start.ops, pruned=start.pruned, precision=start.precision
                )
    if space.free_sigma:
        lattice = space.sigma_lattice(start.n_steps)
        numbers = lattice.numbers(start.sigma)
        for i, number in enumerate(numbers):
            for moved in (number - 1, number + 1):
                if 0 <= moved < len(lattice.levels) and moved not in numbers:
                    yield replace(start, sigma=lattice.sigma([*numbers[:i], moved, *numbers[i + 1 :]]))
    yield from _other_formats(space, start)


def _other_formats(space: SearchSpace, start: Schedule) -> Iterator[Schedule]:
    """One group of layers in another format."""
    axis = space.precision
    if not axis.is_open:
        return
    choice = axis.choice(start.precision, start.pruned)
    for group, is_there in enumerate(axis.alive(start.pruned)):
        for number in range(len(axis.formats) + 1) if is_there else ():
            if number != choice[group]:
                other = (*choice[:group], number, *choice[group + 1 :])
                yield replace(start, precision=axis.rules(other, start.pruned))
