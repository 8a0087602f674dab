"""The latency table: what each operation of one denoiser takes on one device, as a file.

JSON of format ``schedsearch.latencies``, version 1. The reader is strict: an unknown key, a missing one, a number that
is not positive and finite, or the same operation twice is an error that says where. The writer replaces the file as a
whole. Does not know how the numbers were taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from schedsearch.errors import EvaluationError, UsageError
from schedsearch.evaluate._linears import FLOAT_BYTES, LinearLayer, Linears
from schedsearch.schedule import NUMBER_FORMATS, PrecisionRule, rule_of_word, write_atomically

FORMAT = "schedsearch.latencies"
VERSION = 1
OPS = ("denoiser", "block", "component", "linear", "attention", "modulation", "norm")
EXECUTIONS = ("base", "simulated", "torch", "torchao", "kernel")

Mode = Literal["eager", "compiled"]
"""Which column of the table is meant."""

MODES: tuple[Mode, ...] = ("eager", "compiled")

_MAX_BYTES = 64 * 2**20
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One operation in one number format.

    Attributes:
        op: what kind it is, one of `OPS`.
        name: the block list (``transformer_blocks``), component (``transformer_blocks.ff``) or class it stands for;
            empty where the shape says all.
        shape: ``(tokens, in, out)`` of a linear layer, ``(heads, queries, keys, width)`` of attention; else the tokens
            of each stream, then the width.
        format: the base dtype's word, or what `format_word` makes of a rule.
        execution: how that format was carried out, one of `EXECUTIONS`.
        eager_ms: median milliseconds, ``None`` if not measured.
        compiled_ms: the same under ``torch.compile``.
        n: how often a denoiser call does it.
        example: dotted name of the first module that does; empty for attention.
        note: why a number is missing, or why nothing faster carries the format out; mostly empty.
    """

    op: str
    name: str
    shape: tuple[int, ...]
    format: str
    execution: str
    eager_ms: float | None
    compiled_ms: float | None
    n: int
    example: str = ""
    note: str = ""

    @property
    def key(self) -> tuple[str, str, tuple[int, ...], str, str]:
        """What tells rows apart."""
        return self.op, self.name, self.shape, self.format, self.execution

    def ms(self, mode: Mode) -> float | None:
        """Return the time in that mode, ``None`` if it was not measured."""
        return self.eager_ms if mode == "eager" else self.compiled_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRow:
    """One schedule, run end to end against the plain denoising loop.

    Attributes:
        schedule: its id.
        name: what the user calls it.
        steps: its denoising steps.
        plain_ms: median of the plain loop.
        scheduled_ms: median of its own.
        speedup: median of the ratios taken round by round.
        low: their 10 % quantile.
        high: their 90 % quantile.
        n: rounds.
        predicted: speedup that the table's own times predict from what the schedule computes; caches, the sampler and
            everything else around the denoiser count as free.
        date: ISO day.
    """

    schedule: str
    name: str
    steps: int
    plain_ms: float
    scheduled_ms: float
    speedup: float
    low: float
    high: float
    n: int
    predicted: float
    date: str

    @property
    def reached(self) -> float:
        """The measured speedup as a share of the predicted one."""
        return self.speedup / self.predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class TableHeader:
    """What a table is about; only tables with equal `identity` may be joined.

    Attributes:
        model: the card's name.
        config: SHA-256 (hex) of the denoiser's configuration.
        weights: ``random`` or ``loaded``.
        height: pixels.
        width: pixels.
        dtype: base dtype, as its word in a precision rule.
        device: the machine in words.
        torch: version.
        diffusers: version.
        schedsearch: version.
        date: ISO day it was begun.
        commit: of this program, empty if not known.
        command: what the user called.
    """

    model: str
    config: str
    weights: str
    height: int
    width: int
    dtype: str
    device: str
    torch: str
    diffusers: str
    schedsearch: str
    date: str
    commit: str
    command: str

    @property
    def identity(self) -> dict[str, object]:
        """All that changes a number in the table."""
        return {key: value for key, value in asdict(self).items() if key not in {"date", "commit", "command"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """What each operation takes.

    Attributes:
        header: what it is about.
        linears: the denoiser's weights.
        rows: the operations; where a format was carried out in several ways, the one a schedule gets comes first.
        loops: schedules run end to end.
    """

    header: TableHeader
    linears: Linears
    rows: tuple[OpRow, ...]
    loops: tuple[LoopRow, ...] = ()

    def find(self, op: str, *, name: str = "", shape: tuple[int, ...] = (), fmt: str = "") -> OpRow | None:
        """Return the first row that agrees with everything that is given, in the base dtype unless ``fmt`` is."""
        for row in self.rows:
            agrees = row.op == op and (not name or row.name == name) and (not shape or row.shape == shape)
            if agrees and row.format == (fmt or self.header.dtype):
                return row
        return None


def parse_word(text: str, *, base: str) -> PrecisionRule:
    """Return a rule, matching every layer, for the format word ``text``.

    Args:
        text: ``WEIGHT[/ACTIVATION][@SCALES][+RANK]``; without an activation it is the weight's format, or ``base`` for
            one that only weights can have.
        base: word of the denoiser's dtype.

    Raises:
        UsageError: it is no such word, or names no format.
    """
    rule = rule_of_word(text, base=base)
    if rule is None:
        raise UsageError(
            f"--formats: found {text[:_MAX_SHOWN]!r}, expected WEIGHT, WEIGHT/ACTIVATION, and where wanted @row or "
            f"@tensor and +RANK after it, such as int8, int4/bf16 or int4+32, of the formats "
            f"{', '.join(NUMBER_FORMATS)}; nf4 is for weights only."
        )
    return rule


def write_table(table: LatencyTable, path: str | PathLike[str]) -> None:
    """Write ``table``; at any moment the file is the old one or the new one as a whole.

    Raises:
        ScheduleError: if it cannot be written.
    """
    write_atomically(path, (table_text(table) + "\n").encode())


def table_text(table: LatencyTable) -> str:
    """Return the JSON text of ``table``, one row per line."""
    layers = [[x.name, x.tokens, x.in_features, x.out_features, x.bias] for x in table.linears.layers]
    lists: dict[str, Sequence[object]] = {
        "layers": layers,
        "others": [list(pair) for pair in table.linears.others],
        "rows": [asdict(row) for row in table.rows],
        "loops": [asdict(loop) for loop in table.loops],
    }
    head = json.dumps({"format": FORMAT, "version": VERSION, **asdict(table.header)}, indent=1)
    parts = [f' "{name}": [\n{_lines(values)}\n ]' if values else f' "{name}": []' for name, values in lists.items()]
    return head.removesuffix("\n}") + ",\n" + ",\n".join(parts) + "\n}"


def _lines(values: Sequence[object]) -> str:
    return ",\n".join(f"  {json.dumps(value, allow_nan=False)}" for value in values)


def read_table(path: str | PathLike[str]) -> LatencyTable:
    """Return the table in a file.

    Raises:
        EvaluationError: it cannot be read, or breaks a rule of the format; the text says where.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise EvaluationError(f"{file}: found no file, expected a latency table. `schedsearch profile` writes one.")
        with file.open("rb") as source:
            data = source.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise EvaluationError(f"{file}: found more than {_MAX_BYTES // 2**20} MiB, expected a latency table.")
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: found a file that cannot be read ({error}), expected UTF-8 JSON.") from error
    return parse_table(text, where=str(file))


def parse_table(text: str, *, where: str = "latency table") -> LatencyTable:
    """Return the table that `table_text` wrote.

    Raises:
        EvaluationError: ``text`` breaks a rule of the format; the text says where.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where}: found damaged JSON ({error}), expected a latency table.") from error
    heading = [field.name for field in fields(TableHeader)]
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EvaluationError(f"{where}: found something else, expected a file of format {FORMAT!r}.")
    if content.get("version") != VERSION:
        raise EvaluationError(
            f"{where}: version: found {_shown(content.get('version'))}, expected {VERSION}. Measure it again."
        )
    got = _members(where, content, ("format", "version", *heading, "layers", "others", "rows", "loops"))
    header = TableHeader(**_header_values(where, {key: got[key] for key in heading}))
    layers = _each(f"{where}: layers", got["layers"], _layer)
    others = _each(f"{where}: others", got["others"], _other)
    rows = _each(f"{where}: rows", got["rows"], _op_row)
    loops = _each(f"{where}: loops", got["loops"], _loop_row)
    _refuse_repeats(f"{where}: layers", [layer.name for layer in layers])
    _refuse_repeats(f"{where}: rows", [row.key for row in rows])
    linears = Linears(layers=layers, others=others, base=header.dtype)
    return LatencyTable(header=header, linears=linears, rows=rows, loops=loops)


# ---- checks; each returns the value it was given, in its type


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _wrong(where: str, value: object, expected: str) -> EvaluationError:
    return EvaluationError(f"{where}: found {_shown(value)}, expected {expected}. Measure the table again.")


def _members(where: str, value: object, keys: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    for key in value:
        if key not in keys:
            raise _wrong(where, key, f"only the keys {', '.join(keys)}")
    for key in keys:
        if key not in value:
            raise EvaluationError(f"{where}: found no key {key!r}, expected it. Measure the table again.")
    return value


def _each(where: str, value: object, read: Callable[[str, Any], Any]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    return tuple(read(f"{where}[{i}]", item) for i, item in enumerate(value))


def _text(where: str, value: object, known: Collection[str] = ()) -> str:
    if not isinstance(value, str) or (known and value not in known):
        raise _wrong(where, value, f"one of {', '.join(known)}" if known else "text")
    return value


def _whole(where: str, value: object, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(where, value, f"a whole number of at least {least}")
    return value


def _positive(where: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise _wrong(where, value, "a finite number above 0")
    return float(value)


def _header_values(where: str, values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        known = {"dtype": tuple(FLOAT_BYTES), "weights": ("random", "loaded")}.get(key, ())
        _whole(f"{where}: {key}", value) if key in {"height", "width"} else _text(f"{where}: {key}", value, known)
    return values


def _layer(where: str, value: Any) -> LinearLayer:
    if not isinstance(value, list) or len(value) != 5 or not isinstance(value[4], bool):
        raise _wrong(where, value, "[name, tokens, in, out, true or false]")
    return LinearLayer(
        name=_text(f"{where}[0]", value[0]),
        tokens=_whole(f"{where}[1]", value[1], 0),
        in_features=_whole(f"{where}[2]", value[2]),
        out_features=_whole(f"{where}[3]", value[3]),
        bias=value[4],
    )


def _other(where: str, value: Any) -> tuple[str, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong(where, value, "[name, elements]")
    return _text(f"{where}[0]", value[0]), _whole(f"{where}[1]", value[1])


def _op_row(where: str, value: Any) -> OpRow:
    got = dict(_members(where, value, [field.name for field in fields(OpRow)]))
    for key, known in (
        ("op", OPS),
        ("name", ()),
        ("format", ()),
        ("execution", EXECUTIONS),
        ("example", ()),
        ("note", ()),
    ):
        _text(f"{where}.{key}", got[key], known)
    got["shape"] = _each(f"{where}.shape", got["shape"], _whole)
    _whole(f"{where}.n", got["n"])
    for key in ("eager_ms", "compiled_ms"):
        got[key] = None if got[key] is None else _positive(f"{where}.{key}", got[key])
    return OpRow(**got)


def _loop_row(where: str, value: Any) -> LoopRow:
    got = dict(_members(where, value, [field.name for field in fields(LoopRow)]))
    for key in ("schedule", "name", "date"):
        _text(f"{where}.{key}", got[key])
    for key in ("steps", "n"):
        _whole(f"{where}.{key}", got[key])
    for key in ("plain_ms", "scheduled_ms", "speedup", "low", "high", "predicted"):
        got[key] = _positive(f"{where}.{key}", got[key])
    return LoopRow(**got)


def _refuse_repeats(where: str, keys: Sequence[object]) -> None:
    seen: set[object] = set()
    for i, key in enumerate(keys):
        if key in seen:
            raise EvaluationError(f"{where}[{i}]: found {key} again, expected each once. Measure the table again.")
        seen.add(key)
