"""Schedules and frontiers as notebooks show them: well-formed, escaped, and with the numbers they have."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from schedsearch.schedule import PrecisionRule, computes, read_frontier, row_groups, write_frontier

NASTY = "<script>alert('x')</script>&\""
SVG = "{http://www.w3.org/2000/svg}"


def parsed(shown):
    """The tree of what ``_repr_html_`` gives, which is XML as well."""
    return ET.fromstring(shown.replace("<br>", "<br/>"))  # noqa: S314 - our own text


def cells(table):
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_the_map_holds_every_operation_of_every_row(schedule):
    tree = parsed(schedule._repr_html_())
    drawing = tree.find(f".//{SVG}svg")
    letters = [text.text for text in drawing.iterfind(f"{SVG}g/{SVG}text")]
    groups = row_groups(schedule)
    assert "".join(letters) == "".join(group.row for group in groups)
    labels = [text.text for text in drawing.iterfind(f"{SVG}text")]
    assert labels == [group.label for group in groups]
    assert drawing.find(f"{SVG}title").text.startswith("model: CCRRC; "), "what it shows, for those who do not see it"
    _, _, width, height = map(float, drawing.get("viewBox").split())
    for square in drawing.iter(f"{SVG}rect"):
        assert float(square.get("x")) + float(square.get("width")) <= width
        assert float(square.get("y")) + float(square.get("height")) <= height


def test_the_text_says_what_it_is_and_was_measured_at(schedule):
    tree = parsed(schedule._repr_html_())
    told = "".join(tree.find("p").itertext())
    assert f"5 steps, {computes(schedule, 'model')} of them run the denoiser" in told
    assert schedule.id[:19] in told
    assert cells(tree.find("table"))[1:] == [["speedup", "4.12 x", "3.9 to 4.3", "10"]]


def test_a_plain_run_has_one_row(schedule):
    plain = dataclasses.replace(schedule, ops=(), measured=())
    tree = parsed(plain._repr_html_())
    assert [text.text for text in tree.iterfind(f".//{SVG}svg/{SVG}text")] == ["every row"]
    assert tree.find("table") is None


def test_many_rows_are_cut_and_said_to_be(schedule):
    rows = [(f"b{'x' * i}.0", "CRCRC") for i in range(1, 60)]
    shown = dataclasses.replace(schedule, ops=tuple(rows))._repr_html_()
    assert len(list(parsed(shown).iterfind(f".//{SVG}svg/{SVG}text"))) == 40
    assert "and 20 more rows" in shown


def test_whatever_a_file_says_is_text(schedule, tmp_path):
    measured = dataclasses.replace(schedule.measured[0], metric=NASTY, unit=NASTY)
    nasty = dataclasses.replace(
        schedule,
        model=dataclasses.replace(schedule.model, adapters=(NASTY,)),
        precision=(PrecisionRule(pattern="a*", weight="int8", activation="bf16"),),
        measured=(measured,),
    )
    shown = nasty._repr_html_()
    assert "<script" not in shown
    assert NASTY in "".join(parsed(shown).itertext())
    write_frontier(tmp_path / "f", [nasty], quality="psnr", labels=[NASTY])
    shown = read_frontier(tmp_path / "f")._repr_html_()
    assert "<script" not in shown
    assert cells(parsed(shown).find("table"))[1][0] == NASTY


def test_it_needs_nothing_from_elsewhere_and_no_page_of_one_colour(full_schedule):
    shown = full_schedule._repr_html_()
    assert "http" not in shown.replace("http://www.w3.org/2000/svg", "")
    assert 'fill="currentColor"' in shown
    assert "removed: transformer_blocks.9" in shown
    assert "number formats: transformer_blocks.* int8/bf16" in shown


def contrast(colour):
    """Of white on ``colour``, by the formula of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 1.05 / (sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) + 0.05)


def test_letters_can_be_read_on_their_squares():
    from schedsearch.schedule import OPS
    from schedsearch.schedule._html import _COLOURS

    assert set(_COLOURS) == set(OPS)
    assert min(map(contrast, _COLOURS.values())) > 4.5


def test_a_frontier_folder_is_a_table(frontier_folder, schedule):
    index = read_frontier(frontier_folder)
    tree = parsed(index._repr_html_())
    assert cells(tree.find("table")) == [
        ["schedule", "speedup x"], [index.entries[0].file, "4.12"], [index.entries[1].file, "1"],
    ]  # fmt: skip


@pytest.mark.parametrize("n", [0, 2])
def test_a_frontier_of_a_study_is_a_table(schedule, n):
    from schedsearch.study import Candidate, Evaluation, Frontier, Objective

    objectives = (
        Objective(name="latency_ms", unit="ms", better="min"), Objective(name="ssim", unit="1", better="max"),
    )  # fmt: skip
    found = [
        Evaluation(
            candidate=Candidate(schedule=schedule, searcher=NASTY, ask=i), status="ok", values=(100.0 + i, 0.5 + i)
        )
        for i in range(n)
    ]
    shown = Frontier.of(objectives, found)._repr_html_()
    table = cells(parsed(shown).find("table"))
    assert table[0] == ["schedule", "latency_ms ms", "ssim", "searcher", "ask", "steps"]
    assert table[1:] == [[schedule.id[7:15], f"{100 + i}", f"{0.5 + i}", NASTY, f"{i}", "5"] for i in range(n)]
    assert "<script" not in shown
