"""Tables of layers and coefficients of steps share a side file, and each can be replaced without the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule import (
    SideTensor,
    Solver,
    dumps,
    loads,
    read_schedule,
    solver_table,
    with_layer_tables,
    with_solver_table,
    write_schedule,
)

ROWS = ((), (1.0, 0.5, -0.25), (0.5, 2.0, 0.0), (1.0, -1.0, 0.25))
SMOOTH = {"blocks.0.to_q.smooth": SideTensor("F32", (3,), b"\0\0\x80\x3f" * 3)}
BITS = {"blocks.0.to_q.rounding": SideTensor("U8", (4, 1), b"\1\2\3\4")}


@pytest.fixture
def fitted(plain):
    table = Solver(family="table", order=2)
    return with_solver_table(replace(plain, solver=(Solver(), table, table, table)), ROWS)


def names(schedule):
    return [] if schedule.tables is None else [tensor.name for tensor in schedule.tables.tensors]


def test_they_are_written_and_read(plain, tmp_path):
    made = with_layer_tables(plain, {**SMOOTH, **BITS}, role="by hand")
    assert names(made) == ["blocks.0.to_q.rounding", "blocks.0.to_q.smooth"]
    assert [tensor.role for tensor in made.tables.tensors] == ["rounding; by hand", "smooth; by hand"]
    write_schedule(made, tmp_path / "plan.json")
    again = read_schedule(tmp_path / "plan.json")
    assert (again, again.tables.data, again.id) == (made, made.tables.data, made.id)


def test_the_order_they_come_in_is_no_content(plain):
    turned = with_layer_tables(plain, {**BITS, **SMOOTH}, role="")
    assert with_layer_tables(plain, {**SMOOTH, **BITS}, role="") == turned


def test_coefficients_stay_when_they_change(fitted):
    made = with_layer_tables(fitted, SMOOTH, role="")
    assert names(made) == ["blocks.0.to_q.smooth", "solver"]
    assert solver_table(made) == solver_table(fitted)
    assert with_layer_tables(made, BITS, role="").tables.tensors[0].name == "blocks.0.to_q.rounding"
    assert with_layer_tables(made, {}, role="") == fitted


def test_they_stay_when_coefficients_change(fitted):
    made = with_layer_tables(fitted, SMOOTH, role="by hand")
    other = with_solver_table(made, [(), *ROWS[2:], ROWS[1]])
    assert names(other) == names(made)
    assert other.tables.tensors[0] == made.tables.tensors[0]
    assert with_solver_table(other, ROWS) == made


def test_none_is_no_tables_at_all(plain):
    assert with_layer_tables(plain, {}, role="") == plain
    assert with_layer_tables(with_layer_tables(plain, SMOOTH, role=""), {}, role="").tables is None


def test_without_the_data_of_the_coefficients_nothing_can_be_put_beside_them(fitted):
    with pytest.raises(ScheduleFormatError, match=r"tables\.data: found nothing, expected the bytes of the other"):
        with_layer_tables(loads(dumps(fitted)), SMOOTH, role="")
