"""Why a schedule is not a canonical member of a space, in words.

This module does not know how a schedule is made legal; it is told what came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from schedsearch.schedule import COMPUTE, MODEL_ROW, Schedule, rule_word
from schedsearch.space._forbidden import must_stay, why_banned
from schedsearch.space._grid import NEAR
from schedsearch.space._solvers import named

if TYPE_CHECKING:
    from schedsearch.space._space import SearchSpace

PARTS = ("model", "sigma", "solver", "guidance", "precision", "tables", "pruned", "ops")
"""Parts of a schedule that a space decides about; the others are results and origin."""


def brief(counts: Sequence[int]) -> str:
    """Numbers of steps in words: ``7``, ``4..28`` or ``4, 7, 28``."""
    if len(counts) > 1 and counts[-1] - counts[0] == len(counts) - 1:
        return f"{counts[0]}..{counts[-1]}"
    return ", ".join(map(str, counts))


def difference(space: SearchSpace, found: Schedule, legal: Schedule) -> str:
    """The first difference between a schedule and its canonical form in ``space``, and the rule behind it."""
    if found.model != legal.model:
        return f"model: found {found.model}, expected {legal.model}"
    if found.n_steps != legal.n_steps:
        return f"steps: found {found.n_steps} steps, expected one of {brief(space.counts)}"
    if found.sigma != legal.sigma:
        return _of_sigma(space, found, legal)
    if found.solver != legal.solver:
        return _of_solver(space, found, legal)
    if found.tables is not None:
        return "tables: found some, expected none: a space holds plans, and coefficients are fitted to a plan"
    if found.guidance != legal.guidance:
        return f"guidance: found {found.guidance!r}, expected {legal.guidance!r} (frozen in this space)"
    if found.pruned != legal.pruned:
        reasons = [reason for name in found.pruned if (reason := must_stay(space.forbidden, name))]
        note = reasons[0] if reasons else f"at most {space.max_pruned} prunable blocks"
        return f"pruned: found {found.pruned!r}, expected {legal.pruned!r} ({note})"
    if found.precision != legal.precision:
        return _of_precision(space, found, legal)
    return _of_rows(space, found, legal)


def _of_precision(space: SearchSpace, found: Schedule, legal: Schedule) -> str:
    axis = space.precision
    if not axis.is_open:
        return f"precision: found {found.precision!r}, expected {legal.precision!r} (frozen in this space)"
    opened = ", ".join(map(rule_word, axis.formats))
    known = {replace(rule, pattern="*") for rule in axis.formats}
    for i, rule in enumerate(found.precision):
        if replace(rule, pattern="*") not in known:
            return f"precision[{i}]: found {rule_word(rule)}, expected one of {opened}, which this space opens"
    expected = ", ".join(f"{rule.pattern} {rule_word(rule)}" for rule in legal.precision) or "no rules"
    return (
        f"precision: found {', '.join(f'{rule.pattern} {rule_word(rule)}' for rule in found.precision)}, expected "
        f"{expected}: rules have one form, speak of the {sum(len(g.layers) for g in axis.groups)} layers that may "
        "change and of no removed block, and leave groups whole"
    )


def _of_sigma(space: SearchSpace, found: Schedule, legal: Schedule) -> str:
    step = next(i for i, (a, b) in enumerate(zip(found.sigma, legal.sigma, strict=True)) if a != b)
    at = f"steps.sigma[{step}]: found {found.sigma[step]!r}, expected {legal.sigma[step]!r}: "
    if not space.free_sigma:
        return f"{at}noise levels are frozen in this space"
    if step in (0, found.n_steps):
        return f"{at}the first and the last noise level are those of the default grid"
    if not found.sigma[-1] < found.sigma[step] < found.sigma[0] or not (
        space.sigma[-1] < found.sigma[step] < space.sigma[0]
    ):
        return f"{at}inner noise levels lie between the first and the last of the default grid"
    near = f"or a default level, which replaces what is within {NEAR:g} of it"
    return f"{at}an inner noise level is a multiple of 1/{space.lattice} of the range {near}"


def _of_solver(space: SearchSpace, found: Schedule, legal: Schedule) -> str:
    step = next(i for i, (a, b) in enumerate(zip(found.solver, legal.solver, strict=True)) if a != b)
    place = space.solver_axis.places(legal.row(MODEL_ROW), legal.solver)[step]
    why = space.solver_axis.why(found.solver[step], place)
    return f"steps.solver[{step}]: found {named(found.solver[step])}, expected {named(legal.solver[step])}: {why}"


def _of_rows(space: SearchSpace, found: Schedule, legal: Schedule) -> str:
    for name, row in found.ops:
        if name not in space.row_names:
            return f"ops.{name}: found a row, expected none: it is not among the {len(space.row_names)} rows searched"
        for step, (char, wanted) in enumerate(zip(row, legal.row(name), strict=True)):
            if char != wanted:
                rule = _rule(space, name, step, char, legal)
                return f"ops.{name}[{step}]: found {char}, expected {wanted}: {rule}"
    return f"ops: found {found.ops}, expected {legal.ops}"


def _rule(space: SearchSpace, name: str, step: int, char: str, legal: Schedule) -> str:
    """The rule that ``char`` breaks at ``step`` of row ``name``."""
    if char not in space.symbols_of(name):
        return why_banned(space.forbidden, name, char) or f"row {name} may hold {space.symbols_of(name)}"
    if step == 0:
        return "the first step computes everything"
    owner = next((block.name for block in space.blocks if name.startswith(f"{block.name}.")), name)
    for coarser in (MODEL_ROW, owner):
        if coarser != name and legal.row(coarser)[step] != COMPUTE:
            return f"row {coarser} does not compute at this step"
    return "a forecast of order o needs o + 1 earlier computes"
