"""Where a run stands: the call's program, and one set of caches per branch (conditional, unconditional).

The scheduler moves the state between denoiser calls; the wrapped modules only read it. A program holds strings and
tensors, never a number of a call, so ``torch.compile`` makes one graph per distinct pattern and not one per step. Knows
nothing of pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from schedsearch.runtime._cache import Affine, Cache, Scalars
from schedsearch.runtime._plan import IDLE, Plan, Site

BRANCHES = 4
"""Guidance passes one call of the schedule may make: conditional, unconditional, and room for more."""


class CallProgram:
    """What every site does at one call: ``actions[k]``, ``numbers[k]`` and ``affines[k]`` (the correction per stream,
    empty without one) belong to site ``k``; ``layers[k]`` is the step's entry of the k-th table per step of low-bit
    layers. Outside of a run there are no such entries.
    """

    def __init__(
        self,
        actions: tuple[str, ...],
        numbers: tuple[Scalars, ...],
        affines: tuple[tuple[Affine, ...], ...],
        layers: tuple[Tensor, ...] = (),
    ) -> None:
        self.actions = actions
        self.numbers = numbers
        self.affines = affines
        self.layers = layers


class SiteState:
    """One site on one branch: its cache, and the streams in flight while a segment is being computed."""

    def __init__(self, order: int) -> None:
        self.cache = Cache(order)
        self.is_tuple = True
        self.entered: list[Tensor] = []
        self.left: list[Tensor] = []
        self.gathered: list[Tensor] = []


class Branch:
    """All caches of one branch; ``following`` is the branch of the next guidance pass."""

    def __init__(self, orders: tuple[int, ...], following: Branch | None) -> None:
        self.sites = [SiteState(order) for order in orders]
        self.following = following


class RunState:
    """The live state of one applied schedule.

    Attributes:
        idle: the program outside of a run: every site computes and keeps nothing.
        now: the program of the coming denoiser call and its guidance passes.
        branch: the branch of the coming pass; ``None`` when there were more than `BRANCHES`.
        active: the branch of the denoiser call in progress.
        layer_tables: `(n_steps, ...)` tables per step of low-bit layers, such as scales; to be set before the first
            run.
        corrections: `(n_steps, streams, 2, channels)` by site, for those that have one; to be set before the first run.
    """

    def __init__(self, sites: tuple[Site, ...]) -> None:
        self.layer_tables: tuple[Tensor, ...] = ()
        self.corrections: Mapping[int, Tensor] = {}
        self.idle = CallProgram(tuple(IDLE for _ in sites), tuple(() for _ in sites), tuple(() for _ in sites))
        orders = tuple(site.order for site in sites)
        first = Branch(orders, None)
        for _ in range(BRANCHES - 1):
            first = Branch(orders, first)
        self._first = first
        self._programs: tuple[CallProgram, ...] = ()
        self._made: dict[tuple[int, torch.device], tuple[CallProgram, ...]] = {}
        self.now = self.idle
        self.branch: Branch | None = first
        self.active: Branch = first

    def start(self, plan: Plan, device: torch.device, first: int = 0) -> None:
        """Begins a run at the plan's call ``first``; earlier values cannot leak into it, because the plan never reads
        what it has not kept.
        """
        key = (plan.begin, device)
        if key not in self._made:
            self._made[key] = _programs(plan, device, self.layer_tables, self.corrections)
        self._programs = self._made[key]
        if not torch.is_inference_mode_enabled():
            self._drop_inference_buffers()
        self.move_to(first)

    def move_to(self, call: int) -> None:
        """Makes ``call`` of the plan the coming one; outside the plan every site computes and keeps nothing."""
        self.now = self._programs[call] if 0 <= call < len(self._programs) else self.idle
        self.branch = self._first

    @property
    def branches(self) -> list[Branch]:
        """All branches, the conditional one first."""
        found: list[Branch] = []
        branch: Branch | None = self._first
        while branch is not None:
            found.append(branch)
            branch = branch.following
        return found

    def forget(self) -> None:
        """Ends the run and frees all caches."""
        self.now = self.idle
        for branch in self.branches:
            for site in branch.sites:
                site.cache.forget()

    @property
    def n_bytes(self) -> int:
        """Bytes all caches hold now."""
        return sum(site.cache.n_bytes for branch in self.branches for site in branch.sites)

    def _drop_inference_buffers(self) -> None:
        # Tensors made under torch.inference_mode cannot be written in place outside of it.
        for branch in self.branches:
            for site in branch.sites:
                if site.cache.levels and site.cache.levels[0][0].is_inference():
                    site.cache.forget()


def _programs(
    plan: Plan, device: torch.device, layer_tables: tuple[Tensor, ...], corrections: Mapping[int, Tensor]
) -> tuple[CallProgram, ...]:
    """Puts a plan's numbers on ``device`` in one transfer and hands out 0-dimensional views of it."""
    by_layer = [table.to(device).unbind() for table in layer_tables]
    by_site = {number: tensor.to(device) for number, tensor in corrections.items()}
    entries = [[site.at(step, extra=extra) for site in plan.sites] for step, extra in plan.calls]
    scalars = iter(on_device([x for entry in entries for _, numbers in entry for x in numbers], device))
    return tuple(
        CallProgram(
            actions=tuple(action for action, _ in entry),
            numbers=tuple(tuple(next(scalars) for _ in numbers) for _, numbers in entry),
            affines=tuple(_affines(site, step, by_site.get(number)) for number, site in enumerate(plan.sites)),
            layers=tuple(steps[step] for steps in by_layer),
        )
        for entry, (step, _) in zip(entries, plan.calls, strict=True)
    )


def _affines(site: Site, step: int, table: Tensor | None) -> tuple[Affine, ...]:
    """Scale and shift per stream at one step; nothing where nothing is corrected."""
    if table is None or not site.correction_at(step):
        return ()
    return tuple((stream[0], stream[1]) for stream in table[step])


def on_device(numbers: list[float], device: torch.device) -> tuple[Tensor, ...]:
    """Returns each number as a 0-dimensional float32 tensor on ``device``: views of one transfer."""
    return torch.tensor(numbers, dtype=torch.float64).to(torch.float32).to(device).unbind()
