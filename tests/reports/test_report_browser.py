"""The page in a real browser: what a person does with it, at every width, in light and dark, without network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schedsearch.schedule import read_schedule
from schedsearch_reports import ReportData, render, report_data
from schedsearch_reports.sample import data_of_page

SAMPLE = Path(__file__).parents[2] / "reports" / "sample" / "report.html"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no browser: install Debian's package chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, which a container does not allow; the page is ours.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def data() -> ReportData:
    return data_of_page(SAMPLE.read_text(encoding="utf-8"))


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a page; at the end there must have been no complaint and no request to anywhere."""
    complaints: list[str] = []
    contexts = []

    def go(file: Path = SAMPLE, *, width: int = 1280, ready: str = "#frontier-plot svg", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else complaints.append(r.url)
        )
        page.goto(file.as_uri())
        if ready:
            page.wait_for_selector(ready)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def title(page: Any) -> str:
    return str(page.inner_text("#selected-title"))


def others(data: ReportData) -> list[Any]:
    return [run for run in data.runs if run.schedule and run.key != data.chosen]


def test_it_opens_with_the_schedule_for_the_budget(visit: Any, data: ReportData):
    page = visit()
    chosen = data.run(data.chosen)
    assert page.inner_text("h1") == data.headline
    assert title(page) == f"Schedule {chosen.name.replace('x', '×')}"
    assert page.locator("#frontier-plot [aria-label=dot] path, #frontier-plot [aria-label=dot] circle").count() > len(
        data.schedules
    )
    assert page.locator("#strip img").first.evaluate("image => image.complete && image.naturalWidth > 0")


def test_it_is_there_in_less_than_two_seconds(visit: Any):
    page = visit()
    session = page.context.new_cdp_session(page)
    # Processor time of the page's thread: what the clock on the wall says is up to what else the machine does.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    page.wait_for_selector("#genes-plot svg", state="attached")
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    assert 0.01 < metrics["TaskDuration"] < 2.0


def test_a_click_on_a_point_selects_it(visit: Any, data: ReportData):
    page = visit()
    run = others(data)[0]
    name = run.name.replace("x", "×")
    point = page.locator(f'#frontier-plot [aria-label^="{name},"]')
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert title(page) == f"Schedule {name}"
    assert page.locator("#pick tr.is-selected input").get_attribute("value") == run.key
    assert run.name in page.url  # so that a link leads back here
    page.reload()
    page.wait_for_selector("#frontier-plot svg")
    assert title(page) == f"Schedule {name}"


def test_the_keyboard_reaches_every_schedule(visit: Any, data: ReportData):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#pick input:checked").focus()
    before = title(page)
    page.keyboard.press("ArrowDown")
    after = title(page)
    assert after != before
    order = [f"Schedule {run.name.replace('x', '×')}" for run in data.runs if run.schedule]
    assert order[(order.index(before) + 1) % len(order)] == after


def test_another_metric_and_a_log_axis_redraw_the_plot(visit: Any, data: ReportData):
    page = visit()
    chosen = data.run(data.chosen)

    def place() -> tuple[float, float]:
        """Of the schedule's point, from the corner of the plot."""
        point = page.locator(f'#frontier-plot [aria-label^="{chosen.name.replace("x", "×")},"]').bounding_box()
        plot = page.locator("#frontier-plot svg").bounding_box()
        return point["x"] - plot["x"], point["y"] - plot["y"]

    before = place()
    page.select_option("#y-metric", "ssim")
    assert "SSIM" in page.locator("#frontier-plot svg").text_content()
    assert page.locator(f'#pick tr[data-key="{chosen.key}"] [data-y]').inner_text() == f"{chosen.value('ssim'):.4f}"
    page.check("#x-log")
    page.select_option("#y-metric", "psnr")
    after = place()
    assert after[1] == pytest.approx(before[1], abs=1.0)
    assert after[0] > before[0] + 20.0  # a log axis gives the slow end more room
    page.select_option("#x-metric", "latency_ms")
    assert (
        f"{chosen.value('latency_ms'):.1f}" in page.locator(f'#pick tr[data-key="{chosen.key}"] [data-x]').inner_text()
    )


def test_a_family_can_be_left_out(visit: Any):
    page = visit()
    plain = '#frontier-plot [aria-label^="plain,"]'
    assert page.locator(plain).count() > 0
    page.uncheck('#legend input[aria-label="Show plain run, fewer steps"]')
    assert page.locator(plain).count() == 0


def test_pictures_are_compared_three_ways(visit: Any, data: ReportData):
    page = visit()
    assert data.gallery is not None
    stage = page.locator("#stage")
    page.locator("#split").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert stage.evaluate("stage => stage.style.getPropertyValue('--split')") == "60"
    clip = page.locator("#image-a").evaluate("image => getComputedStyle(image).clipPath")
    assert "40%" in clip
    page.locator("#thumbs button").nth(1).click()
    assert data.gallery.prompts[1] in page.inner_text("#picture-caption")
    page.get_by_text("Difference", exact=True).click()
    assert page.locator("#image-a").evaluate("image => getComputedStyle(image).mixBlendMode") == "difference"
    page.locator("#gain").fill("16")
    assert "brightness(16)" in page.locator(".pictures-pair").evaluate("pair => getComputedStyle(pair).filter")
    page.get_by_text("Side by side", exact=True).click()
    a, b = (page.locator(image).bounding_box() for image in ("#image-a", "#image-b"))
    assert a["x"] + a["width"] == pytest.approx(b["x"] - 4.0, abs=1.0)
    plain = next(entry.run for entry in data.gallery.runs if data.run(entry.run).kind == "fewer steps")
    page.select_option("#other", plain)
    assert page.inner_text("#name-a") == data.run(plain).name


def test_the_difference_of_a_picture_with_itself_is_black(visit: Any):
    page = visit()
    page.get_by_text("Difference", exact=True).click()
    page.evaluate("document.getElementById('image-a').src = document.getElementById('image-b').src")
    page.evaluate("document.querySelectorAll('.corner').forEach(one => one.remove())")
    page.evaluate("document.getElementById('image-a').decode()")
    from io import BytesIO

    from PIL import Image

    shot = Image.open(BytesIO(page.locator("#stage .frame").screenshot())).convert("L")
    middle = shot.crop((20, 20, shot.width - 20, shot.height - 20))
    assert middle.getextrema()[1] <= 2


def test_a_downloaded_schedule_is_valid(visit: Any, data: ReportData, tmp_path: Path):
    page = visit()
    links = page.locator("#downloads a")
    for link in links.all():
        with page.expect_download() as waiting:
            link.click()
        waiting.value.save_as(tmp_path / waiting.value.suggested_filename)
    view = next(view for view in data.schedules if view.id == data.run(data.chosen).schedule)
    schedule = read_schedule(tmp_path / view.file)
    assert schedule.id == view.id
    assert links.count() == 2
    assert schedule.tables is not None
    assert schedule.tables.data is not None  # the second file lay beside it and has the hash the first one states
    assert view.file in page.inner_text("#code")


def test_the_op_map_folds_and_unfolds(visit: Any, data: ReportData):
    page = visit()
    view = next(view for view in data.schedules if view.id == data.run(data.chosen).schedule)
    assert page.locator("#map tbody tr").count() == len(view.folded)
    page.check("#unfold")
    assert page.locator("#map tbody tr").count() == len(view.rows)
    assert page.locator("#map tbody tr").first.locator("td.op").all_inner_texts() == list(view.rows[0].ops)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_page_never_scrolls_sideways(visit: Any, width: int):
    page = visit(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for summary in page.locator("summary").all():
        summary.click()
    page.check("#unfold")
    page.get_by_text("Side by side", exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth") == width


CONTRAST = """() => {
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (name) => {
    canvas.fillStyle = style.getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const against = (...names) => names.map((name) => ratio(name, "--bg"));
  return {
    bg: light("--bg"), text: against("--ink", "--muted", "--accent"), on: ratio("--on-accent", "--accent"),
    marks: against("--f1", "--f2", "--f3", "--f4", "--f5", "--f6"),
  };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(visit: Any, scheme: str):
    page = visit(color_scheme=scheme)
    found = page.evaluate(CONTRAST)
    assert (found["bg"] > 0.5) == (scheme == "light")
    assert min(found["text"]) >= 4.5  # WCAG 2.2, text
    assert found["on"] >= 4.5
    assert min(found["marks"]) >= 3.0  # WCAG 2.2, graphics


def test_it_prints(visit: Any):
    page = visit()
    page.emulate_media(media="print")
    assert not page.locator("#axes").is_visible()
    assert page.locator("#frontier-plot svg").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_scripts_the_numbers_are_still_there(visit: Any, data: ReportData):
    page = visit(ready="", java_script_enabled=False)
    assert page.inner_text("h1") == data.headline
    assert "need JavaScript" in page.inner_text("noscript, .hero")
    page.locator("summary").first.click()
    assert f"{data.run(data.chosen).value('psnr'):.2f}" in page.locator("table.numbers").first.inner_text()
    assert not page.locator("#axes").is_visible()


def test_a_page_of_hostile_words_is_only_a_page(visit: Any, run_folder_made: Path, tmp_path: Path):
    file = tmp_path / "report.html"
    data = report_data(run_folder_made)
    file.write_text(render(data))
    page = visit(file)
    assert data.gallery is not None
    page.locator("#thumbs button").nth(1).click()
    assert data.gallery.prompts[1] in page.inner_text("#picture-caption")  # word for word, and no dialog came up
    assert re.sub(r"\s+", " ", page.title()).startswith("toy-4x </script>")
    assert page.locator("#map tr.is-pruned").count() == 1
    assert page.locator("#map td.covered").count() > 0


def test_an_unfinished_search_is_a_page_too(visit: Any, run_without_end: Path, tmp_path: Path):
    file = tmp_path / "report.html"
    file.write_text(render(report_data(run_without_end)))
    page = visit(file)
    assert "still searching" in page.inner_text(".eyebrow")
    assert title(page) == "Schedule 4.44×"
