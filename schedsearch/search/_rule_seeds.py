"""Seeds that follow a published rule and need no measurement: cache masks, fewer steps, published tables.

Each function yields pairs (name, schedule) for one space and one list of budgets; schedules may be illegal there, the
caller repairs and sorts out. Masks are for the default number of steps. This module does not know a probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from schedsearch.errors import SpaceError, UsageError
from schedsearch.schedule import COMPUTE, MODEL_ROW, REUSE, Schedule, Solver, rule_word
from schedsearch.search._published import (
    ATTENTION_INTERVALS,
    FORA_INTERVALS,
    S3,
    SCM,
    SD_BETAS,
    TAYLORSEER,
)
from schedsearch.space import SearchSpace, shown, solver_like, warp

Named = tuple[str, Schedule]

WARPS: Mapping[str, tuple[str, Mapping[str, float]]] = MappingProxyType(
    {
        "shift2": ("shift", {"shift": 2.0}),
        "shift1.5": ("shift", {"shift": 1.5}),
        "default": ("", {}),
        "shift3": ("shift", {"shift": 3.0}),
        "uniform": ("uniform", {}),
        "beta": ("beta", {"alpha": 0.6, "beta": 0.6}),
        "ays": ("ays", {}),
        "karras": ("karras", {}),
    }
)
"""Spacings of fewer steps by the name used in seeds: a family of `schedsearch.space.WARPS` and its parameters."""

ATTENTION = frozenset({"attn", "attn1", "attn2"})
CROSS_ATTENTION = "attn2"


# ---- number formats

PRESETS = ("all", "inner", "late")
"""Layers that are put in one format: all that may change, those of all blocks but the outer ones, of the later half."""


def formats(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:  # noqa: ARG001 - one form for all
    """The plain run with one format for all layers that may change, or for part of the blocks."""
    yield from in_formats(space, space.base)


def in_formats(space: SearchSpace, schedule: Schedule, choices: Sequence[tuple[int, ...]] = ()) -> Iterator[Named]:
    """``schedule`` in each format of the space: all layers that may change, and part of them.

    Which part is said by ``choices`` of what is known about the layers; without any it is part of the blocks.
    """
    axis = space.precision
    for preset in (PRESETS[:1] if choices else PRESETS) if axis.is_open else ():
        for number, rule in enumerate(axis.formats, start=1):
            rules = axis.rules(axis.preset(preset, number), schedule.pruned)
            if rules:
                yield f"{rule_word(rule)}-{preset}", replace(schedule, precision=rules)
    yield from mixed(space, schedule, choices)


def mixed(space: SearchSpace, schedule: Schedule, choices: Sequence[tuple[int, ...]]) -> Iterator[Named]:
    """``schedule`` with each of these choices of formats for the space's groups of layers.

    Raises:
        UsageError: a choice is none of this space.
    """
    axis = space.precision
    for place, choice in enumerate(choices):
        if len(choice) != len(axis.groups) or not set(choice) <= set(range(len(axis.formats) + 1)):
            raise UsageError(
                f"mixed[{place}]: found {shown(choice)}, expected numbers from 0 to {len(axis.formats)}, one for each "
                f"of {len(axis.groups)} groups of layers."
            )
        yield str(place + 1), replace(schedule, precision=axis.rules(choice, schedule.pruned))


def in_turn(space: SearchSpace, schedules: Sequence[Schedule]) -> Iterator[Schedule]:
    """``schedules`` with all layers that may change in a format, each in the next one; as they are if there is none."""
    axis = space.precision
    for i, schedule in enumerate(schedules):
        number = 1 + i % len(axis.formats) if axis.is_open else 0
        yield replace(schedule, precision=axis.rules(axis.preset("all", number), schedule.pruned))


def without(space: SearchSpace, removals: Sequence[Sequence[str]]) -> Iterator[Named]:
    """The plain run without each of these sets of blocks."""
    for blocks in removals:
        yield str(len(blocks)), with_rows(space, {}, blocks)


# ---- masks


def interval_steps(n_steps: int, interval: int, first: int) -> tuple[int, ...]:
    """Computed steps: the ``first`` ones, then every ``interval``-th counted from the last of these.

    >>> interval_steps(12, 4, 3)
    (0, 1, 2, 6, 10)
    """
    return (*range(min(first, n_steps)), *range(first - 1 + interval, n_steps, interval))


def forecast_row(n_steps: int, computed: Sequence[int], order: int) -> str:
    """A row that computes at these steps and else forecasts to ``order``, or as far as history carries.

    >>> forecast_row(8, (0, 1, 4, 6), 2)
    'CC11C2C2'
    """
    taken, row, history = set(computed), "", 0
    for step in range(n_steps):
        if step in taken:
            row, history = row + COMPUTE, history + 1
        else:
            reached = min(order, history - 1)
            row += str(reached) if reached > 0 else REUSE
    return row


def run_lengths(computed: Sequence[int], cached: Sequence[int]) -> str:
    """The mask whose computed and cached runs have these lengths, in turns, beginning with a computed one.

    >>> run_lengths((2, 1), (3,))
    'CCRRRC'
    """
    runs = ["C" * computed[0]]
    for idle, busy in zip(cached, computed[1:], strict=False):
        runs += ["R" * idle, "C" * busy]
    runs += ["R" * idle for idle in cached[len(computed) - 1 :]]
    return "".join(runs)


def resampled_mask(row: str, n_steps: int) -> str:
    """``row`` for another number of steps, with its share of computed steps and where they crowd.

    The k-th computed step stays at the same share of the run; two that fall together move apart.

    >>> resampled_mask("CCRRCRRR", 4)
    'CRCR'
    """
    if len(row) == n_steps:
        return row
    places = [i for i, char in enumerate(row) if char == COMPUTE]
    count = max(1, round(len(places) * n_steps / len(row)))
    wished = np.interp(np.linspace(0, len(places) - 1, count), np.arange(len(places)), places) * n_steps / len(row)
    chosen: set[int] = set()
    for place in wished:
        free = (step for step in range(n_steps) if step not in chosen)
        chosen.add(min(free, key=lambda step: (abs(step - place), step)))
    return "".join(COMPUTE if step in chosen or step == 0 else REUSE for step in range(n_steps))


def with_row(space: SearchSpace, row: str) -> Iterator[tuple[str, Schedule]]:
    """Schedules that follow ``row`` at each level of the space that may: pairs (suffix of the name, schedule).

    The suffix says the level, unless it is the whole model.
    """
    for level, suffix in ((MODEL_ROW, ""), ("block", "@block"), ("component", "@component")):
        names = [name for name in space.row_names if space.level_of(name) == level]
        if names and all(set(row) <= set(space.symbols_of(name)) for name in names):
            yield suffix, with_rows(space, dict.fromkeys(names, row))


def with_rows(space: SearchSpace, rows: Mapping[str, str], pruned: Sequence[str] = ()) -> Schedule:
    """The plain run of the space with these rows, and without these blocks."""
    base = space.base
    return Schedule(
        sigma=base.sigma, solver=base.solver, model=base.model, ops=tuple(rows.items()), pruned=tuple(pruned)
    )


# ---- the plain run, and hand-made caches


def plain(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """The plain run."""
    del budgets
    yield "", space.base


def one_call(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """The cheapest run: it computes at the first step only, and has the fewest steps."""
    del budgets
    n = space.counts[0]
    if REUSE in space.symbols_of(MODEL_ROW):
        record = solver_like(space.solvers, "table", 4) or space.solvers[0]
        yield "", replace(stepped(space, space.grid(n), (record,) * n), ops=((MODEL_ROW, COMPUTE + REUSE * (n - 1)),))


def fora(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """FORA: reuse between computed steps, with 1 or 3 computed at the start."""
    del budgets
    for first in (1, 3):
        for interval in FORA_INTERVALS:
            row = forecast_row(space.n_steps, interval_steps(space.n_steps, interval, first), 0)
            for suffix, schedule in with_row(space, row):
                yield f"n{interval}-e{first}{suffix}", schedule


def attention_only(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """FORA's rule for attention alone."""
    del budgets
    names = [
        name for name in space.row_names
        if space.level_of(name) == "component" and name.rsplit(".", 1)[-1] in ATTENTION
    ]  # fmt: skip
    for interval in ATTENTION_INTERVALS if names else ():
        row = forecast_row(space.n_steps, interval_steps(space.n_steps, interval, 1), 0)
        yield f"n{interval}", with_rows(space, dict.fromkeys(names, row))


def taylorseer(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """TaylorSeer: forecasts between computed steps; as published, with fewer steps at the start, and to order 1."""
    del budgets
    published = [(interval, order, 3) for interval, order in TAYLORSEER]
    varied = [(interval, order, first) for first in (2, 1) for order in (1, 2) for interval in (4, 3, 5, 6, 7, 8, 2)]
    longer = [(interval, 3, 3) for interval in (4, 5, 6)]
    for interval, order, first in (*published, *varied, *longer):
        row = forecast_row(space.n_steps, interval_steps(space.n_steps, interval, first), order)
        for suffix, schedule in with_row(space, row):
            yield f"n{interval}-o{order}-e{first}{suffix}", schedule


def scm(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """cache-dit's masks, resampled to the space's steps, with reuse and with forecasts."""
    del budgets
    for order in (1, 0, 2):
        for name, (computed, cached) in SCM.items():
            mask = resampled_mask(run_lengths(computed, cached), space.n_steps)
            row = forecast_row(space.n_steps, [i for i, char in enumerate(mask) if char == COMPUTE], order)
            for suffix, schedule in with_row(space, row):
                yield f"{name}{f'-o{order}' if order else ''}{suffix}", schedule


def delta_dit(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """Delta-DiT (arXiv 2406.01125): late blocks are reused in early steps, early blocks in late ones."""
    del budgets
    blocks = [block.name for block in space.blocks if REUSE in space.symbols_of(block.name)]
    n_steps = space.n_steps
    for share in (0.5, 0.75) if len(blocks) > 1 else ():
        size = max(1, round(share * len(blocks)))
        for interval in (2, 3):
            for switch in (n_steps // 2, n_steps, 0):
                full = set(interval_steps(n_steps, interval, 1))
                rear = "".join(COMPUTE if s in full or s >= switch else REUSE for s in range(n_steps))
                front = "".join(COMPUTE if s in full or s < switch else REUSE for s in range(n_steps))
                rows = dict.fromkeys(blocks[-size:], rear)
                for name in blocks[:size]:
                    both = zip(rows.get(name, COMPUTE * n_steps), front, strict=True)
                    rows[name] = "".join(a if b == COMPUTE else b for a, b in both)
                yield f"n{interval}-{size}of{len(blocks)}-switch{switch}", with_rows(space, rows)


def t_gate(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """T-GATE (arXiv 2404.02747): cross-attention is frozen after a gate step."""
    del budgets
    names = [name for name in space.row_names if name.endswith(f".{CROSS_ATTENTION}")]
    for gate in dict.fromkeys(round(space.n_steps * share) for share in (0.5, 0.6, 0.75) if names):
        yield f"m{gate}", with_rows(space, dict.fromkeys(names, COMPUTE * gate + REUSE * (space.n_steps - gate)))


# ---- fewer steps


def stepped(space: SearchSpace, sigma: Sequence[float], solver: Sequence[Solver]) -> Schedule:
    """A run of the whole model at these noise levels."""
    return Schedule(sigma=tuple(sigma), solver=tuple(solver), model=space.model)


def fewer_steps(space: SearchSpace, budgets: Sequence[int], family: str, orders: Sequence[int]) -> Iterator[Named]:
    """Fewer steps of one solver family, at every order, spacing and budget."""
    legal = {record.order for record in space.solvers if record.family == family}
    for name in WARPS:
        for budget in budgets:
            levels = spaced_levels(space, name, budget)
            for order in orders if levels else ():
                record = solver_like(space.solvers, family, order)
                if record is not None and order in legal:
                    tag = f"{family}{order}" if family not in ("euler", "heun") else family
                    yield f"{tag}-{name}-k{budget}", stepped(space, levels, (record,) * budget)


def spaced_levels(space: SearchSpace, name: str, n_steps: int) -> tuple[float, ...]:
    """Noise levels of one of `WARPS`, empty where the space has no such run."""
    if n_steps not in space.counts or (name != "default" and not space.free_sigma):
        return ()
    family, parameters = WARPS[name]
    if not family:
        return space.grid(n_steps)
    try:
        return warp(family, n_steps, first=space.sigma[0], last=space.sigma[-1], kind=None, **parameters)
    except SpaceError:  # some families cannot space so few or so many steps
        return ()


def steps_table(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """Fewer steps with fitted coefficients (OLSS, arXiv 2305.14677)."""
    yield from fewer_steps(space, budgets, "table", (3, 2, 4))


def steps_adams(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """Fewer steps with Adams-Bashforth of order 2 and 3."""
    yield from fewer_steps(space, budgets, "adams", (2, 3))


def steps_dpm(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """Fewer steps with DPM-Solver++ 2M (arXiv 2211.01095)."""
    yield from fewer_steps(space, budgets, "dpm", (2, 3))


def steps_unipc(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """Fewer steps with UniPC of order 2 (arXiv 2302.04867)."""
    yield from fewer_steps(space, budgets, "unipc", (2, 3))


def steps_euler(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """Fewer Euler steps, the baseline that every method must beat."""
    yield from fewer_steps(space, budgets, "euler", (1,))


def s3(space: SearchSpace, budgets: Sequence[int]) -> Iterator[Named]:
    """S^3's schedules for Stable Diffusion 1.4: their orders; their times by noise level, and by place in the grid."""
    del budgets
    families = [family for family in ("table", "unipc", "dpm", "adams") if solver_like(space.solvers, family, 4)]
    for n_steps, (times, orders) in S3.items():
        if n_steps not in space.counts or not space.free_sigma:
            continue
        for kind, levels in (("snr", same_noise(space, times)), ("grid", same_place(space, times))):
            for family in families:
                records = [
                    solver_like(space.solvers, family, order) or space.solvers[0] if order > 1 else space.solvers[0]
                    for order in orders
                ]
                yield f"{kind}-{family}-k{n_steps}", stepped(space, levels, records)


def same_noise(space: SearchSpace, times: Sequence[float]) -> tuple[float, ...]:
    """Levels with the noise-to-signal ratio that Stable Diffusion has at these times; the ends are the space's."""
    first, last, count = SD_BETAS
    signal = np.cumprod(1.0 - np.linspace(first**0.5, last**0.5, count) ** 2)
    log_ratio = 0.5 * np.log((1.0 - signal) / signal)
    ratios = np.exp(np.interp(np.asarray(times) * count - 1.0, np.arange(count), log_ratio))
    levels = ratios / (1.0 + ratios) if space.sigma[0] <= 1.0 else ratios
    return (space.sigma[0], *(float(level) for level in levels[1:-1]), space.sigma[-1])


def same_place(space: SearchSpace, times: Sequence[float]) -> tuple[float, ...]:
    """Levels at these shares of the default grid, 1 its beginning."""
    places = (1.0 - np.asarray(times)) * (len(space.sigma) - 1)
    levels = np.interp(places, np.arange(len(space.sigma)), space.sigma)
    return (space.sigma[0], *(float(level) for level in levels[1:-1]), space.sigma[-1])
