"""The size and documentation budgets of the source, with every offender named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("schedsearch", "spaces", "kernels", "calibration", "reports")
MAX_FILE, MAX_FUNCTION = 500, 80
CLI_LINES, LOOP_LINES = 300, 100

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if ".venv" not in path.parts)


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def documentable(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                inner = (m for m in node.body if isinstance(m, Function) and not m.name.startswith("_"))
                yield from (m for m in inner if not any(is_overload(d) for d in m.decorator_list))


def is_overload(decorator: ast.expr) -> bool:
    """Whether a decorator says that the documentation is elsewhere."""
    name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
    return name in {"overload", "override", "setter"}


def unannotated(function: Function) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    lacking = [a.arg for a in named if a is not None and a.annotation is None and a.arg not in {"self", "cls"}]
    return lacking if function.returns is not None else [*lacking, "return"]


def findings(text: str, name: str) -> list[str]:
    """Return one line per budget that the source ``text`` breaks."""
    tree = ast.parse(text)
    lines = text.count("\n")
    wrong = [f"{name}: {lines} lines, at most {MAX_FILE}"] if lines > MAX_FILE else []
    if text.strip() and ast.get_docstring(tree) is None:
        wrong.append(f"{name}: module without a docstring")
    for function in functions(tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > MAX_FUNCTION:
            wrong.append(f"{name}:{function.lineno} {function.name}: {length} lines, at most {MAX_FUNCTION}")
        wrong += [f"{name}:{function.lineno} {function.name}: {a} not annotated" for a in unannotated(function)]
    wrong += [
        f"{name}:{node.lineno} {node.name}: no docstring"
        for node in documentable(tree)
        if ast.get_docstring(node) is None
    ]
    return wrong


def test_every_source_file_keeps_the_budgets():
    wrong = [line for path in sources() for line in findings(path.read_text("utf-8"), str(path.relative_to(ROOT)))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "most"), [("schedsearch/cli.py", CLI_LINES), ("schedsearch/search/loop.py", LOOP_LINES)]
)
def test_the_files_with_a_budget_of_their_own_keep_it(name, most):
    assert (ROOT / name).read_text("utf-8").count("\n") <= most


def test_no_module_is_a_drawer_for_leftovers():
    assert not [path for path in sources() if path.stem.strip("_") in {"utils", "util", "helpers", "common", "misc"}]


def test_the_checker_finds_what_it_looks_for():
    long_body = "    x = 1\n" * MAX_FUNCTION
    text = f"def f(a, *, b: int):\n{long_body}class C:\n    def m(self) -> None: ...\n    def _n(self) -> None: ...\n"
    assert findings(text + "\n" * MAX_FILE, "x.py") == [
        f"x.py: {text.count(chr(10)) + MAX_FILE} lines, at most {MAX_FILE}",
        "x.py: module without a docstring",
        f"x.py:1 f: {MAX_FUNCTION + 1} lines, at most {MAX_FUNCTION}",
        "x.py:1 f: a not annotated",
        "x.py:1 f: return not annotated",
        "x.py:1 f: no docstring",
        f"x.py:{MAX_FUNCTION + 2} C: no docstring",
        f"x.py:{MAX_FUNCTION + 3} m: no docstring",
    ]
