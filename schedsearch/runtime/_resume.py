"""What caches hold at a point of a run: as a value that can be compared, and as copies that can be put back.

Runs that agree on everything up to a call can share it: one of them is carried out, the others begin after it with
what it left. This module knows plans and caches, and neither solvers nor pipelines.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from schedsearch.errors import ApplyError
from schedsearch.runtime._plan import IDLE, Plan, SiteKind
from schedsearch.runtime._state import RunState, SiteState
from schedsearch.schedule import COMPUTE

Held = tuple[bool, tuple[tuple[Tensor, ...], ...]]
"""What one site holds: whether its module returns a tuple, and per stream its divided differences."""

_NOTHING = frozenset((COMPUTE, IDLE))


def sites_key(plan: Plan, index: int) -> tuple[Hashable, ...]:
    """Returns what tells runs apart by what their sites did up to call ``index`` and hold after it.

    Equal keys (for equal noise levels and solver steps up to there) mean equal outputs and equal caches. A site that
    has only computed so far, and kept nothing, is not in it.
    """
    calls = plan.calls[: index + 1]
    entries = []
    for site in plan.sites:
        done = tuple((*site.at(step, extra=extra), site.correction_at(step)) for step, extra in calls)
        if not _NOTHING.issuperset(action for action, _, _ in done):
            entries.append((site.kind, site.modules, done))
    return tuple(entries)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of what all sites held after a call, by branch, kind and modules; ``key`` is the handle's for it."""

    key: Hashable
    branches: tuple[dict[tuple[SiteKind, tuple[str, ...]], Held], ...]

    @property
    def n_bytes(self) -> int:
        """Bytes it holds."""
        held = (tensor for sites in self.branches for _, streams in sites.values() for s in streams for tensor in s)
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def taken(state: RunState, plan: Plan, key: Hashable) -> Snapshot:
    """Returns copies of what the sites of ``plan`` hold now, under ``key``."""
    names = [(site.kind, site.modules) for site in plan.sites]
    branches = tuple(
        {
            name: (site.is_tuple, tuple(tuple(level.clone() for level in levels) for levels in site.cache.levels))
            for name, site in zip(names, branch.sites, strict=True)
            if site.cache.levels
        }
        for branch in state.branches
    )
    return Snapshot(key=key, branches=branches)


def restore(state: RunState, plan: Plan, snapshot: Snapshot) -> None:
    """Puts copies of what ``snapshot`` holds into the sites of ``plan``; those it does not speak of hold nothing."""
    names = [(site.kind, site.modules) for site in plan.sites]
    for branch, held in zip(state.branches, snapshot.branches, strict=True):
        for name, site in zip(names, branch.sites, strict=True):
            _fill(site, held.get(name))


def _fill(site: SiteState, held: Held | None) -> None:
    """A site may have room for higher differences than the other had: with as few values, those do not exist yet."""
    site.cache.forget()
    if held is None:
        return
    site.is_tuple, streams = held
    for levels in streams:
        site.cache.levels.append(
            [
                levels[k].clone() if k < len(levels) else torch.empty_like(levels[-1])
                for k in range(site.cache.order + 1)
            ]
        )


def refuse_other(plan: Plan, index: int, key: Hashable, snapshot: Snapshot | None) -> None:
    """Refuses to begin at call ``index`` with caches of a run that did something else before; ``key`` is the handle's
    for the call before it.

    Raises:
        ApplyError: with the call.
    """
    found, wanted = (snapshot.key, key) if snapshot is not None else ((), sites_key(plan, index - 1))
    if found != wanted:
        raise ApplyError(
            f"resume: found caches of a run that did or kept something else up to call {index - 1}, expected equal "
            "sites_key of both. Take the snapshot after that call, from a run that agrees on everything before."
        )
