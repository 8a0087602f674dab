"""The strict reader of space files."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from schedsearch.errors import SpaceError
from schedsearch.schedule import Solver
from schedsearch.space import load_space, shipped_spaces
from schedsearch.space._solvers import named
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
    assert space.counts == (2, 3, 4, 5, 6, 7, 8)
    assert (space.free_sigma, space.lattice) == (True, 2048)
    assert [named(record) for record in space.solvers] == [
        "euler", "heun", "adams of order 2", "adams of order 3", "adams of order 4",
        "dpm of order 2 (data)", "dpm of order 3 (data)",
        "unipc of order 2 (data)", "unipc of order 2 (data, corrector pseudo)",
        "unipc of order 3 (data)", "unipc of order 3 (data, corrector pseudo)",
        "table of order 2", "table of order 3", "table of order 4",
    ]  # fmt: skip
    assert (len(space.prunable), space.max_pruned) == (10, 2)
    assert space.symbols_of("transformer_blocks.0") == "CR123"
    assert space.symbols_of("single_transformer_blocks.3.proj_out") == "CR"
    assert space.check(space.base) is None


def test_the_shipped_space_says_why_a_second_evaluation_of_a_predicted_step_is_illegal():
    space = load("flux")
    heun = Solver(family="heun", order=2)
    schedule = replace(space.base, solver=(Solver(), heun, *[Solver()] * 6))
    assert space.check(schedule) is None
    assert space.check(replace(schedule, ops=(("model", "CRCCCCCC"),))) == (
        "steps.solver[1]: found heun, expected euler: the second evaluation of such a step would be predicted from the "
        "same outputs, so it adds nothing to them"
    )


def test_a_default_below_the_range_is_still_legal(file):
    assert load(file(GOOD + "steps: {min: 4, max: default}\n"), n_steps=3).counts == (3,)


def test_axes_that_a_file_does_not_name_are_frozen(file):
    space = load(file(GOOD))
    assert (space.free_sigma, space.solvers) == (False, (Solver(),))
    assert space.repair(replace(space.base, sigma=toy_sigmas(8, shift=1.0))) == space.base


def test_solvers_are_the_combinations_of_their_lists_in_order(file):
    text = """
sigma: free
lattice: 64
solvers:
  - {family: table, orders: [3, 2]}
  - {family: unipc, orders: [2], predictions: [noise, data], correctors: [pseudo], estimates: [bh1, bh2]}
  - {family: heun, orders: [2]}
  - {family: dpm, orders: [2]}
"""
    space = load(file(GOOD + text))
    unipc = Solver(family="unipc", order=2, corrector="pseudo")
    assert space.solvers == (
        Solver(family="table", order=3), Solver(family="table", order=2),
        *(replace(unipc, prediction=p, estimate=e) for p in ("noise", "data") for e in ("bh1", "bh2")),
        Solver(family="heun", order=2), Solver(family="dpm", order=2, prediction="data"),
    )  # fmt: skip
    assert (space.free_sigma, space.lattice) == (True, 64)


def test_forbidden_solvers(file):
    text = """
solvers: [{family: euler}, {family: adams, orders: [2, 3]}]
forbidden:
  - {rows: model, symbols: R, solver: {family: adams, order: 3}, reason: not here}
"""
    space = load(file(GOOD + text))
    adams = Solver(family="adams", order=3)
    schedule = replace(space.base, solver=(*[Solver()] * 5, adams, Solver(), Solver()))
    assert space.check(schedule) is None
    assert space.check(replace(schedule, ops=(("model", "CCCCCRCC"),))).endswith(": not here")


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
        (GOOD + "frozen: {guidance: 3}\n", r"frozen.guidance: found 3, expected 'pipeline'. It is the only value"),
        (GOOD + "frozen: {solver: euler}\n", r"frozen.solver: found an unknown key, expected one of guidance, precis"),
        (
            GOOD + "sigma: open\n",
            r"mine.yaml: sigma: found 'open', expected one of default, free. Correct its spelling",
        ),
        (GOOD + "sigma: 1\n", r"sigma: found 1, expected one of default, free"),
        (GOOD + "lattice: 64\n", r"lattice: found 64, expected no lattice, as sigma is default. Remove it, or free"),
        (GOOD + "sigma: free\nlattice: 1\n", r"lattice: found 1, expected a whole number from 2 to 65536. Correct it"),
        (GOOD + "sigma: free\nlattice: true\n", r"lattice: found True, expected a whole number"),
        (GOOD + "solvers: euler\n", r"solvers: found str 'euler', expected a list"),
        (GOOD + "solvers: []\n", r"solvers: found 0 solvers, expected 1 to 40"),
        (GOOD + "solvers: [euler]\n", r"solvers\[0\]: found str 'euler', expected a mapping with family, orders"),
        (GOOD + "solvers: [{orders: [1]}]\n", r"solvers\[0\].family: found nothing, expected a value"),
        (GOOD + "solvers: [{family: rk4}]\n", r"solvers\[0\].family: found 'rk4', expected one of euler, heun, adams"),
        (GOOD + "solvers: [{family: dpm}]\n", r"solvers\[0\].orders: found nothing, expected a list of orders from 1"),
        (GOOD + "solvers: [{family: dpm, orders: 2}]\n", r"solvers\[0\].orders: found int 2, expected a list"),
        (
            GOOD + "solvers: [{family: dpm, orders: [5]}]\n",
            r"orders\[0\]: found 5, expected a whole number from 1 to 4",
        ),
        (
            GOOD + "solvers: [{family: dpm, orders: []}]\n",
            r"solvers\[0\].orders: found \[\], expected a list of at least",
        ),
        (
            GOOD + "solvers: [{family: dpm, orders: [2, 2]}]\n",
            r"solvers\[0\].orders: found \[2, 2\], .*every entry once",
        ),
        (
            GOOD + "solvers: [{family: heun, orders: [3]}]\n",
            r"solvers\[0\].orders\[0\]: found 3, expected 2. Correct it",
        ),
        (
            GOOD + "solvers: [{family: dpm, orders: [2], predictions: [x0]}]\n",
            r"solvers\[0\].predictions\[0\]: found 'x0', expected one of velocity, noise, data",
        ),
        (
            GOOD + "solvers: [{family: adams, orders: [2], estimates: [bh1]}]\n",
            r"solvers\[0\].estimates\[0\]: found 'bh1', expected one of default",
        ),
        (
            GOOD + "solvers: [{family: adams, orders: [2], correctors: [both]}]\n",
            r"solvers\[0\].correctors\[0\]: found 'both', expected one of none, pseudo, implicit",
        ),
        (
            GOOD + "solvers: [{family: euler}, {family: euler}]\n",
            r"solvers\[1\]: found euler a second time, expected every solver once",
        ),
        (
            GOOD + "solvers: [{family: dpm, orders: [1, 2, 3, 4], predictions: [noise, data], "
            "correctors: [none, pseudo, implicit], estimates: [taylor, midpoint]}]\n",
            r"solvers: found 48 solvers, expected 1 to 40",
        ),
        (
            GOOD + "forbidden: [{rows: x, symbols: R, solver: {family: heun}, reason: y}]\n",
            r"forbidden\[0\].rows: found 'x', expected model beside a solver",
        ),
        (
            GOOD + "forbidden: [{rows: model, symbols: R, solver: {}, reason: y}]\n",
            r"forbidden\[0\].solver: found no field, expected at least one of family, order",
        ),
        (
            GOOD + "forbidden: [{rows: model, symbols: R, solver: {order: 7}, reason: y}]\n",
            r"forbidden\[0\].solver.order: found 7, expected a whole number from 1 to 4",
        ),
        (
            GOOD + "forbidden: [{rows: model, symbols: R, solver: {corrector: x}, reason: y}]\n",
            r"forbidden\[0\].solver.corrector: found 'x', expected one of none, pseudo, implicit",
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
