"""Every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("schedsearch", *(f"schedsearch_{part}" for part in ("spaces", "kernels", "calibration", "reports")))


def modules_with_examples():
    for package in PACKAGES:
        for folder in find_spec(package).submodule_search_locations:
            for path in sorted(Path(folder).rglob("*.py")):
                if ">>> " in path.read_text("utf-8"):
                    parts = path.relative_to(folder).with_suffix("").parts
                    yield ".".join((package, *parts)).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_hold(name):
    found = doctest.testmod(import_module(name))
    assert found.attempted
    assert not found.failed
