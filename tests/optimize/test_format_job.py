"""The whole job with the precision axis open, on the bundled model with six steps; and with little memory."""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from schedsearch.errors import EvaluationError, StudyMismatchError, UsageError
from schedsearch.evaluate import CostModel, find_card, load_pipeline, memory_model
from schedsearch.evaluate._workload import Workload
from schedsearch.runtime import blocks_of, denoiser_of, identity_schedule
from schedsearch.runtime._precision import linears_of
from schedsearch.schedule import read_schedule, rule_of
from schedsearch.sensitivity import REMOVED, Cell, Choice, Header, Layer, Sensitivities, write_sensitivities
from schedsearch.study import Study

LINEAR_MS = 0.05
"""Of every linear layer in float32; a block has a millisecond."""


@pytest.fixture(scope="module")
def model(six_steps):
    return six_steps


@pytest.fixture(scope="module")
def pipe(model):
    return load_pipeline(find_card(str(model)))


@pytest.fixture
def job(monkeypatch, model, pipe, steady_cost):
    """The small job, on a device where int8 takes 0.4 times as long as float32 and nothing else is faster."""
    script = Path(__file__).parent / "small_job.py"
    spec = importlib.util.spec_from_file_location("small_format_job", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from schedsearch.evaluate import evaluate_held_out, with_linear_prices
    from schedsearch.optimize import _bench, _finals, _run

    def priced(cost: CostModel, *arguments: object) -> CostModel:
        found = with_linear_prices(cost, *arguments, repeats=1)
        share = {"fp32": 1.0, "int8": 0.4}
        times = tuple(replace(time, ms=LINEAR_MS * share.get(time.format, 2.0)) for time in found.prices.times)
        return replace(found, prices=replace(found.prices, times=times))

    monkeypatch.setattr(_bench, "FIDELITY", 2)
    monkeypatch.setattr(_bench, "LADDER", (2.0,))
    monkeypatch.setattr(_finals, "LADDER", (2.0,))
    monkeypatch.setattr(_finals, "FRESH", 2)
    monkeypatch.setattr(_finals, "AROUND", (0.0,))
    monkeypatch.setattr(_run, "prompt_set", module.few)
    monkeypatch.setattr(_run, "measure_cost", steady_cost)
    monkeypatch.setattr(_run, "with_linear_prices", priced)
    monkeypatch.setattr(_run, "load_pipeline", lambda *_, **__: pipe)
    monkeypatch.setattr(_finals, "evaluate_held_out", functools.partial(evaluate_held_out, repeats=2, warmup=0))

    def run(out, **options):
        return module.job(
            model, out, resume=options.pop("resume", False), **{"budget": "1.5x", "trials": 24, **options}
        )

    return run


@pytest.fixture
def search(job, monkeypatch):
    """The same up to where the best would be measured."""
    from schedsearch.optimize import _run

    def enough(*_):
        raise SearchedEnoughError

    def run(out, **options):
        monkeypatch.setattr(_run, "finals", enough)
        with pytest.raises(SearchedEnoughError):
            job(out, **options)

    return run


class SearchedEnoughError(Exception):
    """Raised where the last stages would begin."""


def plain_bytes(pipe, model) -> int:
    card = find_card(str(model))
    plain = identity_schedule(pipe, card.steps, height=card.height, width=card.width)
    return memory_model(pipe, Workload.from_card(card), "a").checkpoint_bytes(plain)


@pytest.fixture
def known(request, pipe, model, tmp_path):
    """A file as if measured: later layers matter more, outer blocks most. The parameter is the model's dtype."""
    card = find_card(str(model))
    plain = identity_schedule(pipe, card.steps, height=card.height, width=card.width)
    header = Header(
        model=card.name, config=plain.model.config, carrier=plain.id, steps=6, prompts="p", n_prompts=1, seed=0,
        dtype=getattr(request, "param", "fp32"), torch="2", schedsearch="0", date="2026-01-31", command="",
    )  # fmt: skip
    sizes = {name: linear.weight.numel() for name, linear in linears_of(denoiser_of(pipe)).items()}
    blocks = tuple(block.name for block in blocks_of(pipe))
    cells = [
        Cell(module=name, word="int8", errors=(0.01 * (place + 1),), bits=8.0, saved_bytes=3 * size)
        for place, (name, size) in enumerate(sizes.items())
    ]  # fmt: skip
    middle = (len(blocks) - 1) / 2
    cells += [
        Cell(module=name, word=REMOVED, errors=(0.1 + abs(place - middle),), bits=0.0, saved_bytes=1)
        for place, name in enumerate(blocks)
    ]
    found = Sensitivities(
        header=header, layers=tuple(Layer(name=name, weights=size, bits=32.0) for name, size in sizes.items()),
        blocks=blocks, choices=(Choice(word="int8", weight="int8", activation="int8"),),
        cells=tuple(cells),
    )  # fmt: skip
    write_sensitivities(found, tmp_path / "known.json")
    return tmp_path / "known.json"


@pytest.mark.slow
def test_formats_are_searched_priced_and_written(job, pipe, model, known, tmp_path):
    with suppress(EvaluationError):  # int8's price is made up, so the clock may find that nothing keeps the budget
        job(tmp_path / "run", sensitivity=known)
    with Study.load(tmp_path / "run" / "study.db") as study:
        records = study.evaluations()
        cost = CostModel.from_json(str(study.notes["cost"]))
        options = json.loads(str(study.notes["searcher"]))
    assert_begun_from(options, records, pipe)
    with pytest.raises(StudyMismatchError, match="sensitivity"):
        job(tmp_path / "run", resume=True)
    low = [e for e in records if e.candidate.schedule.precision]
    assert len(low) >= 4
    assert not [e.reason for e in low if e.status == "failed"]
    assert {rule.weight for e in low for rule in e.candidate.schedule.precision} == {"int8"}
    for e in (e for e in low if e.status == "ok"):
        plain = replace(e.candidate.schedule, precision=())
        assert e.values[0] == cost.predict_ms(e.candidate.schedule) < cost.predict_ms(plain)
        sizes = dict(e.metrics)
        assert sizes["checkpoint_bytes"] < plain_bytes(pipe, model)
        assert sizes["checkpoint_bytes"] <= sizes["peak_bytes"]
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines()))
    full = next(row for row in rows if row["kind"] == "full")
    assert float(full["checkpoint MB"]) == pytest.approx(plain_bytes(pipe, model) / 1e6, abs=0.01)
    written = [read_schedule(path) for path in (tmp_path / "run" / "frontier").glob("schedule-*.json")]
    assert written
    assert {"checkpoint_bytes", "peak_bytes"} <= {m.metric for m in written[0].measured}


def assert_begun_from(options, records, pipe):
    """The first schedules are those that the measurements say."""
    middle = len(blocks_of(pipe)) // 2
    assert len(options["mixed"]) >= 3
    assert all(set(choice) <= {0, 1} for choice in options["mixed"])
    few, *_, all_of_them = sorted(map(sum, options["mixed"]))
    assert 0 < few < all_of_them == len(options["mixed"][0])
    assert [len(blocks) for blocks in options["removals"]] == [1, 2, 3][: len(options["removals"])]
    assert {blocks_of(pipe)[middle].name, blocks_of(pipe)[middle - 1].name} & set(options["removals"][0])
    plain, mixed, removed = (e.candidate.schedule for e in records[:3])
    assert (plain.precision, plain.ops, plain.pruned) == ((), (), ())
    low = sum(rule_of(mixed.precision, name) is not None for name in linears_of(denoiser_of(pipe)))
    assert 0 < low < len(linears_of(denoiser_of(pipe)))
    assert (mixed.ops, mixed.pruned) == ((), ())
    assert list(removed.pruned) == options["removals"][0]


@pytest.mark.parametrize(
    ("known", "search", "said"),
    [
        ("fp32", "ecad", "--sensitivity: found it beside --search ecad, expected auto"),
        ("bf16", "auto", "--sensitivity: found measurements of .* in bf16, expected some of this model in fp32"),
    ],
    indirect=["known"],
)
def test_measurements_that_cannot_be_begun_from_are_refused(job, known, tmp_path, search, said):
    with pytest.raises(UsageError, match=said):
        job(tmp_path / "run", sensitivity=known, search=search)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_limit_of_memory_is_kept_and_what_breaks_it_is_not_run(search, pipe, model, tmp_path):
    limit = int(0.75 * plain_bytes(pipe, model))
    search(tmp_path / "run", max_memory=f"{limit}B")
    with Study.load(tmp_path / "run" / "study.db") as study:
        assert study.settings["max_memory"] == limit
        records = study.evaluations()
    kept, refused = ([e for e in records if e.status == status] for status in ("ok", "pruned"))
    assert kept
    assert all(dict(e.metrics)["peak_bytes"] <= limit for e in kept)
    over = [e for e in refused if e.reason.startswith("predicted peak memory")]
    assert all(e.candidate.schedule.precision for e in kept)
    assert all(e.denoiser_evals == 0 for e in over)


def test_memory_that_nothing_keeps_is_refused_before_the_search(job, pipe, model, tmp_path):
    with pytest.raises(EvaluationError, match="--max-memory: even all layers in the smallest format searched here"):
        job(tmp_path / "run", max_memory="1MB")


@pytest.mark.slow
def test_where_operations_count_formats_are_neither_timed_nor_searched(search, tmp_path):
    search(tmp_path / "run", budget="60%macs", trials=8)
    with Study.load(tmp_path / "run" / "study.db") as study:
        assert CostModel.from_json(str(study.notes["cost"])).prices is None
        assert not any(e.candidate.schedule.precision for e in study.evaluations())


def test_memory_that_is_no_number_of_bytes(job, tmp_path):
    with pytest.raises(UsageError, match="--max-memory: found '8 apples'"):
        job(tmp_path / "run", max_memory="8 apples")


@pytest.mark.slow
def test_a_study_of_an_earlier_release_keeps_its_formats(search, monkeypatch, tmp_path):
    """One whose cost model has no prices of formats goes on without the axis."""
    from schedsearch.optimize import _run

    monkeypatch.setattr(_run, "with_linear_prices", lambda cost, *_: cost)
    search(tmp_path / "run", trials=8)
    with Study.load(tmp_path / "run" / "study.db") as study:
        assert not any(e.candidate.schedule.precision for e in study.evaluations())
