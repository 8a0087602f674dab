"""A FLUX of random weights, made from configuration files alone, and the times of its parts."""

from __future__ import annotations

import json

import pytest

from schedsearch.evaluate import Workload, find_card
from schedsearch.evaluate.profile import measure_table, parse_word, random_pipeline, table_header

TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 4, 8],
    "guidance_embeds": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline's configuration files, and no weights."""
    path = tmp_path_factory.mktemp("tiny")
    files = {
        "model_index.json": {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
        "transformer/config.json": TRANSFORMER,
        "scheduler/scheduler_config.json": {"use_dynamic_shifting": True},
        "vae/config.json": {"block_out_channels": [4, 4]},
    }
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content))
    (path / "schedsearch.yaml").write_text("height: 16\nwidth: 24\nsteps: 4\nmax_sequence_length: 3\n")
    return path


@pytest.fixture(scope="module")
def card(folder):
    return find_card(str(folder))


@pytest.fixture(scope="module")
def pipe(card):
    return random_pipeline(card)


@pytest.fixture(scope="module")
def workload(card):
    return Workload.from_card(card)


@pytest.fixture(scope="module")
def table(pipe, card, workload):
    """The eager table with one format that is executed and one that is simulated."""
    rules = [parse_word(word, base="fp32") for word in ("int8", "int4")]
    header = table_header(pipe, card, weights="random", command="schedsearch profile")
    return measure_table(pipe, workload, header, rules=rules, modes=["eager"], repeats=1)
