"""Corrections of what rows predict: one scale and one shift per step, stream and channel, in the side file.

A row's tensor is called after it, ``ROW.correction``. This module knows their bytes and how they must look beside the
schedule's rows (FORMAT.md R15, M17); not the denoiser, so not how many streams and channels it has.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule._checks import quote
from schedsearch.schedule._parts import Tables, TableTensor
from schedsearch.schedule._side import unpack
from schedsearch.schedule._vocabulary import COMPUTE, SKIP

if TYPE_CHECKING:
    from schedsearch.schedule._model import Schedule

CORRECTION = "correction"
"""The last part of a correction's name; what stands before it is the row's."""

_ONE = b"\x00\x00\x80?"
_ZERO = b"\x00\x00\x00\x00"


def corrected_row(tensor: str) -> str | None:
    """The row that the tensor of this name corrects, ``None`` if it is something else.

    >>> corrected_row("transformer_blocks.3.attn.correction")
    'transformer_blocks.3.attn'
    """
    row, _, word = tensor.rpartition(".")
    return row if row and word == CORRECTION else None


def predicts(op: str) -> bool:
    """Whether a row with this character at a step uses a stored value there."""
    return op not in (COMPUTE, SKIP)


def check_corrections(path: str, part: Tables | None, rows: Iterable[tuple[str, str]], n_steps: int) -> None:
    """Refuse corrections of rows that are not there or predict nothing, of another shape or type than theirs, with
    values that are no numbers, and with others than 1 and 0 at steps where their row does not predict.

    Raises:
        ScheduleFormatError: with the dotted path of what does not agree.
    """
    tensors = [] if part is None else [(i, t) for i, t in enumerate(part.tensors) if corrected_row(t.name) is not None]
    if part is None or not tensors:
        return
    known = dict(rows)
    for i, tensor in tensors:
        _check_header(f"{path}.tensors[{i}]", tensor, known, n_steps)
    if part.data is None:
        return
    held = unpack(part.data, path)
    for i, tensor in tensors:
        row = known[tensor.name.rpartition(".")[0]]
        _check_values(f"{path}.tensors[{i}]", held[tensor.name].raw, row, channels=tensor.shape[3])


def _check_header(path: str, tensor: TableTensor, rows: dict[str, str], n_steps: int) -> None:
    row = tensor.name.rpartition(".")[0]
    if not any(map(predicts, rows.get(row, ""))):
        there = "predicts nothing" if row in rows else "is not in ops"
        raise ScheduleFormatError(
            f"{path}.name", found=f"{quote(tensor.name)}, while row {quote(row)} {there}",
            expected="a correction of a row that reuses or forecasts", fix="Drop the tensor, or put the row back.",
            rule="R15",
        )  # fmt: skip
    if tensor.dtype != "F32":
        raise ScheduleFormatError(f"{path}.dtype", found=quote(tensor.dtype), expected="F32", rule="R15")
    shape = tensor.shape
    if len(shape) != 4 or (shape[0], shape[2]) != (n_steps, 2) or not all(shape):
        raise ScheduleFormatError(
            f"{path}.shape", found=str(list(shape)), rule="R15",
            expected=f"[{n_steps}, streams, 2, channels]: a scale and a shift for every step, stream and channel",
            fix="The correction was fitted for other steps; fit it again.",
        )  # fmt: skip


def _check_values(path: str, raw: bytes, row: str, *, channels: int) -> None:
    # A sum of at most 2^24 float32 numbers stays within a double, so it is finite if and only if they all are.
    if not math.isfinite(sum(_numbers(raw))):
        raise ScheduleFormatError(path, found="NaN or infinity", expected="finite numbers", rule="R15")
    size = len(raw) // len(row)
    for i, op in enumerate(row):
        if not predicts(op) and not _is_identity(raw[i * size : (i + 1) * size], channels):
            raise ScheduleFormatError(
                f"{path}[{i}]", found=f"a correction at a step where the row is {quote(op)}", rule="R15",
                expected="scale 1 and shift 0 there, as nothing is reused",
            )  # fmt: skip


def _numbers(raw: bytes) -> array[float]:
    numbers = array("f")
    numbers.frombytes(raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _is_identity(raw: bytes, channels: int) -> bool:
    """Whether one step's bytes say scale 1 and shift 0 for every stream and channel."""
    return raw == (_ONE * channels + _ZERO * channels) * (len(raw) // (8 * channels))


def corrections(schedule: Schedule) -> dict[str, tuple[str, ...]]:
    """What tells the corrections of a schedule apart: per corrected row, a digest per step, empty where nothing is
    corrected. Rows whose correction is 1 and 0 throughout, and tables without their data, are left out.
    """
    part = schedule.tables
    if part is None or part.data is None or all(corrected_row(t.name) is None for t in part.tensors):
        return {}
    held = unpack(part.data)
    found: dict[str, tuple[str, ...]] = {}
    for tensor in part.tensors:
        row = corrected_row(tensor.name)
        if row is None:
            continue
        raw, size = held[tensor.name].raw, len(held[tensor.name].raw) // schedule.n_steps
        steps = [raw[i * size : (i + 1) * size] for i in range(schedule.n_steps)]
        digests = tuple("" if _is_identity(s, tensor.shape[3]) else _digest(s) for s in steps)
        if any(digests):
            found[row] = digests
    return found


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
