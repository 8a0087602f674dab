"""`sensitivity` and `calibrate` whole, on the bundled model with few steps, layers and prompts."""

from __future__ import annotations

import csv
import dataclasses
import functools

import pytest

from schedsearch.bench import (
    CalibrateSettings,
    SensitivitySettings,
    _calibration,
    _sensitivity,
    run_calibrate,
    run_sensitivity,
)
from schedsearch.errors import UsageError
from schedsearch.evaluate import policy_of, read_table, write_table
from schedsearch.schedule import read_schedule, write_schedule
from schedsearch.sensitivity import Sensitivities, read_sensitivities


@pytest.fixture
def loaded(monkeypatch, once):
    """The model is loaded once."""
    from schedsearch.evaluate import load_pipeline

    for module in (_calibration, _sensitivity):
        monkeypatch.setattr(module, "load_pipeline", once(load_pipeline))


@pytest.fixture
def spread(monkeypatch):
    """Effects without runs: a number for each cell from its name and word, and sets that add up."""
    from schedsearch.evaluate import SensitivityMeter

    worse = {"fp16": 1e-7, "int8": 1e-5, "int6": 1e-4, "int4": 1e-2, "int2": 1.0, "fp32": 0.0}

    def errors(_, precision=(), pruned=()):
        square = sum(worse[rule.weight] * (1 + len(rule.pattern) % 7) for rule in precision) + 0.1 * len(pruned)
        return (square**0.5, square**0.5)

    monkeypatch.setattr(SensitivityMeter, "errors", errors)


def read(path):
    with path.open() as file:
        return list(csv.reader(file))


SETTINGS = functools.partial(
    SensitivitySettings, formats="fp16,int8,int2", bits="6,4", ranks="0,2", carrier="2", prompts=2, held_out=2,
    subsets=8,
)  # fmt: skip
MARKERS = ("operations", "blocks", "additivity", "bits", "protection", "removed", "removals")


def test_sensitivity_writes_its_measurements_tables_and_schedules(six_steps, loaded, spread, screen, tmp_path):
    docs = tmp_path / "page.md"
    docs.write_text("".join(f"<!-- sensitivity-{n}: begin -->\n<!-- sensitivity-{n}: end -->\n" for n in MARKERS))
    settings = SETTINGS(model=str(six_steps), out=tmp_path / "s.json", into=docs, command="schedsearch sensitivity")
    assert run_sensitivity(settings, screen) == tmp_path / "s.json"

    found = read_sensitivities(tmp_path / "s.json")
    assert isinstance(found, Sensitivities)
    assert [choice.word for choice in found.choices] == [
        "fp16/fp32", "int8/fp32", "int2/fp32", "int6/fp32", "int4/fp32", "int4/fp32+2",
    ]  # fmt: skip
    assert len(found.cells) == 6 * 112 + 12
    assert len([subset for subset in found.subsets if subset.kind == "formats"]) == 8
    bits = read(tmp_path / "s-bits.csv")
    assert [row[0] for row in bits[1:]] == ["int6/fp32", "int4/fp32"]
    for row in bits[1:]:
        assert float(row[3]) <= float(row[1]) + 1e-3
    for n in (6, 4):
        mixed = read_schedule(tmp_path / f"s-{n}-bits.json")
        assert mixed.n_steps == 6
        assert 1 <= len(mixed.precision) <= 112
    protection = read(tmp_path / "s-protection.csv")
    assert [(row[0], row[2]) for row in protection[1:]] == [
        ("none", "0"), ("none", "2"), ("int8", "0"), ("int8", "2"), ("own dtype", "0"), ("own dtype", "2"),
    ]  # fmt: skip
    assert [row[0] for row in read(tmp_path / "s-removals.csv")[1:]] == ["10%", "20%", "30%"]
    assert "| int4/fp32 |" in docs.read_text()
    assert "warning" not in screen.text()

    # Nothing is measured again.
    before = (tmp_path / "s.json").stat().st_mtime_ns
    settings = SETTINGS(model=str(six_steps), out=tmp_path / "s.json")
    run_sensitivity(settings, screen)
    assert read_sensitivities(tmp_path / "s.json") == found
    assert (tmp_path / "s.json").stat().st_mtime_ns >= before


def test_sums_that_do_not_hold_are_a_warning(six_steps, loaded, monkeypatch, screen, tmp_path):
    from schedsearch.evaluate import SensitivityMeter

    def errors(_, precision=(), pruned=()):
        return (0.1 / (len(precision) + len(pruned)),) * 2

    monkeypatch.setattr(SensitivityMeter, "errors", errors)
    settings = SETTINGS(model=str(six_steps), formats="int4", bits="4", ranks="0", out=tmp_path / "s.json")
    run_sensitivity(settings, screen)
    text = screen.text()
    assert "warning: formats: rank correlation -" in text
    assert "assignments by sums are places for a search to begin, not results" in text

    # What was chosen for four bits has precision rules, so nothing can be measured on it; without them it carries.
    chosen = read_schedule(tmp_path / "s-4-bits.json")
    for rules, name in ((chosen.precision, "low"), ((), "plain")):
        write_schedule(dataclasses.replace(chosen, precision=rules), tmp_path / f"{name}.json")
    other = dataclasses.replace(settings, carrier=str(tmp_path / "low.json"), out=tmp_path / "t.json")
    with pytest.raises(UsageError, match="carrier: found precision rules or removed blocks"):
        run_sensitivity(other, screen)
    run_sensitivity(dataclasses.replace(other, carrier=str(tmp_path / "plain.json"), blocks=False), screen)
    found = read_sensitivities(tmp_path / "t.json")
    assert (found.header.steps, found.header.carrier) == (6, dataclasses.replace(chosen, precision=()).id)


@pytest.fixture
def latencies(six_steps, tmp_path):
    """A table in which int8 takes a quarter of the base's time in every layer, and a block takes 2 ms."""
    from schedsearch.evaluate import LatencyTable, Workload, find_card, linears_of, load_pipeline
    from schedsearch.evaluate._trace import capture_call
    from schedsearch.evaluate.profile import OpRow, table_header
    from schedsearch.runtime import denoiser_of

    card = find_card(str(six_steps))
    pipe = load_pipeline(card)
    linears = linears_of(denoiser_of(pipe), capture_call(pipe, Workload.from_card(card), "a").kwargs)
    plain = OpRow(
        op="linear", name="", shape=(1,), format="fp32", execution="base", eager_ms=0.4, compiled_ms=None, n=1
    )
    rows = [
        dataclasses.replace(plain, shape=shape, format=fmt, execution=how, eager_ms=ms)
        for shape in sorted({layer.shape for layer in linears.layers})
        for fmt, how, ms in (("fp32", "base", 0.4), ("int8", "torch", 0.1), ("int4", "simulated", 0.1))
    ]
    rows.append(dataclasses.replace(plain, op="block", name="transformer_blocks", eager_ms=2.0))
    header = table_header(pipe, card, weights="loaded")
    write_table(LatencyTable(header=header, linears=linears, rows=tuple(rows)), tmp_path / "ms.json")
    return tmp_path / "ms.json"


def test_with_a_latency_table_formats_are_mixed_for_time_as_well(six_steps, loaded, spread, screen, latencies):
    tmp_path = latencies.parent
    settings = SETTINGS(
        model=str(six_steps), formats="int8/int8,int4/int4", bits="", subsets=0, latencies=latencies,
        out=tmp_path / "s.json",
    )  # fmt: skip
    run_sensitivity(settings, screen)
    found = read_sensitivities(tmp_path / "s.json")
    name = "transformer_blocks.0.ff.net.2"
    assert found.cell(name, "int8").saved_ms == pytest.approx(0.3)
    assert found.cell(name, "int4").saved_ms is None  # simulated here
    assert found.cell("transformer_blocks.0", "").saved_ms == 2.0
    assert found.cell("single_transformer_blocks.0", "").saved_ms is None
    rows = read(tmp_path / "s-speed.csv")
    assert [(row[0], float(row[1])) for row in rows[1:]] == [
        ("25%", pytest.approx(0.25 * 112 * 0.3, abs=0.3)),
        ("50%", pytest.approx(0.5 * 112 * 0.3, abs=0.3)),
        ("75%", pytest.approx(0.75 * 112 * 0.3, abs=0.3)),
        ("100%", pytest.approx(112 * 0.3, rel=1e-3)),
    ]

    table = read_table(latencies)
    other = dataclasses.replace(table, header=dataclasses.replace(table.header, config="f" * 64))
    write_table(other, tmp_path / "other.json")
    with pytest.raises(UsageError, match=r"--latencies: found a table of .* in fp32, expected one of this model"):
        run_sensitivity(dataclasses.replace(settings, latencies=tmp_path / "other.json"))


def test_what_was_measured_before_an_interruption_is_kept(six_steps, loaded, monkeypatch, tmp_path):
    from schedsearch.evaluate import SensitivityMeter

    measured = []

    def errors(_, precision=(), pruned=()):
        if len(measured) == 7:
            raise KeyboardInterrupt
        measured.append(precision)
        return (0.1, 0.1)

    monkeypatch.setattr(SensitivityMeter, "errors", errors)
    with pytest.raises(KeyboardInterrupt):
        run_sensitivity(SETTINGS(model=str(six_steps), out=tmp_path / "s.json"))
    assert len(read_sensitivities(tmp_path / "s.json").cells) == 7


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"bits": "8,x"}, "--bits: found 'x', expected whole numbers of at least 2"),
        ({"bits": "1"}, "--bits: found '1', expected whole numbers of at least 2"),
        ({"ranks": "-1"}, "--ranks: found '-1', expected whole numbers of at least 0"),
        ({"formats": "int7"}, "--formats: found 'int7'"),
        ({"bits": "7"}, "--bits: found 7, expected some of 8, 6, 5, 4, 3, 2"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(six_steps, loaded, tmp_path, more, said):
    with pytest.raises(UsageError, match=said):
        run_sensitivity(SETTINGS(**{"model": str(six_steps), "out": tmp_path / "s.json", **more}))


def test_calibrate_compares_all_policies_and_writes_a_schedule_of_each(
    six_steps, loaded, screen, tmp_path, monkeypatch
):
    from schedsearch.evaluate import _calibration as fitting
    from schedsearch.quantize import fit_tables

    monkeypatch.setattr(
        fitting, "fit_tables", lambda *given, **more: fit_tables(*given, **{**more, "tools": ("bias",)})
    )
    docs = tmp_path / "page.md"
    docs.write_text("<!-- calibration: begin -->\n<!-- calibration: end -->\n")
    settings = CalibrateSettings(
        model=str(six_steps), precision="int2", protect=True, policy="all", prompts=2, rows=24, held_out=2,
        out=tmp_path / "low.json", into=docs,
    )  # fmt: skip
    paths = run_calibrate(settings, screen)
    names = ["all-steps", "near-image", "last-step"]
    assert [path.name for path in paths] == [f"low-{name}.json" for name in names]
    rows = read(tmp_path / "low-policies.csv")
    assert [row[0] for row in rows[1:]] == ["no tables", *names]
    for name, path in zip(names, paths, strict=True):
        schedule = read_schedule(path)
        policy = policy_of(schedule)
        if schedule.tables is not None:
            assert (policy.name, policy.prompts, policy.rows) == (name, 2, 24)
        assert {rule.weight for rule in schedule.precision} == {"fp32", "int2"}
    assert "| no tables |" in docs.read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"policy": "best"}, "--policy: found 'best', expected one of all-steps, near-image, last-step, or all"),
        ({"precision": ""}, "Give the schedule rules, for instance with --precision"),
        ({"precision": "fp32"}, "--precision: found 'fp32', expected a format of fewer bits"),
        ({"precision": "", "protect": True}, "--protect: found it without --precision"),
    ],
)
def test_calibrations_that_cannot_be_meant_are_refused(six_steps, loaded, tmp_path, more, said):
    settings = {"model": str(six_steps), "precision": "int4", "out": tmp_path / "low.json", **more}
    with pytest.raises(UsageError, match=said):
        run_calibrate(CalibrateSettings(**settings))
