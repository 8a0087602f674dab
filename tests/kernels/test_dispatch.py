"""Which implementation runs, what importing costs, and that calls can be traced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import schedsearch_kernels
from schedsearch_kernels import (
    KernelUnavailableError,
    _dispatch,
    forecast,
    forecast_keep,
    lowrank_linear,
    pack_w4,
    rowwise_quantise,
    w4a16_linear,
    w8a8_linear,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def loaded_after(code: str) -> set[str]:
    tail = "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_neither_torch_nor_triton():
    assert not loaded_after("import schedsearch_kernels") & {"torch", "triton", "numpy"}


def test_the_twins_need_no_triton():
    code = (
        "import torch, schedsearch_kernels as k\nassert k.rowwise_quantise(torch.ones(2, 3), 'int8')[1].shape == (2,)"
    )
    assert "triton" not in loaded_after(code)


def test_every_public_name_is_there_and_no_other():
    for name in schedsearch_kernels.__all__:
        assert callable(getattr(schedsearch_kernels, name))
    with pytest.raises(AttributeError, match="module 'schedsearch_kernels' has no attribute 'attention'"):
        schedsearch_kernels.attention  # noqa: B018


def test_every_operation_has_a_twin_and_a_kernel():
    folders = [folder for folder in Path(schedsearch_kernels.__file__).parent.glob("_*") if folder.is_dir()]
    operations = sorted(folder.name for folder in folders if folder.name != "__pycache__")
    assert operations == ["_forecast", "_lowrank_linear", "_rowwise_quantise", "_w4a16_linear", "_w8a8_linear"]
    for name in operations:
        here = Path(schedsearch_kernels.__file__).parent / name
        assert sorted(path.name for path in here.glob("*.py")) == ["__init__.py", "reference.py", "triton.py"]


@pytest.fixture
def machine(monkeypatch):
    """A machine with Triton and a CUDA device of this compute capability."""

    def set_up(capability: tuple[int, int] | None, *, triton: bool = True) -> None:
        monkeypatch.setattr(_dispatch, "_HAS_TRITON", triton)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)

    return set_up


@pytest.mark.parametrize(
    ("capability", "fp8", "said"),
    [
        ((9, 0), True, None),
        ((8, 0), False, None),
        ((8, 0), True, "the device has compute capability 8.0, and 8.9 is needed"),
        ((7, 5), False, "the device has compute capability 7.5, and 8.0 is needed"),
        (None, False, "torch finds no CUDA device here"),
    ],
)
def test_a_cuda_device_runs_the_kernels_from_the_capability_they_need(machine, capability, fp8, said):
    machine(capability)
    assert _dispatch.why_not_triton(CUDA, fp8=fp8) == said
    assert _dispatch.chosen("op", CUDA, None, fp8=fp8) == ("triton" if said is None else "reference")
    assert _dispatch.chosen("op", CUDA, "reference", fp8=fp8) == "reference"


def test_tensors_elsewhere_and_machines_without_triton_take_the_twin(machine):
    machine((9, 0))
    assert _dispatch.chosen("op", CPU, None) == "reference"
    assert _dispatch.why_not_triton(CPU) == "the tensors are on cpu, and the Triton kernels need a CUDA device"
    machine((9, 0), triton=False)
    assert _dispatch.chosen("op", CUDA, None) == "reference"
    assert "pip install 'schedsearch[gpu]'" in _dispatch.why_not_triton(CUDA)


def test_a_kernel_that_is_asked_for_and_cannot_run_is_an_error(machine):
    machine((9, 0))
    with pytest.raises(KernelUnavailableError) as refused:
        rowwise_quantise(torch.ones(2, 3), "int8", implementation="triton")
    assert str(refused.value) == (
        "rowwise_quantise: found that the tensors are on cpu, and the Triton kernels need a CUDA device, expected a "
        "machine that runs implementation='triton'. Leave implementation out to use the torch twin here."
    )
    with pytest.raises(ValueError, match="implementation: found 'cuda', expected one of triton, reference, or None"):
        rowwise_quantise(torch.ones(2, 3), "int8", implementation="cuda")


def check_graph(device: str) -> None:
    weight, weight_scale = rowwise_quantise(torch.randn(8, 16, device=device), "int8")
    down, up = torch.randn(2, 16, device=device), torch.randn(8, 2, device=device)
    packed, scales = pack_w4(weight), torch.ones(8, 1, device=device)
    weights = (torch.tensor(0.5, device=device),)

    def step(x: torch.Tensor, levels: list[torch.Tensor]) -> torch.Tensor:
        forced = {"implementation": "triton"}
        codes, scale = rowwise_quantise(x, "int8", **forced)
        y = w8a8_linear(codes, scale, weight, weight_scale, dtype=torch.float32, **forced)
        y = y + lowrank_linear(x, weight, weight_scale, down, up, fmt="int8", **forced)
        y = y + w4a16_linear(x, packed, scales, **forced)
        forecast_keep(y, levels, weights, **forced)
        return forecast(levels, weights, stream=y, **forced)

    x = torch.randn(3, 16, device=device)
    levels = [torch.randn(3, 8, device=device) for _ in range(2)]
    plain, compiled = [level.clone() for level in levels], [level.clone() for level in levels]
    expected = step(x, plain)
    # `eager` runs the traced graph as it is; on a device the real compiler has a go
    run = torch.compile(step, fullgraph=True, backend="eager" if device == "cpu" else "inductor")
    torch.testing.assert_close(run(x, compiled), expected)
    torch.testing.assert_close(compiled, plain)


def test_launches_are_nodes_of_one_graph(run_check):
    run_check(check_graph)
