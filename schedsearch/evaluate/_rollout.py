"""Runs one schedule on batches of prompts through the prefix tree, fitting its open steps on the way.

A run begins after the deepest call that the tree knows, and leaves its own calls there. ``table`` steps without
scalars are fitted as they come, on all prompts at once: where these need several batches, every batch is taken up to
that call before any goes on. The loop over steps is always the pipeline's own. Does not know metrics or records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile

import torch

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._fit import adams_weights, solved
from schedsearch.evaluate._reference import PairedRuns, Reference
from schedsearch.evaluate._trajectory import relative_error, squared_sums
from schedsearch.evaluate._tree import (
    Kept,
    Needs,
    Node,
    Place,
    PrefixTree,
    call_key,
    doings,
    kept_steps,
    place_of,
    root_key,
)
from schedsearch.runtime import Handle, LowBitCache, apply
from schedsearch.runtime._plan import KEEP, SiteKind
from schedsearch.runtime._resume import Held, Snapshot
from schedsearch.runtime._solver import Call, History, columns, fitted
from schedsearch.schedule import TABLE_FAMILY, Schedule

Batch = tuple[int, int]


class HopelessError(EvaluationError):
    """A run strayed so far from the teacher that it was ended; the text says where."""


class _Reached(Exception):  # noqa: N818 -- no error: it carries a run out of the pipeline where it has got far enough
    """The run has made the call it was to make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """What a run came to.

    Attributes:
        batches: ranges of prompts.
        latents: final packed latents `(n, tokens, channels)` of each, on the device.
        calls: the calls as they were made, every step with its scalars.
    """

    batches: tuple[Batch, ...]
    latents: tuple[torch.Tensor, ...]
    calls: tuple[Call, ...]

    @property
    def scalars(self) -> list[list[float]]:
        """Per step, what a ``table`` step multiplies the sample and the outputs with; nothing for other steps."""
        rows: list[list[float]] = [[] for _ in range(1 + self.calls[-1].step)]
        for call in self.calls:
            if call.family == TABLE_FAMILY:
                rows[call.step] = [term.weight for term in call.nxt]
        return rows


class Runner:
    """Runs schedules on the first prompts of some runs.

    Args:
        runs: the pipeline and its prompts.
        teacher: whose trajectory steps are fitted to, and strays are told by; prepared for the prompts asked for.
        tree: where calls are kept.
        stray: relative latent error after a step above which a run ends, see `relative_error`; infinity never ends one.
        on_images: called after each call of the pipeline with the images it worked on.
        layers: where low-bit layers are kept between schedules.
    """

    def __init__(
        self,
        runs: PairedRuns,
        teacher: Reference,
        *,
        tree: PrefixTree,
        stray: float,
        on_images: Callable[[int], None],
        layers: LowBitCache | None = None,
    ) -> None:
        self.runs = runs
        self.teacher = teacher
        self.tree = tree
        self.stray = stray
        self.on_images = on_images
        self.layers = layers or LowBitCache()
        self.known: dict[tuple[bytes, float, int, int], tuple[float, ...]] = {}
        """Scalars by call, level the step leads to, order and number of prompts."""

    def roll(self, schedule: Schedule, n: int) -> Rolled:
        """Run ``schedule`` on the first ``n`` prompts.

        Raises:
            ApplyError: it cannot be put on this pipeline.
            HopelessError: it strays beyond the bound.
        """
        with torch.inference_mode(), apply(self.runs.pipe, schedule, unfitted=True, cache=self.layers) as handle:
            return _Run(self, handle, n).finish()


class _Run:
    """One schedule under way on all its batches."""

    def __init__(self, runner: Runner, handle: Handle, n: int) -> None:
        self._runner = runner
        self._handle = handle
        self._n = n
        self._batches = tuple(runner.runs.batches(n))
        self._calls = list(handle.calls)
        self._keys: list[bytes] = []
        self._does = doings(handle.plan)
        self._needs = Needs(handle.plan)
        self._at: dict[Batch, tuple[int, Node]] = {}
        self._history: dict[Batch, History] = {}
        # Without a tree, caches are needed only where batches wait for each other and go on later.
        waits = len(self._batches) > 1 and any(call.unfitted for call in self._calls)
        self._keeps = runner.tree.max_bytes > 0 or waits
        self._going: Batch = self._batches[0]
        self._target = 0
        self._adams = adams_weights(handle.schedule) if any(call.unfitted for call in self._calls) else ()

    def finish(self) -> Rolled:
        """Go to the end and return what came of it."""
        last = len(self._calls) - 1
        while True:
            self._recall()
            target = self._first_open()
            for batch in self._batches:
                self._go(batch, target)
            if self._calls[target].unfitted:
                self._fit(target)
            if target == last:
                break
        latents = tuple(self._taken(batch)[0] for batch in self._batches)
        return Rolled(batches=self._batches, latents=latents, calls=tuple(self._calls))

    # ------------------------------------------------------------------------------------------------- what is known

    def _recall(self) -> None:
        """Takes over what the tree knows: scalars, and for every batch the deepest call it can begin after."""
        self._extend()
        for batch in self._batches:
            done = self._at[batch][0] if batch in self._at else -1
            for index in range(len(self._keys) - 1, done, -1):
                node = self._runner.tree.get(batch, self._keys[index])
                if node is not None and (index == len(self._calls) - 1 or self._needs.met(index, node.caches)):
                    self._at[batch] = index, node
                    break

    def _extend(self) -> None:
        """Makes keys as far as the steps before them have their scalars, taking over scalars found before."""
        for index in range(len(self._keys), len(self._calls)):
            taken = self._calls[index - 1] if index else None
            if taken is not None and taken.unfitted:
                return
            before = self._keys[-1] if self._keys else root_key(self._handle.schedule)
            self._keys.append(call_key(before, taken, self._calls[index], self._does[index]))
            scalars = self._runner.known.get(self._fit_key(index))
            if self._calls[index].unfitted and scalars is not None:
                self._calls[index] = fitted(self._calls[index], scalars)

    def _fit_key(self, index: int) -> tuple[bytes, float, int, int]:
        return self._keys[index], self._calls[index].target, self._calls[index].order, self._n

    def _first_open(self) -> int:
        """The first call without scalars where batches must wait for each other; otherwise the last call."""
        if len(self._batches) > 1:
            for index, call in enumerate(self._calls):
                if call.unfitted:
                    return index
        return len(self._calls) - 1

    # ------------------------------------------------------------------------------------------------------- running

    def _go(self, batch: Batch, target: int) -> None:
        """Takes ``batch`` up to call ``target``."""
        begin, sample = 0, None
        if batch in self._at:
            index, node = self._at[batch]
            if index >= target:
                return
            begin = index + 1
            if self._calls[index].unfitted:
                self._fit(index)
                self._extend()
            sample, history = self._taken(batch)
            self._check(batch, index, sample)
            self._history[batch] = history
            self._handle.resume(begin, history, self._restored(node, index))
        self._going, self._target = batch, target
        self._handle.on_call = self._seen
        steps = self._handle.schedule.n_steps
        try:
            self._runner.runs.latents(*batch, steps=steps, begin=sample)
        except _Reached:
            pass
        finally:
            self._handle.on_call = None
            self._runner.on_images(batch[1] - batch[0])

    def _seen(
        self, index: int, call: Call, sample: torch.Tensor, output: torch.Tensor, history: History
    ) -> Call | None:
        """Keeps the call that was just made, and says how its step is taken."""
        self._extend()
        batch, target, tree = self._going, self._target, self._runner.tree
        caches = self._kept(batch, index) if self._keeps else {}
        # Copied: an output may be the cache's own buffer, or memory a compiled denoiser uses again. The history is our
        # own of the same values, whose tensors the nodes of this run share.
        own = self._history.pop(batch, history)
        node = Node(sample=sample, output=output.clone(), history=own, caches=caches)
        self._at[batch] = index, node
        tree.put(batch, self._keys[index], node if tree.takes(caches) else replace(node, caches={}))
        if index == target:
            raise _Reached
        is_open = call.unfitted
        if self._calls[index].unfitted:
            self._fit(index)
        following, self._history[batch] = self._taken(batch)
        self._check(batch, index, following)
        return self._calls[index] if is_open else None

    def _taken(self, batch: Batch) -> tuple[torch.Tensor, History]:
        """The sample after the last call of ``batch``, and the history then."""
        index, node = self._at[batch]
        return self._handle.advance(index, node.history, node.sample, node.output, self._calls[index])

    def _check(self, batch: Batch, index: int, sample: torch.Tensor) -> None:
        call = self._calls[index + 1]
        error = relative_error(sample, self._runner.teacher.trajectory(*batch).at(call.sigma))
        if error > self._runner.stray:
            raise HopelessError(
                f"after call {index + 1} of {len(self._calls)}, at sigma {call.sigma:.4g}, the latents are {error:.3g} "
                f"(relative) away from the {self._runner.teacher.name} run, more than {self._runner.stray:g}"
            )

    def _fit(self, index: int) -> None:
        """Finds the scalars of call ``index``, which all batches have made."""
        call = self._calls[index]
        sums: torch.Tensor | None = None
        for batch in self._batches:
            _, node = self._at[batch]
            goal = self._runner.teacher.trajectory(*batch).at(call.target)
            more = squared_sums(columns(call, node.history, node.sample, node.output), goal)
            sums = more if sums is None else sums + more
        if sums is None or not bool(torch.isfinite(sums).all()):
            raise FloatingPointError(f"steps.solver[{call.step}]: latents or outputs to fit to hold NaN or infinity")
        scalars = solved(sums, self._adams[index])
        self._runner.known[self._fit_key(index)] = scalars
        self._calls[index] = fitted(call, scalars)

    # -------------------------------------------------------------------------------------------------------- caches

    def _kept(self, batch: Batch, index: int) -> dict[Place, Kept]:
        """What the caches hold after call ``index``; what did not change since the call before is not copied again."""
        step, extra = self._handle.plan.calls[index]
        before = self._at[batch][1].caches if batch in self._at else {}
        found: dict[Place, Kept] = {}
        for number, site in enumerate(self._handle.plan.sites):
            place = place_of(site)
            if site.actions[step] == KEEP and not extra:
                older = before[place].steps if place in before else ()
                # Where the run began after another one's call, older values may be missing or those of other steps.
                sound = takewhile(lambda pair: pair[0] == pair[1], zip(older, kept_steps(site, step - 1), strict=False))
                found[place] = self._copied(number, (step, *(kept for kept, _ in sound))[: site.order + 1])
            elif place in before:
                found[place] = before[place]
        return found

    def _copied(self, number: int, steps: tuple[int, ...]) -> Kept:
        """Copies of what site ``number`` holds: as many differences as there are values."""
        states = [branch.sites[number] for branch in self._handle._state.branches]
        return Kept(
            steps=steps,
            branches=tuple(
                (tuple(tuple(t.clone() for t in stream[: len(steps)]) for stream in state.cache.levels), state.is_tuple)
                for state in states
                if state.cache.levels
            ),
        )

    def _restored(self, node: Node, index: int) -> Snapshot | None:
        """What the caches of this schedule are to hold after call ``index``, from what ``node`` holds."""
        plan = self._handle.plan
        branches: list[dict[tuple[SiteKind, tuple[str, ...]], Held]] = [{} for _ in self._handle._state.branches]
        for site in plan.sites:
            kept = node.caches.get(place_of(site))
            for held, (levels, is_tuple) in zip(branches, kept.branches if kept else (), strict=False):
                held[site.kind, site.modules] = is_tuple, levels
        return Snapshot(key=self._handle.sites_key(index), branches=tuple(branches))
