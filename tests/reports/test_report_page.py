"""The page: one file, nothing from anywhere, nobody's words as markup; the committed sample; static pictures."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from schedsearch.errors import UsageError
from schedsearch.sensitivity import Cell, Choice, Header, Layer, Sensitivities, write_sensitivities
from schedsearch_reports import ReportData, render, report_data
from schedsearch_reports._page import document_text
from schedsearch_reports.sample import data_of_page, main

SAMPLE = Path(__file__).parents[2] / "reports" / "sample" / "report.html"
VENDORED = files("schedsearch_reports") / "static" / "plot.min.js"


class Elements(HTMLParser):
    """Collects start tags with their attributes, ids, and the text of script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def data(run_folder_made: Path) -> ReportData:
    return report_data(run_folder_made)


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render(data)


def test_the_page_carries_exactly_its_data(page: str, data: ReportData):
    assert data_of_page(page) == data


def test_the_tables_say_the_same_numbers(page: str, data: ReportData):
    text = html.unescape(re.sub(r"<[^>]*>", " ", page.partition("<script")[0]))
    for run in data.runs:
        for metric in data.metrics:
            value = run.measured(metric.name)
            if value is not None and not (run.kind == "full" and metric.is_relative):
                assert f"{value.value * metric.scale:,.{metric.digits}f}" in text


def test_nobodys_words_become_markup(page: str):
    elements = Elements(page)
    assert len(elements.scripts) == 8  # the data and seven scripts of ours, none from a prompt
    assert not any("onerror" in attributes for _, attributes in elements.tags)
    assert "alert(1)" in page  # it is there, as text
    assert "<b>" not in page.partition("<script")[0]  # nor the device's name


def test_nothing_is_loaded_from_anywhere(page: str):
    elements = Elements(page)
    for tag, attributes in elements.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page.partition("</style>")[0])


def test_the_policy_allows_our_scripts_and_no_other(page: str):
    elements = Elements(page)
    policy = next(a["content"] or "" for t, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in elements.scripts[1:]}
    assert allowed == hashes
    assert "script-src 'unsafe-inline'" not in policy


def test_every_control_and_plot_has_a_name(page: str):
    elements = Elements(page)
    ids = [a["id"] for _, a in elements.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements.tags:
        labelled = attributes.get("aria-labelledby")
        assert not labelled or labelled in ids, (tag, labelled)
    assert all("alt" in attributes for tag, attributes in elements.tags if tag == "img")


def test_numbers_without_a_word_in_json_are_left_open(data: ReportData):
    first = dataclasses.replace(data.runs[0], calls=float("inf"))
    document = json.loads(document_text(dataclasses.replace(data, runs=(first,))))
    assert document["runs"][0]["calls"] is None


def test_three_hundred_candidates_and_full_pictures_keep_five_megabytes(data: ReportData):
    big = "data:image/webp;base64," + "A" * (4 * 2_400_000 // 3 // 8)
    assert data.gallery is not None
    gallery = dataclasses.replace(
        data.gallery, runs=(dataclasses.replace(data.gallery.runs[0], images=(big,) * 8),), prompts=("p",) * 8
    )
    search = dataclasses.replace(
        data.search, tried=data.search.tried[:1] * 300, progress=data.search.progress[:1] * 100
    )
    row = dataclasses.replace(data.schedules[1].rows[3], ops="C1R2" * 7, own="1" * 28)
    view = dataclasses.replace(data.schedules[1], rows=(row,) * 228, text="x" * 40_000)  # as large as for FLUX.1
    schedules = tuple(dataclasses.replace(view, id=str(i)) for i in range(15))
    text = render(dataclasses.replace(data, gallery=gallery, search=search, schedules=schedules))
    assert len(text.encode()) < 5_000_000


def test_sensitivities_are_told_in_tables(run_folder_made: Path, tmp_path: Path):
    header = Header(
        model="toy", config="c", carrier="s", steps=4, prompts="p", n_prompts=2, seed=0, dtype="fp32", torch="2",
        schedsearch="0", date="2026-01-01", command="x",
    )  # fmt: skip
    cells = (
        Cell(module="transformer_blocks.0", word="", errors=(0.3, 0.4), bits=0.0, saved_bytes=8, saved_ms=0.25),
        Cell(module="transformer_blocks.1", word="", errors=(0.6, 0.8), bits=0.0, saved_bytes=8),
        Cell(module="transformer_blocks.0.ff", word="int8", errors=(0.03, 0.04), bits=8.25, saved_bytes=8),
        Cell(module="transformer_blocks.1.ff", word="int8", errors=(0.06, 0.08), bits=8.25, saved_bytes=8),
    )
    found = Sensitivities(
        header=header,
        layers=tuple(Layer(name=f"transformer_blocks.{i}.ff", weights=4, bits=32) for i in range(2)),
        blocks=("transformer_blocks.0", "transformer_blocks.1"),
        choices=(Choice(word="int8", weight="int8", activation="int8"),),
        cells=cells,
    )  # fmt: skip
    write_sensitivities(found, tmp_path / "s.json")
    removed, formats, layers = report_data(run_folder_made, sensitivity=tmp_path / "s.json").tables
    assert removed.rows == (("transformer_blocks.1", "70.71 %", ""), ("transformer_blocks.0", "35.36 %", "0.250"))
    assert formats.rows == (("int8", "2", "5.59 %", "7.07 %", "transformer_blocks.1.ff"),)
    assert layers.rows[0] == ("transformer_blocks.1.ff", "int8", "7.07 %", "8.25", "")


# ---- the committed sample


def test_the_sample_is_what_this_release_makes_of_its_data():
    text = SAMPLE.read_text(encoding="utf-8")
    again = render(data_of_page(text))
    assert again == text, "the page has changed; run: python -m schedsearch_reports.sample reports/sample/report.html"


def test_the_sample_is_small_and_whole():
    assert SAMPLE.stat().st_size < 600_000
    data = data_of_page(SAMPLE.read_text(encoding="utf-8"))
    assert data.is_finished
    assert data.gallery is not None
    assert data.run(data.chosen).value("speedup") >= 4.0


def test_a_sample_is_made_of_a_run_or_of_itself(run_folder_made: Path, tmp_path: Path, page: str):
    target = tmp_path / "report.html"
    main([str(target), "--run", str(run_folder_made)])
    assert target.read_text() == page
    target.write_text(page.replace("<h1>", "<h1 class='old'>"))
    main([str(target)])
    assert target.read_text() == page


@pytest.mark.parametrize("text", ["<p>", '<script type="application/json" id="data">{}</script>'])
def test_what_is_no_page_of_ours_is_refused(text: str):
    with pytest.raises(UsageError, match="page: found"):
        data_of_page(text)


# ---- from the command line


def test_the_verb_writes_the_page_and_pictures(run_cli, run_folder_made: Path, tmp_path: Path, page: str):
    out = tmp_path / "page.html"
    done = run_cli("report", str(run_folder_made), "--out", str(out), "--png")
    assert done.code == 0
    assert [Path(line.removeprefix("Wrote ")).name for line in done.out.splitlines()] == [
        "page.html",
        "page.png",
        "page.svg",
    ]
    assert out.read_text() == page
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "page.svg").read_text()


def test_the_verb_takes_the_studys_file_too(run_cli, run_folder_made: Path, tmp_path: Path, page: str):
    done = run_cli("report", str(run_folder_made / "study.db"), "--out", str(tmp_path / "page.html"))
    assert (done.code, (tmp_path / "page.html").read_text()) == (0, page)


def test_the_verb_refuses_a_folder_without_a_study(run_cli, tmp_path: Path):
    done = run_cli("report", str(tmp_path))
    assert done.code == 2
    assert "found no study.db" in done.err


def test_the_still_picture_shows_every_family_once(data: ReportData):
    from schedsearch_reports._stills import still

    (axes,) = still(data).axes
    ours, plain = axes.lines
    assert list(ours.get_xdata()) == [2.0, 4.25]
    assert list(ours.get_ydata()) == [31.5, 27.25]  # the third has the speed of the second and less quality
    assert list(plain.get_xdata()) == [2.1, 4.0]


def test_the_vendored_library_is_the_one_its_notes_name():
    notes = (Path(__file__).parents[2] / "reports" / "vendor" / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(VENDORED.read_bytes()).hexdigest() in notes
