"""Every check runs in Triton's interpreter, and compiled where there is a CUDA device."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


class Child:
    """A process that runs checks, started at the first one."""

    def __init__(self, **environment: str) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    def run(self, check: Callable[..., None], arguments: dict[str, Any]) -> None:
        """Runs ``check`` there and fails as it fails."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "checking.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | self.environment,
            )
        request = {"file": check.__code__.co_filename, "check": check.__name__, "arguments": arguments}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process that runs the checks ended"
        if failure := json.loads(line):
            pytest.fail(failure, pytrace=False)

    def close(self) -> None:
        """Lets the process end."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(timeout=60)
            self.process.stdout.close()


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Child]:
    child = Child(TRITON_INTERPRET="1")
    yield child
    child.close()


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """Where kernels are compiled, for a device that need not be there."""
    needs_triton()
    child = Child(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))
    yield child
    child.close()


def needs_triton() -> None:
    """Skips the test where there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: it exists for Linux on x86-64")


@pytest.fixture(params=["interpreted", pytest.param("compiled", marks=pytest.mark.gpu)])
def run_check(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs ``check(device, **arguments)`` against the Triton kernels; the arguments are plain JSON values."""
    needs_triton()
    if request.param == "interpreted":
        child = request.getfixturevalue("interpreter")
        return lambda check, **arguments: child.run(check, arguments)
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    return lambda check, **arguments: check("cuda", **arguments)
