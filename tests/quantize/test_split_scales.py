"""Scales per segment, and finding the segments of a module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from schedsearch.errors import UsageError
from schedsearch.quantize._formats import fake, scale_of
from schedsearch.quantize._segments import find_segments
from schedsearch.quantize._split import segment_scale, split_fake

WIDTH, HEADS = 12, 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(seen, x):
    return (seen - x).square().mean()


@pytest.mark.parametrize("fmt", ["int8", "int4"])
@pytest.mark.parametrize("ratio", [4.0, 16.0])
def test_two_ranges_lose_at_least_a_fifth_of_their_error(fmt, ratio):
    """A concatenation whose halves differ in range, under a scale per token, and the layer it goes into.

    Both halves matter alike to the output, as in a trained network, so the columns of the small one are large.
    """
    for seed in range(3):
        x = torch.cat([random(64, 32, seed=seed), ratio * random(64, 32, seed=seed + 100)], dim=1)
        weight = torch.cat([ratio * random(16, 32, seed=seed + 200), random(16, 32, seed=seed + 300)], dim=1)
        one, two = fake(x, fmt, scales="row"), split_fake(x, fmt, columns=(32, 32))
        assert error(two, x) <= 0.8 * error(one, x)
        before = error(one @ fake(weight, fmt, scales="row").T, x @ weight.T)
        after = error(two @ split_fake(weight, fmt, columns=(32, 32)).T, x @ weight.T)
        assert after <= 0.3 * before


def test_each_segment_is_as_if_it_were_alone():
    x = random(6, 10)
    parts = [fake(part.contiguous(), "int4", scales="row") for part in x.split((3, 7), dim=1)]
    assert torch.equal(split_fake(x, "int4", columns=(3, 7)), torch.cat(parts, dim=1))
    bands = [fake(part, "int8", scales="tensor") for part in x.split((2, 4), dim=0)]
    assert torch.equal(split_fake(x, "int8", rows=(2, 4), scales="tensor"), torch.cat(bands))
    assert segment_scale(x, "int8", columns=(3, 7), rows=(2, 4), scales="tensor").unique().numel() == 4


def test_groups_begin_anew_in_each_segment():
    x = random(2, 200)
    scale = segment_scale(x, "int4", columns=(70, 130), scales="default")
    torch.testing.assert_close(scale[:, 64:70], scale_of(x[:, 64:70], "int4").expand(-1, 6))
    parts = [fake(part.contiguous(), "int4") for part in x.split((70, 130), dim=1)]
    assert torch.equal(split_fake(x, "int4", columns=(70, 130), scales="default"), torch.cat(parts, dim=1))


def test_no_segments_is_the_plain_quantiser():
    x = random(2, 3, 10)
    assert torch.equal(split_fake(x, "int8"), fake(x, "int8", scales="row"))


def test_sizes_and_formats_that_do_not_fit_are_refused():
    with pytest.raises(
        UsageError, match=r"segments: found columns \(3, 3\), expected positive sizes that add up to 10"
    ):
        segment_scale(random(2, 10), "int8", columns=(3, 3))
    with pytest.raises(UsageError, match=r"segments: found rows \(0, 2\), expected positive sizes that add up to 2"):
        segment_scale(random(2, 10), "int8", rows=(0, 2))
    with pytest.raises(UsageError, match=r"segments: found format nvfp4, expected one whose scales can be chosen"):
        segment_scale(random(2, 10), "nvfp4", columns=(5, 5))


# ------------------------------------------------------------------------------------------------ finding them
class DiTBlock(nn.Module):
    """Six modulations from one layer, a fused projection of query, key and value, a plain feed-forward."""

    def __init__(self, style="chunk"):
        super().__init__()
        self.style = style
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.register_buffer("angle", random(5, WIDTH // HEADS // 2))

    def heads(self, x):
        if self.style == "reshape":
            return self.qkv(x).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.style == "slice":
            y = self.qkv(x)
            parts = y[..., :WIDTH], y[..., WIDTH : 2 * WIDTH], y[..., 2 * WIDTH :]
        else:
            parts = self.qkv(x).chunk(3, dim=-1)
        return tuple(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)

    def turned(self, x):
        """A rotary embedding: of pairs of neighbours, or of the halves of each head."""
        if self.style == "slice":
            first, second = x.chunk(2, dim=-1)
            return torch.cat([first * self.angle - second, second * self.angle + first], dim=-1)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([first * self.angle - second, second * self.angle + first], dim=-1).flatten(3)

    def forward(self, x, emb):
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(functional.silu(emb))[:, None].chunk(6, dim=-1)
        q, k, v = self.heads(functional.layer_norm(x, (WIDTH,)) * (1 + scale) + shift)
        mixed = functional.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        x = x + gate * self.out(mixed.transpose(1, 2).flatten(2))
        y = functional.layer_norm(x, (WIDTH,)) * (1 + scale2) + shift2
        return x + gate2 * self.down(functional.gelu(self.up(y)))


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, joined before the last layer, as FLUX has it."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, 4 * WIDTH)
        self.out = nn.Linear(5 * WIDTH, WIDTH)

    def forward(self, x, emb):
        shift, scale, gate = self.modulation(emb)[:, None].chunk(3, dim=-1)
        y = x * (1 + scale) + shift
        joined = torch.cat([self.attention(y), functional.gelu(self.mlp(y), approximate="tanh")], dim=2)
        return x + gate * self.out(joined)


def found(module, run):
    return {each.name: (each.columns, each.rows) for each in find_segments(module, run)}


@pytest.mark.parametrize("style", ["chunk", "reshape", "slice"])
def test_six_modulations_and_query_key_value(style):
    block = DiTBlock(style)
    assert found(block, lambda: block(random(2, 5, WIDTH), random(2, WIDTH))) == {
        "modulation": ((WIDTH,), (WIDTH,) * 6),
        "qkv": ((WIDTH,), (WIDTH,) * 3),
        "out": ((WIDTH,), (WIDTH,)),
        "up": ((WIDTH,), (4 * WIDTH,)),
        "down": ((4 * WIDTH,), (WIDTH,)),
    }


def test_concatenated_input_of_a_single_block():
    block = SingleBlock()
    assert found(block, lambda: block(random(2, 5, WIDTH), random(2, WIDTH))) == {
        "modulation": ((WIDTH,), (WIDTH,) * 3),
        "attention": ((WIDTH,), (WIDTH,)),
        "mlp": ((WIDTH,), (4 * WIDTH,)),
        "out": ((WIDTH, 4 * WIDTH), (WIDTH,)),
    }


def test_blocks_of_diffusers():
    flux = pytest.importorskip("diffusers.models.transformers.transformer_flux")
    sizes = {"dim": 16, "num_attention_heads": 2, "attention_head_dim": 8}
    rotary = (random(9, 8), random(9, 8, seed=1))
    inputs = random(1, 5, 16), random(1, 4, 16), random(1, 16), rotary
    single, double = flux.FluxSingleTransformerBlock(**sizes), flux.FluxTransformerBlock(**sizes)
    of_single = found(single, lambda: single(*inputs))
    of_double = found(double, lambda: double(*inputs))
    assert of_single["proj_out"] == ((16, 64), (16,))
    assert of_single["norm.linear"] == ((16,), (16,) * 3)
    assert of_double["norm1.linear"] == of_double["norm1_context.linear"] == ((16,), (16,) * 6)
    whole = {name for name, segments in (of_single | of_double).items() if max(map(len, segments)) > 1}
    assert whole == {"proj_out", "norm.linear", "norm1.linear", "norm1_context.linear"}


def run_of(layers, forward):
    module = nn.ModuleDict(layers)
    return found(module, lambda: forward(module))


def test_gated_feed_forward_and_nested_parts():
    def forward(m):
        value, gate = functional.silu(m["up"](random(2, 6))).chunk(2, dim=-1)
        inner = torch.cat([value * gate, random(2, 2)], dim=-1)
        return m["down"](torch.cat([inner, random(2, 3)], dim=-1) * 2.0)

    segments = run_of({"up": nn.Linear(6, 8), "down": nn.Linear(9, 4)}, forward)
    assert segments == {"up": ((6,), (4, 4)), "down": ((4, 2, 3), (4,))}


def test_a_table_that_is_added_before_the_cut():
    """PixArt's modulation: reshaped, a learned table added, then cut along a dimension that is not the last."""
    table = nn.Parameter(random(6, 4))

    class Modulation(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.table = nn.Linear(3, 24), table

        def forward(self, x):
            a, b, *others = (self.table[None] + self.linear(x).reshape(2, 6, -1)).chunk(6, dim=1)
            return a * b, *others

    module = Modulation()
    assert found(module, lambda: module(random(2, 3))) == {"linear": ((3,), (4,) * 6)}


def test_tokens_joined_along_the_sequence_are_no_segments():
    segments = run_of(
        {"a": nn.Linear(4, 4)}, lambda m: m["a"](torch.cat([random(1, 2, 4), random(1, 3, 4)], dim=1)).sum()
    )
    assert segments == {"a": ((4,), (4,))}


def test_interleaved_parts_are_no_segments():
    def forward(m):
        x = torch.stack([random(2, 3), random(2, 3)], dim=-1).flatten(1)
        even, odd = m["a"](x).unflatten(-1, (-1, 2)).unbind(-1)
        return even * odd

    assert run_of({"a": nn.Linear(6, 6)}, forward) == {"a": ((6,), (6,))}


def test_what_a_residual_stream_becomes_is_not_the_layers_business():
    def forward(m):
        x = random(2, 6) + m["a"](random(2, 6))
        return x[:, :3] * 2 + x[:, 3:]

    assert run_of({"a": nn.Linear(6, 6)}, forward) == {"a": ((6,), (6,))}


def test_copies_casts_and_half_precision_are_followed():
    def forward(m):
        x = torch.cat([random(2, 2), random(2, 4)], dim=-1).double().half().float().contiguous()
        y = m["a"](x).permute(1, 0).contiguous().double()
        return y[:5] * y[5:10], y[10:]

    assert run_of({"a": nn.Linear(6, 12)}, forward) == {"a": ((2, 4), (5, 5, 2))}


def test_a_layer_that_runs_twice_adds_up_its_borders():
    def forward(m):
        first, second = m["a"](random(2, 4)), m["a"](torch.cat([random(2, 1), random(2, 3)], dim=1))
        return first[:, :2] * first[:, 2:], second.sum()

    assert run_of({"a": nn.Linear(4, 4)}, forward) == {"a": ((1, 3), (2, 2))}


def test_hooks_are_gone_and_results_are_the_same():
    block = SingleBlock()
    x, emb = random(2, 5, WIDTH), random(2, WIDTH)
    before = block(x, emb)
    kept = []
    find_segments(block, lambda: kept.append(block(x, emb)))
    assert torch.equal(kept[0], before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
    with pytest.raises(ZeroDivisionError):
        find_segments(block, lambda: 1 // 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())


def test_nothing_to_see_is_refused():
    with pytest.raises(UsageError, match=r"segments: found no linear layer that ran, expected one or more; run the"):
        find_segments(nn.Linear(2, 2), lambda: None)


def test_a_linear_layer_alone_has_no_name():
    layer = nn.Linear(2, 2)
    assert found(layer, lambda: layer(random(1, 2))) == {"": ((2,), (2,))}
