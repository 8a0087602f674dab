"""Runs the checks of this folder's test files in a process of their own.

    python checking.py < requests > answers

Triton reads TRITON_INTERPRET when its kernels are defined and then patches its language, so a process either interprets
or compiles. The tests' own process does neither: it sends requests, a line of JSON each, and reads the answers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
import warnings
from types import ModuleType
from typing import Any

MODULES: dict[str, ModuleType] = {}


def module_at(path: str) -> ModuleType:
    """Imports a test file, once."""
    if path not in MODULES:
        spec = importlib.util.spec_from_file_location(f"checks_{len(MODULES)}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        MODULES[path] = module
    return MODULES[path]


def answer(request: dict[str, Any]) -> str:
    """The traceback of the check that was asked for, or nothing."""
    try:
        with warnings.catch_warnings():
            # numpy, under the interpreter: what masked lanes compute overflows and divides by zero
            warnings.simplefilter("ignore", RuntimeWarning)
            getattr(module_at(request["file"]), request["check"])("cpu", **request["arguments"])
    except Exception:  # noqa: BLE001 - sent to the test, which fails with it
        return traceback.format_exc()
    return ""


def main() -> None:
    """Answers until the input ends."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
