"""Where a search may begin: schedules people make by hand, and those that exact placement finds without a model call.

`GENERATORS` is the table: each entry turns a space, what a probe recorded, and a list of budgets (computed steps) into
named schedules. `seeds` runs all of them, puts what they make into the space's canonical form and keeps what the space
can say as meant: a seed that would lose its rows, noise levels or solvers there is left out. Sources of the masks that
nobody can derive are in ``_published.py``. This module does not know how good any of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from schedsearch.schedule import COMPUTE, Schedule
from schedsearch.search import _probe_seeds as probed
from schedsearch.search import _rule_seeds as ruled
from schedsearch.space import SearchSpace
from schedsearch.study import Probe

Named = tuple[str, Schedule]


@dataclass(frozen=True, slots=True)
class Source:
    """A generator, what it needs, and how many of its seeds come in one of its turns."""

    make: Callable[[SearchSpace, Probe, Sequence[int]], Iterable[Named]] | None
    rule: Callable[[SearchSpace, Sequence[int]], Iterable[Named]] | None = None
    at_once: int = 1


def _measured(make: Callable[[SearchSpace, Probe, Sequence[int]], Iterable[Named]], at_once: int = 1) -> Source:
    return Source(make, at_once=at_once)


def _by_rule(rule: Callable[[SearchSpace, Sequence[int]], Iterable[Named]]) -> Source:
    return Source(None, rule)


GENERATORS: Mapping[str, Source] = MappingProxyType(
    {
        "plain": _by_rule(ruled.plain),
        "one-call": _by_rule(ruled.one_call),
        "steps-table": _by_rule(ruled.steps_table),
        "placed-table": _measured(probed.placed_table, at_once=6),
        "forecast-dp": _measured(probed.forecast_masks),
        "formats": _by_rule(ruled.formats),
        "steps-adams": _by_rule(ruled.steps_adams),
        "placed-adams": _measured(probed.placed_adams),
        "taylorseer": _by_rule(ruled.taylorseer),
        "scm": _by_rule(ruled.scm),
        "steps-dpm": _by_rule(ruled.steps_dpm),
        "steps-unipc": _by_rule(ruled.steps_unipc),
        "fora": _by_rule(ruled.fora),
        "prune": _measured(probed.pruned),
        "bac": _measured(probed.block_adaptive),
        "cachequant-dps": _measured(probed.cachequant),
        "lemica": _measured(probed.lemica),
        "gits": _measured(probed.gits),
        "s3": _by_rule(ruled.s3),
        "smoothcache": _measured(probed.smoothcache),
        "delta-dit": _by_rule(ruled.delta_dit),
        "steps-euler": _by_rule(ruled.steps_euler),
        "teacache": _measured(probed.teacache),
        "magcache": _measured(probed.magcache),
        "attention-only": _by_rule(ruled.attention_only),
        "t-gate": _by_rule(ruled.t_gate),
    }
)
"""Generators by name, the more promising first; those that need a probe are skipped without one.

Fitted steps at places found by exact placement come several at once, for most numbers of calls early on: on flux-mini,
at 12 to 18 calls, they are 1.6 to 6 dB better than what a search of 6,700 evaluations finds without them.
"""


def seeds(
    space: SearchSpace,
    probe: Probe | None = None,
    budgets: Sequence[int] | None = None,
    *,
    only: Sequence[str] | None = None,
    given: Mapping[str, Iterable[Named]] = MappingProxyType({}),
) -> tuple[Named, ...]:
    """Named schedules of ``space``, all different, the plain run first.

    Their order is useful when only some can be measured: generators take turns in the order of `GENERATORS`, each going
    through its own, some with several in a turn, in the order of ``budgets``; so every beginning of the list is varied.

    Args:
        space: where they are legal; a narrowed space gets those it can say.
        probe: of the model on its default grid; without one, generators that need it are skipped.
        budgets: computed steps wanted, most wanted first; by default a quarter of all steps, then around it.
        only: generators to use; all by default.
        given: further schedules, by a name as a generator would have; they take their turns right after the plain run.

    Returns:
        Pairs (name, schedule). A name begins with that of its generator, such as ``fora/n3-e1``.
    """
    wanted = tuple(dict.fromkeys(budgets if budgets is not None else default_budgets(space.n_steps)))
    usable = tuple(budget for budget in wanted if 1 <= budget <= space.n_steps)
    if probe is not None and not _fits(probe, space):
        probe = None
    lists = []
    for name, source in GENERATORS.items():
        if only is not None and name not in only:
            continue
        if source.rule is not None:
            lists.append((_legal(space, name, source.rule(space, usable)), source.at_once))
        elif source.make is not None and probe is not None:
            lists.append((_legal(space, name, source.make(space, probe, usable)), source.at_once))
    lists[1:1] = [(_legal(space, name, made), 1) for name, made in given.items()]
    found: dict[str, Named] = {}
    before = -1
    while len(found) > before:
        before = len(found)
        for made, at_once in lists:
            new = (pair for pair in made if pair[1].id not in found)
            for name, schedule in islice(new, at_once):
                found[schedule.id] = (name, schedule)
    return tuple(found.values())


def default_budgets(n_steps: int) -> tuple[int, ...]:
    """Numbers of computed steps around a quarter of all, outwards.

    >>> default_budgets(28)
    (7, 5, 9, 4, 14, 6, 11, 8, 3, 18, 10, 2, 12, 13, 15, 16, 17, 20, 22)
    """
    shares = (1 / 4, 1 / 6, 1 / 3, 1 / 8, 1 / 2, 1 / 5, 2 / 5, 2 / 7, 1 / 10, 16 / 25, 5 / 14, 1 / 14)
    between = (3 / 7, 13 / 28, 15 / 28, 4 / 7, 17 / 28, 5 / 7, 11 / 14)
    return tuple(dict.fromkeys(max(1, round(n_steps * share)) for share in (*shares, *between)))


def _fits(probe: Probe, space: SearchSpace) -> bool:
    """Whether the probe was recorded on the space's default grid."""
    return len(probe.sigma) == len(space.sigma) and all(
        abs(a - b) < 1e-6 * max(1.0, space.sigma[0]) for a, b in zip(probe.sigma, space.sigma, strict=True)
    )


def _legal(space: SearchSpace, generator: str, made: Iterable[Named]) -> Iterator[Named]:
    """What ``made`` is in ``space``, without those it cannot say."""
    # the same row at a finer level costs more and gains little, so it comes after all of the coarsest
    for name, wish in sorted(made, key=lambda pair: "@" in pair[0]):
        schedule = space.repair(wish)
        if says_the_same(wish, schedule, space):
            yield (f"{generator}/{name}" if name else generator), schedule


def says_the_same(wish: Schedule, schedule: Schedule, space: SearchSpace) -> bool:
    """Whether ``schedule``, the repaired ``wish``, is still what was meant.

    Rows, removed blocks and formats must be equal. Noise levels may move to the nearest point of the lattice. Solvers
    must be of the same family and order, except where history or the end of the run lowers them; Euler stands for the
    default.
    """
    if wish.n_steps != schedule.n_steps or any(
        getattr(wish, part) != getattr(schedule, part) for part in ("ops", "pruned", "precision")
    ):
        return False
    spacing = (space.sigma[0] - space.sigma[-1]) / space.lattice
    if any(abs(a - b) > 1.01 * spacing for a, b in zip(wish.sigma, schedule.sigma, strict=True)):
        return False
    computes = 0
    for step, (asked, got) in enumerate(zip(wish.solver, schedule.solver, strict=True)):
        lowered = computes + 1 < asked.order or step == wish.n_steps - 1
        if asked != space.solvers[0] and asked != got:
            kin = asked.family == got.family and asked.order == got.order
            if not kin and not (lowered and got.order <= asked.order):
                return False
        computes += schedule.row("model")[step] == COMPUTE
    return True
