"""Seeds from one recorded run: exact placements, masks from how much outputs and blocks change, removable blocks.

Each function yields pairs (name, schedule) for one space, the probe of its model and one list of budgets; schedules may
be illegal there, the caller repairs and sorts out. Masks need the space's default number of steps to be the probe's.
This module does not know how any of them performs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from schedsearch.schedule import COMPUTE, REUSE, Schedule, Solver
from schedsearch.search._blocks import block_updates, bubbled, flagged_blocks, near_identity, shared_budget
from schedsearch.search._costs import adams_costs, emphasised, fitted_costs, forecast_costs
from schedsearch.search._paths import Path, Rule, group_costs, minimax, partition, placed, shortest
from schedsearch.search._published import SMOOTHCACHE_LIMITS
from schedsearch.search._rule_seeds import forecast_row, stepped, with_row, with_rows
from schedsearch.space import SearchSpace, solver_like
from schedsearch.study import Probe

Array = npt.NDArray[np.float64]
Named = tuple[str, Schedule]

GITS_GAMMA = 1.15
"""Chen et al. 2024, arXiv 2405.11326: weight of a later jump relative to the one before it."""

MAG_LONGEST, MAG_RETAINED = 5, 0.1
"""Ma et al. 2025 (MagCache), arXiv 2506.09045: longest run of skips, and the share of steps computed at the start."""


PLACEMENTS: tuple[tuple[str, Rule, float], ...] = (
    ("max.5", "max", 0.5), ("square.5", "sum", 0.5), ("max1", "max", 1.0), ("square1", "sum", 1.0), ("max0", "max", 0.0)
)  # fmt: skip
"""How errors of steps count: a name, whether the worst one or their squares' sum, and the power for `emphasised`."""


# ---- placed steps


def placed_table(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """Steps placed for fitted coefficients; see `_costs.fitted_costs`.

    Placing for order 4 takes long and puts them where placing for order 3 does.
    """
    records = [record for order in (4, 3, 2) if (record := _record(space, "table", order)) is not None]
    costs = fitted_costs(probe, 3) if records else ()
    for record in records:
        yield from _placements(space, probe, budgets, record, costs[: record.order])


def placed_adams(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """Steps placed for Adams-Bashforth; see `_costs.adams_costs`."""
    for order in (2, 3):
        record = _record(space, "adams", order)
        if record is not None:
            yield from _placements(space, probe, budgets, record, adams_costs(probe, order))


def gits(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """GITS: a least-cost path over Euler jumps off the recorded run, taken with Adams-Bashforth."""
    record = _record(space, "adams", 2) or space.solvers[0]
    paths = shortest(probe.jumps(), gamma=GITS_GAMMA)
    for budget in budgets:
        if budget in paths:
            yield f"k{budget}", _on_grid(space, probe, paths[budget], record)


def _record(space: SearchSpace, family: str, order: int) -> Solver | None:
    """The space's solver of exactly this order."""
    record = solver_like(space.solvers, family, order)
    return record if record is not None and record.order == order else None


def _placements(
    space: SearchSpace, probe: Probe, budgets: Sequence[int], record: Solver, costs: Sequence[Array]
) -> Iterator[Named]:
    for tag, paths in _rules(probe, costs, budgets):
        for budget in budgets:
            if budget in paths and budget in space.counts:
                yield f"{record.family}{record.order}-{tag}-k{budget}", _on_grid(space, probe, paths[budget], record)


def _rules(probe: Probe, costs: Sequence[Array], budgets: Sequence[int]) -> Iterator[tuple[str, dict[int, Path]]]:
    """Optimal paths by number of steps under each of `PLACEMENTS`."""
    for tag, rule, power in PLACEMENTS:
        weighted = emphasised(costs, probe, power)
        squares = [cost**2 for cost in weighted]
        yield tag, placed(weighted if rule == "max" else squares, rule=rule, most=max(budgets, default=1))


def _on_grid(space: SearchSpace, probe: Probe, path: Path, record: Solver) -> Schedule:
    """The run that visits these nodes of the probe's grid."""
    return stepped(space, [probe.sigma[node] for node in path.nodes], (record,) * path.n_edges)


# ---- masks from model outputs


def forecast_masks(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """Computed steps placed for forecasts to order 1, 2 and 0 of what lies between; see `_costs.forecast_costs`."""
    for order in (1, 2, 0):
        costs = forecast_costs(probe, order + 1)
        for tag, paths in _rules(probe, costs, budgets):
            yield from _masks(space, paths, budgets, tag=f"o{order}-{tag}", order=order)


def cachequant(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """CacheQuant's partition (arXiv 2503.01323) of the outputs by L1 distance, with its bounds on group lengths."""
    costs = group_costs(probe.l1)
    paths = {budget: path for budget in budgets if (path := partition(costs, budget)) is not None}
    yield from _masks(space, paths, budgets, tag="l1")


def lemica(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """LeMiCa (arXiv 2511.00090): the worst reused span as small as it can be."""
    yield from _masks(space, minimax(forecast_costs(probe, 1)[0]), budgets, tag="minimax")


def teacache(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """TeaCache's rule (arXiv 2411.19108) on recorded outputs: compute once the accumulated change is large enough."""
    change = np.diagonal(probe.l1, 1) / np.sqrt(np.maximum(np.diagonal(probe.gram)[1:-1], 1e-300))
    n = probe.n_steps

    def mask(limit: float) -> tuple[int, ...]:
        taken, gathered = [0], 0.0
        for step in range(1, n):
            gathered += float(change[step - 1])
            if gathered >= limit or step == n - 1:
                taken.append(step)
                gathered = 0.0
        return tuple(taken)

    yield from _limited(space, budgets, mask, np.linspace(0.0, float(change.sum()), 400))


def magcache(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """MagCache's rule (arXiv 2506.09045): skip while the product of magnitude ratios stays near 1, five at most."""
    size = np.sqrt(np.maximum(np.diagonal(probe.gram)[1:], 1e-300))
    ratio = size[1:] / size[:-1]
    n, kept = probe.n_steps, max(1, round(MAG_RETAINED * probe.n_steps))

    def mask(limit: float) -> tuple[int, ...]:
        taken, product, gathered, run = list(range(kept)), 1.0, 0.0, 0
        for step in range(kept, n):
            product *= float(ratio[step - 1])
            gathered += abs(1.0 - product)
            run += 1
            if gathered >= limit or run > MAG_LONGEST:
                taken.append(step)
                product, gathered, run = 1.0, 0.0, 0
        return tuple(taken)

    yield from _limited(space, budgets, mask, np.geomspace(1e-5, 10.0, 400))


def _masks(
    space: SearchSpace, paths: Mapping[int, Path], budgets: Sequence[int], *, tag: str, order: int = 0
) -> Iterator[Named]:
    """Rows that compute where these paths go and forecast to ``order`` between, for every budget that has one."""
    for budget in budgets:
        if budget in paths and paths[budget].nodes[-1] == space.n_steps:
            row = forecast_row(space.n_steps, paths[budget].nodes[:-1], order)
            for suffix, schedule in with_row(space, row):
                yield f"{tag}-k{budget}{suffix}", schedule


def _limited(
    space: SearchSpace, budgets: Sequence[int], mask: Callable[[float], tuple[int, ...]], limits: Array
) -> Iterator[Named]:
    """Masks of a rule with a threshold, for every budget that one of these ``limits`` leads to."""
    by_budget = {len(taken): taken for taken in map(mask, map(float, limits))}
    for budget in budgets:
        if budget in by_budget:
            for suffix, schedule in with_row(space, forecast_row(space.n_steps, by_budget[budget], 0)):
                yield f"k{budget}{suffix}", schedule


# ---- masks from blocks


def smooth_steps(change: Array, limit: float) -> tuple[int, ...]:
    """SmoothCache's computed steps: after each, as many of the next three are left out as change within ``limit``.

    Args:
        change: `(n_steps, 3)` relative change of what is cached over 1, 2 and 3 steps.
        limit: the paper's alpha.
    """
    n, reach = change.shape
    taken, step = [], 0
    while step < n:
        taken.append(step)
        within = [k for k in range(1, reach + 1) if step + k < n and change[step, k - 1] <= limit]
        step += max(within, default=0) + 1
    return tuple(dict.fromkeys((*taken, n - 1)))


def smoothcache(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """SmoothCache (arXiv 2411.10510): its published limits, then limits that meet the budgets."""
    if not probe.blocks or space.n_steps != probe.n_steps:
        return
    change = np.mean([np.nan_to_num(block.change, nan=np.inf) for block in probe.blocks], axis=0)
    rows = {f"alpha{limit}": smooth_steps(change, limit) for limit in SMOOTHCACHE_LIMITS}
    limits = np.unique(change[np.isfinite(change)])
    met = {len(taken): taken for taken in (smooth_steps(change, float(limit)) for limit in limits)}
    rows |= {f"k{budget}": met[budget] for budget in budgets if budget in met}
    for tag, taken in rows.items():
        for suffix, schedule in with_row(space, forecast_row(space.n_steps, taken, 0)):
            yield f"{tag}{suffix}", schedule


def block_adaptive(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """BAC (arXiv 2506.13456): each block refreshes where it changes, in a shared budget; with bubbling union too."""
    blocks = [block for block in probe.blocks if REUSE in _symbols(space, block.name)]
    if not blocks or space.n_steps != probe.n_steps:
        return
    paths = [block_updates(block.change) for block in blocks]
    losses = np.array([[found[k].cost for k in range(1, probe.n_steps + 1)] for found in paths])
    flagged = flagged_blocks([(block.name, block.change) for block in blocks])
    for budget in budgets:
        updates = shared_budget(losses, budget * len(blocks))
        rows = {block.name: found[k].mask() for block, found, k in zip(blocks, paths, updates, strict=True)}
        schedule = with_rows(space, rows)
        yield f"k{budget}", schedule
        yield f"k{budget}-bubbled", bubbled(schedule, space, flagged)


def pruned(space: SearchSpace, probe: Probe, budgets: Sequence[int]) -> Iterator[Named]:
    """Blocks removed for the whole run: intervals that hardly change their input, then the smallest ones."""
    del budgets
    if not space.max_pruned or not probe.blocks:
        return
    removable = [block for block in probe.blocks if space.repair(with_rows(space, {}, [block.name])).pruned]
    size_of = {block.name: block.size for block in removable}
    quiet = [
        probe.blocks[place].name
        for start, stop in near_identity([block.size for block in probe.blocks])
        for place in range(start, stop)
        if probe.blocks[place].name in size_of
    ]
    if quiet and len(quiet) <= space.max_pruned:
        yield "near-identity", with_rows(space, {}, quiet)
    ranked = sorted(size_of, key=lambda name: (size_of[name], name))
    for count in range(1, min(space.max_pruned, len(ranked)) + 1):
        yield f"smallest{count}", with_rows(space, {}, ranked[:count])


def _symbols(space: SearchSpace, name: str) -> str:
    return space.symbols_of(name) if name in space.row_names else COMPUTE
