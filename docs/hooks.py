"""What the site adds to the pages of this folder: pages that live elsewhere, and the command line's reference.

Pages outside of `docs` stay where readers of the code expect them; here they only get an address, and links to them and
from them are led there. MkDocs calls the functions by their names.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

ELSEWHERE = {
    "format.md": "schedsearch/schedule/FORMAT.md",
    "spaces.md": "spaces/README.md",
    "calibration.md": "calibration/README.md",
    "flux-mini.md": "calibration/schedsearch_calibration/models/flux-mini/MODEL_CARD.md",
    "flux-mini-clip.md": "calibration/schedsearch_calibration/models/flux-mini-clip/MODEL_CARD.md",
    "kernels.md": "kernels/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "images/flux-mini-samples.png": "calibration/schedsearch_calibration/models/flux-mini/samples.png",
    "data/report.html": "reports/sample/report.html",
    "data/flux.yaml": "spaces/schedsearch_spaces/flux.yaml",
    "data/models.yaml": "spaces/schedsearch_spaces/models.yaml",
}
"""Address in the site -> file of the repository."""

COMMAND_LINE = "reference/command-line.md"

_ADDRESS = {path: address for address, path in ELSEWHERE.items()} | {"README.md": "index.md"}
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_PAPER = re.compile(r"\barXiv\s(\d{4}\.\d{5})\b(?!\])")
_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the files that match, but an index, in place of each glob in the navigation, such as ``decisions/*.md``."""
    config.nav = _expanded(config.nav, Path(config.docs_dir))
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds what does not lie in this folder."""
    for address, path in ELSEWHERE.items():
        files.append(File.generated(config, address, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, COMMAND_LINE, content=command_line()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Leads links between this folder and the rest of the repository to their addresses in the site, and to papers."""
    return with_papers(relinked(markdown, page.file.src_uri))


def with_papers(markdown: str) -> str:
    """The text with every ``arXiv 1234.56789`` outside of code as a link."""
    parts = _CODE.split(markdown)  # text, code, text, ...
    parts[::2] = [_PAPER.sub(r"[\g<0>](https://arxiv.org/abs/\1)", part) for part in parts[::2]]
    return "".join(parts)


def relinked(markdown: str, here: str) -> str:
    """The text of the page at ``here`` with links to files of the repository as links to pages of the site."""
    source = PurePosixPath(ELSEWHERE.get(here, f"docs/{here}"))

    def led(match: re.Match[str]) -> str:
        target = os.path.normpath(source.parent / match[2])
        address = _ADDRESS.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if address is None:
            return match[0]  # MkDocs says what is wrong with it
        return f"{match[1]}{os.path.relpath(address, PurePosixPath(here).parent)}{match[3]}"

    return _LINK.sub(led, markdown)


def command_line() -> str:
    """The reference of all commands and options, by typer's own generator.

    Raises:
        PluginError: it did not work; the text says why.
    """
    words = [sys.executable, "-m", "typer", "schedsearch.cli", "utils", "docs", "--name", "schedsearch"]
    done = subprocess.run([*words, "--title", "Commands and options"], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise PluginError(
            f"the command line's reference: {' '.join(words)} ended with {done.returncode}\n{done.stderr}"
        )
    return with_blocks(with_summaries(done.stdout))


def with_blocks(reference: str) -> str:
    """The reference with the lists at the end of helps, such as their examples, as blocks."""

    def block(match: re.Match[str]) -> str:
        lines = html.unescape(match[2]).replace("\n  ", "\n").strip()
        return f"**{match[1]}**:\n\n```text\n{lines}\n```\n"

    return re.sub(r"^(Examples|Exit codes):\n((?:  .+\n)+)", block, reference, flags=re.MULTILINE)


def with_summaries(reference: str) -> str:
    """The reference with each list of commands linked to their sections, and with their first sentences in full."""
    sections = re.findall(r"^#+ `([^`]+)`\n\n(.+?)\n\n", reference, re.MULTILINE | re.DOTALL)
    summaries = {name: " ".join(text.split()) for name, text in sections}
    group = "schedsearch"
    lines = []
    for line in reference.splitlines(keepends=True):
        if heading := re.match(r"#+ `(.+)`", line):
            group = heading[1]
        command = re.match(r"\* `([a-z-]+)`:", line)
        name = f"{group} {command[1]}" if command else ""
        if name in summaries:
            lines.append(f"* [`{name}`](#{name.replace(' ', '-')}): {summaries[name]}\n")
        else:
            lines.append(line)
    return "".join(lines)


def _expanded(nav: Any, folder: Path) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(entry, folder) for title, entry in nav.items()}
    if isinstance(nav, list):
        return [entry for part in nav for entry in _matching(part, folder)]
    return nav


def _matching(part: Any, folder: Path) -> list[Any]:
    if isinstance(part, str) and "*" in part:
        found = (path.relative_to(folder) for path in folder.glob(part))
        return sorted(path.as_posix() for path in found if path.name != "index.md")
    return [_expanded(part, folder)]
