"""Reuse and forecast: the twin against the runtime's cache to the bit and against polynomials, the kernels against the
twin.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from schedsearch.runtime._cache import Cache
from schedsearch_kernels import KernelInputError, forecast, forecast_keep

DTYPES = ("float32", "bfloat16", "float16")


def scalars(*values: float, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float32, device=device) for value in values)


def buffers(order: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Levels as the runtime's cache makes them, full of random numbers."""
    generator = torch.Generator().manual_seed(order + shape[-1])
    wide = torch.float32 if dtype == torch.float16 else dtype
    draw = [torch.randn(shape, generator=generator) for _ in range(order + 1)]
    return [level.to(device, wide if i else dtype) for i, level in enumerate(draw)]


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The sums are rounded where torch rounds them, and products of two bfloat16 numbers are exact in float32: equal to
    the bit. In float32 torch and a compiled kernel may each fuse a multiplication with the addition after it or not: a
    unit in the last place per order; of float16, whose differences are float32, then the one rounding at the end may
    fall to the other side.
    """
    if expected.dtype == torch.bfloat16:
        assert torch.equal(found, expected)
    else:
        rtol = {torch.float32: 1e-6, torch.float16: 2.0**-10}[expected.dtype]
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6)


def check_forecast(device: str, order: int, dtype: str, shape: list[int], stream: str) -> None:
    kind = getattr(torch, dtype)
    levels = buffers(order, tuple(shape), kind, device)
    weights = scalars(0.3, -0.17, 0.011, device=device)[:order]
    into = None
    if stream != "none":
        into = torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(device, kind)
        into = into.mT.contiguous().mT if stream == "scattered" else into
    out = torch.full(shape, float("nan"), dtype=kind, device=device)
    expected = forecast(levels, weights, stream=into, implementation="reference")
    assert forecast(levels, weights, stream=into, out=out, implementation="triton") is out
    agree(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", range(4))
def test_the_forecast_kernel_is_its_twin(run_check, order, dtype):
    run_check(check_forecast, order=order, dtype=dtype, shape=[1, 17, 33], stream="plain")


@pytest.mark.parametrize("stream", ["none", "scattered"])
@pytest.mark.parametrize("shape", [[1, 1], [3, 683], [2, 2048]], ids=str)
def test_the_forecast_kernel_takes_any_shape_and_stream(run_check, shape, stream):
    run_check(check_forecast, order=2, dtype="bfloat16", shape=shape, stream=stream)


def check_keep(device: str, order: int, dtype: str, depth: int) -> None:
    kind = getattr(torch, dtype)
    shape = (2, 5, 211)
    levels = buffers(depth, shape, kind, device)
    # Numbers that bfloat16 holds: on the CPU torch multiplies by the float32 scalar itself, on CUDA by the rounded one.
    scales = scalars(-8.0, -3.5, -2.25, device=device)[:order]
    value = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device, kind)
    expected, found = [level.clone() for level in levels], [level.clone() for level in levels]
    forecast_keep(value, expected, scales, implementation="reference")
    forecast_keep(value, found, scales, implementation="triton")
    for i, (ours, twin, old) in enumerate(zip(found, expected, levels, strict=True)):
        agree(ours, twin)
        assert torch.equal(ours, old) == (i > order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", range(4))
def test_the_keep_kernel_is_its_twin(run_check, order, dtype):
    run_check(check_keep, order=order, dtype=dtype, depth=order)


def test_the_keep_kernel_leaves_the_levels_above_its_order(run_check):
    run_check(check_keep, order=1, dtype="float32", depth=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_twin_is_the_runtimes_cache_to_the_bit(dtype):
    # A run with three kept values: the numbers of orders as they grow, then forecasts of every order.
    cache = Cache(3)
    kind = getattr(torch, dtype)
    values = [torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(i)).to(kind) for i in range(5)]
    scales = scalars(-5.3, -2.7, -1.9)
    levels = buffers(3, (2, 3, 7), kind, "cpu")
    for i, value in enumerate(values):
        cache.keep((value,), scales[: min(i, 3)])
        forecast_keep(value, levels, scales[: min(i, 3)])
        for ours, theirs in itertools.islice(zip(levels, cache.levels[0], strict=True), min(i, 3) + 1):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
    for order in range(4):
        weights = scalars(0.31, -0.07, 0.013)[:order]
        assert torch.equal(forecast(levels, weights), cache.predict(weights)[0])
        assert torch.equal(forecast(levels, weights, stream=values[0]), cache.add_to((values[0],), weights)[0])


@pytest.mark.parametrize("order", range(4))
def test_a_forecast_of_order_k_continues_polynomials_of_degree_k(order):
    def polynomial(s: float) -> torch.Tensor:
        return sum((torch.arange(1.0, 7.0) - 3.5) * (j + 1) * s**j for j in range(order + 1))

    nodes = [1.0, 0.83, 0.61, 0.5, 0.29]  # uneven, in the order they are met
    levels = [torch.zeros(6) for _ in range(order + 1)]
    seen: list[float] = []
    for s in nodes:
        forecast_keep(polynomial(s), levels, scalars(*(1.0 / (s - old) for old in seen[:order])))
        seen.insert(0, s)
    at, product, weights = 0.11, 1.0, []
    for node in seen[:order]:
        product *= at - node
        weights.append(product)
    torch.testing.assert_close(forecast(levels, scalars(*weights)), polynomial(at), rtol=1e-4, atol=1e-4)


def test_reuse_is_the_kept_value_itself_and_its_sum_with_the_stream():
    levels = buffers(0, (4, 5), torch.float32, "cpu")
    assert forecast(levels, ()) is levels[0]
    stream = torch.ones(4, 5)
    assert torch.equal(forecast(levels, (), stream=stream), stream + levels[0])
    assert torch.equal(stream, torch.ones(4, 5))


def test_buffers_in_another_memory_order_are_the_twins():
    scattered = [level.mT.contiguous().mT for level in buffers(1, (4, 5), torch.float32, "cpu")]
    plain = [level.contiguous() for level in scattered]
    weights = scalars(0.5)
    assert torch.equal(forecast(scattered, weights), forecast(plain, weights))
    with pytest.raises(KernelInputError, match=r"levels\[0\]: found strides \(1, 4\), expected contiguous buffers"):
        forecast(scattered, weights, implementation="triton")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": [torch.ones(2)]}, "found 1 levels and 1 scalars, expected 0 to 3 scalars, and more levels"),
        ({"weights": scalars(*[1.0] * 4)}, "found 2 levels and 4 scalars, expected 0 to 3 scalars"),
        ({"levels": [torch.ones(2), torch.ones(3)]}, "levels[1]: found shape (3,), expected (2,)"),
        ({"levels": [torch.ones(2), torch.ones(2).half()]}, "levels[1]: found torch.float16, expected torch.float32"),
        ({"weights": (torch.ones(1),)}, "scalars[0]: found shape (1,), expected (). Keep the plan's numbers as"),
        ({"weights": (torch.tensor(1.0).double(),)}, "scalars[0]: found torch.float64, expected torch.float32"),
        ({"stream": torch.ones(3)}, "stream: found shape (3,), expected (2,)"),
        ({"stream": torch.ones(2).half()}, "stream: found torch.float16, expected torch.float32"),
        ({"out": torch.ones(2).half()}, "out: found torch.float16, expected torch.float32"),
    ],
)
def test_other_inputs_are_refused_by_name(change, said):
    arguments = {"levels": [torch.ones(2), torch.ones(2)], "weights": scalars(1.0)} | change
    with pytest.raises(KernelInputError) as refused:
        forecast(arguments.pop("levels"), arguments.pop("weights"), **arguments)
    assert f"forecast: {said}" in str(refused.value)
