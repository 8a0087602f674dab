"""What is timed: every operation at the shapes of FLUX.1-dev at 1024x1024, batch 1, its gate, and its peers.

4096 image tokens and 512 of text; width 3072, MLP 12288. A double block has its linear layers twice, for either stream;
a single block sees 4608 tokens at once and projects attention and MLP together, 15360 to 3072. adaLN sees one row per
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from schedsearch_kernels import (
    forecast,
    forecast_keep,
    lowrank_linear,
    pack_w4,
    rowwise_quantise,
    w4a16_linear,
    w8a8_linear,
)
from schedsearch_kernels._checks import BYTE_FORMATS, NIBBLE_FORMATS, After
from schedsearch_kernels.bench import _peers
from schedsearch_kernels.bench._table import Work
from schedsearch_kernels.bench._timing import Call

OPERATIONS = ("rowwise_quantise", "w8a8_linear", "dynamic_w8a8", "w4a16_linear", "lowrank_linear", "forecast", "keep")

LINEARS = {
    "image qkv": (4096, 3072, 9216),
    "image out": (4096, 3072, 3072),
    "image mlp in": (4096, 3072, 12288),
    "image mlp out": (4096, 12288, 3072),
    "text out": (512, 3072, 3072),
    "text mlp in": (512, 3072, 12288),
    "single qkv": (4608, 3072, 9216),
    "single mlp in": (4608, 3072, 12288),
    "single proj_out": (4608, 15360, 3072),
    "adaLN": (1, 3072, 18432),
}
"""Tokens, input and output width, by the layer's place."""

SMALL_LINEARS = {"small": (33, 192, 80)}
"""For trying the benchmark out."""

RANK = 32
"""Of the low-rank branch: SVDQuant's."""

MATRIX_BOUND, COPY_BOUND = 0.85, 0.80
"""Shares of the best peer, and of the copy bandwidth, that the kernels are meant to reach."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one shape.

    Attributes:
        work: what is done.
        timed: the kernel, as it is timed.
        ours: the same once, for the gate: what it computed, in outputs that held NaN before where it takes any.
        twin: what that should be.
        tolerance: largest difference over the largest magnitude that passes the gate: a unit in the last place of the
            output's dtype, for float8 products also what tensor cores lose of their sums.
        peers: calls that do the same work.
        others: calls to stand beside, which do not count as peers.
        bound: share of the best peer that is wanted.
    """

    work: Work
    timed: Call
    ours: Callable[[], tuple[Tensor, ...]]
    twin: Callable[[], tuple[Tensor, ...]]
    tolerance: float
    peers: Mapping[str, Call]
    others: Mapping[str, Call] = field(default_factory=dict)
    bound: float | None = None

    def difference(self) -> float:
        """Returns the gate's number: infinite where something was not written or has another shape."""
        worst = 0.0
        for found, expected in zip(self.ours(), self.twin(), strict=True):
            if found.shape != expected.shape or not bool(found.isfinite().all()):
                return float("inf")
            error = (found.double() - expected.double()).abs().max()
            worst = max(worst, float(error / expected.double().abs().max().clamp(min=1e-30)))
        return worst


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cases share.

    Attributes:
        device: where to run.
        implementation: of our operations.
        linears: tokens, input and output width by name.
    """

    device: torch.device
    implementation: str
    linears: Mapping[str, tuple[int, int, int]]

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Returns the same normal numbers for the same shape."""
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)


def cases(operation: str, setting: Setting) -> Iterator[Case]:
    """Returns the cases of one of `OPERATIONS`, made one at a time."""
    if operation in ("forecast", "keep"):
        make = _forecast if operation == "forecast" else _keep
        for tokens in sorted({m for m, _, _ in setting.linears.values() if m > 1}):
            for order in range(4):
                yield make(setting, tokens, order)
    elif operation == "rowwise_quantise":
        for m, k in sorted({(m, k) for m, k, _ in setting.linears.values() if m > 1}):
            yield from (_quantise(setting, m, k, fmt) for fmt in BYTE_FORMATS)
    else:
        make_linear, formats = _LINEAR_CASES[operation]
        for name in setting.linears:
            yield from (make_linear(setting, name, fmt) for fmt in formats)


def _quantise(setting: Setting, m: int, k: int, fmt: str) -> Case:
    x = setting.normal(m, k)
    out = rowwise_quantise(x, fmt, implementation="reference")
    moved = float(m * k * 3 + m * 4)

    def run(implementation: str) -> tuple[Tensor, ...]:
        codes, scale = rowwise_quantise(x, fmt, out=out, implementation=implementation)
        return codes.float(), scale

    def timed() -> object:
        return rowwise_quantise(x, fmt, out=out, implementation=setting.implementation)

    return Case(
        work=Work(op="rowwise_quantise", shape=f"{m}x{k}", dtype=fmt, amount=moved, unit="GB/s"),
        timed=timed,
        ours=lambda: run(setting.implementation),
        twin=lambda: run("reference"),
        tolerance=0.0,
        peers={"copy of as many bytes": _peers.copy(moved, setting.device)},
        others={"torch": lambda: rowwise_quantise(x, fmt, implementation="reference")},
        bound=COPY_BOUND,
    )


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """Operands of a linear layer in a format; rows and channels hold random numbers."""

    x: Tensor
    w: Tensor
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    out: Tensor

    @classmethod
    def of(cls, setting: Setting, name: str, fmt: str) -> _Linear:
        m, k, n = setting.linears[name]
        w = setting.normal(n, k)
        if fmt in BYTE_FORMATS:
            weight, scale = rowwise_quantise(w, fmt, implementation="reference")
        else:
            weight = pack_w4((w.float() * 3.0).round().clamp(-7, 7).to(torch.int8))
            scale = torch.full((n, -(-k // 64)), 1 / 3, device=setting.device)
        out = setting.normal(m, n).fill_(torch.nan)
        return cls(x=setting.normal(m, k), w=w, weight=weight, weight_scale=scale, bias=setting.normal(n), out=out)

    def work(self, op: str, name: str, fmt: str, *, rank: int = 0) -> Work:
        (m, k), n = self.x.shape, len(self.w)
        amount = 2.0 * m * (k * n + rank * (k + n))
        return Work(op=op, shape=f"{m}x{k}->{n} {name}", dtype=fmt, amount=amount, unit="TFLOP/s")

    def plain(self) -> object:
        return functional.linear(self.x, self.w, self.bias)


_ULP = 2.0**-8  # of bfloat16


def _tolerance(fmt: str) -> float:
    return 4 * _ULP if fmt == "fp8_e4m3" else _ULP


def _w8a8(setting: Setting, name: str, fmt: str) -> Case:
    layer = _Linear.of(setting, name, fmt)
    codes, scale = rowwise_quantise(layer.x, fmt, implementation="reference")

    def run(implementation: str, out: Tensor | None) -> tuple[Tensor, ...]:
        operands = (codes, scale, layer.weight, layer.weight_scale)
        return (w8a8_linear(*operands, bias=layer.bias, out=out, implementation=implementation),)

    def by_address() -> None:
        """The other of the two kernels, where the first fetches its tiles by descriptors."""
        from schedsearch_kernels._w8a8_linear import triton

        operands = (codes, scale, layer.weight, layer.weight_scale)
        triton.w8a8_linear(*operands, out=layer.out, after=After(layer.bias, None, None), descriptors=False)

    others: dict[str, Call] = {"triton, tiles by address": by_address} if setting.implementation == "triton" else {}
    operands = (codes, scale, layer.weight, layer.weight_scale, layer.bias)
    return Case(
        work=layer.work("w8a8_linear", name, fmt),
        timed=lambda: run(setting.implementation, layer.out),
        ours=lambda: run(setting.implementation, layer.out),
        twin=lambda: run("reference", None),
        tolerance=_tolerance(fmt),
        peers=_peers.int8_products(*operands) if fmt == "int8" else _peers.float8_products(*operands),
        others=others | {"torch bf16 linear": layer.plain},
        bound=MATRIX_BOUND,
    )


def _dynamic(setting: Setting, name: str, fmt: str) -> Case:
    layer = _Linear.of(setting, name, fmt)

    def run(implementation: str, out: Tensor | None) -> tuple[Tensor, ...]:
        codes, scale = rowwise_quantise(layer.x, fmt, implementation=implementation)
        operands = (codes, scale, layer.weight, layer.weight_scale)
        return (w8a8_linear(*operands, bias=layer.bias, out=out, implementation=implementation),)

    return Case(
        work=layer.work("dynamic_w8a8", name, fmt),
        timed=lambda: run(setting.implementation, layer.out),
        ours=lambda: run(setting.implementation, layer.out),
        twin=lambda: run("reference", None),
        tolerance=_tolerance(fmt),
        peers=_peers.torchao_linear(layer.x, layer.w, layer.bias, fmt),
        others={"torch bf16 linear": layer.plain},
        bound=MATRIX_BOUND,
    )


def _w4a16(setting: Setting, name: str, fmt: str) -> Case:
    layer = _Linear.of(setting, name, fmt)

    def run(implementation: str, out: Tensor | None) -> tuple[Tensor, ...]:
        operands = (layer.x, layer.weight, layer.weight_scale)
        return (w4a16_linear(*operands, fmt=fmt, bias=layer.bias, out=out, implementation=implementation),)

    return Case(
        work=layer.work("w4a16_linear", name, fmt),
        timed=lambda: run(setting.implementation, layer.out),
        ours=lambda: run(setting.implementation, layer.out),
        twin=lambda: run("reference", None),
        tolerance=_tolerance(fmt),
        peers=_peers.torchao_linear(layer.x, layer.w, layer.bias, fmt) if fmt == "int4" else {},
        others={"torch bf16 linear": layer.plain},
    )


def _lowrank(setting: Setting, name: str, fmt: str) -> Case:
    layer = _Linear.of(setting, name, fmt)
    n, k = layer.w.shape
    down, up = setting.normal(RANK, k) / k**0.5, setting.normal(n, RANK)

    def run(implementation: str, out: Tensor | None) -> tuple[Tensor, ...]:
        operands = (layer.x, layer.weight, layer.weight_scale, down, up)
        return (lowrank_linear(*operands, fmt=fmt, bias=layer.bias, out=out, implementation=implementation),)

    def apart() -> object:
        """The same from our own parts, the branch by torch."""
        branch = functional.linear(functional.linear(layer.x, down), up)
        if fmt in NIBBLE_FORMATS:
            y = w4a16_linear(layer.x, layer.weight, layer.weight_scale, fmt=fmt, bias=layer.bias)
        else:
            codes, scale = rowwise_quantise(layer.x, fmt)
            y = w8a8_linear(codes, scale, layer.weight, layer.weight_scale, bias=layer.bias)
        return y + branch

    return Case(
        work=layer.work("lowrank_linear", f"{name} rank {RANK}", fmt, rank=RANK),
        timed=lambda: run(setting.implementation, layer.out),
        ours=lambda: run(setting.implementation, layer.out),
        twin=lambda: run("reference", None),
        tolerance=_tolerance(fmt),
        peers={"parts, not fused": apart},
        others={"torch bf16 linear": layer.plain},
    )


_LINEAR_CASES: dict[str, tuple[Callable[[Setting, str, str], Case], Sequence[str]]] = {
    "w8a8_linear": (_w8a8, tuple(BYTE_FORMATS)),
    "dynamic_w8a8": (_dynamic, tuple(BYTE_FORMATS)),
    "w4a16_linear": (_w4a16, NIBBLE_FORMATS),
    "lowrank_linear": (_lowrank, (*BYTE_FORMATS, *NIBBLE_FORMATS)),
}


def _scalars(setting: Setting, count: int) -> list[Tensor]:
    """Numbers that bfloat16 holds, because torch multiplies by the rounded ones on some devices only."""
    return [torch.tensor(value, device=setting.device) for value in (-0.5, 0.125, -0.03125)[:count]]


def _forecast(setting: Setting, tokens: int, order: int) -> Case:
    width = next(iter(setting.linears.values()))[1]
    stream = setting.normal(tokens, width)
    levels = [setting.normal(tokens, width + i)[:, :width].contiguous() for i in range(order + 1)]
    weights = _scalars(setting, order)
    out = torch.full_like(stream, torch.nan)
    moved = float((order + 3) * stream.numel() * stream.element_size())

    def run(implementation: str, into: Tensor | None) -> tuple[Tensor, ...]:
        return (forecast(levels, weights, stream=stream, out=into, implementation=implementation),)

    return Case(
        work=Work(op="forecast", shape=f"{tokens}x{width} order {order}", dtype="bf16", amount=moved, unit="GB/s"),
        timed=lambda: run(setting.implementation, out),
        ours=lambda: run(setting.implementation, out),
        twin=lambda: run("reference", None),
        tolerance=_ULP,
        peers={"copy of as many bytes": _peers.copy(moved, setting.device)},
        others={"torch": lambda: run("reference", None)},
        bound=COPY_BOUND,
    )


def _keep(setting: Setting, tokens: int, order: int) -> Case:
    width = next(iter(setting.linears.values()))[1]
    value = setting.normal(tokens, width)
    start = [setting.normal(tokens, width + i)[:, :width].contiguous() for i in range(order + 1)]
    scales = _scalars(setting, order)
    buffers = [level.clone() for level in start]
    moved = float((2 * order + 2) * value.numel() * value.element_size())

    def checked(implementation: str) -> tuple[Tensor, ...]:
        levels = [level.clone() for level in start]
        forecast_keep(value, levels, scales, implementation=implementation)
        return tuple(levels)

    def timed(implementation: str) -> Call:
        return lambda: forecast_keep(value, buffers, scales, implementation=implementation)

    return Case(
        work=Work(op="keep", shape=f"{tokens}x{width} order {order}", dtype="bf16", amount=moved, unit="GB/s"),
        timed=timed(setting.implementation),
        ours=lambda: checked(setting.implementation),
        twin=lambda: checked("reference"),
        tolerance=_ULP,
        peers={"copy of as many bytes": _peers.copy(moved, setting.device)},
        others={"torch": timed("reference")},
        bound=COPY_BOUND,
    )
