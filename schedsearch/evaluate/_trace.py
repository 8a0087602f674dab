"""Looking at a denoiser at work: the arguments it is called with, and how often it really runs.

Does not know schedules, and changes nothing of what it watches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._workload import Pipeline, Prompt, Workload, pipeline_kwargs
from schedsearch.runtime import denoiser_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserCall:
    """The first call a pipeline makes to its denoiser.

    Attributes:
        kwargs: its keyword arguments.
        sentinel: dotted name of a small module that runs exactly once per real call, outside all blocks.
    """

    kwargs: dict[str, Any]
    sentinel: str


class Count:
    """A number that grows."""

    def __init__(self) -> None:
        self.value = 0


def capture_call(pipe: Pipeline, workload: Workload, prompt: Prompt) -> DenoiserCall:
    """Run one step of ``pipe`` and return how it called the denoiser.

    Raises:
        EvaluationError: if the denoiser was called with positional arguments, or no module runs exactly once per call.
    """
    denoiser = denoiser_of(pipe)
    seen: list[dict[str, Any]] = []
    runs: dict[str, int] = {}

    def note_call(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            raise EvaluationError(
                f"capture_call: found {len(args)} positional arguments to {type(denoiser).__name__}, expected none."
            )
        seen.append(dict(kwargs))

    def note_run(name: str) -> None:
        runs[name] = runs.get(name, 0) + 1

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(note_call, with_kwargs=True).remove)
        for name, child in denoiser.named_children():
            hook = child.register_forward_pre_hook(lambda _m, _a, name=name: note_run(name))
            stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        pipe(**pipeline_kwargs(workload, prompt, steps=1, output_type="latent"))
    once = [name for name, count in runs.items() if count == len(seen)]
    if not seen or not once:
        raise EvaluationError(
            f"capture_call: found {len(seen)} calls of {type(denoiser).__name__} and no module that runs once in each, "
            "expected a denoiser with an embedding or an output layer."
        )
    return DenoiserCall(kwargs=seen[0], sentinel=once[0])


@contextmanager
def counting_calls(denoiser: nn.Module, sentinel: str) -> Iterator[Count]:
    """Count the denoiser's real calls: those that get as far as running ``sentinel``."""
    count = Count()

    def note(_module: nn.Module, _args: Any) -> None:
        count.value += 1

    hook = denoiser.get_submodule(sentinel).register_forward_pre_hook(note)
    try:
        yield count
    finally:
        hook.remove()


class Spent:
    """Images made, and denoiser evaluations (images times real denoiser calls) spent on them."""

    def __init__(self, calls: Count) -> None:
        self.images = 0
        self.evaluations = 0
        self._calls = calls
        self._seen = 0

    def add_images(self, n: int) -> None:
        """Book the denoiser calls since the last booking on ``n`` images that were made together."""
        self.images += n
        self.evaluations += n * (self._calls.value - self._seen)
        self._seen = self._calls.value
