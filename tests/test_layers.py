"""The import directions: the contracts of pyproject.toml, and what they cannot say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "schedsearch",
    "schedsearch_spaces",
    "schedsearch_kernels",
    "schedsearch_calibration",
    "schedsearch_reports",
)


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(
        *PACKAGES, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-cache", "--config", str(folder / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_every_contract_is_kept():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("part", ["schedule", "errors", "types"])
def test_the_format_needs_the_standard_library_alone(graph, part):
    ours = {f"schedsearch.{part}"} | graph.find_descendants(f"schedsearch.{part}")
    used = {name for module in ours for name in graph.find_modules_directly_imported_by(module)}
    outside = {name for name in used if name.split(".")[0] not in sys.stdlib_module_names}
    assert not {name for name in outside if not name.startswith("schedsearch")}


def test_nothing_imports_the_command_line(graph):
    assert graph.find_modules_that_directly_import("schedsearch.cli") == set()


def test_no_package_of_a_top_level_folder_takes_its_bare_name():
    # `kernels`, `spaces` and `reports` are distributions on the package index, and diffusers imports the first of them.
    for folder in ("spaces", "kernels", "calibration", "reports", "tests"):
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/__init__.py would shadow another distribution"


@pytest.mark.parametrize(
    ("place", "line", "said"),
    [
        ("schedsearch/runtime/_planted.py", "import schedsearch.search", "schedsearch.runtime"),
        ("schedsearch/search/_planted.py", "import torch", "torch"),
        ("schedsearch/schedule/_planted.py", "import numpy", "numpy"),
    ],
)
def test_a_planted_wrong_import_is_reported(tmp_path, place, line, said):
    for name in ("pyproject.toml", "schedsearch", "spaces", "kernels", "reports", "calibration"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("models", "__pycache__")
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / place).write_text(line + "\n", encoding="utf-8")
    code = (
        "import sys; sys.path[:0] = ['.', 'spaces', 'kernels', 'calibration', 'reports']; "
        "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout
    assert "_planted" in done.stdout
