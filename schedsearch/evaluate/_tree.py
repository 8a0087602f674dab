"""What candidates have in common: a store of denoiser calls, keyed by all that decides what a call gives.

Two runs that agree on the noise levels up to a call, on how every step before it was taken, and on what was predicted,
skipped or computed up to and including it, have the same output there, whatever they do afterwards. A node holds that
call: what the denoiser saw and gave, the solver's history, and what the caches held. A run that comes later begins
after the deepest node that holds every cached value it still needs.

Whether a computed value is *kept* for later decides nothing about outputs, so it is no part of a key: a schedule that
keeps a block's residual and one that does not share their calls, as far as the second finds what it needs.

The bytes of all nodes are bounded; the node that was not used for longest goes first. Knows nothing of pipelines.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from schedsearch.runtime._plan import KEEP, RUNS, Plan, Site, SiteKind
from schedsearch.runtime._solver import Call, History
from schedsearch.schedule import REUSE, SKIP, Schedule

TREE_BYTES = 1024**3
"""Memory for nodes, at most, on the device that makes them."""

CACHES_SHARE = 16
"""One node's caches are stored if they take no more than this part (a sixteenth) of the memory."""

Place = tuple[SiteKind, tuple[str, ...], int]
"""A site as far as its cache is concerned: kind, modules, highest order."""

Levels = tuple[tuple[torch.Tensor, ...], ...]
"""Divided differences of one site on one branch: per stream, per order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What one site's cache holds after a call.

    Attributes:
        steps: steps whose computed values are in it, newest first, as many as its order lets it use.
        branches: its content per guidance pass, and whether the module answers with a tuple.
    """

    steps: tuple[int, ...]
    branches: tuple[tuple[Levels, bool], ...]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Return everything it holds."""
        return (t for levels, _ in self.branches for stream in levels for t in stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One denoiser call of one batch, before its step is taken.

    Attributes:
        sample: `(n, tokens, channels)` what the denoiser saw.
        output: of the same shape, what it gave.
        history: the solver's records before this call.
        caches: by site, what the caches held after the call.
    """

    sample: torch.Tensor
    output: torch.Tensor
    history: History
    caches: Mapping[Place, Kept] = field(default_factory=dict)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Return everything it holds; nodes of one run share most of it."""
        yield self.sample
        yield self.output
        for record in self.history:
            yield from (record.sample, record.base, record.output)
        for kept in self.caches.values():
            yield from kept.tensors()


class PrefixTree:
    """Nodes by batch and key, within a number of bytes.

    Args:
        max_bytes: memory for tensors; 0 stores nothing.

    Attributes:
        n_bytes: bytes held now, shared tensors counted once.
    """

    def __init__(self, max_bytes: int = TREE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._nodes: OrderedDict[tuple[tuple[int, int], bytes], Node] = OrderedDict()
        self._holders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, batch: tuple[int, int], key: bytes) -> Node | None:
        """Return the node of call ``key`` on the prompts of ``batch``, and count it as used."""
        node = self._nodes.get((batch, key))
        if node is not None:
            self._nodes.move_to_end((batch, key))
        return node

    def put(self, batch: tuple[int, int], key: bytes, node: Node) -> None:
        """Store ``node``; with one of the same key its caches are joined, the newer ones counting."""
        place = (batch, key)
        old = self._nodes.pop(place, None)
        if old is not None:
            self._release(old)
            node = Node(sample=old.sample, output=old.output, history=old.history, caches={**old.caches, **node.caches})
        self._nodes[place] = node
        for tensor in node.tensors():
            count = self._holders.get(id(tensor), 0)
            self._holders[id(tensor)] = count + 1
            self.n_bytes += 0 if count else _size(tensor)
        while self.n_bytes > self.max_bytes and self._nodes:
            self._release(self._nodes.popitem(last=False)[1])

    def takes(self, caches: Mapping[Place, Kept]) -> bool:
        """Whether one node's ``caches`` are small enough to be stored."""
        return sum(_size(t) for kept in caches.values() for t in kept.tensors()) * CACHES_SHARE <= self.max_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._nodes.clear()
        self._holders.clear()
        self.n_bytes = 0

    def _release(self, node: Node) -> None:
        for tensor in node.tensors():
            self._holders[id(tensor)] -= 1
            if not self._holders[id(tensor)]:
                del self._holders[id(tensor)]
                self.n_bytes -= _size(tensor)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def room_on(device: torch.device) -> int:
    """Return the bytes a tree may take on ``device``: `TREE_BYTES`, or a quarter of what is free there if that is less.

    A pipeline needs room for its activations; what the device has left over is not known before a run.
    """
    if device.type != "cuda":
        return TREE_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(TREE_BYTES, int(free) // 4)


# ---------------------------------------------------------------------------------------------------------------- keys


def root_key(schedule: Schedule) -> bytes:
    """Return the key before the first call: what a schedule says for the whole run."""
    return _digest(b"", (schedule.guidance, schedule.arithmetic))


def call_key(before: bytes, taken: Call | None, call: Call, does: object) -> bytes:
    """Return the key of ``call``.

    Args:
        before: key of the call before it, or the root's.
        taken: the call before it with the scalars its step was taken with, ``None`` at the first.
        call: the call; how its own step is taken is no part of its key.
        does: `doings` at the call.
    """
    step = None if taken is None else (taken.keep, taken.drop, taken.delta, _terms(taken.base), _terms(taken.nxt))
    return _digest(before, (step, call.sigma, call.extra, does))


def _terms(terms: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(repr, terms))  # a float's repr is exact


def _digest(before: bytes, content: object) -> bytes:
    return hashlib.blake2b(before + repr(content).encode(), digest_size=16).digest()


def doings(plan: Plan) -> tuple[object, ...]:
    """Return per call what is not computed, and what it is predicted from: equal on equal pasts, equal outputs."""
    return tuple(_doing(plan.sites, step, extra=extra) for step, extra in plan.calls)


def _doing(sites: Sequence[Site], step: int, *, extra: bool) -> tuple[object, ...]:
    found: list[tuple[object, ...]] = []
    for site in sites:
        action, numbers = site.at(step, extra=extra)
        if action == SKIP:
            found += [("S", name) for name in site.modules]  # identity, one by one or as a run
        elif _predicts(action):
            window = _window(site, step, _order(action) + 1)
            found.append((action, *site.modules, numbers, window, site.correction_at(step)))
    return tuple(sorted(found, key=repr))


def _predicts(action: str) -> bool:
    return action == REUSE or action.isdigit()


def _order(action: str) -> int:
    return 0 if action == REUSE else int(action)


def _window(site: Site, step: int, most: int) -> tuple[int, ...]:
    """The newest steps before ``step``, and itself, at which the site computed: at most so many, newest first."""
    return tuple(i for i in range(step, -1, -1) if site.actions[i] in RUNS)[:most]


# --------------------------------------------------------------------------------------------------------------- needs


class Needs:
    """Which cached values a run still needs after each of its calls."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._by_site = [_needed_after(site, plan.calls) for site in plan.sites]

    def met(self, index: int, caches: Mapping[Place, Kept]) -> bool:
        """Whether ``caches`` hold all that the run needs after call ``index``."""
        step, _ = self._plan.calls[index]
        for site, needed in zip(self._plan.sites, self._by_site, strict=True):
            if needed[index]:
                kept = caches.get(place_of(site))
                if kept is None or kept.steps[: needed[index]] != _window(site, step, needed[index]):
                    return False
        return True


def _needed_after(site: Site, calls: Sequence[tuple[int, bool]]) -> list[int]:
    """Per call, how many of the newest values computed so far some later call predicts from."""
    needed = [0] * len(calls)
    for later, (step, _) in enumerate(calls):
        action = site.actions[step]
        if _predicts(action):
            window = _window(site, step, _order(action) + 1)
            for index in range(later - 1, -1, -1):
                count = sum(i <= calls[index][0] for i in window)
                if not count:
                    break
                needed[index] = max(needed[index], count)
    return needed


def place_of(site: Site) -> Place:
    """Return where the site's cache can be found again."""
    return site.kind, site.modules, site.order


def kept_steps(site: Site, step: int) -> tuple[int, ...]:
    """Return the steps whose values the site's cache holds after ``step``, newest first."""
    return tuple(i for i in range(step, -1, -1) if site.actions[i] == KEEP)[: site.order + 1]
