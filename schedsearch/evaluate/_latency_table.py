"""The latency table: what each operation of one denoiser takes on one device, as a file.

JSON of format ``schedsearch.latencies``, version 1, in which no operation stands twice. Does not know how the numbers
were taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Literal

from schedsearch import _records as rec
from schedsearch.errors import UsageError
from schedsearch.evaluate._linears import FLOAT_BYTES, LinearLayer, Linears
from schedsearch.schedule import NUMBER_FORMATS, PrecisionRule, rule_of_word

OPS = ("denoiser", "block", "component", "linear", "attention", "modulation", "norm")
EXECUTIONS = ("base", "simulated", "torch", "torchao", "kernel")

Mode = Literal["eager", "compiled"]
"""Which column of the table is meant."""

MODES: tuple[Mode, ...] = ("eager", "compiled")

_FILE = rec.RecordFile(
    format="schedsearch.latencies", version=1, what="a latency table", made_by="schedsearch profile",
    max_bytes=64 * 2**20,
)  # fmt: skip
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
    _FILE.write(path, table_text(table))


def table_text(table: LatencyTable) -> str:
    """Return the JSON text of ``table``, one row per line."""
    lists: dict[str, Sequence[object]] = {
        "layers": [[x.name, x.tokens, x.in_features, x.out_features, x.bias] for x in table.linears.layers],
        "others": [list(pair) for pair in table.linears.others],
        "rows": [asdict(row) for row in table.rows],
        "loops": [asdict(loop) for loop in table.loops],
    }
    return _FILE.text(asdict(table.header), lists)


def read_table(path: str | PathLike[str]) -> LatencyTable:
    """Return the table in a file.

    Raises:
        EvaluationError: it cannot be read, or breaks a rule of the format; the text says where.
    """
    return parse_table(_FILE.read(path), where=str(path))


def parse_table(text: str, *, where: str = "latency table") -> LatencyTable:
    """Return the table that `table_text` wrote.

    Raises:
        EvaluationError: ``text`` breaks a rule of the format; the text says where.
    """
    got = _FILE.parse(text, {**_HEADER, **_LISTS}, where=where)
    header = TableHeader(**{key: got[key] for key in _HEADER})
    names = [field.name for field in fields(LinearLayer)]
    layers = tuple(LinearLayer(**dict(zip(names, layer, strict=True))) for layer in got["layers"])
    rec.refuse_repeats(f"{where}: layers", [layer.name for layer in layers])
    rec.refuse_repeats(f"{where}: rows", [row.key for row in got["rows"]])
    linears = Linears(layers=layers, others=got["others"], base=header.dtype)
    return LatencyTable(header=header, linears=linears, rows=got["rows"], loops=got["loops"])


_SIZE, _MS = rec.at_least(1), rec.or_nothing(rec.positive)

_LAYER = rec.row_of("[name, tokens, in, out, true or false]", rec.text, rec.at_least(0), _SIZE, _SIZE, rec.truth)
_OTHER = rec.row_of("[name, elements]", rec.text, _SIZE)
_ROW = rec.record(
    OpRow,
    {
        "op": rec.one_of(OPS),
        "name": rec.text,
        "shape": rec.list_of(_SIZE),
        "format": rec.text,
        "execution": rec.one_of(EXECUTIONS),
        "eager_ms": _MS,
        "compiled_ms": _MS,
        "n": _SIZE,
        "example": rec.text,
        "note": rec.text,
    },
)
_LOOP = rec.record(
    LoopRow,
    {field.name: rec.positive for field in fields(LoopRow)}
    | dict.fromkeys(("schedule", "name", "date"), rec.text)
    | dict.fromkeys(("steps", "n"), _SIZE),
)

_HEADER: Mapping[str, rec.Check] = {field.name: rec.text for field in fields(TableHeader)} | {
    "weights": rec.one_of(("random", "loaded")),
    "dtype": rec.one_of(tuple(FLOAT_BYTES)),
    "height": _SIZE,
    "width": _SIZE,
}
_LISTS: Mapping[str, rec.Check] = {
    "layers": rec.list_of(_LAYER),
    "others": rec.list_of(_OTHER),
    "rows": rec.list_of(_ROW),
    "loops": rec.list_of(_LOOP),
}
