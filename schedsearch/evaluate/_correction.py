"""Decoupled error correction (Liu et al. 2025, "CacheQuant", arXiv 2503.01323): making up for reuse and for rounding.

Two fits of a scale and a shift per step and channel, each towards full precision. *Layers*: a low-bit layer's output
towards that of the layer it is made of, on the input it meets in the scheduled run. *Rows*: the value that a row reuses
or forecasts towards what the full-precision run of the same steps computes there from the same noise; low-bit layers
take part as they will, with their own correction.

Rows are fitted *on policy* by default: the run from which a step is fitted has the corrections of all steps before it,
because that is the run the correction will meet. It takes one run per group of steps between two kept values, each only
as far as that group: about half as many scheduled runs as there are groups. In one pass (``on_policy=False``) all steps
are fitted from one uncorrected run: cheaper, and what is kept late is then not quite what the corrected run keeps.
Layers are fitted in one pass: what tells one from its base on the same input hardly depends on earlier corrections.

Nothing but the caches is looked at, so runs are those of the pipeline, bit for bit. Does not know prompts or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from schedsearch.errors import UsageError
from schedsearch.evaluate._affine import AffineFit, AffineSums
from schedsearch.evaluate._reference import PairedRuns
from schedsearch.runtime import Handle, apply, denoiser_of, topology_of
from schedsearch.runtime._plan import KEEP, Plan, Site
from schedsearch.runtime._precision import linears_of
from schedsearch.runtime._solver import Call, History
from schedsearch.runtime._state import RunState
from schedsearch.runtime._wrap import wrap
from schedsearch.schedule import COMPUTE, CORRECTION, Schedule, SideTensor, Solver, corrected_row, with_tensors

LayerTables = Literal["step", "constant", "none"]

LAYER_TABLES: tuple[LayerTables, ...] = ("step", "constant", "none")

AFFINE = "affine"
"""The last part of the name of a layer's correction."""

LAYER_BYTES = 32 * 1024 * 1024
"""Most that corrections of layers per step may take in the side file; beyond it, one is fitted for all steps."""

RECORD_BYTES = 1024**3
"""Memory for what the full run computes; where it does not suffice, every second token is taken, or every third, ..."""

ROLE = "error correction"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionError:
    """What one tensor brought on the values it was fitted on: mean squared errors, over all steps it corrects."""

    tensor: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A schedule with corrections.

    Attributes:
        schedule: with the tensors that correct something.
        errors: one record per tensor, in the order of the fits.
    """

    schedule: Schedule
    errors: tuple[CorrectionError, ...]


class _Reached(Exception):  # noqa: N818 -- no error: it carries a run out of the pipeline where it has got far enough
    """The run has seen the last step that counts."""


def without_corrections(schedule: Schedule) -> Schedule:
    """Return ``schedule`` without corrections of rows and layers; its other tables stay."""
    return _without(schedule, lambda name: _corrects_a_row(name) or _corrects_a_layer(name))


def _without(schedule: Schedule, goes: Callable[[str], bool]) -> Schedule:
    """``schedule`` without the tensors whose names ``goes`` is true of."""
    names = [t.name for t in schedule.tables.tensors] if schedule.tables is not None else []
    gone = [name for name in names if goes(name)]
    return with_tensors(schedule, {}, role=ROLE, without=gone) if gone else schedule


def _corrects_a_row(name: str) -> bool:
    return corrected_row(name) is not None


def _corrects_a_layer(name: str) -> bool:
    return name.endswith(f".{AFFINE}")


# ------------------------------------------------------------------------------------------------------------- layers


def correct_layers(runs: PairedRuns, schedule: Schedule, *, tables: LayerTables = "step") -> Corrected:
    """Return ``schedule`` with a scale and a shift for every output of its low-bit layers, in place of those it had.

    Args:
        runs: the pipeline, without a schedule on it, and the prompts to fit on.
        schedule: what is corrected; corrections of its rows stay.
        tables: ``step`` fits one per step, ``constant`` one for all steps, which costs nothing at run time.

    Raises:
        UsageError: an unknown word.
        EvaluationError: a layer gave values that are no numbers.
        ApplyError: the schedule cannot be put on this pipeline.
    """
    if tables not in LAYER_TABLES:
        raise UsageError(f"layers: found {tables!r}, expected one of {', '.join(LAYER_TABLES)}.")
    bare = _without(schedule, _corrects_a_layer)
    if tables == "none" or not schedule.precision:
        return Corrected(schedule=bare, errors=())
    with torch.inference_mode(), apply(runs.pipe, bare) as handle:
        layers = _Layers(handle, is_per_step=tables == "step")
        with layers.watching():
            for start, stop in runs.batches(len(runs)):
                layers.step = 0
                runs.latents(start, stop, steps=bare.n_steps)
    found = {f"{name}.{AFFINE}": [sums.fit() for sums in steps] for name, steps in layers.sums.items()}
    return _stored(bare, found, shape=lambda fits: (len(fits), 2, -1))


class _Layers:
    """The low-bit layers of an applied schedule beside those they are made of."""

    def __init__(self, handle: Handle, *, is_per_step: bool) -> None:
        self._handle = handle
        linears = linears_of(denoiser_of(handle._pipe))
        self._linears = {entry.name: linears[entry.name] for entry in handle._layers.layers if entry.layer is not None}
        n_steps = handle.schedule.n_steps
        size = sum(8 * n_steps * linear.out_features for linear in self._linears.values())
        self._is_per_step = is_per_step and size <= LAYER_BYTES
        self.sums = {
            name: [AffineSums(linear.out_features) for _ in range(n_steps if self._is_per_step else 1)]
            for name, linear in self._linears.items()
        }
        self.step = 0

    def watching(self) -> ExitStack:
        """Begin to look at every call; the stack ends it."""
        stack = ExitStack()
        for name, linear in self._linears.items():
            stack.callback(linear.register_forward_hook(self._hook(name)).remove)

        def note(index: int, *_: object) -> None:
            following = self._handle.calls[index + 1 : index + 2]
            self.step = following[0].step if following else 0

        self._handle.on_call = note
        return stack

    def _hook(self, name: str) -> Callable[..., None]:
        steps = self.sums[name]

        def note(linear: nn.Linear, args: tuple[Tensor, ...], out: Tensor) -> None:
            wanted = functional.linear(args[0], linear.weight, linear.bias)
            steps[self.step if self._is_per_step else 0].add(out, wanted)

        return note


# --------------------------------------------------------------------------------------------------------------- rows


def correct_rows(runs: PairedRuns, schedule: Schedule, *, on_policy: bool = True) -> Corrected:
    """Return ``schedule`` with a scale and a shift for every value that its rows predict, in place of those it had.

    Adjacent blocks that share a cache are corrected as one, under the name of the first (FORMAT.md M17).

    Args:
        runs: the pipeline, without a schedule on it, and the prompts to fit on.
        schedule: what is corrected; corrections of its layers stay.
        on_policy: fit every step from a run with the corrections of the steps before it; else all from one run.

    Raises:
        EvaluationError: the denoiser gave values that are no numbers.
        ApplyError: the schedule cannot be put on this pipeline.
    """
    bare = _without(schedule, _corrects_a_row)
    with torch.inference_mode():
        with apply(runs.pipe, bare) as handle:
            plan = handle.plan
        rounds = rounds_of(plan) if on_policy else [[step for steps in rounds_of(plan) for step in steps]]
        if not any(rounds):
            return Corrected(schedule=bare, errors=())
        full = _FullRuns(runs, bare, plan)
        fits: dict[tuple[int, int], list[AffineFit]] = {}
        current = bare
        for steps in rounds:
            fits |= _fitted(runs, current, full, steps)
            by_row = {
                f"{site.row}.{CORRECTION}": _by_step(fits, number, plan.n_steps)
                for number, site in enumerate(plan.sites)
                if any(place[0] == number for place in fits)
            }
            corrected = _stored(bare, by_row, shape=lambda fits: (plan.n_steps, len(fits) // plan.n_steps, 2, -1))
            current = corrected.schedule
    return corrected


def predicts(site: Site, step: int) -> bool:
    """Whether the site's value at a step is a prediction."""
    return site.actions[step] in {"R", "1", "2", "3"}


def rounds_of(plan: Plan) -> list[list[int]]:
    """Return the steps that predict, in groups: what a group predicts follows from values that were kept before its
    first step, so corrections within a group do not change what is predicted there.
    """
    found: list[list[int]] = []
    is_open = False
    for step in range(plan.n_steps):
        if any(predicts(site, step) for site in plan.sites):
            if not is_open:
                found.append([])
            is_open = True
            found[-1].append(step)
        if any(site.actions[step] == KEEP for site in plan.sites):
            is_open = False
    return found


class _FullRuns:
    """What the full run computes where a schedule predicts, in main memory.

    Args:
        runs: the pipeline and its prompts.
        schedule: whose steps are taken, without its rows, rules and removed modules.
        plan: of ``schedule``.
    """

    def __init__(self, runs: PairedRuns, schedule: Schedule, plan: Plan) -> None:
        pairs = sum(predicts(site, step) for site in plan.sites for step in range(plan.n_steps))
        self._share = pairs * len(runs)
        self._values: dict[tuple[int, int, int, int], list[Tensor]] = {}
        sites = tuple(_kept(site) for site in plan.sites)
        denoiser = denoiser_of(runs.pipe)
        streams = {blocks.name: blocks.streams for blocks in topology_of(runs.pipe).lists}
        with apply(runs.pipe, full_schedule(schedule)) as handle:
            state = RunState(sites)
            watched = replace(handle.plan, sites=sites)
            patches = wrap(denoiser, sites, streams, state)
            try:
                for start, stop in runs.batches(len(runs)):
                    handle.on_call = self._noting(watched, state, start)
                    state.start(watched, torch.device("cpu"))  # nothing is kept with numbers, so nothing is moved
                    runs.latents(start, stop, steps=schedule.n_steps)
            finally:
                for patch in reversed(patches):
                    patch.undo()

    def __call__(self, start: int, number: int, step: int, branch: int) -> list[Tensor]:
        """Return the values per stream of a site at a step, of the batch that begins with prompt ``start``."""
        return self._values[start, number, step, branch]

    def thinned(self, value: Tensor, n_streams: int) -> Tensor:
        """Return `(n, channels)` of a value: all tokens, or as many as there is memory for."""
        rows = value.reshape(-1, value.shape[-1])
        size = rows.numel() * 4 * n_streams * self._share // max(1, value.shape[0])
        return rows[:: -(-size // RECORD_BYTES) or 1]

    def _noting(self, plan: Plan, state: RunState, start: int) -> Callable[..., None]:
        def note(index: int, _call: Call, _sample: Tensor, _output: Tensor, _history: History) -> None:
            step, extra = plan.calls[index]
            for number, branch, streams in _held(plan, state, step):
                if not extra:
                    self._values[start, number, step, branch] = [
                        self.thinned(stream, len(streams)).float().cpu().clone() for stream in streams
                    ]
            state.move_to(index + 1)

        return note


def _held(plan: Plan, state: RunState, step: int) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Number, branch and newest value per stream of every site that has kept one at this step."""
    for number, site in enumerate(plan.sites):
        if site.actions[step] != KEEP:
            continue
        for k, branch in enumerate(state.branches):
            levels = branch.sites[number].cache.levels
            if levels:
                yield number, k, [stream[0] for stream in levels]


def _kept(site: Site) -> Site:
    """The site as it computes at every step, and keeps where it would predict."""
    steps = range(len(site.actions))
    actions = "".join(KEEP if predicts(site, step) else COMPUTE for step in steps)
    return Site(kind=site.kind, modules=site.modules, actions=actions, numbers=tuple(() for _ in steps), order=0)


def full_schedule(schedule: Schedule) -> Schedule:
    """Return the full-precision run of the same steps: no rows, no rules, nothing removed; fitted steps are Adams'."""
    solver = tuple(
        Solver(family="adams" if s.order > 1 else "euler", order=s.order) if s.family == "table" else s
        for s in schedule.solver
    )
    return replace(schedule, solver=solver, ops=(), precision=(), pruned=(), tables=None, measured=())


def _fitted(
    runs: PairedRuns, schedule: Schedule, full: _FullRuns, steps: Sequence[int]
) -> dict[tuple[int, int], list[AffineFit]]:
    """The fits per stream of every site at these steps, by number and step, from one run of ``schedule`` that ends with
    the last of them.
    """
    sums: dict[tuple[int, int], list[AffineSums]] = {}
    with apply(runs.pipe, schedule) as handle:
        state, plan = handle._state, handle.plan

        def take(start: int, step: int) -> None:
            for number, site in enumerate(plan.sites):
                if step in steps and predicts(site, step):
                    for k, branch in enumerate(state.branches):
                        if not branch.sites[number].cache.levels:
                            continue
                        # The store is as it was when the module answered from it, so this is what was corrected.
                        seen = branch.sites[number].cache.predict(state.now.numbers[number])
                        found = sums.setdefault((number, step), [AffineSums(s.shape[-1]) for s in seen])
                        for each, value, wanted in zip(found, seen, full(start, number, step, k), strict=True):
                            each.add(full.thinned(value, len(seen)).float().cpu(), wanted)

        for start, stop in runs.batches(len(runs)):

            def note(index: int, call: Call, *_: Any, start: int = start) -> None:
                if not call.extra:
                    take(start, call.step)
                if call.step == steps[-1] and index + 1 < len(handle.calls):
                    raise _Reached

            handle.on_call = note
            with suppress(_Reached):
                runs.latents(start, stop, steps=schedule.n_steps)
    return {place: [each.fit() for each in found] for place, found in sums.items()}


def _by_step(fits: Mapping[tuple[int, int], list[AffineFit]], number: int, n_steps: int) -> list[AffineFit]:
    """All fits of one site, step after step and stream after stream; 1 and 0 where there is none."""
    known = next(found for (place, _), found in fits.items() if place == number)
    none = [AffineFit(table=_identity(f.table), before=f.before * 0.0, after=f.after * 0.0) for f in known]
    return [fit for step in range(n_steps) for fit in fits.get((number, step), none)]


def _identity(table: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(table[0]), torch.zeros_like(table[1])])


def _stored(
    schedule: Schedule,
    found: Mapping[str, Sequence[AffineFit]],
    *,
    shape: Callable[[Sequence[AffineFit]], tuple[int, ...]],
) -> Corrected:
    """``schedule`` with the tensors that correct something."""
    tensors: dict[str, SideTensor] = {}
    errors: list[CorrectionError] = []
    for name, fits in found.items():
        table = torch.stack([fit.table for fit in fits])
        if torch.equal(table, torch.stack([_identity(fit.table) for fit in fits])):
            continue
        table = table.reshape(shape(fits)).contiguous()
        tensors[name] = SideTensor("F32", tuple(table.shape), table.numpy().astype("<f4").tobytes())
        before, after = (sum(float(getattr(fit, word).mean()) for fit in fits) for word in ("before", "after"))
        n = sum(bool(fit.before.any()) for fit in fits) or 1
        errors.append(CorrectionError(tensor=name, before=before / n, after=after / n))
    made = with_tensors(schedule, tensors, role=ROLE) if tensors else schedule
    return Corrected(schedule=made, errors=tuple(errors))
