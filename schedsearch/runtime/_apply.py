"""Puts a schedule on a live pipeline and takes it off again."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from schedsearch.errors import (
    AlreadyAppliedError,
    ApplyError,
    ModelMismatchError,
    ScheduleMismatchWarning,
    UnsupportedFeatureError,
    UsageError,
)
from schedsearch.runtime._correction import check_shapes, correction_tensors
from schedsearch.runtime._describe import describe
from schedsearch.runtime._plan import Plan, plan
from schedsearch.runtime._precision import LowBitCache, low_bit_layers
from schedsearch.runtime._resume import Snapshot, refuse_other, restore, sites_key, taken
from schedsearch.runtime._scheduler import OnCall, ScheduleScheduler
from schedsearch.runtime._solver import Call, History, program
from schedsearch.runtime._state import RunState
from schedsearch.runtime._topology import adapters_of, block_lists_of, denoiser_of, model_ref, tokens, topology_of
from schedsearch.runtime._wrap import Patch, wrap
from schedsearch.schedule import MODEL_ROW, Schedule, corrections, read_frontier, read_schedule, solver_table

_MARK = "_schedsearch_handle"


class Handle:
    """A schedule that is on a pipeline; leaving the ``with`` block, or `remove`, takes it off.

    Attributes:
        schedule: what is being replayed.
    """

    def __init__(
        self,
        pipe: Any,
        schedule: Schedule,
        *,
        keep_outputs: bool = False,
        keep_base: bool = True,
        cache: LowBitCache | None = None,
    ) -> None:
        self.schedule = schedule
        self._pipe = pipe
        self._denoiser = denoiser_of(pipe)
        self._has_room = False
        self._layers = low_bit_layers(self._denoiser, schedule, _device_of(pipe, self._denoiser), cache)
        if not keep_base:
            self._layers = self._layers.release(self._denoiser)
        lists = block_lists_of(pipe)
        self._program_from = lru_cache(maxsize=64)(partial(_calls, schedule, solver_table(schedule)))
        second = {call.step: call.sigma for call in self.calls if call.extra}
        self._plan_from = lru_cache(maxsize=64)(
            partial(plan, schedule, lists, second=second, keep_outputs=keep_outputs, corrections=corrections(schedule))
        )
        self._restored: Snapshot | None = None
        first = self.plan
        self._state = RunState(first.sites)
        self._state.corrections = correction_tensors(schedule, first.sites)
        self._original_scheduler = pipe.scheduler
        self._scheduler = ScheduleScheduler.install(
            pipe.scheduler,
            schedule,
            program=self._program_from,
            begin_run=self._begin_run,
            move_to=self._state.move_to,
            expected_tokens=tokens(pipe, height=schedule.model.height, width=schedule.model.width),
        )
        streams = {blocks.name: blocks.streams for blocks in topology_of(pipe).lists}
        # Low-bit layers first: caches stand around whatever a module computes.
        self._patches: list[Patch] = self._layers.patch(self._denoiser, self._state)
        self._patches += wrap(self._denoiser, first.sites, streams, self._state)
        setattr(self._denoiser, _MARK, self)
        pipe.scheduler = self._scheduler

    @property
    def plan(self) -> Plan:
        """What a run from the first step on does."""
        return self._plan_from(begin=0)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The denoiser calls of a run from the first step on, predicted outputs included."""
        return self._program_from(0)

    @property
    def on_call(self) -> OnCall | None:
        """A function ``(index, call, sample, output, history)`` that sees every call before its output is used.

        ``index`` counts `calls`, ``sample`` is what the denoiser saw, ``output`` what it gave (guidance applied), and
        ``history`` the records of the calls before. It may return another `Call` to carry out, such as the same one
        with fitted coefficients, or ``None``; and it may raise to abandon the run. The tensors belong to the run:
        copy what is to outlive the next call. Runs that begin in the middle (image-to-image) count from their start.
        """
        return self._scheduler.on_call

    @on_call.setter
    def on_call(self, function: OnCall | None) -> None:
        self._scheduler.on_call = function

    def advance(
        self, index: int, history: History, sample: torch.Tensor, output: torch.Tensor, call: Call | None = None
    ) -> tuple[torch.Tensor, History]:
        """Returns sample and history after call ``index``, bit for bit as a run would have them.

        Args:
            index: number of the call among `calls`.
            history: records of the calls before.
            sample: what the denoiser saw.
            output: what it gave.
            call: carried out in place of ``calls[index]``, such as that with fitted coefficients.
        """
        return self._scheduler.advanced(index, history, sample, output, call)

    def sites_key(self, index: int) -> Hashable:
        """Returns what tells schedules apart by their precision and by what their rows did up to call ``index``.

        Two handles (made with ``unfitted=True``, on one pipeline) whose `calls` agree on step, level and combination
        before call ``index``, on its level, and whose keys agree for it, get the same output at that call from the
        same noise, and hold the same in their caches after it. So either can go on with what the other left.
        """
        done = sites_key(self.plan, index)
        if not self.schedule.precision:
            return done
        return (*done, self.schedule.arithmetic)

    def snapshot(self) -> Snapshot:
        """Returns copies of what the caches hold now: inside `on_call`, after the call that it sees.

        Raises:
            ApplyError: no call of a run from the first step on was made.
        """
        if self._scheduler.last_call < 0:
            raise ApplyError(
                "snapshot: found no call yet, expected a run that began at the first step. Call it in on_call."
            )
        return taken(self._state, self.plan, self.sites_key(self._scheduler.last_call))

    def resume(self, call_index: int, history: History, caches: Snapshot | None) -> None:
        """Makes the next ``pipe(...)`` begin at a later call, as if it had made those before; for that one time.

        Args:
            call_index: number of its first call among `calls`.
            history: records of the calls before, as `advance` returned them.
            caches: what `snapshot` gave after the call before; ``None`` if no row has kept or changed anything yet.

        The sample that the call sees is the pipeline's ``latents``.

        Raises:
            UsageError: there is no such call.
            ApplyError: the caches are those of a run that differs before that call.
        """
        if not 0 <= call_index < len(self.calls):
            raise UsageError(f"call_index: found {call_index}, expected 0..{len(self.calls) - 1}.")
        refuse_other(self.plan, call_index, self.sites_key(call_index - 1), caches)
        self._scheduler.start = (call_index, history)
        self._restored = caches

    def remove(self) -> None:
        """Puts the pipeline back as it was; calling it again does nothing.

        Raises:
            ApplyError: somebody wrapped a module after `apply`, remove that wrapper first; or the schedule was applied
                with ``keep_base=False``, so that the model must be loaded again.
        """
        if self._layers.released:
            raise ApplyError(
                "pipe: the schedule was applied with keep_base=False, which let the layers' own weights go, so it "
                "cannot be taken off. Load the model again to run it without this schedule."
            )
        while self._patches:
            if not self._patches[-1].undo():
                raise ApplyError(
                    "pipe: a module was wrapped again after the schedule was applied, so the schedule cannot be taken "
                    "off underneath it. Remove the later wrapper (hook, offloading, another cache) first, then call "
                    "remove() again."
                )
            self._patches.pop()
        self._state.forget()
        if getattr(self._denoiser, _MARK, None) is self:
            delattr(self._denoiser, _MARK)
        if self._pipe.scheduler is self._scheduler:
            self._pipe.scheduler = self._original_scheduler

    def describe(self) -> str:
        """Returns in words what runs at which step, in which formats, what is kept, and how much memory that takes."""
        return describe(self.schedule, self.plan, self.calls, self._layers, n_bytes=self._state.n_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._layers.released:  # then it stays on: `remove` says so
            self.remove()

    def _begin_run(self, begin: int, device: torch.device, first: int) -> None:
        if not self._has_room and _is_compiled(getattr(self._pipe, topology_of(self._pipe).denoiser)):
            _make_room_for_graphs(len(set(self.plan.patterns)))
            self._has_room = True
        self._state.start(self._plan_from(begin=begin), device, first)
        if self._restored is not None:
            restore(self._state, self.plan, self._restored)
            self._restored = None


def _device_of(pipe: Any, denoiser: torch.nn.Module) -> torch.device:
    """Where the denoiser runs: under offloading not where its weights are at rest."""
    at_rest = next(denoiser.parameters()).device
    is_offloaded = hasattr(denoiser, "_hf_hook") or at_rest.type == "meta"
    return torch.device(pipe._execution_device) if is_offloaded else at_rest


def _calls(schedule: Schedule, weights: tuple[tuple[float, ...], ...] | None, begin: int) -> tuple[Call, ...]:
    return program(schedule, begin=begin, weights=weights)


def _is_compiled(module: torch.nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or any(m._compiled_call_impl is not None for m in module.modules())


def _make_room_for_graphs(n_patterns: int) -> None:
    """Lets ``torch.compile`` keep more graphs than by default: one per step pattern, and as many that allocate.

    With ``fullgraph=True`` it refuses to run at all beyond its limit.
    """
    import torch.compiler.config  # here, because it pulls in the compiler, which plain runs never need

    config = torch.compiler.config
    config.recompile_limit += 2 * n_patterns + 2
    config.accumulated_recompile_limit += 2 * n_patterns + 2


def apply(
    pipe: Any,
    source: Schedule | str | PathLike[str],
    *,
    budget: str | None = None,
    unfitted: bool = False,
    keep_base: bool = True,
    cache: LowBitCache | None = None,
) -> Handle:
    """Puts a schedule on ``pipe``; the next ``pipe(...)`` calls replay it.

    Args:
        pipe: a live diffusers pipeline of a supported family.
        source: a schedule, a schedule file, or a frontier folder.
        budget: which schedule of a frontier folder, such as ``4x``, ``800ms`` or ``60%macs``.
        unfitted: for evaluations: a schedule whose ``table`` steps have no coefficients yet is accepted
            (`Handle.on_call` supplies them), and the denoiser's outputs are kept whether a row needs them or not, so
            that what a run holds does not depend on what comes later.
        keep_base: ``False`` frees the layers' own weights where low-bit ones take their place. The schedule then cannot
            be taken off (leaving a ``with`` block leaves it on), and the model must be loaded again for another one.
            While it is being put on, both are there.
        cache: for evaluations: keeps low-bit layers for the next schedule on the same pipeline.

    Returns:
        The handle that describes the schedule and takes it off again; also a context manager.

    Raises:
        ScheduleError: the file cannot be read.
        UsageError: a budget for something that is not a frontier, or none for one that is.
        ModelMismatchError: made for a denoiser with other blocks or another configuration.
        AlreadyAppliedError: the denoiser already carries a schedule.
        UnsupportedFeatureError: the schedule uses something this release cannot replay.
        ApplyError: its tables are not beside it, or do not fit the denoiser's layers; or ``keep_base=False`` on a
            pipeline with offloading, or with a cache.

    Warns:
        ScheduleMismatchWarning: other adapters are loaded than when the schedule was searched; or, at the first run,
            another resolution.
    """
    schedule = _load(source, budget)
    denoiser = denoiser_of(pipe)
    if getattr(denoiser, _MARK, None) is not None:
        raise AlreadyAppliedError(
            "pipe: found a schedule on its denoiser already, expected none. Call remove() on the handle of that one."
        )
    _check_supported(schedule)
    if not unfitted:
        _check_fitted(schedule)
    _check_model(pipe, schedule)
    check_shapes(pipe, schedule)
    if cache is not None and not keep_base:
        raise ApplyError("keep_base: found False beside a cache of layers, expected one of the two. Leave one out.")
    return Handle(pipe, schedule, keep_outputs=unfitted, keep_base=keep_base, cache=cache)


def _load(source: Schedule | str | PathLike[str], budget: str | None) -> Schedule:
    if not isinstance(source, Schedule) and Path(source).is_dir():
        if budget is None:
            raise UsageError(
                f"budget: found none, expected one such as '4x', because {source} is a frontier folder with several "
                "schedules. Name a budget, or pass one schedule file."
            )
        return read_frontier(source).load(budget)
    if budget is not None:
        raise UsageError(
            f"budget: found {budget!r}, expected none, because a single schedule was given. A budget picks one "
            "schedule of a frontier folder; leave it out."
        )
    return source if isinstance(source, Schedule) else read_schedule(Path(source))


def _check_supported(schedule: Schedule) -> None:
    if schedule.guidance is not None:
        raise UnsupportedFeatureError(
            "guidance: the schedule has this part, expected none: this release replays steps, ops, precision, pruned "
            "modules and their tables. Use a schedule without it, or a release that replays it."
        )


def _check_fitted(schedule: Schedule) -> None:
    if schedule.unfitted:
        step = next(i for i, solver in enumerate(schedule.solver) if solver.family == "table")
        raise UnsupportedFeatureError(
            f"steps.solver[{step}]: found a table step that is not fitted yet, expected its coefficients in tables. "
            "This is the plan of a search; `schedsearch optimize` writes fitted ones."
        )
    if schedule.tables is not None and schedule.tables.data is None:
        raise ApplyError(
            f"tables: found no data, expected the file with the hash {schedule.tables.sha256[:12]}... beside the "
            "schedule, under its name and ending in .safetensors. Copy both files, and read the schedule from there."
        )


def _check_model(pipe: Any, schedule: Schedule) -> None:
    ref = schedule.model
    here = model_ref(pipe, height=ref.height, width=ref.width, batch=ref.batch)
    for field, found, expected in (("config", here.config, ref.config), ("blocks", here.blocks, ref.blocks)):
        if found != expected:
            raise ModelMismatchError(
                f"model.{field}: found a {type(denoiser_of(pipe)).__name__} with {field} {found[:12]}, expected "
                f"{expected[:12]}, for which this schedule was searched. Load that model, or search one for this "
                "model with `schedsearch optimize`."
            )
    known = {b.name for blocks in block_lists_of(pipe) for b in blocks} | {
        f"{b.name}.{c}" for blocks in block_lists_of(pipe) for b in blocks for c in b.components
    }
    for name in (*(name for name, _ in schedule.ops if name != MODEL_ROW), *schedule.pruned):
        if name not in known:
            raise ModelMismatchError(
                f"ops.{name}: this denoiser has no such schedulable module; expected a block such as "
                f"{min(known, key=len)}. Search a schedule for this model."
            )
    if adapters_of(pipe) != ref.adapters:
        warnings.warn(
            f"the schedule was searched with adapters {list(ref.adapters)} and runs with {list(adapters_of(pipe))}: it "
            "stays correct, but quality was not measured here.",
            ScheduleMismatchWarning,
            stacklevel=3,
        )
