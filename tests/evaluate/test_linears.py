"""Linear layers counted by hand: a tiny FLUX, FLUX.1-dev on the meta device, and the bytes of their weights."""

from __future__ import annotations

import collections
import dataclasses
import hashlib

import pytest
import torch

from schedsearch.errors import EvaluationError
from schedsearch.evaluate import find_card, linears_of, resident_bytes, weight_bytes
from schedsearch.evaluate._linears import LinearLayer, Linears, base_word
from schedsearch.evaluate._trace import capture_call
from schedsearch.evaluate.profile import architecture_of, meta_denoiser, operations_of
from schedsearch.schedule import PrecisionRule, Tables, TableTensor, rule_of
from schedsearch.types import BlockSpec

FLUX_LINEARS = {
    # (tokens, in, out): how often, for 4096 image tokens and 512 of text in 19 double and 38 single blocks
    (4096, 64, 3072): 1,  # x_embedder
    (512, 4096, 3072): 1,  # context_embedder
    (1, 256, 3072): 2,  # first layers of the timestep and guidance embedders
    (1, 768, 3072): 1,  # first layer of the text embedder
    (1, 3072, 3072): 3,  # second layers of all three
    (1, 3072, 18432): 38,  # norm1 and norm1_context
    (4096, 3072, 3072): 76,  # q, k, v and out of the image
    (512, 3072, 3072): 76,  # the same of the text
    (4096, 3072, 12288): 19,
    (4096, 12288, 3072): 19,
    (512, 3072, 12288): 19,
    (512, 12288, 3072): 19,
    (1, 3072, 9216): 38,  # norm of the single blocks
    (4608, 3072, 3072): 114,  # their q, k, v
    (4608, 3072, 12288): 38,
    (4608, 15360, 3072): 38,
    (1, 3072, 6144): 1,  # norm_out
    (4096, 3072, 64): 1,  # proj_out
}

FLUX_PARAMETERS = 11_901_408_320


@pytest.fixture(scope="module")
def flux():
    """FLUX.1-dev without its numbers, and a call of it at 1024 x 1024."""
    denoiser = meta_denoiser(architecture_of(find_card("flux"))).to(torch.bfloat16)
    with torch.device("meta"):
        kwargs = {
            "hidden_states": torch.empty(1, 4096, 64, dtype=torch.bfloat16),
            "encoder_hidden_states": torch.empty(1, 512, 4096, dtype=torch.bfloat16),
            "pooled_projections": torch.empty(1, 768, dtype=torch.bfloat16),
            "timestep": torch.empty(1, dtype=torch.bfloat16),
            "guidance": torch.empty(1, dtype=torch.bfloat16),
            "img_ids": torch.empty(4096, 3),
            "txt_ids": torch.empty(512, 3),
            "return_dict": False,
        }
    return denoiser, kwargs


@pytest.fixture(scope="module")
def flux_linears(flux):
    return linears_of(*flux)


@pytest.fixture(scope="module")
def flux_lists():
    parts = {"transformer_blocks": ("attn", "ff", "ff_context"), "single_transformer_blocks": ("attn", "proj_out")}
    counts = {"transformer_blocks": 19, "single_transformer_blocks": 38}
    return [[BlockSpec(name=f"{kind}.{i}", components=parts[kind]) for i in range(n)] for kind, n in counts.items()]


def test_flux_dev_has_the_linear_layers_counted_by_hand(flux, flux_linears):
    linears = flux_linears

    assert collections.Counter(layer.shape for layer in linears.layers) == FLUX_LINEARS
    assert linears.base == "bf16"
    assert linears.parameters == FLUX_PARAMETERS == sum(p.numel() for p in flux[0].parameters())
    # norms of queries and keys: four per double block, two per single one, each as wide as a head
    assert sum(n for _, n in linears.others) == (19 * 4 + 38 * 2) * 128


def test_the_macs_of_flux_dev(flux_linears):
    """12 d^2 per token and block, one token of modulation per block, and little outside the blocks."""
    d, n = 3072, 4608
    modulation = 19 * 2 * 6 * d * d + 38 * 3 * d * d
    around = (4096 * 64 + 512 * 4096) * d + (2 * 256 + 768 + 3 * d) * d + 2 * d * d + 4096 * d * 64

    assert sum(layer.macs for layer in flux_linears.layers) == 57 * 12 * d * d * n + modulation + around


def test_linear_layers_and_attention_are_all_macs(tiny, tiny_workload, tiny_linears, tiny_table):
    tokens = (tiny_workload.height // 2) * (tiny_workload.width // 2) + 4

    assert tiny_table.total == sum(layer.macs for layer in tiny_linears.layers) + 4 * 2 * tokens**2 * 32


def test_the_operations_of_flux_dev(flux, flux_lists):
    with torch.device("meta"):
        found = operations_of(*flux, flux_lists)

    assert {o.shape: o.n for o in found if o.op == "linear"} == FLUX_LINEARS
    rest = [(o.op, o.name, o.shape, o.n) for o in found if o.op != "linear"]
    assert rest == [
        ("denoiser", "FluxTransformer2DModel", (4096, 512, 64), 1),
        ("block", "transformer_blocks", (4096, 512, 3072), 19),
        ("block", "single_transformer_blocks", (4096, 512, 3072), 38),
        ("component", "transformer_blocks.attn", (4096, 512, 3072), 19),
        ("component", "transformer_blocks.ff", (4096, 3072), 19),
        ("component", "transformer_blocks.ff_context", (512, 3072), 19),
        ("component", "single_transformer_blocks.attn", (4608, 3072), 38),
        ("component", "single_transformer_blocks.proj_out", (4608, 15360), 38),
        ("attention", "", (24, 4608, 4608, 128), 57),
        ("modulation", "AdaLayerNormZero", (4096, 3072), 19),
        ("modulation", "AdaLayerNormZero", (512, 3072), 19),
        ("modulation", "AdaLayerNormZeroSingle", (4608, 3072), 38),
        ("modulation", "AdaLayerNormContinuous", (4096, 3072), 1),
        ("norm", "LayerNorm", (4096, 3072), 39),
        ("norm", "LayerNorm", (512, 3072), 38),
        ("norm", "RMSNorm", (4096, 24, 128), 38),
        ("norm", "RMSNorm", (512, 24, 128), 38),
        ("norm", "LayerNorm", (4608, 3072), 38),
        ("norm", "RMSNorm", (4608, 24, 128), 76),
    ]
    assert not any(module._forward_pre_hooks for module in flux[0].modules())


@pytest.fixture(scope="module")
def tiny_linears(tiny, tiny_workload):
    """Two blocks of each kind, 32 wide, 64 image tokens and 4 of text, without guidance embedding."""
    return linears_of(tiny.transformer, capture_call(tiny, tiny_workload, "xxxx").kwargs)


def test_a_tiny_flux_has_the_linear_layers_counted_by_hand(tiny, tiny_workload, tiny_linears):
    image = (tiny_workload.height // 2) * (tiny_workload.width // 2)
    joint = image + 4

    assert collections.Counter(layer.shape for layer in tiny_linears.layers) == {
        (image, 4, 32): 1, (4, 32, 32): 1 + 8, (1, 256, 32): 1, (1, 32, 32): 1 + 2, (1, 32, 192): 4,
        (image, 32, 32): 8, (image, 32, 128): 2, (image, 128, 32): 2, (4, 32, 128): 2, (4, 128, 32): 2,
        (1, 32, 96): 2, (joint, 32, 32): 6, (joint, 32, 128): 2, (joint, 160, 32): 2, (1, 32, 64): 1, (image, 32, 4): 1,
    }  # fmt: skip
    assert tiny_linears.parameters == sum(p.numel() for p in tiny.transformer.parameters())


def test_a_call_of_several_images_is_refused(tiny, tiny_workload):
    kwargs = capture_call(tiny, tiny_workload, "x").kwargs
    double = kwargs | {"hidden_states": kwargs["hidden_states"].repeat(2, 1, 1)}

    with pytest.raises(EvaluationError, match="found a call of 2 images, expected one"):
        linears_of(tiny.transformer, double)


def test_a_denoiser_of_mixed_dtypes_has_no_base():
    mixed = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, dtype=torch.bfloat16))

    with pytest.raises(EvaluationError, match=r"found torch.bfloat16, torch.float32, expected one of"):
        base_word(mixed)


RULES = (
    PrecisionRule(pattern="*.norm", weight="bf16", activation="bf16"),
    PrecisionRule(pattern="blocks.0.*", weight="int8", activation="int8"),
    PrecisionRule(pattern="blocks.?.up", weight="int4", activation="bf16", rank=16),
)


def layer(name, tokens=10, n_in=128, n_out=256, *, bias=True):
    return LinearLayer(name=name, tokens=tokens, in_features=n_in, out_features=n_out, bias=bias)


SMALL = Linears(
    layers=(layer("blocks.0.norm"), layer("blocks.0.up"), layer("blocks.1.up", bias=False), layer("out", n_out=4)),
    others=(("blocks.0.scale", 7), ("blocks.1.scale", 7)),
    base="bf16",
)


def test_the_first_rule_that_matches_wins():
    assert [rule_of(RULES, layer.name) for layer in SMALL.layers] == [*RULES, None]


@pytest.fixture(scope="module")
def bare(tiny_plan):
    return tiny_plan()


def test_a_checkpoint_counts_codes_scales_branches_and_biases(bare):
    plain = 128 * 256 * 2
    out = 128 * 4 * 2 + 4 * 2
    others = 14 * 2

    assert weight_bytes(bare, SMALL) == 3 * plain + 2 * 512 + out + others
    int8 = 128 * 256 + 256 * 4 + 256 * 2  # codes, a float32 scale per row, the bias as it was
    int4 = 128 * 256 // 2 + 256 * 2 * 4 + 16 * (128 + 256) * 2  # codes, scales per 64 inputs, the branch in bf16
    ruled = dataclasses.replace(bare, precision=RULES)
    assert weight_bytes(ruled, SMALL) == (plain + 512) + int8 + int4 + out + others


def test_pruned_modules_are_not_in_a_checkpoint(bare):
    schedule = dataclasses.replace(bare, pruned=("blocks.1",))

    assert weight_bytes(bare, SMALL) - weight_bytes(schedule, SMALL) == 128 * 256 * 2 + 7 * 2


def test_tables_of_layers_are_counted_and_rounding_is_in_the_codes(bare):
    ruled = dataclasses.replace(bare, precision=RULES)
    tensors = (
        TableTensor(name="blocks.0.up.activation_scale", shape=(4,), dtype="F32", role="scale"),
        TableTensor(name="blocks.0.up.bias", shape=(256,), dtype="F32", role="bias"),
        TableTensor(name="blocks.0.up.rounding", shape=(256, 16), dtype="U8", role="rounding"),
        TableTensor(name="blocks.0.up.smooth", shape=(128,), dtype="F32", role="smooth"),
    )
    tabled = dataclasses.replace(ruled, tables=Tables(sha256=hashlib.sha256(b"").hexdigest(), tensors=tensors))

    # the bias grows from bf16 to float32
    assert weight_bytes(tabled, SMALL) - weight_bytes(ruled, SMALL) == 4 * 4 + 256 * (4 - 2) + 128 * 4


def test_memory_holds_what_is_simulated_in_the_base_dtype(bare):
    ruled = dataclasses.replace(bare, precision=RULES)
    plain = 128 * 256 * 2

    def without_base(executed):
        return resident_bytes(ruled, SMALL, executed=lambda rule, _: rule.weight in executed, base_stays=False)

    stored = weight_bytes(ruled, SMALL)
    assert without_base({"int8", "int4"}) == stored
    # the int4 layer as a bf16 weight, with its branch beside it
    assert without_base({"int8"}) == stored - (128 * 256 // 2 + 256 * 2 * 4) + plain
    both = resident_bytes(ruled, SMALL, executed=lambda *_: True)
    assert both == stored + (plain + 512) + plain


def test_pruned_modules_stay_in_memory(bare):
    schedule = dataclasses.replace(bare, pruned=("blocks.1",))

    assert resident_bytes(schedule, SMALL, executed=lambda *_: True) == weight_bytes(bare, SMALL)


def test_flux_dev_in_eight_bits_is_half_as_large(flux_linears, bare):
    rule = PrecisionRule(pattern="*", weight="int8", activation="int8")

    plain = weight_bytes(bare, flux_linears)
    low = weight_bytes(dataclasses.replace(bare, precision=(rule,)), flux_linears)

    assert plain == 2 * FLUX_PARAMETERS
    assert 0.5 < low / plain < 0.501
