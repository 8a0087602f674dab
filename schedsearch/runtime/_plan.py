"""Turns a schedule into what each step does, before anything runs.

A *site* is a place whose output is cached: the whole denoiser, a run of adjacent blocks with equal rows, or one block
component. The plan says for every site and every step whether it computes, computes and keeps, predicts or is skipped,
and with which numbers. All of it follows from the rows, the sigmas and the first step, so nothing is decided while
sampling. Where a step calls the denoiser twice, the second call does what its step does, at its own sigma, and keeps
nothing (FORMAT.md M11). Of a correction (M17) the plan says at which steps a site has one, and what tells it from
others; its numbers are not the plan's business. Knows nothing of torch, and nothing of solvers but where their second
calls are.

Forecasts are Newton's divided differences with the newest value first. With values ``f(s0), f(s1), ...`` kept at noise
levels ``s0, s1, ...`` (newest first),

    f(s) ~ f[s0] + (s - s0) f[s0,s1] + (s - s0)(s - s1) f[s0,s1,s2] + ...

which is exact for polynomials of the forecast's order in sigma, for any gaps (Liu 2025, TaylorSeer, arXiv 2503.06923,
uses equal gaps in the step index; the divided form is what uneven sigmas need).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Literal

from schedsearch.schedule import COMPUTE, FORECASTS, MODEL_ROW, REUSE, SKIP, Schedule
from schedsearch.types import BlockSpec

KEEP = "K"
"""Compute, and keep the result for a later prediction."""

IDLE = "."
"""The site is not reached at this step: a coarser one answers for it, or the run starts later."""

RUNS = (COMPUTE, KEEP)
"""Actions that execute the module."""

SiteKind = Literal["model", "segment", "component"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One cached place and what it does at every step.

    Attributes:
        kind: ``model``, ``segment`` (adjacent blocks with equal rows) or ``component``.
        modules: dotted names, in running order; empty for the whole denoiser.
        actions: one character per step: ``C`` compute, ``K`` compute and keep, ``R`` or ``1 2 3`` predict to that
            order, ``S`` skip, ``.`` not reached.
        numbers: per step, the scales of a ``K`` or the weights of a prediction; empty elsewhere.
        order: highest order its row asks for.
        second: the weights of a prediction at a step's second call, by step, where there is one.
        corrected: per step what tells the correction of its prediction from others, empty where there is none; empty
            as a whole without any.
    """

    kind: SiteKind
    modules: tuple[str, ...]
    actions: str
    numbers: tuple[tuple[float, ...], ...]
    order: int
    second: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    corrected: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        """Name of the row it follows, and of its correction."""
        return self.modules[0] if self.modules else MODEL_ROW

    def correction_at(self, step: int) -> str:
        """What tells the correction at a step from others; empty if there is none."""
        return self.corrected[step] if self.corrected else ""

    def at(self, step: int, *, extra: bool) -> tuple[str, tuple[float, ...]]:
        """Action and numbers at the first or, if ``extra``, the second call of a step."""
        action = self.actions[step]
        if not extra:
            return action, self.numbers[step]
        return (COMPUTE if action == KEEP else action), self.second.get(step, ())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run does, from step ``begin`` on.

    Attributes:
        begin: the first step.
        n_steps: steps of the schedule.
        sites: what is cached.
        calls: per denoiser call from step ``begin`` on, its step and whether it is that step's second call.
    """

    begin: int
    n_steps: int
    sites: tuple[Site, ...]
    calls: tuple[tuple[int, bool], ...]

    @cached_property
    def patterns(self) -> tuple[tuple[tuple[str, bool], ...], ...]:
        """Per denoiser call what all sites do, and whether that is corrected: equal tuples run the same code."""
        return tuple(
            tuple((site.at(step, extra=extra)[0], bool(site.correction_at(step))) for site in self.sites)
            for step, extra in self.calls
        )


def plan(
    schedule: Schedule,
    block_lists: Sequence[Sequence[BlockSpec]],
    *,
    begin: int = 0,
    second: Mapping[int, float] | None = None,
    keep_outputs: bool = False,
    corrections: Mapping[str, tuple[str, ...]] | None = None,
) -> Plan:
    """Returns what ``schedule`` does on a denoiser with these blocks when a run starts at step ``begin``.

    Args:
        schedule: a valid schedule whose rows name only modules of ``block_lists``.
        block_lists: the denoiser's lists of blocks, each in running order; segments do not cross lists.
        begin: first step that is executed; later than 0 for image-to-image.
        second: noise level of the second denoiser call, by step, for steps that have one.
        keep_outputs: keep what the denoiser computes at every step, needed or not, so that what a run keeps up to a
            step does not depend on what follows.
        corrections: of ``schedule``, as `schedsearch.schedule.corrections` names them.
    """
    rows, second, corrections = _Rows(schedule), second or {}, corrections or {}
    levels = _Levels(schedule.sigma, {step: at for step, at in second.items() if step >= begin})
    model = _actions(rows(MODEL_ROW), begin, reached=COMPUTE * schedule.n_steps)
    sites: list[Site] = []
    if keep_outputs:
        sites.append(_site("model", (), FORECASTS, model.replace(COMPUTE, KEEP), levels))
    elif rows.mentions(MODEL_ROW):
        sites.append(_site("model", (), rows(MODEL_ROW), _marked(model), levels))
    for blocks in block_lists:
        for names in _segments(blocks, rows, corrections):
            row = rows(names[0])
            actions = _actions(row, begin, reached=model)
            if rows.mentions(names[0]):
                sites.append(_site("segment", names, row, _marked(actions), levels))
            for name in _parts(blocks, names[0], rows):
                inner = _actions(rows(name), begin, reached=actions)
                sites.append(_site("component", (name,), rows(name), _marked(inner), levels))
    if corrections:
        # The sites are the same wherever a run begins, and in the same order.
        whole = (
            plan(schedule, block_lists, keep_outputs=keep_outputs, corrections=corrections).sites if begin else sites
        )
        sites = [_corrected(site, corrections, like.actions) for site, like in zip(sites, whole, strict=True)]
    steps = range(begin, schedule.n_steps)
    calls = tuple((step, extra) for step in steps for extra in (False, True)[: 1 + (step in second)])
    return Plan(begin=begin, n_steps=schedule.n_steps, sites=tuple(sites), calls=calls)


@dataclass(frozen=True, slots=True)
class _Levels:
    """The noise levels at which the denoiser is called: of each step, and of the second calls by step."""

    first: tuple[float, ...]
    second: Mapping[int, float]


class _Rows:
    """The schedule's rows, with a pruned module as a row that only skips."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._pruned = frozenset(schedule.pruned)

    def __call__(self, name: str) -> str:
        return SKIP * self._schedule.n_steps if name in self._pruned else self._schedule.row(name)

    def mentions(self, name: str) -> bool:
        return set(self(name)) != {COMPUTE}


def _parts(blocks: Sequence[BlockSpec], name: str, rows: _Rows) -> list[str]:
    """Names of the components of block ``name`` that have a row."""
    components = next(b.components for b in blocks if b.name == name)
    return [part for c in components if rows.mentions(part := f"{name}.{c}")]


def _segments(blocks: Sequence[BlockSpec], rows: _Rows, corrections: Collection[str]) -> list[tuple[str, ...]]:
    """Names of adjacent blocks with equal rows; a block with component rows stands alone, one with a correction begins
    a segment, of which it corrects the sum.

    Rows and not actions decide, so that the segments of a run do not depend on the step it begins at.
    """
    alone = {b.name for b in blocks if _parts(blocks, b.name, rows)}
    begun = accumulate(b.name in corrections for b in blocks)
    keyed = [((rows(b.name), b.name if b.name in alone else "", n), b.name) for b, n in zip(blocks, begun, strict=True)]
    return [tuple(name for _, name in run) for _, run in groupby(keyed, key=lambda pair: pair[0])]


def _actions(row: str, begin: int, *, reached: str) -> str:
    """Resolves a row: before ``begin`` and where ``reached`` says a coarser site answers, nothing happens; a
    prediction without history computes; orders are clipped to the history (FORMAT.md, section on history).
    """
    out: list[str] = []
    computed = 0
    for i, op in enumerate(row):
        if i < begin or reached[i] != COMPUTE:
            out.append(IDLE)
        elif op == SKIP:
            out.append(SKIP)
        elif op == COMPUTE or computed == 0:
            out.append(COMPUTE)
            computed += 1
        else:
            order = min(0 if op == REUSE else int(op), computed - 1)
            out.append(str(order) if order else REUSE)
    return "".join(out)


def _site(kind: SiteKind, modules: tuple[str, ...], row: str, marked: str, levels: _Levels) -> Site:
    """Adds the numbers that its computes and predictions need."""
    sigma = levels.first
    order = max((int(op) for op in row if op.isdigit()), default=0)
    nodes: list[float] = []
    numbers: list[tuple[float, ...]] = []
    second: dict[int, tuple[float, ...]] = {}
    for i, action in enumerate(marked):
        if action == KEEP:
            numbers.append(tuple(1.0 / (sigma[i] - s) for s in nodes[:order]))
            nodes.insert(0, sigma[i])
        elif action.isdigit():
            numbers.append(_newton_weights(sigma[i], nodes[: int(action)]))
            if i in levels.second:
                second[i] = _newton_weights(levels.second[i], nodes[: int(action)])
        else:
            numbers.append(())
    return Site(kind=kind, modules=modules, actions=marked, numbers=tuple(numbers), order=order, second=second)


def _corrected(site: Site, corrections: Mapping[str, tuple[str, ...]], whole: str) -> Site:
    """The site with its correction, where it predicts from the values of the same steps as with the actions ``whole``
    of a run from the first step on: what the correction was made for.
    """
    if site.row not in corrections:
        return site
    used = zip(_used(site.actions), _used(whole), corrections[site.row], strict=True)
    return replace(site, corrected=tuple(name if mine and mine == meant else "" for mine, meant, name in used))


def _used(actions: str) -> list[tuple[int, ...]]:
    """Per step, the computed steps that its prediction is made of; nothing where it does not predict."""
    computed: list[int] = []
    found: list[tuple[int, ...]] = []
    for i, action in enumerate(actions):
        order = int(action) if action.isdigit() else 0
        found.append(tuple(computed[-order - 1 :]) if _predicts(action) else ())
        if action in RUNS:
            computed.append(i)
    return found


def _predicts(action: str) -> bool:
    return action == REUSE or action.isdigit()


def _marked(actions: str) -> str:
    """Marks the computes whose value a later prediction needs."""
    kept = _needed(actions)
    return "".join(KEEP if i in kept else action for i, action in enumerate(actions))


def _needed(actions: str) -> frozenset[int]:
    """Steps whose computed value lies in the window of some later prediction."""
    computed: list[int] = []
    needed: set[int] = set()
    for i, action in enumerate(actions):
        if action == COMPUTE:
            computed.append(i)
        elif _predicts(action):
            window = 1 if action == REUSE else int(action) + 1
            needed.update(computed[-window:])
    return frozenset(needed)


def _newton_weights(at: float, nodes: Sequence[float]) -> tuple[float, ...]:
    """Weights of the first, second, ... divided difference at noise level ``at``; nodes newest first."""
    weights: list[float] = []
    product = 1.0
    for node in nodes:
        product *= at - node
        weights.append(product)
    return tuple(weights)
