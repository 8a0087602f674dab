"""Every kernel compiled for Hopper, which takes no device. This finds what the interpreter lets pass (types, both sides
of a condition), and shows which instructions the inner loops come down to.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

AFTER = ("down_ptr", "up_ptr", "bias_ptr", "correction_scale_ptr", "correction_shift_ptr")
SIZES = ("M", "M_CLASS", "N", "K", "x_stride", "rank", "columns", "row_stride", "n")
POINTERS = {
    "x_scale_ptr": "*fp32", "w_scale_ptr": "*fp32", "scale_ptr": "*fp32", "y_ptr": "*bf16", "down_ptr": "*bf16",
    "up_ptr": "*bf16", "bias_ptr": "*bf16", "correction_scale_ptr": "*fp32", "correction_shift_ptr": "*fp32",
    "projected_ptr": "*bf16", "out_ptr": "*bf16", "stream_ptr": "*bf16", "value_ptr": "*bf16",
    **{f"level_{i}": "*bf16" for i in range(4)},
    **{f"{kind}_{i}": "*fp32" for kind in ("weight", "scale") for i in range(3)},
}  # fmt: skip


def assembly(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], **options: Any) -> str:
    """The PTX of a kernel whose pointers and sizes are multiples of 16, as those of FLUX.1 are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    types = POINTERS | dict.fromkeys(SIZES, "i32") | pointers
    signature = {name: "constexpr" if name in constants else types[name] for name in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(function.arg_names)
        if name not in constants and not types[name].startswith("tensordesc")
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def linear(kernel: Any, config: Any, pointers: dict[str, str], *, rank: int, **constants: Any) -> str:
    absent = {} if rank else dict.fromkeys(AFTER)
    constants = absent | {"RANK": rank} | config.kwargs | constants
    return assembly(kernel, pointers, constants, num_warps=config.num_warps, num_stages=config.num_stages)


def check_w8a8(device: str, code: str, rank: int, *, descriptors: bool) -> None:
    from schedsearch_kernels._w8a8_linear import triton

    kind = {"i8": "s32.s8.s8", "fp8e4nv": "f32.e4m3.e4m3"}[code]
    if descriptors:
        config = triton.DESCRIPTOR_CONFIGS[0]
        block = {name: config.kwargs[name] for name in ("BM", "BN", "BK")}
        pointers = {
            "x_tiles": f"tensordesc<{code}[{block['BM']},{block['BK']}]>",
            "w_tiles": f"tensordesc<{code}[{block['BN']},{block['BK']}]>",
        }
        ptx = linear(triton.w8a8_descriptor_kernel, config, pointers, rank=rank, FP8=code != "i8")
        assert "cp.async.bulk.tensor.2d" in ptx
    else:
        pointers = {"x_ptr": f"*{code}", "w_ptr": f"*{code}"}
        ptx = linear(triton.w8a8_kernel, triton.CONFIGS[0], pointers, rank=rank, FP8=code != "i8", EVEN=not rank)
        assert "cp.async.cg.shared" in ptx
    assert re.search(rf"wgmma\.mma_async\S*\.{re.escape(kind)}", ptx)


@pytest.mark.parametrize(
    ("code", "rank", "descriptors"),
    [("i8", 0, True), ("fp8e4nv", 32, True), ("i8", 32, False)],
)
def test_the_w8a8_products_are_hoppers_own(compiler, code, rank, descriptors):
    compiler.run(check_w8a8, {"code": code, "rank": rank, "descriptors": descriptors})


def check_w4a16(device: str, rank: int, *, fp4: bool) -> None:
    from schedsearch_kernels._w4a16_linear.triton import CONFIGS, w4a16_kernel

    ptx = linear(w4a16_kernel, CONFIGS[1], {"x_ptr": "*bf16", "w_ptr": "*u8"}, rank=rank, FP4=fp4, EVEN=not rank)
    product = re.search(r"wgmma\.mma_async\S*f32\.bf16\.bf16\s+\{[^}]*\},\s*(\S)", ptx)
    # The left factor, the widened weight, comes from registers: a list in braces, where shared memory is one number.
    assert product
    assert product[1] == "{"


def test_the_w4a16_product_takes_the_widened_weight_from_registers(compiler):
    compiler.run(check_w4a16, {"rank": 32, "fp4": True})


def check_quantisation(device: str, code: str) -> None:
    from schedsearch_kernels._lowrank_linear.triton import quantise_and_project_kernel
    from schedsearch_kernels._rowwise_quantise.triton import rowwise_quantise_kernel

    pointers = {"x_ptr": "*bf16", "codes_ptr": f"*{code}"}
    maximum = {"MAXIMUM": 127.0 if code == "i8" else 448.0}
    for one_block in (True, False):
        ptx = assembly(
            rowwise_quantise_kernel, pointers, maximum | {"BLOCK": 4096, "ONE_BLOCK": one_block}, num_warps=8
        )
        assert "ld.global.v4" in ptx  # 16 bytes at a time
        assert "div.rn.f32" in ptx  # the exact quotient
        assert ("cvt.rn.satfinite.e4m3x2.f32" in ptx) == (code == "fp8e4nv")
    ptx = assembly(quantise_and_project_kernel, pointers, maximum | {"RANK": 32, "BM": 16, "BK": 128})
    assert "mma.sync" in ptx


@pytest.mark.parametrize("code", ["i8", "fp8e4nv"])
def test_quantisation_reads_16_bytes_at_a_time_and_divides_exactly(compiler, code):
    compiler.run(check_quantisation, {"code": code})


def check_forecast(device: str) -> None:
    from schedsearch_kernels._forecast.triton import forecast_keep_kernel, forecast_kernel

    ptx = assembly(forecast_kernel, {}, {"BLOCK": 2048})
    assert len(re.findall(r"ld\.global\.v4", ptx)) == 5 * 2
    ptx = assembly(forecast_keep_kernel, {}, {"BLOCK": 2048}, enable_fp_fusion=False)
    assert len(re.findall(r"ld\.global\.v4", ptx)) == 4 * 2
    assert "fma.rn.f32" not in ptx


def test_the_forecast_reads_each_tensor_once(compiler):
    compiler.run(check_forecast, {})
