"""`schedsearch sensitivity`: what layers and blocks matter, whether that adds up, and what follows for average bits.

Measures on calibration prompts and a cheap carrier, chooses by sums, and measures the choices on held-out prompts
against the full run. Knows nothing of how a choice is found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from schedsearch.bench._sensitivity_tables import (
    ADDITIVITY_COLUMNS,
    BITS_COLUMNS,
    PROTECTION_COLUMNS,
    RANKING_COLUMNS,
    REMOVAL_COLUMNS,
    SPEED_COLUMNS,
    BitsRow,
    ProtectionRow,
    RemovalRow,
    SpeedRow,
    additivity_cells,
    ranking_cells,
)
from schedsearch.bench._tables import markdown, write_rows
from schedsearch.errors import UsageError
from schedsearch.evaluate import (
    LatencyTable,
    LatentErrors,
    PairedRuns,
    SensitivityMeter,
    SensitivityPlan,
    Workload,
    base_word,
    choices_of,
    find_card,
    load_pipeline,
    measure_sensitivities,
    read_table,
)
from schedsearch.optimize import HELD_OUT_SEED, Display
from schedsearch.runtime import denoiser_of, identity_schedule
from schedsearch.schedule import NUMBER_FORMATS, Schedule, read_schedule, write_schedule
from schedsearch.sensitivity import (
    ENOUGH,
    REMOVED,
    Choice,
    Sensitivities,
    SubsetKind,
    additivity,
    average_bits,
    mixed,
    most_saved_ms,
    protected_layers,
    ranked_blocks,
    ranked_operations,
    ranked_removals,
    read_sensitivities,
    removed_blocks,
    rules_of,
    write_sensitivities,
)
from schedsearch_calibration import prompt_set

FORMATS = "fp16,int8,int6,int5,int4,int3,int2"
"""What layers may choose from unless told."""

SPEED = "speed"
"""The table that is only there with a latency table, and may lack a place."""

SPEED_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the milliseconds that formats can save, in the table."""

REMOVED_SHARES = (0.1, 0.2, 0.3)
"""Shares of the blocks' bytes that removing is to save, in the table."""

WRITE_SECONDS = 1.0
"""The file is written no more often than this: it may have thousands of cells, and some take milliseconds."""

FEWEST = 3
"""Subsets of one kind that a correlation needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivitySettings:
    """What is to be measured.

    Attributes:
        model: the model.
        formats: words separated by commas, see `choices_of`.
        activation: format of the inputs where a word names none; ``None`` is the model's own dtype.
        bits: whole numbers of bits separated by commas at which mixed and uniform formats are compared.
        ranks: ranks of the low-rank branch separated by commas, 0 for none: what the format of the fewest bits may have
            beside it, and rows of the ablation.
        blocks: whether to remove blocks as well.
        prompts: calibration prompts.
        held_out: held-out prompts.
        carrier: number of plain steps, or a schedule file, that single changes are measured on.
        subsets: random sets of changes of each kind; formats are drawn from those of ``bits``.
        latencies: a latency table of this model, for milliseconds.
        seed: of the noise on calibration prompts, and of the random sets.
        batch: images per call.
        device: where to run.
        dtype: number format of the weights.
        out: the file of measurements; ``None`` is ``runs/sensitivity-MODEL.json``. Tables and schedules lie beside it.
        into: Markdown file that gets the tables.
        command: what the user called, for the record.
    """

    model: str
    formats: str = FORMATS
    activation: str | None = None
    bits: str = "8,6,5,4"
    ranks: str = "0"
    blocks: bool = True
    prompts: int = 4
    held_out: int = 16
    carrier: str = "7"
    subsets: int = 32
    latencies: Path | None = None
    seed: int = 0
    batch: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    out: Path | None = None
    into: Path | None = None
    command: str = ""


def run_sensitivity(settings: SensitivitySettings, display: Display | None = None) -> Path:
    """Measures what is missing, shows all tables, writes them and the mixed schedules, and returns the file.

    Raises:
        UsageError: an option cannot be used, or the file is about something else.
        EvaluationError: the file is damaged, or the latency table is not complete.
        ScheduleError: the carrier cannot be read.
        ModelNotFoundError: the weights are not at hand.
    """
    display = display or Display()
    bits, ranks = whole_numbers("--bits", settings.bits, 2), whole_numbers("--ranks", settings.ranks, 0)
    card = find_card(settings.model)
    target = settings.out or Path("runs") / f"sensitivity-{card.name}.json"
    known = read_sensitivities(target) if target.exists() else None
    with display.stage(f"loading {card.name}"):
        pipe = load_pipeline(card, device=settings.device, dtype=settings.dtype)
    base = base_word(denoiser_of(pipe))
    calibration = prompt_set(card.calibration)
    full = identity_schedule(pipe, card.steps, height=card.height, width=card.width)
    meter = SensitivityMeter(
        pipe,
        card,
        calibration.prompts[: settings.prompts],
        prompts_name=f"{calibration.name} sha256:{calibration.sha256[:16]}",
        carrier=_carrier(settings.carrier, full, pipe),
        seed=settings.seed,
        batch=settings.batch,
        latencies=None if settings.latencies is None else _latencies(settings.latencies, full, base),
    )
    uniform = {n: _uniform(n, base, settings.activation) for n in bits}
    words = [word.strip() for word in settings.formats.split(",") if word.strip()]
    plan = SensitivityPlan(
        choices=_with_ranks(choices_of(words, base=base, activation=settings.activation), ranks, uniform),
        blocks=settings.blocks,
        subsets=settings.subsets,
        subset_words=tuple(choice.word for choice in uniform.values()),
        seed=settings.seed,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with display.stage("measuring") as advance, _Kept(target) as kept:
        found = measure_sensitivities(
            meter,
            plan,
            known=known,
            save=kept.save,
            on_progress=advance,
            command=settings.command,
        )
        kept.save(found)
    held_out = prompt_set(card.held_out)
    some = held_out.prompts[: settings.held_out]
    runs = PairedRuns(pipe, Workload.from_card(card), some, seed=HELD_OUT_SEED, batch=settings.batch)
    errors = LatentErrors(runs, base=full)
    _show(_Job(settings, display, found, plan.choices, full, errors, target), uniform, ranks)
    return target


class _Kept:
    """Writes what it is given, at once where the last writing is a while ago, and the newest in any case at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._newest: Sensitivities | None = None
        self._written = -math.inf

    def save(self, found: Sensitivities) -> None:
        """Keeps ``found``; a process that is killed loses what came within `WRITE_SECONDS`."""
        self._newest = found
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._newest is not None:
            write_sensitivities(self._newest, self._path)
            self._newest = None
            self._written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()


def whole_numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """Return the numbers in a list separated by commas.

    Raises:
        UsageError: one is none, or is below ``least``.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not word.isdigit() or int(word) < least:
            raise UsageError(
                f"{option}: found {word!r}, expected whole numbers of at least {least}, separated by commas."
            )
    return tuple(dict.fromkeys(int(word) for word in words))


def _carrier(word: str, full: Schedule, pipe: object) -> Schedule:
    if word.isdigit() and int(word) > 0:
        return identity_schedule(pipe, int(word), height=full.model.height, width=full.model.width)
    return read_schedule(Path(word))


def _latencies(path: Path, full: Schedule, base: str) -> LatencyTable:
    table = read_table(path)
    header = table.header
    if (header.config, header.dtype) != (full.model.config, base):
        raise UsageError(
            f"--latencies: found a table of {header.model} in {header.dtype}, expected one of this model in {base}."
        )
    return table


def _uniform(bits: int, base: str, activation: str | None) -> Choice:
    """The format of that many bits for all layers."""
    word = f"int{bits}"
    if word not in NUMBER_FORMATS:
        known = [name.removeprefix("int") for name in NUMBER_FORMATS if name.startswith("int")]
        raise UsageError(f"--bits: found {bits}, expected some of {', '.join(known)}.")
    return choices_of([word], base=base, activation=activation)[0]


def _with_ranks(choices: Sequence[Choice], ranks: Sequence[int], uniform: Mapping[int, Choice]) -> tuple[Choice, ...]:
    """The formats, those of the comparison among them, and that of the fewest bits with every rank."""
    found = {choice.word: choice for choice in (*choices, *uniform.values())}
    if uniform:
        ranked = [with_rank(uniform[min(uniform)], rank) for rank in ranks]
        found |= {choice.word: choice for choice in ranked}
    return tuple(found.values())


def with_rank(choice: Choice, rank: int) -> Choice:
    """Return the format with a low-rank branch of that rank."""
    return replace(choice, word=f"{choice.word}+{rank}", rank=rank) if rank else choice


# ------------------------------------------------------------------------------------------------ what is made of it


@dataclass(frozen=True, slots=True)
class _Job:
    """What all tables need: ``choices`` are the formats asked for, ``errors`` those on held-out prompts."""

    settings: SensitivitySettings
    display: Display
    found: Sensitivities
    choices: tuple[Choice, ...]
    full: Schedule
    errors: LatentErrors
    target: Path

    def with_rules(self, picks: Mapping[str, str]) -> Schedule:
        """The full run in these formats."""
        return replace(self.full, precision=rules_of(self.found, picks))

    def table(self, name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Shows a table, writes it beside the file, and into the Markdown file if there is one with a place for it."""
        from schedsearch_reports.figures import BEGIN, put_table

        self.display.table(title, header, rows)
        path = self.target.with_name(f"{self.target.stem}-{name}.csv")
        write_rows(path, header, rows)
        self.display.line(f"Wrote {path}")
        into, marker = self.settings.into, f"sensitivity-{name}"
        if into is not None and (name != SPEED or BEGIN.format(marker) in into.read_text("utf-8")):
            put_table(into, markdown(header, rows), name=marker)


def _show(job: _Job, uniform: Mapping[int, Choice], ranks: Sequence[int]) -> None:
    job.display.line(f"Wrote {job.target}")
    if uniform:
        word = uniform[min(uniform)].word
        job.table("operations", f"kinds of layers in {word}", RANKING_COLUMNS,
                  ranking_cells(ranked_operations(job.found, word)))  # fmt: skip
        job.table("blocks", f"blocks in {word}", RANKING_COLUMNS, ranking_cells(ranked_blocks(job.found, word)))
    _show_additivity(job)
    if uniform:
        rows = [_compared(job, bits, choice) for bits, choice in uniform.items()]
        title = f"latent error on {job.settings.held_out} held-out prompts, against the full run"
        job.table("bits", title, BITS_COLUMNS, [row.cells() for row in rows])
        lowest = uniform[min(uniform)]
        ablation = [
            _protected(job, lowest, protection, rank) for protection in ("none", "int8", "own dtype") for rank in ranks
        ]
        job.table("protection", f"protected layers and rank, the others {lowest.word}", PROTECTION_COLUMNS,
                  [row.cells() for row in ablation])  # fmt: skip
    if most_saved_ms(job.found, _words(job)) > 0:
        title = "mixed for time, by the latency table; latent error on held-out prompts"
        job.table(SPEED, title, SPEED_COLUMNS, [_quickened(job, share).cells() for share in SPEED_SHARES])
    if job.settings.blocks:
        job.table("removed", "removed blocks", RANKING_COLUMNS, ranking_cells(ranked_removals(job.found)))
        removals = [_removal(job, share) for share in REMOVED_SHARES]
        job.table("removals", "least harm for what is saved", REMOVAL_COLUMNS, [row.cells() for row in removals])
    if job.settings.into is not None:
        job.display.line(f"Wrote the tables into {job.settings.into}")


def _show_additivity(job: _Job) -> None:
    kinds: tuple[SubsetKind, ...] = ("formats", "removed")
    rows = [
        additivity(job.found, kind)
        for kind in kinds
        if sum(subset.kind == kind for subset in job.found.subsets) >= FEWEST
    ]
    job.table("additivity", "sums of single effects against sets measured together", ADDITIVITY_COLUMNS,
              [additivity_cells(row) for row in rows])  # fmt: skip
    for row in rows:
        if not row.holds:
            job.display.line(
                f"warning: {row.kind}: rank correlation {row.spearman:.2f} is below {ENOUGH:g}: effects do not add up, "
                "so assignments by sums are places for a search to begin, not results."
            )


def _words(job: _Job) -> tuple[str, ...]:
    return tuple(choice.word for choice in job.choices)


def _compared(job: _Job, bits: int, choice: Choice) -> BitsRow:
    """Uniform and mixed formats at the average bits of the uniform one."""
    found = job.found
    names = [layer.name for layer in found.layers]
    uniform = dict.fromkeys(names, choice.word)
    limit = average_bits(found, uniform)
    chosen = mixed(found, limit=limit, words=_words(job))
    schedule = job.with_rules(dict(chosen.picks))
    path = job.target.with_name(f"{job.target.stem}-{bits}-bits.json")
    write_schedule(schedule, path)
    return BitsRow(
        word=choice.word,
        limit=limit,
        bits=chosen.cost / found.weights,
        rules=len(schedule.precision),
        uniform=job.errors.of(job.with_rules(uniform)),
        mixed=job.errors.of(schedule),
        predicted=chosen.loss,
        predicted_uniform=found.predicted(tuple(uniform.items())),
    )


def _protected(job: _Job, choice: Choice, protection: str, rank: int) -> ProtectionRow:
    """Protected layers at one of three levels, the others in one format with a low-rank branch; and mixed formats at
    the same average bits.
    """
    found = job.found
    kept = protected_layers([layer.name for layer in found.layers])
    level = {"none": None, "int8": _level(job), "own dtype": found.header.dtype}[protection]
    word = with_rank(choice, rank).word
    picks = {layer.name: word for layer in found.layers}
    if level is not None:
        picks |= dict.fromkeys(kept, level)
    limit = average_bits(found, picks)
    free = mixed(found, limit=limit, words=_words(job))
    return ProtectionRow(
        protection=protection if level is not None else "none",
        kept=len(kept) if level is not None else 0,
        rank=rank,
        bits=limit,
        errors=job.errors.of(job.with_rules(picks)),
        mixed=job.errors.of(job.with_rules(dict(free.picks))),
    )


def _level(job: _Job) -> str:
    """The measured format of 8 bits that protected layers may have; their own dtype if there is none."""
    words = [choice.word for choice in job.choices if choice.weight == "int8" and not choice.rank]
    return words[0] if words else job.found.header.dtype


def _quickened(job: _Job, share: float) -> SpeedRow:
    """The formats of least harm that save a share of the milliseconds that formats can save."""
    found = job.found
    saving = share * most_saved_ms(found, _words(job))
    chosen = mixed(found, limit=-saving * (1.0 - 1e-12), cost="ms", words=_words(job))
    picks = dict(chosen.picks)
    schedule = job.with_rules(picks)
    return SpeedRow(
        share=share,
        saved_ms=-chosen.cost,
        bits=average_bits(found, picks),
        rules=len(schedule.precision),
        errors=job.errors.of(schedule),
    )


def _removal(job: _Job, share: float) -> RemovalRow:
    found = job.found
    in_blocks = sum(found.cell(block, REMOVED).saved_bytes for block in found.blocks)
    chosen = removed_blocks(found, saving=share * in_blocks)
    gone = tuple(block for block, word in chosen.picks if word == REMOVED)
    errors = job.errors.of(replace(job.full, pruned=gone))
    return RemovalRow(share=share, removed=gone, saved=-chosen.cost / in_blocks, predicted=chosen.loss, errors=errors)
