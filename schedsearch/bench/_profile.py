"""`schedsearch profile`: the latency table of a model on this device, and schedules end to end beside its predictions.

Knows nothing of how times are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schedsearch.errors import UsageError
from schedsearch.evaluate import (
    LatencyTable,
    LinearPrices,
    Workload,
    find_card,
    load_pipeline,
    read_table,
    write_table,
)
from schedsearch.evaluate.profile import (
    LoopRow,
    Mode,
    OpRow,
    dtype_word,
    example_schedules,
    measure_loops,
    measure_table,
    parse_word,
    protects,
    random_pipeline,
    require_size,
    rule_word,
    table_header,
    unmeasured,
)
from schedsearch.optimize import Display
from schedsearch.runtime import apply
from schedsearch.schedule import PrecisionRule, Schedule, read_schedule

ROW_COLUMNS = ("operation", "n", "format", "execution", "eager ms", "compiled ms", "gain")
LOOP_COLUMNS = ("schedule", "steps", "plain ms", "scheduled ms", "speedup", "predicted", "reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """What is to be measured.

    Attributes:
        model: the model, or a folder with its configuration files.
        random_weights: build it from the configuration, with random weights and without text encoders and VAE.
        device: where to run.
        dtype: number format of the weights.
        formats: words as `parse_word` reads them, separated by commas.
        eager: time operations as they are.
        compiled: time them under ``torch.compile``.
        every_execution: time all ways a format can be carried out, not only the one a schedule gets.
        schedules: files to run end to end.
        examples: also run the overhead benchmark's schedules of 2x, 4x and 8x, and one of block rows.
        repeats: timed rounds per operation.
        rounds: timed rounds of the schedules.
        out: the table; ``None`` is ``runs/profile-MODEL-DTYPE.json``.
        command: what the user called, for the record.
    """

    model: str
    random_weights: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    formats: str = ""
    eager: bool = True
    compiled: bool = True
    every_execution: bool = False
    schedules: tuple[Path, ...] = ()
    examples: bool = False
    repeats: int = 20
    rounds: int = 5
    out: Path | None = None
    command: str = ""


def run_profile(settings: ProfileSettings, display: Display | None = None) -> Path:
    """Measures and shows the table and the schedules, writes the file and returns its path.

    What the file already says about the same model, device and versions is kept and not measured again.

    Raises:
        UsageError: an option cannot be used, or the file is about something else.
        EvaluationError: the file is not a latency table.
        ScheduleError: a schedule cannot be read.
        ModelNotFoundError: weights or configuration are not at hand.
        ApplyError: a schedule was made for another model.
    """
    display = display or Display()
    if not (settings.eager or settings.compiled):
        raise UsageError("found --no-eager and --no-compiled, expected at most one of them. Leave one out.")
    wanted: dict[Mode, bool] = {"eager": settings.eager, "compiled": settings.compiled}
    if not settings.eager and (settings.schedules or settings.examples):
        raise UsageError(
            "--no-eager: found it beside schedules, expected eager times to predict them by. Leave it out."
        )
    base = dtype_word(settings.dtype)
    schedules = {path.stem: read_schedule(path) for path in settings.schedules}
    rules = _rules(settings.formats, schedules, base)
    card = find_card(settings.model)
    target = settings.out or Path("runs") / f"profile-{card.name}-{base}.json"
    known = read_table(target) if target.exists() else None
    workload = Workload.from_card(card)
    require_size(schedules, workload)
    with display.stage(f"building {card.name}"):
        build: Any = random_pipeline if settings.random_weights else load_pipeline
        pipe = build(card, device=settings.device, dtype=settings.dtype)
    for schedule in schedules.values():
        with apply(pipe, schedule):  # one of another model is refused now, and not after everything else
            pass
    weights = "random" if settings.random_weights else "loaded"
    header = table_header(pipe, card, weights=weights, command=settings.command)
    target.parent.mkdir(parents=True, exist_ok=True)
    with display.stage("timing operations") as advance:
        table = measure_table(
            pipe,
            workload,
            header,
            rules=rules,
            modes=[mode for mode, is_wanted in wanted.items() if is_wanted],
            every_execution=settings.every_execution,
            known=known,
            repeats=settings.repeats,
            on_group=_keeping(target, advance),
        )
    write_table(table, target)
    _show_rows(display, table)
    if settings.examples:
        schedules |= example_schedules(pipe, workload)
    if schedules:
        with display.stage("timing schedules", settings.rounds + 1) as advance:
            loops = measure_loops(
                pipe, workload, schedules, table, repeats=settings.rounds, device=settings.device, on_round=advance
            )
        _show_loops(display, loops, schedules, table)
        fresh = {(loop.schedule, loop.name) for loop in loops}
        kept = (loop for loop in table.loops if (loop.schedule, loop.name) not in fresh)
        write_table(replace(table, loops=(*kept, *loops)), target)
    display.line(f"Wrote {target}")
    return target


def _rules(formats: str, schedules: Mapping[str, Schedule], base: str) -> tuple[PrecisionRule, ...]:
    """The formats asked for, then those of the schedules' own rules, each once and none that is the base itself."""
    words = [word.strip() for word in formats.split(",") if word.strip()]
    asked = [parse_word(word, base=base) for word in words]
    asked += [replace(rule, pattern="*") for schedule in schedules.values() for rule in schedule.precision]
    return tuple({rule_word(rule): rule for rule in asked if not protects(rule, base)}.values())


def _keeping(target: Path, advance: Callable[..., None]) -> Callable[[LatencyTable, int, int, str], None]:
    def on_group(table: LatencyTable, done: int, total: int, note: str) -> None:
        if done:
            write_table(table, target)
        advance(done, total, note)

    return on_group


def _show_loops(
    display: Display, loops: Sequence[LoopRow], schedules: Mapping[str, Schedule], table: LatencyTable
) -> None:
    display.table(
        "Denoising loops, eager, against the plain loop; reached = measured / predicted from the operations computed",
        LOOP_COLUMNS,
        [_loop_cells(loop) for loop in loops],
    )
    prices = LinearPrices.of(table)
    for name, schedule in schedules.items():
        if lacking := unmeasured(prices, schedule):
            display.line(f"{name}: predicted at the base's price for want of a time: {', '.join(lacking)}")


def _loop_cells(loop: LoopRow) -> list[str]:
    speedup = f"{loop.speedup:.3f} ({loop.low:.3f} to {loop.high:.3f})"
    return [
        loop.name, str(loop.steps), f"{loop.plain_ms:.1f}", f"{loop.scheduled_ms:.1f}", speedup,
        f"{loop.predicted:.3f}", f"{loop.reached:.1%}",
    ]  # fmt: skip


def _show_rows(display: Display, table: LatencyTable) -> None:
    header = table.header
    title = (
        f"{header.model} ({header.weights} weights, {table.linears.parameters / 1e9:.3g}B parameters) at "
        f"{header.width}x{header.height}, {header.dtype}, {header.device}; n per denoiser call; gain = base / format"
    )
    display.table(title, ROW_COLUMNS, [_row_cells(row, table) for row in table.rows])
    noted: dict[tuple[str, str], OpRow] = {}
    for row in table.rows:
        if row.note:
            noted.setdefault((row.format, row.note), row)
    for (word, note), row in noted.items():
        display.line(f"{word}, {_operation(row)}: {note}")


def _operation(row: OpRow) -> str:
    return f"{row.name or row.op} {'x'.join(map(str, row.shape))}"


def _row_cells(row: OpRow, table: LatencyTable) -> list[str]:
    base = table.find(row.op, name=row.name, shape=row.shape)
    ours, theirs = _fastest(row), None if base is None else _fastest(base)
    counts = row.execution != "simulated" and row.format != table.header.dtype
    gain = f"{theirs / ours:.2f}" if counts and ours is not None and theirs is not None else ""
    return [
        _operation(row), str(row.n), row.format, row.execution, _cell(row.eager_ms), _cell(row.compiled_ms), gain,
    ]  # fmt: skip


def _fastest(row: OpRow) -> float | None:
    return min((ms for ms in (row.eager_ms, row.compiled_ms) if ms is not None), default=None)


def _cell(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.4g}"
