"""What the strict build of the site cannot see: that nothing is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_every_public_package_has_its_page():
    modules = (ROOT / "schedsearch").iterdir()
    public = {path.stem for path in modules if path.suffix in {"", ".py"} and not path.stem.startswith(("_", "cli"))}
    assert {page.stem for page in (DOCS / "reference/python").glob("*.md")} == public | {"index"}


def test_the_overviews_name_every_page_of_their_folder():
    for folder in ("how-to", "extend", "reference/python"):
        told = set(re.findall(r"\]\(([\w-]+)\.md\)", (DOCS / folder / "index.md").read_text("utf-8")))
        assert told == {page.stem for page in (DOCS / folder).glob("*.md")} - {"index"}
