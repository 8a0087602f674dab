"""What a row of `TOPOLOGIES` must hold for the runtime to drive a pipeline, as a test class to inherit from.

    class TestMine(FamilyContract):
        topology = Topology(...)
        def make(self): return a small pipeline with random weights
        def call(self, pipe, steps): return pipe(..., num_inference_steps=steps, output_type="latent")[0]

Every operation of every row is compared with the same thing done by plain forward hooks, which know nothing of the
runtime. This module does not know any family.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schedsearch.runtime import BlockList, Topology, _topology, apply, block_lists_of, denoiser_of, identity_schedule
from schedsearch.schedule import MODEL_ROW, REUSE, SKIP, Schedule

Streams = tuple[Tensor, ...]


class FamilyContract:
    """Inherit, and say what the family is, how a small pipeline of it is made, and how it is called.

    Attributes:
        topology: the row under test; it is known to the runtime while a test runs.
        height: pixels that `call` asks for.
        width: pixels that `call` asks for.
    """

    topology: Topology
    height = 64
    width = 64

    def make(self) -> Any:
        """A small pipeline, of random weights."""
        raise NotImplementedError

    def call(self, pipe: Any, steps: int) -> Tensor:
        """The final latents of a run of ``steps`` steps, always from the same noise and the same text."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        others = [t for t in _topology.TOPOLOGIES if t.family != self.topology.family]
        monkeypatch.setattr(_topology, "TOPOLOGIES", (self.topology, *others))

    @pytest.fixture
    def pipe(self) -> Any:
        """What every test begins with."""
        return self.make()

    def test_names_what_is_there(self, pipe: Any) -> None:
        """Lists, components, streams, width and output are those of the denoiser."""
        denoiser = denoiser_of(pipe)
        assert denoiser is getattr(pipe, self.topology.denoiser)
        assert isinstance(getattr(denoiser, self.topology.width), int)
        assert isinstance(denoiser.get_submodule(self.topology.output), nn.Linear)
        assert type(pipe).__name__ in self.topology.pipelines
        for blocks in self.topology.lists:
            modules = getattr(denoiser, blocks.name)
            assert len(modules) > 0
            for module in modules:
                assert set(blocks.streams) <= set(inspect.signature(module.forward).parameters)
                assert all(isinstance(module.get_submodule(part), nn.Module) for part in blocks.components)
            assert set(blocks.paired) <= set(blocks.components)

    def test_a_schedule_that_computes_everything_changes_nothing(self, pipe: Any) -> None:
        """So the default noise levels are the pipeline's own, too; and taking it off leaves nothing behind."""
        before = self.call(pipe, 4)
        with apply(pipe, self._plain(pipe)):
            assert torch.equal(self.call(pipe, 4), before)
        assert torch.equal(self.call(pipe, 4), before)

    def test_another_size_than_the_pipeline_is_called_with_is_another_model(self, pipe: Any) -> None:
        """The reference names the size, and the class that was asked."""
        ref = self._plain(pipe).model
        assert (ref.height, ref.width, ref.pipeline) == (self.height, self.width, type(pipe).__name__)

    def test_a_reused_output_of_the_whole_denoiser_is_the_last_one(self, pipe: Any) -> None:
        """Row ``model``."""
        kept: list[Any] = []

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            kept.append(output)
            return kept[0]

        handle = denoiser_of(pipe).register_forward_hook(hook)
        expected = self.call(pipe, 4)
        handle.remove()
        assert len(kept) == 4, "the denoiser has to be called once per step"
        with apply(pipe, self._with_row(pipe, MODEL_ROW, "CRRR")):
            torch.testing.assert_close(self.call(pipe, 4), expected)

    def test_reused_blocks_add_what_they_last_added(self, pipe: Any) -> None:
        """One block of each list, image and text stream alike."""
        for blocks, name in self._firsts(pipe):
            with _hooked(pipe, name, _Replay(blocks.streams, lambda call: call % 2 == 0, adds=True)):
                expected = self.call(pipe, 4)
            self._compare(pipe, name, "CRCR", expected)

    def test_skipped_blocks_hand_on_their_input(self, pipe: Any) -> None:
        """As a row of ``S``, and removed."""
        for blocks, name in self._firsts(pipe):
            with _hooked(pipe, name, _Replay(blocks.streams, lambda _: False, adds=False)):
                expected = self.call(pipe, 4)
            self._compare(pipe, name, SKIP * 4, expected)
            with apply(pipe, replace(self._plain(pipe), pruned=(name,))):
                torch.testing.assert_close(self.call(pipe, 4), expected)

    def test_reused_components_give_what_they_last_gave(self, pipe: Any) -> None:
        """Every component of one block of each list."""
        for blocks, block in self._firsts(pipe):
            for part in blocks.components:
                kept: list[Any] = []

                def hook(_module: nn.Module, _args: Any, output: Any, kept: list[Any] = kept) -> Any:
                    kept.append(output if len(kept) % 2 == 0 else kept[-1])
                    return kept[-1]

                handle = denoiser_of(pipe).get_submodule(f"{block}.{part}").register_forward_hook(hook)
                expected = self.call(pipe, 4)
                handle.remove()
                self._compare(pipe, f"{block}.{part}", "CRCR", expected)

    def test_skipped_components_give_zero(self, pipe: Any) -> None:
        """In every stream that they return."""
        for blocks, block in self._firsts(pipe):
            for part in blocks.components:
                module = denoiser_of(pipe).get_submodule(f"{block}.{part}")
                handle = module.register_forward_hook(lambda _module, _args, output: _zero(output))
                expected = self.call(pipe, 4)
                handle.remove()
                self._compare(pipe, f"{block}.{part}", SKIP * 4, expected)

    def test_components_that_return_both_streams_are_the_paired_ones(self, pipe: Any) -> None:
        """`BlockList.paired` says which."""
        for blocks, block in self._firsts(pipe):
            modules = {part: denoiser_of(pipe).get_submodule(f"{block}.{part}") for part in blocks.components}
            outputs: dict[nn.Module, Any] = {}

            def note(module: nn.Module, _args: Any, output: Any, outputs: dict[nn.Module, Any] = outputs) -> None:
                outputs[module] = output

            handles = [module.register_forward_hook(note) for module in modules.values()]
            self.call(pipe, 1)
            for handle in handles:
                handle.remove()
            paired = {part for part, module in modules.items() if isinstance(outputs[module], tuple)}
            assert paired == set(blocks.paired)

    def _plain(self, pipe: Any) -> Schedule:
        return identity_schedule(pipe, 4, height=self.height, width=self.width)

    def _with_row(self, pipe: Any, name: str, row: str) -> Schedule:
        return replace(self._plain(pipe), ops=((name, row),))

    def _compare(self, pipe: Any, name: str, row: str, expected: Tensor) -> None:
        plain = self.call(pipe, 4)
        with apply(pipe, self._with_row(pipe, name, row)):
            found = self.call(pipe, 4)
        torch.testing.assert_close(found, expected, msg=lambda text: f"{name} {row}: {text}")
        assert not torch.equal(found, plain), f"{name} {row}: the row changes nothing"
        assert REUSE in row or SKIP in row

    def _firsts(self, pipe: Any) -> list[tuple[BlockList, str]]:
        """Each list with the name of its first block."""
        lists = zip(self.topology.lists, block_lists_of(pipe), strict=True)
        return [(blocks, specs[0].name) for blocks, specs in lists]


def _zero(output: Any) -> Any:
    return tuple(map(torch.zeros_like, output)) if isinstance(output, tuple) else torch.zeros_like(output)


class _Replay:
    """Stands in for a block by hooks: at calls that ``computes`` says, its residual is kept; at others it is added."""

    def __init__(self, streams: tuple[str, ...], computes: Callable[[int], bool], *, adds: bool) -> None:
        self._streams, self._computes, self._adds = streams, computes, adds
        self._calls = 0
        self._residual: Streams = ()

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Streams) -> Streams:
        """A forward hook with keyword arguments."""
        names = list(inspect.signature(module.forward).parameters)
        given = dict(zip(names, args, strict=False)) | kwargs
        entered = tuple(given[name] for name in self._streams)
        computes = self._computes(self._calls)
        self._calls += 1
        if computes:
            self._residual = tuple(out - into for out, into in zip(output, entered, strict=True))
            return output
        if not self._adds:
            return entered
        return tuple(into + kept for into, kept in zip(entered, self._residual, strict=True))


@contextmanager
def _hooked(pipe: Any, name: str, replay: _Replay) -> Iterator[None]:
    handle = denoiser_of(pipe).get_submodule(name).register_forward_hook(replay.hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
