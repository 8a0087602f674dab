"""Everything a report says, as one tree of frozen records: numbers and words, no markup.

`report_data` computes it from what a search wrote; `render` turns it into a page. The page's scripts read the same tree
as JSON, so a field's name here is its name there. Knows neither studies nor pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RunKind = Literal["full", "schedule", "fewer steps", "peer", "candidate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Something that was measured, and how it is shown.

    Attributes:
        name: as in the study, such as ``converged_psnr``.
        label: in words, with what it is measured against.
        short: in a word or two, for a column's head.
        unit: shown behind the number; empty for a pure number.
        better: ``max`` or ``min``.
        axis: which axis of the plot may show it.
        digits: behind the decimal point.
        scale: what a value is multiplied with before it is shown.
        is_relative: whether the full run is what it is measured against, so that its own number says nothing.
    """

    name: str
    label: str
    short: str
    unit: str
    better: str
    axis: Literal["speed", "quality", "none"]
    digits: int
    scale: float = 1.0
    is_relative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A measured number with the spread that belongs to it, in the study's own unit.

    Attributes:
        metric: name of the `Metric`.
        value: the median of times, the mean over pictures of qualities.
        low: lower end of the interval; the value itself where nothing varies.
        high: upper end.
        n: how many samples.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Runs that are drawn alike: our schedules, plain runs, one peer.

    Attributes:
        name: what runs refer to.
        label: in words.
        colour: number of the colour; 0 is the accent, which ours alone have.
        symbol: of the mark.
    """

    name: str
    label: str
    colour: int
    symbol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way to run the model, as a point in the plot.

    Attributes:
        key: tells runs apart.
        name: such as ``4.04x`` or ``6 steps``.
        family: name of its `Family`.
        kind: what it is.
        steps: denoising steps.
        calls: denoiser calls per picture; ``None`` if nobody counted.
        values: its numbers.
        schedule: id of its `ScheduleView`; empty without a file.
        is_chosen: whether it is the schedule for the budget.
        note: a few more words, such as a peer's settings.
    """

    key: str
    name: str
    family: str
    kind: RunKind
    steps: int
    calls: float | None
    values: tuple[Value, ...]
    schedule: str = ""
    is_chosen: bool = False
    note: str = ""

    def measured(self, metric: str) -> Value | None:
        """The number of ``metric``, if there is one."""
        return next((value for value in self.values if value.metric == metric), None)

    def value(self, metric: str) -> float:
        """The number of ``metric``.

        Raises:
            KeyError: there is none.
        """
        found = self.measured(metric)
        if found is None:
            raise KeyError(metric)
        return found.value


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """A row of the op map.

    Attributes:
        label: the module's name, block numbers as ranges where equal rows are folded.
        count: how many rows it stands for.
        level: 0 for the whole denoiser, 1 for a block, 2 for a part of one.
        ops: one character per step: what happens there, coarser rows taken into account.
        own: one character per step: ``1`` where the row itself says so, ``0`` where a coarser row does.
        computed: steps at which it really runs.
        formats: of its linear layers, in words; empty where they are as they were.
        is_pruned: whether it is removed for the whole run.
    """

    label: str
    count: int
    level: int
    ops: str
    own: str
    computed: int
    formats: str = ""
    is_pruned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """A schedule as the page draws it and hands it out.

    Attributes:
        id: of the schedule.
        file: name for the download.
        path: where it lies, relative to the report.
        text: the file; empty if it is too large to be carried.
        side_file: name of the tensors beside it; empty if it needs none.
        side: those, in base64; empty if they are too large to be carried.
        sigma: noise levels.
        solvers: per step a short word, such as ``T3``.
        solver_names: what the letters stand for.
        guidance: scale per step, empty where there is none; no entries if the pipeline decides.
        folded: rows of the op map, equal ones in one.
        rows: all rows of the op map.
        formats: number formats in words, one rule each.
        pruned: removed modules.
        origin: how it was found, label and words.
        code: lines of Python that use it.
    """

    id: str
    file: str
    path: str
    text: str
    side_file: str
    side: str
    sigma: tuple[float, ...]
    solvers: tuple[str, ...]
    solver_names: tuple[tuple[str, str], ...]
    guidance: tuple[str, ...]
    folded: tuple[OpRow, ...]
    rows: tuple[OpRow, ...]
    formats: tuple[tuple[str, str], ...]
    pruned: tuple[str, ...]
    origin: tuple[tuple[str, str], ...]
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPictures:
    """What one run drew.

    Attributes:
        run: key of the `Run`.
        images: data URIs, one per prompt.
        scores: the gallery's metric of each.
    """

    run: str
    images: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Pictures of the same prompts from the same noise.

    Attributes:
        prompts: texts.
        metric: name of the metric of the scores.
        width: pixels drawn.
        height: pixels drawn.
        shown: pixels of the longer side as kept here.
        runs: per run its pictures; the full run among them.
    """

    prompts: tuple[str, ...]
    metric: str
    width: int
    height: int
    shown: int
    runs: tuple[RunPictures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the search stood after a measurement that changed something.

    Attributes:
        ask: number of the measurement, 1 first.
        evals: denoiser evaluations spent so far.
        seconds: spent so far.
        volume: hypervolume over the plain run's cost, in the unit of quality.
        best: best quality predicted to keep the budget; ``None`` as long as nothing does.
    """

    ask: int
    evals: int
    seconds: float
    volume: float
    best: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One candidate that was measured on all prompts of the search.

    Attributes:
        ask: its number.
        speed: predicted speed-up.
        quality: on the prompts of the search.
        origin: name of its `Origin`.
        is_best: whether nothing tried is better in both.
    """

    ask: int
    speed: float
    quality: float
    origin: str
    is_best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A way in which candidates came about.

    Attributes:
        name: in words.
        tried: schedules looked at.
        full: of those, measured on all prompts.
        best: of those, on the search's frontier.
        handed_over: of those, in the frontier folder.
        evals: denoiser evaluations spent on them.
    """

    name: str
    tried: int
    full: int
    best: int
    handed_over: int
    evals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gene:
    """Something schedules differ in.

    Attributes:
        label: in words.
        share: of the importance, all genes together 1.
        near: mean among the best tenth.
        rest: mean among all.
        unit: of those means.
    """

    label: str
    share: float
    near: float
    rest: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How the search went.

    Attributes:
        measured: schedules measured so far.
        wanted: how many were asked for; ``None`` if nobody said.
        evals: denoiser evaluations, all stages.
        seconds: all stages.
        prompts: calibration prompts per measurement.
        metric: name of the quality it searched for.
        budget: in words.
        progress: in order.
        tried: everything measured on all prompts.
        origins: who found what.
        genes: most important first; none if too little was measured.
        genes_from: how many schedules their importance was computed from.
        statuses: word and count of what was not measured to the end.
    """

    measured: int
    wanted: int | None
    evals: int
    seconds: float
    prompts: int
    metric: str
    budget: str
    progress: tuple[Progress, ...]
    tried: tuple[Tried, ...]
    origins: tuple[Origin, ...]
    genes: tuple[Gene, ...]
    genes_from: int
    statuses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as it is shown: a title, a sentence that says what it is, heads and cells."""

    title: str
    about: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """A whole report.

    Attributes:
        title: name of the search, such as ``flux-mini-4x``.
        model: name of the model.
        budget: such as ``4x``.
        metric: name of the quality that was searched for.
        is_finished: whether held-out measurements are there; without them all numbers are predictions of speed and
            qualities on the prompts of the search.
        headline: the answer in a few words.
        summary: the answer in a few sentences.
        conditions: what all numbers were measured on.
        chosen: key of the run for the budget, else of the one to look at first; empty if there is none.
        metrics: in the order in which they are offered.
        families: in the order of the legend; ours first.
        runs: the full run first.
        schedules: those that can be selected, slowest first.
        gallery: pictures, if they were kept.
        search: how it went.
        plain_sigma: noise levels of the full run.
        tables: further measurements: sensitivities, verdicts of a comparison.
        facts: provenance, label and value.
    """

    title: str
    model: str
    budget: str
    metric: str
    is_finished: bool
    headline: str
    summary: tuple[str, ...]
    conditions: str
    chosen: str
    metrics: tuple[Metric, ...]
    families: tuple[Family, ...]
    runs: tuple[Run, ...]
    schedules: tuple[ScheduleView, ...]
    gallery: Gallery | None
    search: Search
    plain_sigma: tuple[float, ...]
    tables: tuple[Table, ...]
    facts: tuple[tuple[str, str], ...]

    def run(self, key: str) -> Run:
        """The run of that key.

        Raises:
            KeyError: there is none.
        """
        for run in self.runs:
            if run.key == key:
                return run
        raise KeyError(key)

    def metric_named(self, name: str) -> Metric:
        """The metric of that name.

        Raises:
            KeyError: there is none.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)
