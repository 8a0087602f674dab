"""The scheduler a schedule brings along: its own post-shift sigmas, one solver record per step.

It is a `FlowMatchEulerDiscreteScheduler` with its steps replaced, so everything a pipeline asks of a scheduler (noising
for image-to-image, configuration) stays diffusers' own. The pipeline gets one timestep per denoiser call; a step of two
calls is two of its iterations. What each call leads to is settled in advance (`_solver.py`) and carried out here.
Nothing is read back from the device, and nothing is sent to it during a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from schedsearch.errors import ApplyError, ScheduleMismatchWarning
from schedsearch.runtime._solver import Call, History, advance
from schedsearch.runtime._state import on_device
from schedsearch.runtime._topology import require_flow_euler
from schedsearch.schedule import Schedule

OnCall = Callable[[int, Call, Tensor, Tensor, History], Call | None]
"""``(index, call, sample, output, history)``, between a denoiser call and what follows; see `Handle.on_call`."""

BeginRun = Callable[[int, torch.device, int], None]
"""``(step, device, call)``: a run of the program from ``step`` on starts with its ``call``."""


class ScheduleScheduler(FlowMatchEulerDiscreteScheduler):
    """Walks a schedule's calls and tells the run state which one comes next.

    Made by `install`, not by hand: the arguments are the configuration of the scheduler it replaces.

    Attributes:
        on_call: called with every output before it is used; ``None`` outside of evaluations.
        start: call and history the next run begins with, in place of the beginning.
        last_call: number of the call whose output came last, in a run from the first step on; else -1.
    """

    on_call: OnCall | None
    start: tuple[int, History] | None
    last_call: int
    _schedule: Schedule
    _program: Callable[[int], tuple[Call, ...]]
    _begin_run: BeginRun
    _move_to: Callable[[int], None]
    _expected_tokens: int
    _device: torch.device
    _made: dict[tuple[int, torch.device], tuple[Tensor | None, ...]]
    _calls: tuple[Call, ...]
    _deltas: tuple[Tensor | None, ...]
    _looks_back: bool
    _history: History
    _at: int
    _begin: int
    _begin_index: int | None
    _step_index: int | None
    config: Any

    @classmethod
    def install(
        cls,
        original: Any,
        schedule: Schedule,
        *,
        program: Callable[[int], tuple[Call, ...]],
        begin_run: BeginRun,
        move_to: Callable[[int], None],
        expected_tokens: int,
    ) -> ScheduleScheduler:
        """Returns a scheduler for ``schedule`` with the configuration of ``original``.

        Args:
            original: the pipeline's own scheduler.
            schedule: what to walk.
            program: gives the calls of a run from a step on.
            begin_run: called with the first step, the device and the first call when a run starts.
            move_to: called with the coming call after each call.
            expected_tokens: image tokens at the schedule's own resolution; another number is warned about once.

        Raises:
            UnsupportedFeatureError: a scheduler that is not of the family.
        """
        require_flow_euler(original)
        scheduler = cast("ScheduleScheduler", cls.from_config(original.config))
        scheduler.on_call = None
        scheduler.start = None
        scheduler.last_call = -1
        scheduler._schedule = schedule
        scheduler._program = program
        scheduler._begin_run = begin_run
        scheduler._move_to = move_to
        scheduler._expected_tokens = expected_tokens
        scheduler._made = {}
        return scheduler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,  # noqa: ARG002 - the name pipelines pass it by
        device: str | torch.device | None = None,
        sigmas: object = None,  # noqa: ARG002
        mu: float | None = None,  # noqa: ARG002
        timesteps: object = None,  # noqa: ARG002
    ) -> None:
        """Starts a run on the schedule's own sigmas; what the pipeline asks for instead is not used, because a
        schedule is a complete plan. Sigmas are post-shift, so ``mu`` and the configured shift do not apply.
        """
        self._device = torch.device(device or "cpu")
        first, history = self.start or (0, ())
        self.start = None
        levels = [*(call.sigma for call in self._program(0)[first:]), self._schedule.sigma[-1]]
        self.sigmas = torch.tensor(levels, dtype=torch.float32, device=self._device)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
        self.num_inference_steps = len(levels) - 1
        self._step_index = None
        self._begin_index = None
        self._load(0, first, history)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Makes the run start at call ``begin_index`` (image-to-image): nothing is known before it.

        Where that is the second call of a step, the image has been given the noise level at which the next step
        begins. So that one begins, and the pipeline's first iteration changes nothing.
        """
        self._begin_index = begin_index
        if not begin_index:
            return
        if self._at:
            raise ApplyError(
                f"resume: found a run that begins at call {begin_index} of its own accord (image-to-image), expected "
                "one from pure noise. Only such a run can be resumed."
            )
        call = self._program(0)[begin_index]
        self._load(call.step + call.extra, -1 if call.extra else 0, ())

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,  # noqa: ARG002 - the call is counted, never looked up
        sample: Tensor,
        *_: object,
        return_dict: bool = True,
        **__: object,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Does what follows from a denoiser call, in float32 at least, and moves the run on."""
        if self._step_index is None:
            self._step_index = self._begin_index or 0
            self._check_size(sample)
        at = self._at
        previous = self._following(at, sample, model_output) if at >= 0 else sample
        self._at = at + 1
        self._step_index += 1
        self._move_to(at + 1)
        if not return_dict:
            return (previous,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=cast("torch.FloatTensor", previous))

    def advanced(
        self, index: int, history: History, sample: Tensor, output: Tensor, call: Call | None = None
    ) -> tuple[Tensor, History]:
        """Returns sample and history after call ``index`` of a run from the first step on, exactly as `step` would."""
        own = self._program(0)[index]
        delta = self._deltas_on(0, sample.device)[index] if call is None or call == own else None
        return advance(call or own, history, sample, output, delta=delta)

    def _load(self, begin: int, first: int, history: History) -> None:
        """Puts the program from step ``begin`` on in place, its call ``first`` (-1: an idle one before it) coming."""
        self._calls = self._program(begin)
        self._deltas = self._deltas_on(begin, self._device)
        # An Euler run holds on to nothing, and a callback may turn any call into one that looks back.
        self._looks_back = any(term.lag for call in self._calls for term in (*call.base, *call.nxt))
        self._history = history
        self._at = first
        self._begin = begin
        self.last_call = -1
        self._begin_run(begin, self._device, first)

    def _deltas_on(self, begin: int, device: torch.device) -> tuple[Tensor | None, ...]:
        # 0-dimensional tensors and not floats: the same operand types as the scheduler this replaces, hence the same
        # rounding in every dtype.
        key = (begin, device)
        if key not in self._made:
            lengths = [call.delta for call in self._program(begin)]
            tensors = iter(on_device([x for x in lengths if x is not None], device))
            self._made[key] = tuple(None if x is None else next(tensors) for x in lengths)
        return self._made[key]

    def _following(self, at: int, sample: Tensor, output: Tensor) -> Tensor:
        call, delta = self._calls[at], self._deltas[at]
        if not self._begin:
            self.last_call = at
        if self.on_call is not None:
            chosen = self.on_call(at, call, sample, output, self._history)
            if chosen is not None and chosen is not call:
                call, delta = chosen, None
        if call.unfitted:
            raise ApplyError(
                f"steps.solver[{call.step}]: found a table step that is not fitted yet, expected on_call to return it "
                "with coefficients."
            )
        if self.on_call is None and not self._looks_back:
            return cast("Tensor", advance(call, (), sample, output, delta=delta)[0])
        # A copy, because a compiled denoiser may use the memory of its output again at its next call.
        following, self._history = advance(call, self._history, sample, output.clone(), delta=delta)
        return cast("Tensor", following)

    def _check_size(self, sample: Tensor) -> None:
        if sample.ndim == 3 and sample.shape[1] != self._expected_tokens:
            ref = self._schedule.model
            warnings.warn(
                f"the schedule was searched at {ref.width}x{ref.height} ({self._expected_tokens} image tokens) and "
                f"runs on {sample.shape[1]} image tokens: it stays correct, but quality and speed were not measured "
                "here.",
                ScheduleMismatchWarning,
                stacklevel=2,
            )
            self._expected_tokens = sample.shape[1]
