"""What importing the package costs and loads, seen from fresh interpreters."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

SEARCH_LIBRARIES = {"optuna", "pymoo", "moocore", "matplotlib", "torchmetrics", "typer"}


def loaded_after(code: str) -> set[str]:
    """Run ``code`` in a fresh interpreter and return the top-level names in its ``sys.modules``."""
    tail = "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import schedsearch") & (SEARCH_LIBRARIES | {"torch", "numpy", "diffusers", "rich", "yaml"})


def test_importing_the_package_takes_less_than_50_ms():
    code = "import time; t = time.perf_counter(); import schedsearch; print((time.perf_counter() - t) * 1e3)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(7)
    ]
    assert statistics.median(runs) < 50, f"milliseconds per run: {runs}"


def test_the_format_is_plain_python():
    assert not loaded_after("import schedsearch.schedule") & (SEARCH_LIBRARIES | {"torch", "numpy", "diffusers"})


@pytest.mark.parametrize("module", ["search", "space", "study", "sensitivity", "protocols"])
def test_searching_loads_no_torch(module):
    assert not loaded_after(f"import schedsearch.{module}") & {"torch", "diffusers", "transformers"}


def test_the_command_line_starts_without_torch():
    assert not loaded_after("import schedsearch.cli") & {"torch", "diffusers", "optuna", "pymoo", "matplotlib", "numpy"}


@pytest.mark.slow
def test_replaying_a_file_loads_no_search_library(tmp_path):
    code = f"""
import warnings
warnings.simplefilter("error")
from diffusers import FluxPipeline
import schedsearch
from schedsearch import runtime
from schedsearch.schedule import Schedule, Solver, write_schedule
from schedsearch_calibration import flux_mini_path
pipe = FluxPipeline.from_pretrained(str(flux_mini_path()))
pipe.set_progress_bar_config(disable=True)
model = runtime.model_ref(pipe, height=64, width=64)
plan = Schedule(sigma=(1.0, 0.7, 0.4, 0.0), solver=(Solver(),) * 3, model=model, ops=(("model", "CRC"),))
write_schedule(plan, {str(tmp_path / "s.json")!r})
with schedsearch.apply(pipe, {str(tmp_path / "s.json")!r}):
    image = pipe("red apple", height=64, width=64, num_inference_steps=3, guidance_scale=1.0,
                 max_sequence_length=16, output_type="pt").images
assert image.shape == (1, 3, 64, 64)
"""
    assert not loaded_after(code) & SEARCH_LIBRARIES
