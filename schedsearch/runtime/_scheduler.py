"""The scheduler a schedule brings along: its own post-shift sigmas, one solver record per step.

It is a `FlowMatchEulerDiscreteScheduler` with two methods replaced, so everything a pipeline asks of a scheduler
(noising for image-to-image, configuration) stays diffusers' own. Nothing is read back from the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from schedsearch.errors import ScheduleMismatchWarning, UnsupportedFeatureError
from schedsearch.runtime._topology import require_flow_euler
from schedsearch.schedule import Schedule, Solver

SUPPORTED_SOLVERS = (Solver(),)
"""Solver records this release can replay."""


class ScheduleScheduler(FlowMatchEulerDiscreteScheduler):
    """Walks a schedule's sigmas and tells the run state which step comes next.

    Made by `install`, not by hand: the arguments are the configuration of the scheduler it replaces.
    """

    _schedule: Schedule
    _begin_run: Callable[[int, torch.device], None]
    _move_to: Callable[[int], None]
    _expected_tokens: int
    _device: torch.device
    _deltas: tuple[Tensor, ...]
    _begin_index: int | None
    _step_index: int | None
    config: Any

    @classmethod
    def install(
        cls,
        original: Any,
        schedule: Schedule,
        *,
        begin_run: Callable[[int, torch.device], None],
        move_to: Callable[[int], None],
        expected_tokens: int,
    ) -> ScheduleScheduler:
        """Returns a scheduler for ``schedule`` with the configuration of ``original``.

        Args:
            original: the pipeline's own scheduler.
            schedule: what to walk.
            begin_run: called with the first step and the device when a run starts.
            move_to: called with the coming step after each step.
            expected_tokens: image tokens at the schedule's own resolution; another number is warned about once.

        Raises:
            UnsupportedFeatureError: a solver record this release cannot replay, or a scheduler that is not of
                the family.
        """
        for i, solver in enumerate(schedule.solver):
            if solver not in SUPPORTED_SOLVERS:
                raise UnsupportedFeatureError(
                    f"steps.solver[{i}]: found {solver.family} of order {solver.order} ({solver.prediction}, corrector "
                    f"{solver.corrector}), expected one of: euler of order 1 (velocity, corrector none). "
                    "Replay the file with a release that has this solver."
                )
        require_flow_euler(original)
        scheduler = cast("ScheduleScheduler", cls.from_config(original.config))
        scheduler._schedule = schedule
        scheduler._begin_run = begin_run
        scheduler._move_to = move_to
        scheduler._expected_tokens = expected_tokens
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
        self.sigmas = torch.tensor(self._schedule.sigma, dtype=torch.float32, device=self._device)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
        # 0-dimensional tensors and not floats: the same operand types as the scheduler this replaces, hence the same
        # rounding in every dtype.
        self._deltas = (self.sigmas[1:] - self.sigmas[:-1]).unbind()
        self.num_inference_steps = self._schedule.n_steps
        self._step_index = None
        self._begin_index = None
        self._begin_run(0, self._device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Makes the run start at step ``begin_index`` (image-to-image): nothing is known before it."""
        self._begin_index = begin_index
        if begin_index:
            self._begin_run(begin_index, self._device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,  # noqa: ARG002 - the step is counted, never looked up
        sample: Tensor,
        *_: object,
        return_dict: bool = True,
        **__: object,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Takes one Euler step ``x + (sigma[i+1] - sigma[i]) v`` in float32 and moves the run on."""
        index = self._step_index
        if index is None:
            index = self._begin_index or 0
            self._check_size(sample)
        previous = (sample.to(torch.float32) + self._deltas[index] * model_output).to(model_output.dtype)
        self._step_index = index + 1
        self._move_to(index + 1)
        if not return_dict:
            return (previous,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=cast("torch.FloatTensor", previous))

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
