"""The side file of a schedule: named tensors as safetensors lays them out, read and written by hand.

The layout is 8 bytes (little endian) with the length of a JSON header, the header, and the bytes of all tensors without
gaps. The few kilobytes of a solver's coefficients need no array library. This module does not know files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule import _json
from schedsearch.schedule._checks import join, quote
from schedsearch.schedule._parts import Tables, TableTensor
from schedsearch.schedule._vocabulary import (
    DTYPE_BYTES,
    MAX_DIMENSION,
    MAX_RANK,
    MAX_SIDE_BYTES,
    SOLVER_TENSOR,
    TABLE_FAMILY,
)

if TYPE_CHECKING:
    from schedsearch.schedule._model import Schedule

SOLVER_ROLE = "solver coefficients"
_LENGTH = struct.Struct("<Q")
_FREE = "__metadata__"
"""The one key of a header that is no tensor: text for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a side file: safetensors' name of its type, its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a side file; the same tensors give the same bytes, in whatever order they come."""
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        end = offset + len(tensor.raw)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # safetensors aligns the data, so that it can be mapped into memory
    return b"".join([_LENGTH.pack(len(text)), text, *(tensor.raw for _, tensor in sorted(tensors.items()))])


def unpack(data: bytes, path: str = "tables") -> dict[str, Tensor]:
    """The tensors in the bytes of a side file.

    Raises:
        ScheduleFormatError: if ``data`` is not laid out as safetensors are, without gaps and overlaps.
    """
    length = _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else 0
    start = _LENGTH.size + length
    if not length or start > len(data):
        found = f"{len(data)} bytes with a header of {length}"
        raise ScheduleFormatError(path, found=found, expected="a whole safetensors file", rule="R15")
    header = _header(data[_LENGTH.size : start], f"{path}.header")
    places = {name: _place(f"{join(f'{path}.header', name)}", item) for name, item in header.items()}
    at = 0
    for name, (_, _, begin, end) in sorted(places.items(), key=lambda entry: entry[1][2:]):
        if begin != at:
            here = f"{join(f'{path}.header', name)}.data_offsets"
            wanted = f"it to begin at {at}, where the one before it ends"
            raise ScheduleFormatError(here, found=f"[{begin}, {end}]", expected=wanted, rule="R15")
        at = end
    if at != len(data) - start:
        found = f"{len(data) - start} bytes of tensors"
        raise ScheduleFormatError(path, found=found, expected=f"{at}, as its header says", rule="R15")
    return {
        name: Tensor(dtype, shape, data[start + begin : start + end])
        for name, (dtype, shape, begin, end) in places.items()
    }


def _header(text: bytes, path: str) -> dict[str, object]:
    try:
        header = _json.parse(text)
    except ScheduleFormatError as error:
        here = join(path, error.path) if error.path else path
        raise ScheduleFormatError(here, found=error.found, expected=error.expected, rule="R15") from None
    header.pop(_FREE, None)
    return header


def _place(path: str, item: object) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, begin and end that the header states of one tensor, if they agree."""
    keys = ("dtype", "shape", "data_offsets")
    entry = _json.members(path, item, known=keys, required=keys, rule="R15")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        wanted = f"one of {', '.join(DTYPE_BYTES)}"
        raise ScheduleFormatError(f"{path}.dtype", found=quote(dtype), expected=wanted, rule="R15")
    if not _whole_numbers(shape) or len(shape) > MAX_RANK or any(length > MAX_DIMENSION for length in shape):
        wanted = f"at most {MAX_RANK} whole numbers in 0..{MAX_DIMENSION}"
        raise ScheduleFormatError(f"{path}.shape", found=quote(shape), expected=wanted, rule="R15")
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise ScheduleFormatError(
            f"{path}.data_offsets", found=_shown(offsets), expected=f"two offsets that are {size} bytes apart",
            rule="R15",
        )  # fmt: skip
    return dtype, tuple(shape), offsets[0], offsets[1]


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def check_data(path: str, tables: Tables) -> None:
    """Refuse bytes that are too many, have another hash, or hold other tensors than ``tables`` says.

    Raises:
        ScheduleFormatError: with the dotted path of what does not agree.
    """
    data = tables.data
    if not isinstance(data, bytes):
        raise ScheduleFormatError(f"{path}.data", found=quote(data), expected="bytes, or nothing", rule="R15")
    if len(data) > MAX_SIDE_BYTES:
        raise ScheduleFormatError(path, found=f"{len(data)} bytes", expected=f"at most {MAX_SIDE_BYTES}", rule="R15")
    found = hashlib.sha256(data).hexdigest()
    if found != tables.sha256:
        raise ScheduleFormatError(
            f"{path}.sha256", found=f"{found[:12]}... in the .safetensors file",
            expected=f"{tables.sha256[:12]}..., as the schedule says",
            fix="The two files do not belong together, or one is damaged: copy both again.", rule="R15",
        )  # fmt: skip
    held = unpack(data, path)
    if set(held) != {tensor.name for tensor in tables.tensors}:
        raise ScheduleFormatError(
            f"{path}.tensors", found=f"the tensors {quote(', '.join(sorted(held)), 200)} in the .safetensors file",
            expected=", ".join(tensor.name for tensor in tables.tensors[:20]), rule="R15",
        )  # fmt: skip
    for i, tensor in enumerate(tables.tensors):
        for field in ("dtype", "shape"):
            there, here = getattr(held[tensor.name], field), getattr(tensor, field)
            if there != here:
                raise ScheduleFormatError(
                    f"{path}.tensors[{i}].{field}", found=f"{_shown(here)}",
                    expected=f"{_shown(there)}, as in the .safetensors file", rule="R15",
                )  # fmt: skip


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) or _whole_numbers(value) else quote(value)


def solver_rows(data: bytes) -> tuple[tuple[float, ...], ...]:
    """The coefficients in a side file that is known to have them: one row per step."""
    tensor = unpack(data)[SOLVER_TENSOR]
    numbers = struct.unpack(f"<{math.prod(tensor.shape)}d", tensor.raw)
    width = tensor.shape[1]
    return tuple(numbers[at : at + width] for at in range(0, len(numbers), width))


def check_row(path: str, row: Sequence[float], used: int) -> None:
    """Refuse a row of coefficients that is not finite, or not zero beyond the ``used`` ones."""
    for k, value in enumerate(row):
        if not math.isfinite(value):
            raise ScheduleFormatError(f"{path}[{k}]", found=quote(value), expected="a finite number", rule="R15")
        if k >= used and value != 0.0:
            wanted = "0, as the step does not use it"
            raise ScheduleFormatError(f"{path}[{k}]", found=quote(value), expected=wanted, rule="R15")


def solver_table(schedule: Schedule) -> tuple[tuple[float, ...], ...] | None:
    """The coefficients of a schedule's ``table`` steps.

    Returns:
        One row per step, ``(c0, c1, ...)`` padded with zeros to `1 + highest order`; rows of other families are zero.
        ``None`` if no step is of family ``table``, if they are not fitted yet, or if the side file was not at hand.
    """
    tables = schedule.tables
    if tables is None or tables.data is None or all(tensor.name != SOLVER_TENSOR for tensor in tables.tensors):
        return None
    return solver_rows(tables.data)


def with_solver_table(schedule: Schedule, rows: Sequence[Sequence[float]]) -> Schedule:
    """``schedule`` with these coefficients in its tables, in place of those it had.

    Args:
        schedule: one with steps of family ``table``.
        rows: `(n_steps, <= 1 + highest order)` coefficients ``(c0, c1, ...)`` per step; shorter rows, such as empty
            ones for steps of other families, are filled with zeros.

    Raises:
        ScheduleFormatError: if they do not fit the steps, are not finite, or the data of other tensors is missing.
    """
    width = 1 + max((solver.order for solver in schedule.solver if solver.family == TABLE_FAMILY), default=0)
    filled = [(*row, *(0.0,) * (width - len(row))) for row in rows]
    numbers = [float(value) + 0.0 for row in filled for value in row]
    if any(len(row) != width for row in filled):
        found = f"rows of {max(map(len, filled))} coefficients"
        raise ScheduleFormatError("tables.tensors", found=found, expected=f"at most {width} in each", rule="R15")
    raw = struct.pack(f"<{len(numbers)}d", *numbers)
    return with_tensors(schedule, {SOLVER_TENSOR: Tensor("F64", (len(filled), width), raw)}, role=SOLVER_ROLE)


def with_tensors(
    schedule: Schedule, tensors: Mapping[str, Tensor], *, role: str, without: Sequence[str] = ()
) -> Schedule:
    """``schedule`` with these tensors in its side file, in place of those of the same names.

    Args:
        schedule: whose tables are changed.
        tensors: by name.
        role: what they are for, in words.
        without: names of tensors that are dropped.

    Raises:
        ScheduleFormatError: if they do not fit the schedule, or the data of those that stay is missing.
    """
    old = schedule.tables.tensors if schedule.tables is not None else ()
    staying = {t.name: t.role for t in old if t.name not in tensors and t.name not in without}
    held = {name: tensor for name, tensor in (_held(schedule.tables) if staying else {}).items() if name in staying}
    return _holding(schedule, {**held, **tensors}, {**staying, **dict.fromkeys(tensors, role)})


def with_layer_tables(schedule: Schedule, tensors: Mapping[str, Tensor], *, role: str) -> Schedule:
    """``schedule`` with these tensors in its tables, in place of all that it had but the solver's coefficients.

    Corrections go with the tables of the layers: they were fitted to what those layers gave.

    Args:
        schedule: any.
        tensors: by name, as FORMAT.md M16 says; none takes all away.
        role: what is said of each of them, behind the last part of its name: from which inputs they were found.

    Raises:
        ScheduleFormatError: if they are too many or too large, or the data of the solver's coefficients is missing.
    """
    old = schedule.tables.tensors if schedule.tables is not None else ()
    kept = {tensor.name: tensor.role for tensor in old if tensor.name == SOLVER_TENSOR}
    held = {SOLVER_TENSOR: _held(schedule.tables)[SOLVER_TENSOR]} if kept else {}
    roles = {name: f"{name.rpartition('.')[2]}; {role}" for name in tensors}
    return _holding(schedule, {**held, **tensors}, {**kept, **roles})


def _holding(schedule: Schedule, held: Mapping[str, Tensor], roles: Mapping[str, str]) -> Schedule:
    """The schedule with exactly these tensors."""
    if not held:
        return dataclasses.replace(schedule, tables=None)
    data = pack(held)
    entries = tuple(
        TableTensor(name=name, shape=tensor.shape, dtype=tensor.dtype, role=roles[name])
        for name, tensor in held.items()
    )
    tables = Tables(sha256=hashlib.sha256(data).hexdigest(), tensors=entries, data=data)
    return dataclasses.replace(schedule, tables=tables)


def _held(tables: Tables | None) -> dict[str, Tensor]:
    if tables is None or tables.data is None:
        raise ScheduleFormatError("tables.data", found="nothing", expected="the bytes of the other tensors", rule="R15")
    return unpack(tables.data)
