"""A schedule as the page draws it: the op map's rows, words for solvers, formats and origin, and the file itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import NamedTuple

from schedsearch.schedule import COMPUTE, MODEL_ROW, SKIP, PrecisionRule, Schedule, Solver, dumps, rule_word
from schedsearch_reports._data import OpRow, ScheduleView

CARRIED_BYTES = 256 * 1024
"""A schedule's file or tensors of more bytes are named by their path instead of carried in the page."""

_FAMILIES = {
    "euler": ("E", "Euler"),
    "heun": ("H", "Heun"),
    "adams": ("A", "Adams-Bashforth"),
    "plms": ("P", "PLMS"),
    "dpm": ("D", "DPM-Solver++"),
    "unipc": ("U", "UniPC"),
    "table": ("F", "fitted: least squares on the calibration prompts"),
}
_INDEX = re.compile(r"^(.*?)\.(\d+)$")


class _Block(NamedTuple):
    """Rows of one block: its own, then those of its parts."""

    name: str
    rows: tuple[OpRow, ...]

    @property
    def plan(self) -> tuple[object, ...]:
        """What is equal in blocks that are folded: the list they are in, and all they do."""
        found = _INDEX.match(self.name)
        parts = tuple((r.label.removeprefix(self.name), r.ops, r.own, r.formats, r.is_pruned) for r in self.rows)
        return (found[1] if found else self.name), parts


def schedule_view(
    schedule: Schedule,
    *,
    file: str,
    path: str,
    blocks: Sequence[str] = (),
    origin: Iterable[tuple[str, str]] = (),
) -> ScheduleView:
    """Return all that the page says about ``schedule``.

    Args:
        schedule: with its tables' data if they were at hand.
        file: name for the download.
        path: where it lies, relative to the report; empty if nowhere.
        blocks: names of the model's blocks in running order; those the schedule speaks of where they are not known.
        origin: label and words.
    """
    text = "" if schedule.unfitted else dumps(schedule)
    data = schedule.tables.data if schedule.tables is not None else None
    map_rows = tuple(op_rows(schedule, blocks))
    return ScheduleView(
        id=schedule.id,
        file=file,
        path=path,
        text=text if len(text) <= CARRIED_BYTES else "",
        side_file=f"{file.removesuffix('.json')}.safetensors" if schedule.tables is not None else "",
        side=base64.b64encode(data).decode() if data is not None and len(data) <= CARRIED_BYTES else "",
        sigma=schedule.sigma,
        solvers=tuple(map(_solver_word, schedule.solver)),
        solver_names=_solver_names(schedule.solver),
        guidance=tuple("" if g is None else f"{g:g}" for g in schedule.guidance or ()),
        folded=folded_rows(schedule, blocks),
        rows=map_rows,
        formats=tuple((rule.pattern, rule_word(rule)) for rule in schedule.precision),
        pruned=schedule.pruned,
        origin=tuple(origin),
        code=_code(file),
    )


def _code(file: str) -> str:
    return f'import schedsearch\nschedsearch.apply(pipe, "{file}")\nimage = pipe("a red apple").images[0]'


def _solver_word(solver: Solver) -> str:
    mark = {"none": "", "pseudo": "′", "implicit": "″"}[solver.corrector]
    return f"{_FAMILIES[solver.family][0]}{solver.order}{mark}"


def _solver_names(solvers: Sequence[Solver]) -> tuple[tuple[str, str], ...]:
    named = [_FAMILIES[family] for family in dict.fromkeys(solver.family for solver in solvers)]
    correctors = {solver.corrector for solver in solvers}
    marks = [("′", "with a corrector")] * ("pseudo" in correctors)
    marks += [("″", "with a corrector that calls the denoiser again")] * ("implicit" in correctors)
    return (*named, *marks)


# ---- the op map


def op_rows(schedule: Schedule, blocks: Sequence[str] = ()) -> Iterator[OpRow]:
    """Yield the whole denoiser's row, then every block's in running order, each followed by its parts' own rows."""
    yield _model_row(schedule)
    for block in _blocks(schedule, blocks):
        yield from block.rows


def folded_rows(schedule: Schedule, blocks: Sequence[str] = ()) -> tuple[OpRow, ...]:
    """Return the same with neighbouring blocks that do the same in one row each."""
    rows = [_model_row(schedule)]
    for _, run in groupby(_blocks(schedule, blocks), key=lambda block: block.plan):
        equal = list(run)
        rows += [_folded(row, equal) for row in equal[0].rows]
    return tuple(rows)


def _folded(row: OpRow, equal: Sequence[_Block]) -> OpRow:
    first, last = equal[0].name, equal[-1].name
    if len(equal) == 1:
        return row
    label = f"{first}–{last.rpartition('.')[2]}{row.label.removeprefix(first)}"
    return OpRow(
        label=label, count=len(equal), level=row.level, ops=row.ops, own=row.own, computed=row.computed,
        formats=row.formats, is_pruned=row.is_pruned,
    )  # fmt: skip


def _model_row(schedule: Schedule) -> OpRow:
    row = schedule.row(MODEL_ROW)
    return OpRow(
        label="whole denoiser", count=1, level=0, ops=row, own="1" * len(row), computed=row.count(COMPUTE),
        formats=", ".join(dict.fromkeys(rule_word(r) for r in schedule.precision if set(r.pattern) <= {"*"})),
    )  # fmt: skip


def _blocks(schedule: Schedule, known: Sequence[str]) -> list[_Block]:
    rows = [name for name, _ in schedule.ops if name != MODEL_ROW]
    names = list(known) or list(dict.fromkeys(_block_of(name) for name in (*rows, *schedule.pruned)))
    return [_Block(name, tuple(_block_rows(schedule, name, rows))) for name in names]


def _block_of(module: str) -> str:
    """The block a module is in: its name up to the first number.

    >>> _block_of("transformer_blocks.3.attn")
    'transformer_blocks.3'
    """
    found = re.match(r".*?\.\d+(?=\.|$)", module)
    return found[0] if found else module


def _block_rows(schedule: Schedule, block: str, named: Sequence[str]) -> Iterator[OpRow]:
    model, own = schedule.row(MODEL_ROW), schedule.row(block)
    if block in schedule.pruned:
        gone = SKIP * schedule.n_steps
        yield OpRow(
            label=block, count=1, level=1, ops=gone, own="1" * len(gone), computed=0, is_pruned=True
        )  # fmt: skip
        return
    yield _row(block, 1, (model, own), block_formats(schedule.precision, block))
    for part in [name for name in named if name.startswith(f"{block}.")]:
        yield _row(part, 2, (model, own, schedule.row(part)), "")
    for part in [name for name in schedule.pruned if name.startswith(f"{block}.")]:
        gone = SKIP * schedule.n_steps
        yield OpRow(label=part, count=1, level=2, ops=gone, own="1" * len(gone), computed=0, is_pruned=True)


def _row(label: str, level: int, rows: Sequence[str], formats: str) -> OpRow:
    """What happens at each step: the coarsest row that does not compute, else the row's own op."""
    ops, own = "", ""
    for step in zip(*rows, strict=True):
        place = next((i for i, op in enumerate(step) if op != COMPUTE), len(step) - 1)
        ops += step[place]
        own += "1" if place == len(step) - 1 else "0"
    return OpRow(label=label, count=1, level=level, ops=ops, own=own, computed=ops.count(COMPUTE), formats=formats)


def block_formats(rules: Sequence[PrecisionRule], block: str) -> str:
    """Return the formats that rules give to layers of ``block``, as far as the patterns alone say it.

    >>> rule = PrecisionRule(pattern="transformer_blocks.[0-3].attn.*", weight="int8", activation="int8")
    >>> block_formats([rule], "transformer_blocks.2"), block_formats([rule], "transformer_blocks.5")
    ('attn int8', '')
    """
    segments = block.split(".")
    found: list[str] = []
    for rule in rules:
        parts = rule.pattern.split(".")
        if set(rule.pattern) <= {"*"} or len(parts) < len(segments):
            continue
        if all(map(fnmatchcase, segments, parts)):
            rest = ".".join(part for part in parts[len(segments) :] if part != "*")
            found.append(f"{rest} {rule_word(rule)}".strip())
    return ", ".join(dict.fromkeys(found))
