"""Wraps the forward of a denoiser, its blocks and their components, on the instance and reversibly.

A wrapper reads the current action of its site and either runs the module (keeping what it computed, if a later step
needs it) or answers from the cache. No wrapper branches on a tensor or reads one back.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from schedsearch.errors import ApplyError
from schedsearch.runtime._plan import IDLE, KEEP, RUNS, Site
from schedsearch.runtime._state import BRANCHES, RunState, SiteState
from schedsearch.schedule import SKIP

Forward = Callable[..., Any]


OFFLOADED = "_old_forward"
"""Where accelerate's offloading keeps a module's own forward while its hook stands in ``forward``."""


def own_forward(module: nn.Module) -> Forward:
    """Returns the module's forward underneath an offloading hook, if there is one."""
    found: Forward = getattr(module, OFFLOADED, module.forward)
    return found


class Patch:
    """One replaced ``forward``; `undo` puts back exactly what stood on the instance before.

    Offloading hooks come and go with every pipeline call, and put back what they found in ``_old_forward``. So the
    replacement goes underneath them, and travels with them.
    """

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        self._module = module
        self._original = own_forward(module)
        slot = OFFLOADED if OFFLOADED in module.__dict__ else "forward"
        self._had_own = slot == "forward" and slot in module.__dict__
        self._forward = functools.wraps(self._original)(forward)
        setattr(module, slot, self._forward)

    def undo(self) -> bool:
        """Restores the module; returns whether our wrapper was still where it can be taken out."""
        if self._module.__dict__.get(OFFLOADED) is self._forward:
            setattr(self._module, OFFLOADED, self._original)
        elif self._module.__dict__.get("forward") is not self._forward:
            return False
        elif self._had_own:
            self._module.forward = self._original
        else:
            del self._module.__dict__["forward"]
        return True


def computes(action: str) -> bool:
    """Whether a module with this action runs; where nothing is planned (``.``) it always does."""
    return action in RUNS or action == IDLE


def model_forward(module: nn.Module, state: RunState, index: int | None) -> Forward:
    """Returns the denoiser's forward: takes the branch of this call, then computes or predicts the output.

    Args:
        module: the denoiser.
        state: the run.
        index: number of the ``model`` site, ``None`` if only blocks have rows.
    """
    original = own_forward(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if state.now is state.idle:  # nobody walks the schedule: another scheduler, or a call outside a pipeline
            return original(*args, **kwargs)
        branch = state.branch
        if branch is None:
            raise ApplyError(
                f"pipe: found more than {BRANCHES} denoiser calls in one step, expected one per guidance pass. Take "
                "the schedule off with remove() for this kind of guidance."
            )
        state.active = branch
        state.branch = branch.following
        if index is None:
            return original(*args, **kwargs)
        action, numbers = state.now.actions[index], state.now.numbers[index]
        cache = branch.sites[index].cache
        if computes(action):
            output = original(*args, **kwargs)
            if action == KEEP:
                cache.keep((output[0],), numbers)
            return output
        (sample,) = cache.predict(numbers, state.now.affines[index])
        return (sample,) if kwargs.get("return_dict") is False else Transformer2DModelOutput(sample=sample)

    return forward


def component_forward(module: nn.Module, state: RunState, index: int) -> Forward:
    """Returns a component's forward: its raw output (before any gate) is computed, predicted or zero."""
    original = own_forward(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        action, numbers = state.now.actions[index], state.now.numbers[index]
        site = state.active.sites[index]
        if computes(action):
            output = original(*args, **kwargs)
            if action == KEEP:
                site.is_tuple = isinstance(output, tuple)
                site.cache.keep(output if site.is_tuple else (output,), numbers)
            return output
        if action == SKIP:
            return _zeros(module, *args, **kwargs)
        values = site.cache.predict(numbers, state.now.affines[index])
        return tuple(values) if site.is_tuple else values[0]

    return forward


def _zeros(
    module: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
) -> Any:
    """What a component returns when it is skipped: nothing is added to either stream."""
    width = getattr(module, "out_features", None)  # a linear layer, adapters around it included
    if isinstance(width, int):
        return hidden_states.new_zeros((*hidden_states.shape[:-1], width))
    if encoder_hidden_states is None:
        return torch.zeros_like(hidden_states)
    return torch.zeros_like(hidden_states), torch.zeros_like(encoder_hidden_states)


def segment_forwards(
    modules: Sequence[nn.Module], streams: tuple[str, ...], state: RunState, index: int
) -> list[Forward]:
    """Returns the forwards of a run of adjacent blocks that share one cache.

    What is kept is the sum of the blocks' own residuals (out minus in). Whatever stands between two blocks, such as a
    ControlNet's addition, is not part of it and is added afresh at every step. Predicting costs one addition per
    stream for the whole run: its first block adds, the others hand their input on.
    """
    last = len(modules) - 1
    return [
        _block_forward(module, streams, state, index, first=i == 0, last=i == last) for i, module in enumerate(modules)
    ]


def _block_forward(
    module: nn.Module, streams: tuple[str, ...], state: RunState, index: int, *, first: bool, last: bool
) -> Forward:
    original = own_forward(module)
    names = list(inspect.signature(original).parameters)
    places = [(name, names.index(name)) for name in streams]

    def inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        if not args:
            return [kwargs[name] for name in streams]
        return [kwargs[name] if name in kwargs else args[place] for name, place in places]

    def forward(*args: Any, **kwargs: Any) -> Any:
        action, numbers = state.now.actions[index], state.now.numbers[index]
        site = state.active.sites[index]
        if computes(action):
            if action != KEEP:
                return original(*args, **kwargs)
            enter(site, inputs(args, kwargs), first=first)
            output = original(*args, **kwargs)
            leave(site, output, numbers, last=last)
            return output
        entered = inputs(args, kwargs)
        if action == SKIP or not first:
            return tuple(entered)
        return tuple(site.cache.add_to(entered, numbers, state.now.affines[index]))

    return forward


def enter(site: SiteState, streams: list[Tensor], *, first: bool) -> None:
    """Notes what goes into a block of a segment that keeps; gathers what was done so far if somebody has changed the
    streams since the previous block returned them.
    """
    if first:
        site.entered, site.gathered = streams, []
    elif any(a is not b for a, b in zip(streams, site.left, strict=True)):
        site.gathered = _residual(site)
        site.entered = streams


def leave(site: SiteState, streams: Sequence[Tensor], numbers: tuple[Tensor, ...], *, last: bool) -> None:
    """Notes what a block returns; after the segment's last block keeps the residual and lets go of the streams."""
    site.left = list(streams)
    if last:
        site.cache.keep(_residual(site), numbers)
        site.entered, site.left, site.gathered = [], [], []


def _residual(site: SiteState) -> list[Tensor]:
    own = [out - into for out, into in zip(site.left, site.entered, strict=True)]
    return [g + o for g, o in zip(site.gathered, own, strict=True)] if site.gathered else own


def wrap(
    denoiser: nn.Module, sites: Sequence[Site], streams: dict[str, tuple[str, ...]], state: RunState
) -> list[Patch]:
    """Wraps everything the sites name; a schedule without sites leaves the denoiser as it is.

    Args:
        denoiser: the module to wrap.
        sites: the plan's sites, in the order of the run state's.
        streams: per block list, the residual streams in the order a block returns them.
        state: the run the wrappers read.
    """
    if not sites:
        return []
    patches: list[Patch] = []
    for index, site in enumerate(sites):
        modules = [denoiser.get_submodule(name) for name in site.modules]
        if site.kind == "component":
            patches.append(Patch(modules[0], component_forward(modules[0], state, index)))
        elif site.kind == "segment":
            order = streams[site.modules[0].rsplit(".", 1)[0]]
            for module, forward in zip(modules, segment_forwards(modules, order, state, index), strict=True):
                patches.append(Patch(module, forward))
    model = next((i for i, site in enumerate(sites) if site.kind == "model"), None)
    patches.append(Patch(denoiser, model_forward(denoiser, state, model)))
    return patches
