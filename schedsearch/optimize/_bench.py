"""The loaded model, what was asked for, and what was measured once on this device: what every stage works with.

Knows nothing of the order of the stages.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from schedsearch.errors import EvaluationError
from schedsearch.evaluate import (
    CostModel,
    MacTable,
    MemoryModel,
    ModelCard,
    PipelineEvaluator,
    QualityMetric,
    Workload,
    denoiser_formats,
    find_metrics,
    schedule_macs,
    worthwhile,
)
from schedsearch.optimize._display import Display
from schedsearch.runtime import (
    block_lists_of,
    blocks_of,
    default_sigmas,
    denoiser_of,
    identity_schedule,
    model_ref,
    tokens,
)
from schedsearch.schedule import MODEL_ROW, Budget, Schedule, parse_budget, parse_bytes
from schedsearch.sensitivity import Sensitivities
from schedsearch.space import LinearLayers, SearchSpace, load_space
from schedsearch.study import Probe, Spent, Study
from schedsearch_calibration import PromptSet

FIDELITY = 8
"""Calibration prompts a candidate is measured on while the search runs, at most."""

BATCH = 8
"""Images per call while scores are taken, for pictures too small to fill a device by themselves."""

SMALL = 1024
"""Image tokens up to which a picture counts as small; of larger ones, one is run at a time to spare memory."""

LADDER = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Speed-ups at which a frontier should have something to offer."""

GENTLE = 1.2
"""A further speed-up at which the search looks for the best, so that the frontier does not begin with a gap."""

MARGIN = 0.03
"""Head start over a time budget that predictions must have, so that measurements keep it."""

HAIR = 0.01
"""Head start at which the search looks for the best within a time budget: about as well as costs can be predicted. The
finals measure what lies around it, so the clock decides what keeps the budget."""

Reference = Literal["default", "converged"]
"""What quality is measured against: the plain full run, or a solution with many more steps from the same noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeSettings:
    """What `optimize` is asked for; the command line's options by the same names."""

    model: str
    budget: str
    max_memory: str | None = None
    sensitivity: Path | None = None
    search: str = "auto"
    trials: int | None = None
    minutes: float | None = None
    prompts: Path | None = None
    metric: str = "psnr"
    reference: Reference = "default"
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    storage: str | None = None
    out: Path | None = None
    resume: bool = False
    space: str | None = None
    """A shipped space or the path of a space file; ``None`` is that of the model's family."""
    watch: int | None = None
    """Port of the live view; ``None`` serves none."""

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.out if self.out is not None else Path("runs") / self.name

    @property
    def name(self) -> str:
        """Name of the chosen schedule, such as ``flux-4x``."""
        model = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(self.model).name).strip("-.") or "model"
        return f"{model}-{str(parse_budget(self.budget)).replace('%', 'pct')}"

    @property
    def command(self) -> str:
        """The command line that asks for this; what is as by default is left out."""
        words = ["schedsearch", "optimize"]
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if field_.name in {"resume", "watch"} or value == field_.default:
                continue
            words += [f"--{field_.name.replace('_', '-')}", *(() if value is True else (str(value),))]
        return shlex.join(words)


@dataclass(kw_only=True)
class Bench:
    """The loaded model and everything measured once on this device."""

    settings: OptimizeSettings
    card: ModelCard
    pipe: Any
    prompts: PromptSet
    held_out: PromptSet
    budget: Budget
    display: Display
    sensitivities: Sensitivities | None = None
    cost: CostModel = field(init=False)
    macs: MacTable = field(init=False)
    probe: Probe = field(init=False)
    memory: MemoryModel | None = field(init=False, default=None)
    searching: PipelineEvaluator | None = field(init=False, default=None)
    """The evaluator of the search, once it runs."""

    @cached_property
    def plain(self) -> Schedule:
        """The plain run as a schedule."""
        return identity_schedule(self.pipe, self.card.steps, height=self.card.height, width=self.card.width)

    @cached_property
    def space(self) -> SearchSpace:
        """What may be searched for this model; of number formats, those that were timed here and gain something.

        Where no format was timed, as by a study of an earlier release, all layers stay as they are; also where what
        counts is multiply-accumulates, of which there are as many in any format.
        """
        wide, prices = self.wide_space, self.cost.prices
        if prices is None or not self.wants_formats:
            return wide.restrict(precision="frozen")
        layers = [layer for group in wide.precision.groups for layer in group.layers]
        for_memory = self.settings.max_memory is not None
        kept = [rule for rule in self.layers.formats if worthwhile(prices, rule, layers, for_memory=for_memory)]
        return self._space_with(replace(self.layers, formats=tuple(kept)))

    @property
    def wants_formats(self) -> bool:
        """Whether a number format could help: with time, or with memory."""
        return self.cost_name == "latency_ms" or self.settings.max_memory is not None

    @cached_property
    def wide_space(self) -> SearchSpace:
        """The same with every format that the device carries out, timed or not."""
        return self._space_with(self.layers)

    @cached_property
    def layers(self) -> LinearLayers:
        """The denoiser's linear layers, and the formats that the device carries out."""
        try:
            names, base, formats = denoiser_formats(self.pipe)
        except EvaluationError:  # weights of several dtypes: there is no one base to go by
            return LinearLayers(names=(), base="bf16")
        return LinearLayers(names=names, base=base, formats=formats)

    def _space_with(self, linears: LinearLayers) -> SearchSpace:
        size = {"height": self.card.height, "width": self.card.width}
        return load_space(
            self.settings.space or self.card.family,
            model=model_ref(self.pipe, **size),
            blocks=blocks_of(self.pipe),
            sigma=default_sigmas(self.pipe, self.card.steps, **size),
            linears=linears,
        )

    @cached_property
    def max_bytes(self) -> int | None:
        """Most bytes of the denoiser's weights and caches."""
        return None if self.settings.max_memory is None else parse_bytes(self.settings.max_memory)

    def has_room_for(self, schedule: Schedule) -> bool:
        """Whether ``schedule`` is predicted to keep the limit of memory, if there is one."""
        if self.memory is None or self.max_bytes is None:
            return True
        return self.memory.peak_bytes(schedule) <= self.max_bytes

    def count(self, schedule: Schedule) -> float:
        """MACs of one image."""
        branches = Workload.from_card(self.card).branches
        return schedule_macs(schedule, self.macs, block_lists_of(self.pipe), branches=branches)

    def ratio(self, schedule: Schedule) -> float:
        """How many times cheaper than the plain run ``schedule`` is predicted to be, in what the budget limits."""
        if self.budget.kind == "macs_fraction":
            return self.count(self.plain) / self.count(schedule)
        return self.cost.speedup(schedule)

    @cached_property
    def mask_ratios(self) -> dict[int, float]:
        """The same of a schedule that runs the denoiser at so many steps, by their number."""
        return {n: self.ratio(masked(self, n)) for n in range(1, self.card.steps)}

    @property
    def target(self) -> float:
        """The budget as such a ratio, with a margin where it is a matter of measured time."""
        return self.ahead(MARGIN)

    def ahead(self, margin: float) -> float:
        """The budget as such a ratio, times ``1 + margin`` where it is a matter of measured time."""
        if self.budget.kind == "macs_fraction":
            return (1.0 - 1e-9) / self.budget.value  # a mask that hits the fraction exactly is within it
        wanted = self.budget.value if self.budget.kind == "speedup" else self.cost.full_ms / self.budget.value
        return wanted * (1.0 + margin)

    @property
    def batch(self) -> int:
        """Images per call while scores are taken."""
        return BATCH if tokens(self.pipe, height=self.card.height, width=self.card.width) <= SMALL else 1

    @property
    def fidelity(self) -> int:
        """Calibration prompts the search measures on."""
        return min(max(FIDELITY, self.fewest), len(self.prompts.prompts))

    @property
    def fewest(self) -> int:
        """Prompts below which a candidate is not measured: metrics of whole sets say nothing of a few pictures."""
        return max(metric.fewest for metric in self.qualities)

    @cached_property
    def weights(self) -> str:
        """A fingerprint of the denoiser's weights: equal for equal weights, from a few numbers of every tensor."""
        digest = hashlib.sha256()
        for name, tensor in sorted(denoiser_of(self.pipe).state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(repr(tensor.flatten()[:: max(1, tensor.numel() // 8)][:8].float().tolist()).encode())
        return digest.hexdigest()

    @property
    def quality(self) -> QualityMetric:
        """What decides between schedules that keep the budget: the metric named first."""
        return self.qualities[0]

    @cached_property
    def qualities(self) -> tuple[QualityMetric, ...]:
        """What counts as quality, under the names it has against the chosen reference; each is an objective."""
        settings = self.settings
        return find_metrics(
            settings.metric, settings.reference, weights=self.card.metric_weights, device=settings.device
        )

    @property
    def cost_name(self) -> str:
        """Name of the cost objective."""
        return "macs" if self.budget.kind == "macs_fraction" else "latency_ms"

    def evaluator(self, prompts: Sequence[str], seed: int, *, both: bool = True) -> PipelineEvaluator:
        """Measures candidates on ``prompts``, against both references or only the chosen one."""
        return PipelineEvaluator(
            self.pipe,
            self.card,
            tuple(prompts),
            cost_model=self.cost,
            mac_table=self.macs,
            metric=self.settings.metric,
            reference=self.settings.reference,
            both=both,
            cost="macs" if self.cost_name == "macs" else "latency_ms",
            seed=seed,
            device=self.settings.device,
            batch=self.batch,
            memory=self.memory,
            max_bytes=self.max_bytes,
        )

    @property
    def reference_point(self) -> tuple[float, ...]:
        """The hypervolume's reference point: the plain run's cost, and a floor of each quality."""
        cost = self.count(self.plain) if self.cost_name == "macs" else self.cost.full_ms
        return cost, *(metric.floor for metric in self.qualities)


def wanted_costs(bench: Bench) -> list[float]:
    """Returns the costs at which the best is wanted: the budget's, then those of speed-ups, the ladder's among them."""
    cost = bench.reference_point[0]
    return [cost / bench.ahead(HAIR), *(cost / (rung * (1.0 + MARGIN)) for rung in (GENTLE, *LADDER))]


def book(study: Study, stage: str, started: float, denoiser_evals: int = 0) -> None:
    """Notes what a stage outside the search cost, once.

    Args:
        study: where it is noted.
        stage: its name.
        started: `time.monotonic` when it began.
        denoiser_evals: images times denoiser calls.
    """
    name = f"spent {stage}"
    if name not in study.notes:
        study.notes.set(name, {"seconds": time.monotonic() - started, "denoiser_evals": denoiser_evals})


def booked(study: Study, stage: str) -> Spent:
    """Returns what `book` noted of a stage."""
    note: Any = study.notes[f"spent {stage}"]
    return Spent(seconds=float(note["seconds"]), denoiser_evals=int(note["denoiser_evals"]))


def spent(study: Study) -> Spent:
    """Returns what the search and all booked stages cost together; the probes of the cost model count in seconds."""
    stages = [booked(study, name.removeprefix("spent ")) for name in study.notes if name.startswith("spent ")]
    return Spent(
        seconds=study.spent.seconds + sum(stage.seconds for stage in stages),
        denoiser_evals=study.spent.denoiser_evals + sum(stage.denoiser_evals for stage in stages),
    )


def masked(bench: Bench, computed: int) -> Schedule:
    """A schedule that runs the denoiser at its first ``computed`` steps; its cost is that of any such schedule."""
    row = "C" * computed + "R" * (bench.card.steps - computed)
    return replace(bench.plain, ops=((MODEL_ROW, row),))


def cheapest(bench: Bench) -> list[Schedule]:
    """Returns the schedules of one denoiser call: with all layers as they are, and all in each format."""
    one, axis = masked(bench, 1), bench.space.precision
    formats = range(1, len(axis.formats) + 1) if axis.is_open else ()
    return [one, *(replace(one, precision=axis.rules(axis.preset("all", number))) for number in formats)]


def denoiser_budgets(bench: Bench) -> tuple[int, ...]:
    """Returns how many steps may run the denoiser: for the budget, one less, then for each rung of the ladder.

    One less is there because the budget is a matter of measurement: if it is missed by a hair, the next one keeps it.
    """
    ratios = bench.mask_ratios

    def most(ratio: float) -> int:
        return max((n for n, reached in ratios.items() if reached >= ratio), default=1)

    wanted = most(bench.target)
    rungs = sorted((most(r) for r in LADDER if r < max(ratios.values())), key=lambda n: abs(n - wanted))
    return tuple(dict.fromkeys([wanted, max(1, wanted - 1), *rungs]))
