"""Every code block of every page runs as written.

A comment right before a block says how, where that needs saying (several may stand together):

    <!-- test: given NAME, FILE -->       names and files that the page takes for granted, see conftest.py
    <!-- test: with --OPTIONS: why -->    the last command gets these options, because as written it takes long
    <!-- test: parse: why -->             commands are read by the real parser, or looked up, and not carried out
    <!-- test: skip: why -->              nothing is done

Blocks of one page run in order, in one folder and with one set of names. A block with a title, such as
``python title="draw.py"``, is a file of that name, for the blocks after it. ``text`` is nothing to run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {"runs", "images", "dist", "build", "site"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in NOT_OURS for part in path.relative_to(ROOT).parts)
)
COMMANDS = ("", "sh", "bash", "console")
DIRECTIVE = re.compile(r"<!-- test: (.*?) -->", re.DOTALL)
WORDS = ("given", "with", "parse", "skip")

Given = Mapping[str, Callable[[dict[str, Any], Path], None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A code block, and what the comment before it says."""

    page: Path
    line: int
    language: str
    title: str
    source: str
    directives: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def said(self, word: str) -> str | None:
        """What stands behind a directive's word; ``None`` without it."""
        return next((text for found, text in self.directives if found == word), None)

    @property
    def mode(self) -> str:
        return next((word for word in ("skip", "parse", "with") if self.said(word) is not None), "run")

    @property
    def reason(self) -> str:
        """Why the block is not simply run, in words."""
        text = self.said(self.mode) or ""
        return text.partition(": ")[2].strip() if self.mode == "with" else text.strip()


def directives(comment: str, where: str) -> tuple[tuple[str, str], ...]:
    """Reads ``<!-- test: WORD ... -->`` comments."""
    found = []
    for text in DIRECTIVE.findall(comment):
        match = re.fullmatch(r"([a-z]+):?\s+(.*)", text, re.DOTALL)
        assert match, f"{where}: found <!-- test: {text} -->, expected one of {', '.join(WORDS)} and what goes with it"
        assert match[1] in WORDS, f"{where}: found {match[1]!r}, expected one of {', '.join(WORDS)}"
        found.append((match[1], " ".join(match[2].split())))
    return tuple(found)


def blocks(text: str, page: Path) -> list[Block]:
    """The code blocks of a page, indented ones included."""
    found = []
    comment = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in {"fence", "code_block"}:
            assert token.map is not None
            line = token.map[0] + (2 if token.type == "fence" else 1)
            title = re.search(r'title="([^"]+)"', token.info)
            found.append(
                Block(
                    page=page,
                    line=line,
                    language=(token.info.split() or [""])[0],
                    title=title[1] if title else "",
                    source=token.content,
                    directives=directives(comment, f"{page.name}:{line}"),
                )
            )
        comment = comment + token.content if token.type == "html_block" else ""
    return found


def blocks_of(page: Path) -> list[Block]:
    return blocks(page.read_text("utf-8"), page)


ALL = {block.name: block for page in PAGES for block in blocks_of(page)}


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """As for ``python`` in that folder, whose files can be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


class Runner:
    """Runs the blocks of one page, in order."""

    def __init__(self, folder: Path, given: Given) -> None:
        self.folder = folder
        self.given = given
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.done: set[str] = set()

    def up_to(self, last: Block) -> None:
        """Runs ``last``, and before it what stands above it and has not been run yet."""
        for block in blocks_of(last.page):
            if block.name not in self.done:
                self.done.add(block.name)
                if block.mode != "skip":
                    self.run(block)
            if block.name == last.name:
                return

    def run(self, block: Block) -> None:
        with contextlib.chdir(self.folder), _importable(self.folder):
            for name in filter(None, (block.said("given") or "").split(", ")):
                self.given[name](self.names, self.folder)
            if block.title:
                Path(block.title).write_text(block.source, "utf-8")
            elif block.language == "python" and block.mode == "parse":
                compile(block.source, block.name, "exec")
            elif block.language == "python":
                # Empty lines before it, so that a traceback has the line of the page.
                exec(compile("\n" * (block.line - 1) + block.source, str(block.page), "exec"), self.names)  # noqa: S102
            elif block.language in COMMANDS:
                self.commands(block)
            else:
                READ[block.language](block.source)

    def commands(self, block: Block) -> None:
        lines = commands(block.source)
        if block.mode == "with":
            lines[-1] += shlex.split((block.said("with") or "").partition(": ")[0])
        for words in lines:
            program = Path(words[0]).name
            if block.mode == "parse":
                assert program in CHECKS, f"{block.name}: nothing is known about the program {program}"
                CHECKS[program](words[1:])
            else:
                assert program in RUNS, f"{block.name}: found {program}, which no test can run; say `parse` or `skip`"
                RUNS[program](words[1:])


READ = {"json": json.loads, "yaml": yaml.safe_load, "text": str}
"""What checks a block of a language that is not run."""


def commands(source: str) -> list[list[str]]:
    """The command lines of a block as lists of words; several on one line count as several.

    >>> commands("a -b 'c d' && e \\\n f  # why\n$ g")
    [['a', '-b', 'c d'], ['e', 'f'], ['g']]
    """
    found = []
    for line in source.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("&|;"):
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def parse_schedsearch(words: list[str]) -> None:
    """Has the real application read a command line: names, types and ranges of options; and does nothing."""
    import typer

    from schedsearch.cli import app

    def silence(command: Any) -> None:
        for inner in getattr(command, "commands", {}).values():
            silence(inner)
        if not hasattr(command, "commands"):
            command.callback = lambda **_: None

    command: Any = typer.main.get_command(app)
    silence(command)
    try:
        command.main(args=words, standalone_mode=False)
    except Exception as error:
        said = getattr(error, "format_message", error.__str__)()
        raise AssertionError(f"schedsearch {shlex.join(words)}: {said}") from error


def run_schedsearch(words: list[str]) -> None:
    """Runs a command line in this process."""
    from schedsearch import cli

    said, argv = io.StringIO(), sys.argv
    code: object = 0
    try:
        sys.argv = ["schedsearch", *words]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = argv
    sys.stdout.write(said.getvalue())
    assert code in {0, None}, f"schedsearch {shlex.join(words)} ended with {code}:\n{said.getvalue()}"


def run_python(words: list[str]) -> None:
    """Runs a file in this process."""
    assert words[0].endswith(".py"), f"python {shlex.join(words)}: expected a file"
    assert not words[1:], f"python {shlex.join(words)}: expected no arguments"
    runpy.run_path(words[0], run_name="__main__")


def run_pytest(words: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def check_pip(words: list[str]) -> None:
    """Its extras are those of this project, and a named file is there."""
    text = " ".join(words)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    extras = re.findall(r"(?:schedsearch|\.)\[([a-z,]+)\]", text)
    assert {name for group in extras for name in group.split(",")} <= set(known)
    assert all((ROOT / name).is_file() for name in re.findall(r"-[cr] (\S+)", text))


def check_python(words: list[str]) -> None:
    """The module or file is there."""
    assert words[0] != "-m" or importlib.util.find_spec(words[1]) is not None
    assert words[0] == "-m" or (ROOT / words[0]).is_file()


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(words) <= set(targets)


def check_npm(words: list[str]) -> None:
    """A script is one of the package whose page it is."""
    scripts = json.loads((ROOT / "reports/vendor/package.json").read_text("utf-8"))["scripts"]
    assert words == ["ci"] or (words[0] == "run" and words[1] in scripts)


def check_pytest(words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words if "/" in word)


RUNS = {
    "schedsearch": run_schedsearch,
    "python": run_python,
    "pytest": run_pytest,
    "cd": lambda words: os.chdir(*words),
    "mkdir": lambda words: Path(words[-1]).mkdir(parents=True, exist_ok=True),
}
CHECKS = {
    "schedsearch": parse_schedsearch,
    "python": check_python,
    "python3": check_python,
    "pip": check_pip,
    "make": check_make,
    "npm": check_npm,
    "pytest": check_pytest,
    "pre-commit": lambda words: None,
}


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory, given: Given) -> Any:
    return functools.cache(lambda page: Runner(tmp_path_factory.mktemp(page.stem), given))


@pytest.mark.usefixtures("haste")
@pytest.mark.parametrize("name", ALL)
def test_block(name: str, runners: Any) -> None:
    block = ALL[name]
    if block.mode == "skip":
        pytest.skip(block.reason)
    runners(block.page).up_to(block)


def test_what_is_not_run_as_written_says_why() -> None:
    silent = [block.name for block in ALL.values() if block.mode != "run" and len(block.reason.split()) < 2]
    assert silent == []


def test_few_blocks_are_left_out(record_property: Any) -> None:
    modes = Counter(block.mode for block in ALL.values())
    record_property("code blocks", str(dict(modes)))
    assert modes["skip"] <= MOST_SKIPPED
    assert modes["run"] > modes["parse"]


MOST_SKIPPED = 2
"""A page that needs another one is a page to think about."""


def test_languages_are_known() -> None:
    known = {"python", *COMMANDS, *READ}
    assert [f"{b.name}: {b.language}" for b in ALL.values() if b.language not in known] == []


def test_no_comment_has_lost_its_block() -> None:
    for page in PAGES:
        attached = sum(len(block.directives) for block in blocks_of(page))
        assert attached == len(DIRECTIVE.findall(page.read_text("utf-8"))), f"{page.relative_to(ROOT)}"


def test_the_reader_of_pages() -> None:
    text = (
        "# x\n<!-- test: given pipe -->\n<!-- test: with --trials 3: it takes hours -->\n```sh\na\n```\n\n    b = 1\n\n"
        'words\n```python title="c.py"\nd\n```\n'
    )
    first, second, third = blocks(text, ROOT / "x.md")
    assert (first.name, first.language, first.mode, first.reason) == ("x.md:5", "sh", "with", "it takes hours")
    assert first.said("given") == "pipe"
    assert (second.name, second.source, second.mode) == ("x.md:8", "b = 1\n", "run")
    assert (third.title, third.language, third.source) == ("c.py", "python", "d\n")
    with pytest.raises(AssertionError, match="expected one of given, with, parse, skip"):
        blocks("<!-- test: later -->\n```\na\n```\n", ROOT / "x.md")


def test_command_lines_are_split_as_a_shell_does() -> None:
    source = "a -b 'c d' && e \\\n f  # why\n$ g | h\n# nothing\n"
    assert commands(source) == [["a", "-b", "c d"], ["e", "f"], ["g"], ["h"]]


@pytest.mark.parametrize(
    "words",
    [
        ["optimise", "--model", "flux"],
        ["optimize", "--model", "flux", "--budget", "4x", "--speed", "9"],
        ["optimize", "--model", "flux"],
        ["bench", "searches"],
        ["evaluate", "a.json", "--model", "flux", "--prompts", "none"],
    ],
)
def test_a_command_line_that_the_program_refuses_is_found(words: list[str]) -> None:
    with pytest.raises(AssertionError, match=r"No such (command|option)|Missing option|a valid integer"):
        parse_schedsearch(words)


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 2"):
        run_schedsearch(["show", str(tmp_path / "none.json")])


def test_all_that_can_be_given_is_asked_for(given: Given) -> None:
    asked = {name for block in ALL.values() for name in (block.said("given") or "").split(", ")}
    assert [name for name in given if name not in asked] == []
