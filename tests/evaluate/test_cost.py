"""The cost model: closed-form predictions, storage, the fit, and (slow) agreement with the clock."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from schedsearch.errors import EvaluationError
from schedsearch.evaluate import CostModel, Workload, measure_cost
from schedsearch.evaluate import _calibrate as calibrate
from schedsearch.evaluate._bench_cost import TOLERANCE, compare, main, random_schedule, write_rows
from schedsearch.evaluate._calibrate import measure_anchored, probe_schedules
from schedsearch.evaluate._cost import FEATURES, ModuleTimes, feature_amounts
from schedsearch.evaluate._insitu import Breakdown, measure_breakdown
from schedsearch.evaluate._latency import TimedRun

BLOCK_MS = 2.0
PART_MS = 0.5
REST_MS = 1.0


@pytest.fixture(scope="module")
def times(lists):
    """Made-up times: every block 2 ms, every component 0.5 ms, 1 ms around them."""
    modules = [(b.name, BLOCK_MS) for each in lists for b in each]
    modules += [(f"{b.name}.{part}", PART_MS) for each in lists for b in each for part in b.components]
    return ModuleTimes(block_lists=lists, branches=1, rest_ms=REST_MS, modules=tuple(modules))


@pytest.fixture(scope="module")
def model(times):
    """A floor of 10 ms, 0.1 ms per step, 0.01 ms for anything a cache does."""
    known = {"floor": 10.0, "loop": 0.1, "compute": 1.0, "saved": 1.0}
    coefficients = tuple(known.get(name, 0.01) for name in FEATURES)
    return CostModel(device="a machine", full_ms=110.4, times=times, coefficients=coefficients, residual=0.0)


def test_the_plain_run_is_floor_loop_and_compute(model, plan):
    full = REST_MS + 12 * BLOCK_MS

    assert model.predict_ms(plan(steps=4)) == pytest.approx(10.0 + 4 * (0.1 + full))
    assert model.speedup(plan(steps=4)) == pytest.approx(110.4 / (10.4 + 4 * full))
    assert model.floor_ms == 10.0


def test_a_reused_model_costs_its_keep_and_its_prediction(model, plan):
    full = REST_MS + 12 * BLOCK_MS
    # one keep, two predictions, of which one to first order; the second keep takes one divided difference
    reuse, forecast = plan(rows={"model": "CRRC"}), plan(rows={"model": "CC1C"})

    assert model.predict_ms(reuse) == pytest.approx(10.4 + 2 * full + 0.01 + 2 * 0.01)
    assert model.predict_ms(forecast) == pytest.approx(10.4 + 3 * full + (2 + 1) * 0.01 + (1 + 1) * 0.01)


def test_a_run_of_equal_blocks_predicts_once(model, plan):
    rows = {"transformer_blocks.0": "CRCC", "transformer_blocks.1": "CRCC"}

    saved = model.predict_ms(plan()) - model.predict_ms(plan(rows=rows))

    # two blocks that do not run, against one keep, one prediction and two blocks handing on
    assert saved == pytest.approx(2 * BLOCK_MS - 4 * 0.01)


def test_a_component_saves_itself(model, plan):
    schedule = plan(rows={"transformer_blocks.0.ff": "CSCC"})

    assert model.predict_ms(plan()) - model.predict_ms(schedule) == pytest.approx(PART_MS)


def test_two_branches_pay_every_call_twice(times, model, plan):
    twice = dataclasses.replace(model, times=dataclasses.replace(times, branches=2))
    full = REST_MS + 12 * BLOCK_MS

    assert twice.predict_ms(plan()) == pytest.approx(10.4 + 8 * full)


def test_a_stored_model_predicts_the_same(model, mini, short):
    read = CostModel.from_json(model.to_json())

    assert read == model
    for seed in range(5):
        schedule = random_schedule(mini, short, seed)
        assert read.predict_ms(schedule) == model.predict_ms(schedule)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "coefficients": null}'])
def test_damaged_text_is_an_error(text):
    with pytest.raises(EvaluationError, match=r"cost model: found damaged text .* Measure it again"):
        CostModel.from_json(text)


def test_another_version_is_an_error(model):
    content = json.loads(model.to_json()) | {"version": 9}

    with pytest.raises(EvaluationError, match="cost model: found version 9, expected 1"):
        CostModel.from_json(json.dumps(content))


def test_the_fit_finds_the_coefficients_that_made_the_times(mini, short, lists, times, model):
    workload = dataclasses.replace(short, steps=28)
    probes = probe_schedules(mini, workload, lists)
    measured = {name: model.predict_ms(probe) for name, probe in probes.items()}
    breakdown = Breakdown(floor_ms=10.5, loop_ms=0.12, denoiser_ms=25.0, times=times)

    coefficients = calibrate._fit(probes, measured, breakdown)

    fitted = dataclasses.replace(model, coefficients=coefficients)
    for seed in range(20):
        schedule = random_schedule(mini, workload, seed)
        assert fitted.predict_ms(schedule) == pytest.approx(model.predict_ms(schedule), rel=0.02)


def test_one_disturbed_probe_does_not_spoil_the_fit(mini, short, lists, times, model):
    workload = dataclasses.replace(short, steps=28)
    probes = probe_schedules(mini, workload, lists)
    measured = {name: model.predict_ms(probe) for name, probe in probes.items()}
    measured["model, reuse half"] *= 1.5
    breakdown = Breakdown(floor_ms=10.0, loop_ms=0.1, denoiser_ms=25.0, times=times)

    fitted = dataclasses.replace(model, coefficients=calibrate._fit(probes, measured, breakdown))

    errors = [
        fitted.predict_ms(s) / model.predict_ms(s) - 1 for s in (random_schedule(mini, workload, i) for i in range(20))
    ]
    assert max(map(abs, errors)) < 0.05


def test_probes_cover_every_feature(mini, short, lists, times):
    probes = probe_schedules(mini, dataclasses.replace(short, steps=28), lists)

    amounts = [feature_amounts(probe, times) for probe in probes.values()]

    assert all(any(row[j] for row in amounts) for j in range(len(FEATURES)))


def test_random_schedules_are_legal_repeatable_and_of_all_levels(mini, short):
    workload = dataclasses.replace(short, steps=28)
    drawn = [random_schedule(mini, workload, seed) for seed in range(20)]

    assert drawn == [random_schedule(mini, workload, seed) for seed in range(20)]
    levels = {name.count(".") for schedule in drawn for name, _ in schedule.ops}
    assert levels == {0, 1, 2}


def test_ratios_are_to_the_plain_runs_before_and_after():
    now = [0.0]

    def work(ms):
        def run() -> None:
            # The machine slows down steadily: pairing with one plain run would be off by a quarter.
            now[0] += ms * (1.0 + now[0] / 1e3)

        return run

    from contextlib import nullcontext

    import schedsearch.evaluate._calibrate as module

    real = module.measure_latency
    try:
        module.measure_latency = lambda *a, **k: real(*a, clock=lambda: now[0] / 1e3, **k)
        runs = {f"{i}": TimedRun(call=work(5.0), prepare=nullcontext) for i in range(6)}
        anchored = measure_anchored(work(10.0), runs, repeats=1, warmup=0, device="cpu")
    finally:
        module.measure_latency = real

    assert list(anchored.ratios) == [str(i) for i in range(6)]
    assert list(anchored.ratios.values()) == pytest.approx([0.5] * 6, rel=0.05)


def test_a_breakdown_adds_up_to_the_whole(mini, short, lists):
    call = lambda: calibrate.call_once(mini, short, "a picture")
    parts = measure_breakdown(
        call, mini.transformer, lists, full_ms=100.0, branches=1, device=torch.device("cpu"), repeats=2
    )

    inside = sum(dict(parts.times.modules)[b.name] for each in lists for b in each)
    assert parts.floor_ms + 4 * (parts.loop_ms + parts.denoiser_ms) == pytest.approx(100.0)
    assert parts.times.rest_ms + inside == pytest.approx(parts.denoiser_ms)
    assert 0 < parts.floor_ms < 100
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in mini.transformer.modules())


def test_a_single_step_cannot_be_broken_down(mini, short, lists):
    call = lambda: calibrate.call_once(mini, short, "a picture", steps=1)

    with pytest.raises(EvaluationError, match="found 1 denoiser calls, expected a run of two steps"):
        measure_breakdown(call, mini.transformer, lists, full_ms=1.0, branches=1, device=torch.device("cpu"), repeats=1)
    with pytest.raises(EvaluationError, match="found 1 step, expected a plain run of two steps"):
        measure_cost(mini, dataclasses.replace(short, steps=1), device="cpu")


def test_a_measured_model_knows_what_is_cheaper(mini, short, plan):
    rounds: list[tuple[int, int]] = []
    model = measure_cost(
        mini, short, device="cpu", repeats=1, warmup=1, on_round=lambda done, total: rounds.append((done, total))
    )

    assert rounds == [(1, 2), (2, 2)]
    assert model.full_ms > 0
    assert "thread" in model.device
    order = [plan(rows={"model": "CRRR"}), plan(rows={"model": "CRCR"}), plan()]
    assert [model.predict_ms(s) for s in order] == sorted(model.predict_ms(s) for s in order)


def test_the_benchmark_writes_its_table(mini, short, model, tmp_path):
    rows = compare(mini, short, model, schedules=2, rounds=1, device="cpu")
    write_rows(tmp_path / "cost.csv", rows)

    lines = (tmp_path / "cost.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "name,steps,predicted_ms,measured_ms,error"
    assert len(lines) == 3
    assert rows[0].error == pytest.approx(rows[0].predicted_ms / rows[0].measured_ms - 1)


@pytest.mark.slow
def test_predictions_hold_on_twenty_random_schedules(mini, mini_card):
    """Every prediction within 10 % of the measurement, given three attempts.

    The tolerance is that of the model. The attempts are for the clock: on a machine that others use, medians of nine
    rounds still stray by several per cent now and then, and a wrong model would fail all three. Twelve steps instead of
    28 save time; the benchmark (``python -m schedsearch.evaluate._bench_cost``) takes all.
    """
    workload = dataclasses.replace(Workload.from_card(mini_card), steps=12)
    worst = []
    for _ in range(3):
        model = measure_cost(mini, workload, device="cpu", repeats=5)
        rows = compare(mini, workload, model, schedules=20, rounds=5, device="cpu")
        worst.append(max(abs(row.error) for row in rows))
        if worst[-1] <= TOLERANCE:
            return
    pytest.fail(f"largest relative errors of three attempts: {worst}, allowed {TOLERANCE}")


def test_the_benchmark_is_a_program(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    assert "--schedules" in capsys.readouterr().out
