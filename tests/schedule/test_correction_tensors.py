"""R15 for corrections of rows: which tensors a file may hold, and what tells two corrections apart."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest

from schedsearch.errors import ScheduleFormatError
from schedsearch.schedule import (
    ModelRef,
    Schedule,
    SideTensor,
    Solver,
    corrected_row,
    corrections,
    dumps,
    loads,
    with_tensors,
)

NAME = "transformer_blocks.0"
ROW = "CR1C"
SHAPE = (4, 2, 2, 3)


@pytest.fixture(scope="module")
def schedule():
    model = ModelRef(pipeline="P", config="a" * 64, blocks="b" * 64, height=64, width=64)
    return Schedule(sigma=(4.0, 3.0, 2.0, 1.0, 0.0), solver=(Solver(),) * 4, model=model, ops=((NAME, ROW),))


def table(changes=None, shape=SHAPE):
    """1 and 0 but for ``changes``: by place (step, stream, scale or shift, channel)."""
    steps, streams, _, channels = shape
    numbers = [
        (changes or {}).get((i, k, part, c), 1.0 - part)
        for i in range(steps) for k in range(streams) for part in (0, 1) for c in range(channels)
    ]  # fmt: skip
    return SideTensor("F32", shape, struct.pack(f"<{len(numbers)}f", *numbers))


def held(schedule, tensor=None, name=f"{NAME}.correction"):
    return with_tensors(schedule, {name: tensor or table()}, role="test")


class TestAccepted:
    """R15: "A tensor `ROW.correction` corrects what row ROW predicts (M17)"."""

    def test_a_file_with_one_is_read_again_and_has_an_id_of_its_own(self, schedule):
        one, other = held(schedule, table({(1, 0, 0, 2): 1.5})), held(schedule, table({(2, 1, 1, 0): -0.25}))
        assert len({schedule.id, one.id, other.id}) == 3
        assert loads(dumps(one)) == one

    def test_names(self):
        assert corrected_row("model.correction") == "model"
        assert corrected_row("a.0.attn.correction") == "a.0.attn"
        assert corrected_row("correction") is None
        assert corrected_row("a.0.affine") is None

    def test_dropping_them_gives_the_schedule_back(self, schedule):
        assert with_tensors(held(schedule), {}, role="", without=[f"{NAME}.correction"]) == schedule


class TestDigests:
    def test_one_per_step_that_is_corrected(self, schedule):
        digests = corrections(held(schedule, table({(1, 0, 0, 2): 1.5})))
        assert list(digests) == [NAME]
        assert [bool(d) for d in digests[NAME]] == [False, True, False, False]

    def test_equal_numbers_have_equal_digests_and_others_do_not(self, schedule):
        found = [
            corrections(held(schedule, table({(1, 0, 1, 0): v, (2, 0, 0, 0): 2.0})))[NAME] for v in (0.5, 0.5, 0.6)
        ]
        assert found[0] == found[1]
        assert found[0][1] != found[2][1]
        assert found[0][2] == found[2][2]

    def test_ones_and_zeros_are_as_good_as_none(self, schedule):
        assert corrections(held(schedule)) == {}
        assert corrections(schedule) == {}

    def test_without_the_data_nothing_is_known(self, schedule):
        assert corrections(loads(dumps(held(schedule, table({(1, 0, 0, 2): 1.5}))))) == {}


class TestRefused:
    """R15: "finite, and with scale 1 and shift 0 at steps where the row is `C` or `S`"."""

    @pytest.mark.parametrize(
        ("name", "tensor", "path", "text"),
        [
            ("transformer_blocks.1.correction", table(), "tables.tensors[0].name",
             "while row 'transformer_blocks.1' is not in ops, expected a correction of a row that reuses or forecasts"),
            (f"{NAME}.correction", SideTensor("F64", (4, 2, 2, 3), bytes(8 * 48)), "tables.tensors[0].dtype",
             "found 'F64', expected F32"),
            (f"{NAME}.correction", table(shape=(3, 2, 2, 3)), "tables.tensors[0].shape",
             "found [3, 2, 2, 3], expected [4, streams, 2, channels]"),
            (f"{NAME}.correction", SideTensor("F32", (4, 2, 2), bytes(64)), "tables.tensors[0].shape", "fit it again"),
            (f"{NAME}.correction", SideTensor("F32", (4, 0, 2, 3), b""), "tables.tensors[0].shape",
             "found [4, 0, 2, 3], expected [4, streams, 2, channels]"),
            (f"{NAME}.correction", table({(1, 0, 0, 0): math.nan}), "tables.tensors[0]", "found NaN or infinity"),
            (f"{NAME}.correction", table({(1, 0, 0, 0): math.inf, (1, 0, 0, 1): -math.inf}), "tables.tensors[0]",
             "expected finite numbers"),
            (f"{NAME}.correction", table({(3, 1, 0, 0): 1.5}), "tables.tensors[0][3]",
             "found a correction at a step where the row is 'C', expected scale 1 and shift 0 there"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(self, schedule, name, tensor, path, text):
        with pytest.raises(ScheduleFormatError) as caught:
            held(schedule, tensor, name)
        assert (caught.value.path, caught.value.rule) == (path, "R15")
        assert text in str(caught.value)

    def test_a_row_that_predicts_nothing(self, schedule):
        skipping = replace(schedule, ops=((NAME, "CSCC"),))
        with pytest.raises(ScheduleFormatError, match=r"while row 'transformer_blocks\.0' predicts nothing"):
            held(skipping)

    def test_a_row_that_is_taken_out_from_under_it(self, schedule):
        with pytest.raises(ScheduleFormatError, match="Drop the tensor, or put the row back"):
            replace(held(schedule), ops=())

    def test_the_largest_numbers_are_finite(self, schedule):
        largest = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
        assert corrections(held(schedule, table({(1, k, 0, c): largest for k in (0, 1) for c in range(3)})))
