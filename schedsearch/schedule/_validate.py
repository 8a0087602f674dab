"""The rules of FORMAT.md for a schedule in memory, one small function per part.

Each function takes the dotted path and the part, and returns the part in its canonical form (floats as floats, rows in
order, rows that only compute left out) or raises `ScheduleFormatError` with the rule it breaks. `Schedule` calls them
when it is built, thousands of times in a search, so they are cheap. This module does not know files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar, cast

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule._checks import (
    distinct,
    integer,
    join,
    module_name,
    number,
    one_of,
    quote,
    sequence,
    spelled,
    text,
)
from schedsearch.schedule._parts import Measurement, ModelRef, PrecisionRule, Provenance, Solver, Tables, TableTensor
from schedsearch.schedule._side import check_data, check_row, solver_rows
from schedsearch.schedule._vocabulary import (
    CLASS_PATTERN,
    COMPUTE,
    CORRECTORS,
    DATE_PATTERN,
    DIRECTIONS,
    ESTIMATES,
    ESTIMATING,
    FAMILIES,
    FIXED_ORDER,
    FLOAT_FORMATS,
    GLOB_PATTERN,
    GROUP_FORMATS,
    HASH_PATTERN,
    ID_PATTERN,
    MAX_ADAPTERS,
    MAX_BATCH,
    MAX_COUNT,
    MAX_DIMENSION,
    MAX_LOW_RANK,
    MAX_MEASURED,
    MAX_NAME,
    MAX_OP_CHARS,
    MAX_ORDER,
    MAX_PARENTS,
    MAX_PIXELS,
    MAX_PRUNED,
    MAX_RANK,
    MAX_ROWS,
    MAX_RULES,
    MAX_STARS,
    MAX_STEPS,
    MAX_TENSORS,
    MODEL_ROW,
    NUMBER_FORMATS,
    OPS,
    PREDICTIONS,
    ROW_FORMATS,
    SCALES,
    SKIP,
    SOLVER_LETTERS,
    SOLVER_TENSOR,
    TABLE_FAMILY,
    TENSOR_DTYPES,
)

T = TypeVar("T")

_OPS = frozenset(OPS)
_MODEL_OPS = _OPS - {SKIP}
_CLASS = re.compile(CLASS_PATTERN)
_GLOB = re.compile(GLOB_PATTERN)
_HASH = re.compile(HASH_PATTERN)
_ID = re.compile(ID_PATTERN)
_DATE = re.compile(DATE_PATTERN)
_DIGITS = re.compile(r"(\d+)")


def instance(path: str, value: object, kind: type[T], rule: str) -> T:
    """``value``, which is a record of ``kind``."""
    if not isinstance(value, kind):
        raise ScheduleFormatError(path, found=quote(value), expected=f"a {kind.__name__}", rule=rule)
    return value


@lru_cache(maxsize=8192)
def natural(name: str) -> tuple[object, ...]:
    """Sort key that puts ``blocks.2`` before ``blocks.10`` and the `MODEL_ROW` before everything."""
    return (
        name != MODEL_ROW,
        *((int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)),
        name,
    )


def sigma(path: str, values: object) -> tuple[float, ...]:
    """Noise levels: 2 to `MAX_STEPS` + 1 finite numbers, strictly decreasing, none below 0."""
    items = sequence(path, values, MAX_STEPS + 1, "R7", low=2)
    levels = tuple([number(f"{path}[{i}]", item, "R7") for i, item in enumerate(items)])
    for i in range(1, len(levels)):
        if levels[i] >= levels[i - 1]:
            raise ScheduleFormatError(
                f"{path}[{i}]", found=quote(levels[i]), expected=f"a value below {levels[i - 1]!r}, the one before it",
                fix="Noise levels fall from the first step to the last.", rule="R7",
            )  # fmt: skip
    if levels[-1] < 0.0:
        raise ScheduleFormatError(
            f"{path}[{len(levels) - 1}]", found=quote(levels[-1]), expected="0 or more", rule="R7"
        )
    return levels


def solver_record(path: str, item: object) -> Solver:
    """One solver: known family, prediction and corrector, an order the family has."""
    solver = instance(path, item, Solver, "R8")
    one_of(join(path, "family"), solver.family, FAMILIES, "R8")
    one_of(join(path, "prediction"), solver.prediction, PREDICTIONS, "R8")
    one_of(join(path, "corrector"), solver.corrector, CORRECTORS, "R8")
    one_of(join(path, "estimate"), solver.estimate, ESTIMATES, "R8")
    if solver.estimate != ESTIMATES[0] and solver.family not in ESTIMATING:
        wanted = f"{ESTIMATES[0]}, the only estimate of family {solver.family}"
        raise ScheduleFormatError(join(path, "estimate"), found=quote(solver.estimate), expected=wanted, rule="R8")
    order = integer(join(path, "order"), solver.order, 1, MAX_ORDER, "R8")
    fixed = FIXED_ORDER.get(solver.family, order)
    if order != fixed:
        wanted = f"{fixed}, the only order of family {solver.family}"
        raise ScheduleFormatError(join(path, "order"), found=quote(order), expected=wanted, rule="R8")
    return solver


def solvers(path: str, values: object, n_steps: int) -> tuple[Solver, ...]:
    """One solver per step, at most as many distinct ones as there are letters."""
    items = sequence(path, values, MAX_STEPS, "R8")
    if len(items) != n_steps:
        raise ScheduleFormatError(
            path, found=f"{len(items)} solvers", expected=f"{n_steps}, one per step (sigma has {n_steps + 1} values)",
            rule="R8",
        )  # fmt: skip
    known: dict[int, Solver] = {}
    for i, item in enumerate(items):
        if id(item) not in known:
            known[id(item)] = solver_record(f"{path}[{i}]", item)
    if len(known) > len(SOLVER_LETTERS) and len(set(known.values())) > len(SOLVER_LETTERS):
        raise ScheduleFormatError(
            path, found=f"{len(set(known.values()))} distinct solvers", expected=f"at most {len(SOLVER_LETTERS)}",
            rule="R8",
        )  # fmt: skip
    return cast("tuple[Solver, ...]", items)


def op_row(path: str, row: object, n_steps: int, *, whole_model: bool) -> str:
    """One row: one known character per step, beginning with a computed (or skipped) step."""
    if not isinstance(row, str):
        raise ScheduleFormatError(path, found=quote(row), expected="text, one character per step", rule="R10")
    if len(row) != n_steps:
        raise ScheduleFormatError(
            path, found=f"{len(row)} characters", expected=f"{n_steps}, one per step", rule="R10",
            fix="A row says something about every step; sigma has one value more than there are steps.",
        )  # fmt: skip
    legal = _MODEL_OPS if whole_model else _OPS
    if not legal.issuperset(row):
        i = next(i for i, char in enumerate(row) if char not in legal)
        wanted = f"one of {' '.join(char for char in OPS if char in legal)}"
        raise ScheduleFormatError(f"{path}[{i}]", found=quote(row[i]), expected=wanted, rule="R10")
    if row[0] != COMPUTE and row[0] != SKIP:
        wanted = "C" if whole_model else "C or S"
        raise ScheduleFormatError(
            f"{path}[0]", found=quote(row[0]), expected=wanted, rule="R11",
            fix="At the first step there is nothing stored that could be used again.",
        )  # fmt: skip
    return row


def ops(path: str, rows: object, n_steps: int) -> tuple[tuple[str, str], ...]:
    """The rows in canonical order, those that only compute left out."""
    items = sequence(path, rows, MAX_ROWS, "R9")
    if len(items) * n_steps > MAX_OP_CHARS:
        found = f"{len(items)} rows of {n_steps} steps"
        raise ScheduleFormatError(path, found=found, expected=f"at most {MAX_OP_CHARS} characters in all", rule="R9")
    plain = COMPUTE * n_steps
    names: set[str] = set()
    kept: list[tuple[str, str]] = []
    for i, item in enumerate(items):
        if not isinstance(item, tuple) or len(item) != 2:
            raise ScheduleFormatError(f"{path}[{i}]", found=quote(item), expected="a pair (name, row)", rule="R9")
        name, row = item
        if not isinstance(name, str):
            raise ScheduleFormatError(f"{path}[{i}]", found=quote(name), expected="a dotted module name", rule="R9")
        here = join(path, name)
        module_name(here, name, "R9")
        if name in names:
            raise ScheduleFormatError(here, found="a second row of that name", expected="one row per name", rule="R9")
        names.add(name)
        if op_row(here, row, n_steps, whole_model=name == MODEL_ROW) != plain:
            kept.append((name, row))
    return tuple(sorted(kept, key=lambda pair: natural(pair[0])))


def guidance(path: str, values: object, n_steps: int) -> tuple[float | None, ...] | None:
    """``None``, or per step a finite scale or ``None``."""
    if values is None:
        return None
    items = sequence(path, values, MAX_STEPS, "R12")
    if len(items) != n_steps:
        raise ScheduleFormatError(path, found=f"{len(items)} values", expected=f"{n_steps}, one per step", rule="R12")
    return tuple(None if item is None else number(f"{path}[{i}]", item, "R12") for i, item in enumerate(items))


def precision(path: str, rules: object) -> tuple[PrecisionRule, ...]:
    """Rules with known number formats and patterns that are quick to match, in their order and in canonical form."""
    items = sequence(path, rules, MAX_RULES, "R13")
    return tuple([_precision_rule(f"{path}[{i}]", item) for i, item in enumerate(items)])


def _precision_rule(path: str, item: object) -> PrecisionRule:
    """One rule; what its formats leave no choice of goes back to the default, or one run would have two ids."""
    rule = instance(path, item, PrecisionRule, "R13")
    wanted = f"a glob of at most {MAX_NAME} letters, digits and _ . * ? [ ] ! -"
    pattern = spelled(f"{path}.pattern", rule.pattern, _GLOB, wanted, "R13")
    if pattern.count("*") > MAX_STARS:
        found = f"{pattern.count('*')} times '*'"
        raise ScheduleFormatError(f"{path}.pattern", found=found, expected=f"at most {MAX_STARS}", rule="R13")
    weight = one_of(f"{path}.weight", rule.weight, NUMBER_FORMATS, "R13")
    activation = one_of(f"{path}.activation", rule.activation, NUMBER_FORMATS, "R13")
    scales = one_of(f"{path}.scales", rule.scales, SCALES, "R13")
    rank = integer(f"{path}.rank", rule.rank, 0, MAX_LOW_RANK, "R13")
    has_choice = not {weight, activation}.isdisjoint(ROW_FORMATS + GROUP_FORMATS)
    if not has_choice or (scales == "row" and weight not in GROUP_FORMATS):
        scales = SCALES[0]
    if weight in FLOAT_FORMATS:
        rank = 0
    if (scales, rank) == (rule.scales, rule.rank):
        return rule
    return PrecisionRule(pattern=pattern, weight=weight, activation=activation, scales=scales, rank=rank)


def pruned(path: str, names: object, rows: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Names of removed modules, sorted, each once, none that a row speaks of; what lies inside another is left out."""
    items = sequence(path, names, MAX_PRUNED, "R14")
    if not items:
        return ()
    legal = [module_name(f"{path}[{i}]", name, "R14") for i, name in enumerate(items)]
    distinct(path, legal, "R14")
    gone = set(legal)
    if MODEL_ROW in gone:
        raise ScheduleFormatError(
            f"{path}[{legal.index(MODEL_ROW)}]", found="'model'", expected="a module inside it", rule="R14"
        )
    for name, _ in rows:
        for head in (*_modules_around(name), name):
            if head in gone:
                raise ScheduleFormatError(
                    f"{path}[{legal.index(head)}]", found=f"{quote(head)}, while ops has a row {quote(name)}",
                    expected="a module without rows", fix="Drop the row, or keep the module.", rule="R14",
                )  # fmt: skip
    return tuple(sorted((name for name in legal if gone.isdisjoint(_modules_around(name))), key=natural))


def _modules_around(name: str) -> list[str]:
    """Names of the modules that hold the module ``name``, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def table_tensor(path: str, item: object) -> TableTensor:
    """One tensor of the side file: a name, a bounded shape, a known dtype and its role."""
    tensor = instance(path, item, TableTensor, "R15")
    module_name(f"{path}.name", tensor.name, "R15")
    for i, length in enumerate(sequence(f"{path}.shape", tensor.shape, MAX_RANK, "R15")):
        integer(f"{path}.shape[{i}]", length, 0, MAX_DIMENSION, "R15")
    one_of(f"{path}.dtype", tensor.dtype, TENSOR_DTYPES, "R15")
    text(f"{path}.role", tensor.role, "R15", limit=MAX_NAME)
    return tensor


def tables(path: str, item: object) -> Tables | None:
    """``None``, or the hash of a side file and its tensors sorted by name; its bytes, if given, are those."""
    if item is None:
        return None
    part = instance(path, item, Tables, "R15")
    spelled(f"{path}.sha256", part.sha256, _HASH, "64 hexadecimal digits in lower case", "R15")
    items = sequence(f"{path}.tensors", part.tensors, MAX_TENSORS, "R15", low=1)
    tensors = [table_tensor(f"{path}.tensors[{i}]", tensor) for i, tensor in enumerate(items)]
    distinct(f"{path}.tensors", [tensor.name for tensor in tensors], "R15")
    ordered = tuple(sorted(tensors, key=lambda tensor: natural(tensor.name)))
    if ordered != part.tensors:
        part = Tables(sha256=part.sha256, tensors=ordered, data=part.data)
    if part.data is not None:
        check_data(path, part)
    return part


def table_order(steps: tuple[Solver, ...]) -> int:
    """The highest order among the steps of family ``table``; 0 without one."""
    return max((solver.order for solver in steps if solver.family == TABLE_FAMILY), default=0)


def solver_tensor_index(part: Tables | None) -> int | None:
    """Where in the list of tensors the coefficients of the solver stand, ``None`` if they are not there."""
    tensors = part.tensors if part is not None else ()
    return next((i for i, tensor in enumerate(tensors) if tensor.name == SOLVER_TENSOR), None)


def solver_tensor(path: str, part: Tables | None, steps: tuple[Solver, ...]) -> None:
    """The coefficients, if they are there: one row per step, as wide as the highest order, with numbers where due."""
    index = solver_tensor_index(part)
    if part is None or index is None:
        return
    here, tensor, order = f"{path}.tensors[{index}]", part.tensors[index], table_order(steps)
    if not order:
        raise ScheduleFormatError(
            here, found=quote(SOLVER_TENSOR), expected="no such tensor, as no step is of family table", rule="R15"
        )
    if tensor.dtype != "F64":
        raise ScheduleFormatError(f"{here}.dtype", found=quote(tensor.dtype), expected="F64", rule="R15")
    if tensor.shape != (len(steps), 1 + order):
        raise ScheduleFormatError(
            f"{here}.shape", found=str(list(tensor.shape)), rule="R15",
            expected=f"{[len(steps), 1 + order]}: one row per step, one column more than the highest order of `table`",
            fix="The coefficients were fitted for other steps; fit them again.",
        )  # fmt: skip
    if part.data is None:
        return
    for i, (row, solver) in enumerate(zip(solver_rows(part.data), steps, strict=True)):
        check_row(f"{here}[{i}]", row, 1 + solver.order if solver.family == TABLE_FAMILY else 0)


def model(path: str, item: object) -> ModelRef:
    """The denoiser: a class name, two hashes, bounded sizes, adapters sorted."""
    part = instance(path, item, ModelRef, "R16")
    spelled(f"{path}.pipeline", part.pipeline, _CLASS, "the class name of a pipeline", "R16")
    spelled(f"{path}.config", part.config, _HASH, "64 hexadecimal digits in lower case", "R16")
    spelled(f"{path}.blocks", part.blocks, _HASH, "64 hexadecimal digits in lower case", "R16")
    integer(f"{path}.height", part.height, 1, MAX_PIXELS, "R16")
    integer(f"{path}.width", part.width, 1, MAX_PIXELS, "R16")
    integer(f"{path}.batch", part.batch, 1, MAX_BATCH, "R16")
    names = sequence(f"{path}.adapters", part.adapters, MAX_ADAPTERS, "R16")
    if not names:
        return part
    adapters = [text(f"{path}.adapters[{i}]", name, "R16", limit=MAX_NAME, empty=False) for i, name in enumerate(names)]
    distinct(f"{path}.adapters", adapters, "R16")
    if adapters == sorted(adapters):
        return part
    return ModelRef(
        pipeline=part.pipeline, config=part.config, blocks=part.blocks, height=part.height, width=part.width,
        batch=part.batch, adapters=tuple(sorted(adapters)),
    )  # fmt: skip


def measurement(path: str, item: object) -> None:
    """One measured number: finite, with its unit, spread and sample count."""
    record = instance(path, item, Measurement, "R17")
    text(f"{path}.metric", record.metric, "R17", limit=MAX_NAME, empty=False)
    text(f"{path}.unit", record.unit, "R17", limit=MAX_NAME)
    one_of(f"{path}.better", record.better, DIRECTIONS, "R17")
    for field in ("value", "low", "high"):
        number(f"{path}.{field}", getattr(record, field), "R17")
    if record.low > record.high:
        raise ScheduleFormatError(
            f"{path}.low", found=quote(record.low), expected=f"at most {quote(record.high)}, the value of 'high'",
            rule="R17",
        )  # fmt: skip
    integer(f"{path}.n", record.n, 1, MAX_COUNT, "R17")
    integer(f"{path}.batch", record.batch, 1, MAX_BATCH, "R17")
    for field in ("prompts", "device", "dtype", "created_by"):
        text(f"{path}.{field}", getattr(record, field), "R17")
    if record.date != "":
        spelled(f"{path}.date", record.date, _DATE, "a day such as 2026-01-31, or nothing", "R17")


def measured(path: str, records: object) -> tuple[Measurement, ...]:
    """Results; outside the id."""
    items = sequence(path, records, MAX_MEASURED, "R17")
    for i, record in enumerate(items):
        measurement(f"{path}[{i}]", record)
    return cast("tuple[Measurement, ...]", items)


def provenance(path: str, item: object) -> Provenance:
    """Origin; outside the id."""
    part = instance(path, item, Provenance, "R18")
    for field in ("study", "searcher", "created_by", "note"):
        text(f"{path}.{field}", getattr(part, field), "R18")
    integer(f"{path}.seed", part.seed, -MAX_COUNT, MAX_COUNT, "R18")
    integer(f"{path}.ask", part.ask, 0, MAX_COUNT, "R18")
    for i, parent in enumerate(sequence(f"{path}.parents", part.parents, MAX_PARENTS, "R18")):
        spelled(f"{path}.parents[{i}]", parent, _ID, "the id of a schedule, sha256: and 64 hexadecimal digits", "R18")
    return part
