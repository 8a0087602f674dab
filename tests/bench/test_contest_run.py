"""A whole small contest on the bundled model: what it writes, and that a second run adds nothing."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from schedsearch.bench import ABLATION, CONTESTANTS, ContestSettings, run_contest
from schedsearch.errors import StudyMismatchError, UsageError
from schedsearch.study import Study

ENTRIES = ("random", "anneal")


def records(folder):
    found = {}
    for name in ENTRIES:
        with Study.load(folder / f"{name}-0.db") as study:
            found[name] = [dataclasses.replace(e, seconds=0.0) for e in study.evaluations()]
    return found


@pytest.fixture
def settings(six_steps, tmp_path):
    return ContestSettings(
        model=str(six_steps), out=tmp_path / "contest", entries=ENTRIES, seeds=(0,), prompts=2, evals=30
    )


@pytest.mark.slow
@pytest.mark.usefixtures("haste")
def test_a_contest_writes_its_tables_and_goes_on_where_it_stopped(settings, screen, tmp_path):
    out = settings.out
    page = tmp_path / "page.md"
    page.write_text("<!-- search: begin -->\n<!-- search: end -->\n")
    run_contest(settings, CONTESTANTS, rival="random", name="search", into=page, display=screen)

    assert page.read_text().startswith("<!-- search: begin -->\n| searcher | searches |")
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".db") == [
        "search-table.csv",
        "search.csv",
        "search.png",
    ]
    table = {row["searcher"]: row for row in csv.DictReader((out / "search-table.csv").read_text().splitlines())}
    assert set(table) == set(ENTRIES)
    assert table["anneal"]["searches"] == CONTESTANTS["anneal"].what
    assert max(float(row["volume"]) for row in table.values()) <= 1.0
    assert {"random needs", "behind random"} <= set(table["anneal"])
    assert all(int(row["evals"]) >= 30 for row in table.values())
    curves = list(csv.DictReader((out / "search.csv").read_text().splitlines()))
    assert {row["searcher"] for row in curves} == set(ENTRIES)
    assert "random, seed 0: evals after" in screen.text()

    before = records(out), {p: p.read_bytes() for p in out.iterdir() if p.suffix != ".db"}
    run_contest(settings, CONTESTANTS, rival="random", name="search", display=screen)
    assert (records(out), {p: p.read_bytes() for p in out.iterdir() if p.suffix != ".db"}) == before

    longer = dataclasses.replace(settings, evals=40)
    run_contest(longer, CONTESTANTS, rival="random", name="search", display=screen)
    for name, found in records(out).items():
        assert found[: len(before[0][name])] == before[0][name]
        assert sum(e.denoiser_evals for e in found) >= 40

    with pytest.raises(StudyMismatchError, match="fidelity"):
        run_contest(dataclasses.replace(settings, prompts=1), CONTESTANTS, rival="random", name="search")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"entries": ("oracle",)}, "--only: found 'oracle', expected some of auto"),
        ({"prompts": 0}, "--prompts: found 0, expected 1 or more"),
        ({"evals": 0}, "--evals: found 0"),
        ({"jobs": 0}, "--jobs: found 0"),
        ({"seeds": ()}, "--seeds: found none"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, fields, said):
    with pytest.raises(UsageError, match=said):
        dataclasses.replace(settings, **fields)


def test_every_entry_searches_a_part_of_the_space(six_steps):
    """Narrowing keeps the plain run, and an axis on its own is smaller than everything."""
    from schedsearch.evaluate import denoiser_formats, find_card, load_pipeline
    from schedsearch.runtime import blocks_of, default_sigmas, model_ref
    from schedsearch.schedule import PrecisionRule
    from schedsearch.space import LinearLayers, load_space

    card = find_card(str(six_steps))
    pipe, size = load_pipeline(card), {"height": card.height, "width": card.width}
    names, int8 = denoiser_formats(pipe)[0], PrecisionRule(pattern="*", weight="int8", activation="int8")
    whole = load_space(
        card.family,
        model=model_ref(pipe, **size),
        blocks=blocks_of(pipe),
        sigma=default_sigmas(pipe, card.steps, **size),
        linears=LinearLayers(names=names, base="fp32", formats=(int8,)),
    )
    for name, entry in {**CONTESTANTS, **ABLATION}.items():
        space = entry.space(whole)
        assert not whole.check(space.base), name
        assert space.cardinality() <= whole.cardinality(), name
        if entry.what != "everything":
            assert space.cardinality() < whole.cardinality(), name
            assert space.precision.is_open == (name == "formats"), name


@pytest.mark.parametrize("verb", ["search", "ablation", "speeds"])
def test_unknown_entries_are_refused_by_the_command_line(run_cli, verb, tmp_path):
    more = ("--frontier", str(tmp_path)) if verb == "speeds" else ()
    done = run_cli("bench", verb, "--only", "nobody", "--out", str(tmp_path / "o"), *more)
    assert done.code == 2
    assert "error: --only: found 'nobody', expected some of" in done.err
    assert not (tmp_path / "o").exists()


def test_the_verbs_are_listed(run_cli):
    told = run_cli("bench", "--help").out
    assert all(f" {verb} " in told for verb in ("search", "ablation", "speeds"))
