"""Side by side: any ways to run a pipeline, prompt by prompt, each picture both timed and scored.

For methods that decide while they run, time and quality depend on the prompt and on the batch, so both come from the
same calls: batch 1, the whole call from text to picture, one round per prompt. Inside a round the order is drawn anew,
the plain run comes again before every few others, and a speedup is taken against the plain runs around it. Does not
know what the ways to run are.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import nn

from schedsearch.errors import EvaluationError
from schedsearch.evaluate._latency import quiet_gc, synchroniser
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._noise import initial_latents
from schedsearch.evaluate._quality import REFERENCES, ReferenceName, metrics_at_hand
from schedsearch.evaluate._reference import converged_schedule
from schedsearch.evaluate._scoring import Pictures, score_pictures
from schedsearch.evaluate._workload import Pipeline, Workload, decode_latents, pipeline_kwargs
from schedsearch.runtime import apply, denoiser_of

GROUP = 8
"""Runs between two plain runs."""

NO_NUMBERS = "pictures hold values that are no numbers"

MAX_REASON = 240
"""Characters of an exception's text that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to run the pipeline.

    Attributes:
        name: told apart from all others.
        steps: denoising steps it is asked for.
        prepare: gives a context that puts it on and yields the pipeline to call; it is not part of the time.
        is_compiled: whether counting inside the denoiser would compile it again; its work counts as the plain run's.
    """

    name: str
    steps: int
    prepare: Callable[[], AbstractContextManager[Pipeline]]
    is_compiled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One contender on one prompt.

    Attributes:
        ms: wall time; 0 where it failed.
        ratio: mean of the plain runs before and after it over its own time; 0 where it failed.
        scores: ``metric -> value``.
        error: what it raised or did wrong, empty where it went well.
    """

    ms: float = 0.0
    ratio: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a contender does, seen in an untimed run.

    Attributes:
        work: multiply-accumulates in linear layers over the plain run's.
        changes: whether its latents differ from the plain run's in any bit.
        error: as in `Turn`.
    """

    work: float = 0.0
    changes: bool = False
    error: str = ""


class SideBySide:
    """Runs contenders on prompts, each prompt from its own noise.

    Args:
        pipe: the pipeline, with nothing put on it.
        card: how it is called.
        prompts: texts.
        seed: of the noise and of the order inside rounds.
        references: what pictures are compared with.
        device: where the pipeline is.
        clock: seconds.
    """

    def __init__(
        self,
        pipe: Pipeline,
        card: ModelCard,
        prompts: Sequence[str],
        *,
        seed: int,
        references: Sequence[ReferenceName] = REFERENCES,
        device: torch.device | str = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pipe = pipe
        self._workload = Workload.from_card(card)
        self._prompts = tuple(prompts)
        self._seed = seed
        self._names = tuple(references)
        self._metrics = metrics_at_hand(card.metric_weights, device=device, of_sets=False)
        self._drain = synchroniser(device)
        self._clock = clock
        self._plain_work: dict[int, tuple[torch.Tensor, float]] = {}

    @property
    def plain(self) -> Contender:
        """The full run as it is."""
        return Contender(name="plain", steps=self._workload.steps, prepare=self._as_it_is)

    def round(self, index: int, contenders: Sequence[Contender]) -> dict[str, Turn]:
        """Returns one turn per contender on the prompt numbered ``index``.

        A contender that raises, or whose picture holds values that are no numbers, has a turn that says so.
        """
        order = list(contenders)
        random.Random(f"{self._seed}:{index}").shuffle(order)
        turns: dict[str, Turn] = {}
        with quiet_gc():
            before, plain = self._plain_run(index)
            references = self._references(index, plain)
            for start in range(0, len(order), GROUP):
                ran = [(c, self._timed(index, c)) for c in order[start : start + GROUP]]
                after, _ = self._plain_run(index)
                for contender, (ms, pictures, error) in ran:
                    scores = {} if pictures is None else self._scores(index, pictures, references)
                    if error or not all(map(isfinite, scores.values())):
                        turns[contender.name] = Turn(error=error or NO_NUMBERS)
                    else:
                        turns[contender.name] = Turn(ms=ms, ratio=(before + after) / 2.0 / ms, scores=scores)
                before = after
                gc.collect(0)  # between groups, so that no run is billed for it
        return turns

    def plain_seconds(self) -> float:
        """Returns the time of one plain run, warmed up."""
        self._plain_run(0)
        return self._plain_run(0)[0] / 1e3

    def look(self, index: int, contender: Contender) -> Look:
        """Returns what ``contender`` does on the prompt numbered ``index``; this run also warms it up."""
        if index not in self._plain_work:
            self._plain_work[index] = self._counted(index, self.plain)
        wanted, full = self._plain_work[index]
        try:
            latents, work = self._counted(index, contender)
        except Exception as error:  # noqa: BLE001 - whatever another library raises is a finding
            return Look(error=told(error))
        share = 1.0 if contender.is_compiled else work / full
        return Look(work=share, changes=not torch.equal(latents, wanted))

    @contextmanager
    def _as_it_is(self) -> Iterator[Pipeline]:
        yield self._pipe

    def _noise(self, index: int) -> torch.Tensor:
        transformer = denoiser_of(self._pipe)
        place = next(transformer.parameters())
        return initial_latents(
            self._pipe, self._workload, seed=self._seed, indices=[index], device=place.device, dtype=place.dtype
        )

    def _latents(self, pipe: Pipeline, index: int, steps: int, noise: torch.Tensor) -> torch.Tensor:
        kwargs = pipeline_kwargs(self._workload, self._prompts[index], latents=noise, steps=steps, output_type="latent")
        found: torch.Tensor = pipe(**kwargs)[0]
        return found

    def _timed(self, index: int, contender: Contender) -> tuple[float, Pictures | None, str]:
        """Milliseconds from text to picture, what was drawn, and what went wrong."""
        noise = self._noise(index)
        try:
            with contender.prepare() as pipe:
                self._drain()
                start = self._clock()
                latents = self._latents(pipe, index, contender.steps, noise)
                images = decode_latents(pipe, self._workload, latents)
                self._drain()
                ms = (self._clock() - start) * 1e3
        except Exception as error:  # noqa: BLE001 - whatever another library raises is a finding
            return 0.0, None, told(error)
        return ms, Pictures(latents=latents.float().cpu(), images=images.float().cpu()), ""

    def _plain_run(self, index: int) -> tuple[float, Pictures]:
        ms, pictures, error = self._timed(index, self.plain)
        if pictures is None:
            raise EvaluationError(f"plain run: found {error}, expected a picture.")
        return ms, pictures

    def _references(self, index: int, plain: Pictures) -> dict[ReferenceName, Pictures]:
        """The pictures that others are compared with, by the name of the reference."""
        found: dict[ReferenceName, Pictures] = {"default": plain}
        if "converged" in self._names:
            schedule = converged_schedule(self._pipe, self._workload)
            with apply(self._pipe, schedule):
                latents = self._latents(self._pipe, index, schedule.n_steps, self._noise(index))
            images = decode_latents(self._pipe, self._workload, latents)
            found["converged"] = Pictures(latents=latents.float().cpu(), images=images.float().cpu())
        return found

    def _scores(self, index: int, pictures: Pictures, references: Mapping[ReferenceName, Pictures]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name in self._names:
            metrics = [metric for metric in self._metrics if metric.against(name).name not in scores]
            found = score_pictures(metrics, pictures, references[name], [self._prompts[index]])
            scores |= {metric.against(name).name: found[metric.name][0] for metric in metrics}
        return scores

    def _counted(self, index: int, contender: Contender) -> tuple[torch.Tensor, float]:
        """Final latents, and multiply-accumulates in the denoiser's linear layers."""
        with contender.prepare() as pipe, ExitStack() as stack:
            count = MacCount()
            if not contender.is_compiled:
                count = stack.enter_context(counting_linear_macs(denoiser_of(pipe)))
            latents = self._latents(pipe, index, contender.steps, self._noise(index))
        return latents.float().cpu(), count.value


class MacCount:
    """Multiply-accumulates so far."""

    def __init__(self) -> None:
        self.value = 0.0


@contextmanager
def counting_linear_macs(module: nn.Module) -> Iterator[MacCount]:
    """Count the multiply-accumulates of all linear layers inside ``module`` while the block runs.

    A layer of low-bit weights counts as the layer it stands for, by the size of its result and of its input.
    """
    count = MacCount()

    def note(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
            count.value += float(output.numel()) * inputs[0].shape[-1]

    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                stack.callback(layer.register_forward_hook(note).remove)
        yield count


def told(error: BaseException) -> str:
    """Returns the kind of an exception and the beginning of its text, on one line.

    >>> told(ValueError("no such   thing"))
    'ValueError: no such thing'
    """
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
