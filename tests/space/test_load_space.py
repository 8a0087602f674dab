"""The strict reader of space files."""

from __future__ import annotations

import time

import pytest

from schedsearch.errors import SpaceError
from schedsearch.space import load_space, shipped_spaces
from schedsearch.testing import toy_blocks, toy_model_ref, toy_sigmas

GOOD = """
format: schedsearch.space
version: 1
name: mine
levels:
  model: "CR1"
"""


def load(source, n_steps=8):
    return load_space(source, model=toy_model_ref(), blocks=toy_blocks(5, 5), sigma=toy_sigmas(n_steps))


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_shipped_flux_space():
    assert "flux" in shipped_spaces()
    space = load("flux")
    assert space.levels == (("model", "CR123"), ("block", "CR123S"), ("component", "CRS"))
    assert space.counts == (4, 5, 6, 7, 8)
    assert (len(space.prunable), space.max_pruned) == (10, 2)
    assert space.symbols_of("transformer_blocks.0") == "CR123"
    assert space.symbols_of("single_transformer_blocks.3.proj_out") == "CR"
    assert space.check(space.base) is None


def test_a_default_below_the_range_is_still_legal():
    assert load("flux", n_steps=3).counts == (3,)


def test_every_shipped_space_loads():
    for name in shipped_spaces():
        assert load(name).name == name


def test_a_minimal_file_searches_what_it_names(file):
    space = load(file(GOOD))
    assert (space.row_names, space.counts, space.max_pruned) == (("model",), (8,), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + "colour: red\n",
            r"mine.yaml: colour: found an unknown key, expected one of format, version, name, levels",
        ),
        (GOOD.replace("version: 1", "version: 2"), r"mine.yaml: version: found 2, expected 1. It is the only value"),
        (GOOD.replace("name: mine\n", ""), r"name: found nothing, expected a value. Add it"),
        (GOOD.replace('"CR1"', '"CRS"'), r"levels.model: found 'S', expected symbols out of CR123. Remove it."),
        (GOOD.replace('"CR1"', '"CRX"'), r"levels.model: found 'X'"),
        (GOOD.replace('"CR1"', '"R1"'), r"levels.model: found 'R1', expected C and every symbol once"),
        (GOOD.replace('"CR1"', "123"), r"levels.model: found int 123, expected text. Put it in quotes"),
        (
            GOOD.replace("  model", "  step"),
            r"levels.step: found an unknown key, expected one of model, block, component",
        ),
        (GOOD.replace('\n  model: "CR1"', " {}"), r"levels: found no level, expected at least one"),
        (GOOD.replace('\n  model: "CR1"', " CR"), r"levels: found str 'CR', expected a mapping with model"),
        (GOOD + "steps: {min: 9, max: 4}\n", r"steps: found min 9 above max 4, expected min at most max"),
        (GOOD + "steps: {min: 0, max: 4}\n", r"steps.min: found 0, expected a whole number from 1 to 1000, or default"),
        (GOOD + "steps: {min: 4}\n", r"steps.max: found nothing"),
        (GOOD + "steps: {min: true, max: 4}\n", r"steps.min: found True"),
        (
            GOOD + "pruned: {max_fraction: 1.0, blocks: []}\n",
            r"pruned.max_fraction: found 1.0, expected a number from 0 to",
        ),
        (GOOD + "pruned: {max_fraction: 0.5, blocks: all}\n", r"pruned.blocks: found str 'all', expected a list"),
        (GOOD + "pruned: {max_fraction: 0.5, blocks: [1]}\n", r"pruned.blocks\[0\]: found int 1, expected text"),
        (
            GOOD + "forbidden: [{rows: x, symbols: C, reason: y}]\n",
            r"forbidden\[0\].symbols: found 'C', expected symbols out",
        ),
        (GOOD + "forbidden: [{rows: x, symbols: S}]\n", r"forbidden\[0\].reason: found nothing"),
        (
            GOOD + "forbidden: [{rows: x, symbols: S, reason: ''}]\n",
            r"forbidden\[0\].reason: found nothing, expected why",
        ),
        (GOOD + "frozen: {solver: dpm}\n", r"frozen.solver: found 'dpm', expected 'euler'. It is the only value"),
        (
            GOOD + "frozen: {taste: sweet}\n",
            r"frozen.taste: found an unknown key, expected one of sigma, solver, guidance",
        ),
        (GOOD + "name: again\n", r"mine.yaml: name: found the key twice, expected it once"),
        (GOOD + "summary: &a x\nsteps: *a\n", r"steps: found a YAML alias, expected the value itself"),
        (GOOD + "steps: [1, 2\n", r"mine.yaml line \d+: found invalid YAML"),
        ("", r"mine.yaml: found nothing, expected a mapping"),
        ("- 1\n", r"mine.yaml: found list \[1\], expected a mapping"),
        ("!!python/object:os.system {}\n", r"found invalid YAML"),
        ("[" * 1200, r"mine.yaml.*: found (invalid YAML|YAML nested too deeply)"),
        (GOOD + "summary: 2001-99-99\n", r"mine.yaml: summary: found a value that cannot be read \(month must be in 1"),
        (GOOD + "summary: !!bool maybe\n", r"mine.yaml: summary: found a value that cannot be read"),
        (
            GOOD + "summary: " + "9" * 5000,
            r"mine.yaml: summary: found a number of 5000 characters, expected at most 40",
        ),
        (GOOD + "steps: {min: 4, max: " + "9" * 40 + "}\n", r"steps.max: found 9{40}, expected a whole number"),
        (GOOD + "steps: {min: 4, max: " + "x" * 90 + "}\n", r"steps.max: found 'x{56}\.\.\., expected a whole number"),
        (GOOD + "'a\\nb\tc': 1\n", r"mine.yaml: 'a.*\\tc': found an unknown key"),
        (GOOD + "? [a, b]\n: 1\n", r"found invalid YAML \(found unhashable key\)"),
        (GOOD + "? &a [*a]\n: 1\n", r"found a YAML alias"),
    ],
)
def test_anything_wrong_is_named(file, text, message):
    with pytest.raises(SpaceError, match=message):
        load(file(text))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
        "".join(f"key{i}: 1\n" for i in range(20_000)),
        "{" * 100_000,
        "a: " + "1:" * 100_000 + "1",
        "- " * 100_000,
    ],
    ids=["aliases", "keys", "braces", "base 60", "lists"],
)
def test_a_hostile_file_is_refused_quickly_and_briefly(file, text):
    began = time.process_time()
    with pytest.raises(SpaceError) as caught:
        load(file(text))
    assert time.process_time() - began < 8
    assert len(str(caught.value)) < 400


def test_no_such_space():
    with pytest.raises(
        SpaceError, match=r"sdxl-x: found no such space, expected one of flux.*, or the path of a YAML file"
    ):
        load("sdxl-x")


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpaceError, match="found bytes that are not UTF-8"):
        load(path)


def test_an_oversized_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * 300_000)
    with pytest.raises(SpaceError, match=r"x\.yaml: found more than 262144 bytes, expected at most that"):
        load(path)
