"""Other ways to reach a speed, each with the settings people would try: fewer steps, hand-made masks, other searches.

`FAMILIES` is the table. Masks are made by the rules of the searches' own seeds, over wider ranges of their parameters.
This module does not know how good any setting is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from schedsearch.bench._contest import CONTESTANTS
from schedsearch.schedule import COMPUTE, REUSE, Schedule, Solver
from schedsearch.search._probe_seeds import smoothcache
from schedsearch.search._rule_seeds import forecast_row, interval_steps, scm, with_row, with_rows
from schedsearch.space import SearchSpace, warp
from schedsearch.study import Frontier, Probe, Study

Named = Iterator[tuple[str, Schedule]]
"""Settings in words, and what they make."""

STEPS = range(2, 17)
"""Denoising steps of the few-step runs."""

SHIFTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Shifts the few-step runs are swept over, beside the model's own spacing."""

INTERVALS = range(2, 13)
"""Steps from one computed step to the next."""

FRONTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the blocks that Delta-DiT reuses."""

SAME_GRID = 1e-6
"""Noise levels closer than this make the same run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A way to be faster: its ``title`` in tables, and what makes its settings.

    Exactly one of the three is given: ``make`` from a space, ``make_probed`` from a space and its recorded run, or
    ``search``, the name under which `bench search` ran it.
    """

    title: str
    make: Callable[[SearchSpace], Named] | None = None
    make_probed: Callable[[SearchSpace, Probe], Named] | None = None
    search: str = ""


def fewer_steps(space: SearchSpace, solver: Solver) -> Named:
    """Fewer steps, on the model's own spacing and on shifted ones."""
    for count in STEPS:
        if count > space.n_steps:
            return
        own = space.grid(count)
        yield f"{count} steps, own spacing", stepped(space, own, solver)
        for shift in SHIFTS:
            levels = warp("shift", count, first=space.sigma[0], last=space.sigma[-1], shift=shift)
            if any(abs(a - b) > SAME_GRID for a, b in zip(levels, own, strict=True)):
                yield f"{count} steps, shift {shift:g}", stepped(space, levels, solver)


def stepped(space: SearchSpace, sigma: tuple[float, ...], solver: Solver) -> Schedule:
    """A run of the whole model at these noise levels, one solver for all steps."""
    return Schedule(sigma=sigma, solver=(solver,) * (len(sigma) - 1), model=space.model)


def intervals(space: SearchSpace, order: int, firsts: tuple[int, ...]) -> Named:
    """Every N-th step computed after the first E; the rest reused (order 0, FORA) or forecast (TaylorSeer)."""
    for first in firsts:
        for interval in INTERVALS:
            if first + interval <= space.n_steps:
                row = forecast_row(space.n_steps, interval_steps(space.n_steps, interval, first), order)
                for level, schedule in with_row(space, row):
                    yield f"N={interval} E={first}{_at(level)}", schedule


def masks(space: SearchSpace) -> Named:
    """cache-dit's four masks, with reuse and with its forecasting calibrator."""
    for name, schedule in scm(space, ()):
        setting, _, level = name.partition("@")
        yield f"{setting}{_at(level)}", schedule


def delta_dit(space: SearchSpace) -> Named:
    """Delta-DiT: from a switch on, the front blocks are reused in place of the rear ones (arXiv 2406.01125)."""
    blocks = [block.name for block in space.blocks if REUSE in space.symbols_of(block.name)]
    n_steps = space.n_steps
    sizes = dict.fromkeys(max(1, round(share * len(blocks))) for share in FRONTS if blocks)
    for interval in (n for n in INTERVALS if n < n_steps):
        full = set(interval_steps(n_steps, interval, 1))
        for size in sizes:
            for switch in dict.fromkeys((0, n_steps // 4, n_steps // 2, 3 * n_steps // 4, n_steps)):
                reused = [
                    set() if step in full else set(blocks[:size] if step >= switch else blocks[-size:])
                    for step in range(n_steps)
                ]
                rows = {name: "".join(REUSE if name in at else COMPUTE for at in reused) for name in blocks}
                yield f"N={interval}, {size} of {len(blocks)} blocks, switch {switch}", with_rows(space, rows)


def smooth(space: SearchSpace, probe: Probe) -> Named:
    """SmoothCache: steps are left out as long as blocks changed by less than a limit, published ones and all others."""
    for name, schedule in smoothcache(space, probe, range(1, space.n_steps)):
        setting, _, level = name.partition("@")
        yield f"{setting}{_at(level)}", schedule


def _at(level: str) -> str:
    level = level.lstrip("@")
    return f", per {level}" if level else ""


def found_by(search: str, studies: Path) -> Named:
    """What the runs of one searcher found, its seeds together: their joint frontier.

    Args:
        search: name of the entry.
        studies: the folder of `bench search`.
    """
    best: Frontier | None = None
    for file in sorted(studies.glob(f"{search}-[0-9]*.db")):
        with Study.load(file) as study:
            best = study.frontier() if best is None else best.merge(study.frontier())
    for evaluation in best or ():
        yield f"ask {evaluation.candidate.ask}", evaluation.candidate.schedule


_FEW = {
    "euler": ("Euler", Solver()),
    "dpm": ("DPM-Solver++ 2M", Solver(family="dpm", order=2, prediction="data")),
    "unipc": ("UniPC", Solver(family="unipc", order=2, prediction="data", corrector="pseudo")),
    "adams": ("Adams-Bashforth 2", Solver(family="adams", order=2)),
}

FAMILIES: Mapping[str, Family] = {
    **{
        name: Family(title=f"fewer steps, {title}", make=partial(fewer_steps, solver=solver))
        for name, (title, solver) in _FEW.items()
    },
    "fora": Family(title="FORA", make=partial(intervals, order=0, firsts=(1, 3))),
    "taylorseer-1": Family(title="TaylorSeer, order 1", make=partial(intervals, order=1, firsts=(1, 2, 3))),
    "taylorseer-2": Family(title="TaylorSeer, order 2", make=partial(intervals, order=2, firsts=(1, 2, 3))),
    "delta-dit": Family(title="Delta-DiT", make=delta_dit),
    "smoothcache": Family(title="SmoothCache", make_probed=smooth),
    "cache-dit": Family(title="cache-dit masks", make=masks),
    **{name: Family(title=f"search: {name}", search=name) for name in CONTESTANTS if name != "auto"},
}
"""What our schedules are compared with, by the name ``--only`` takes."""
