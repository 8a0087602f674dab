"""What is left of a stage and of a run: with clocks that are told what to say, and against a run that was recorded."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from schedsearch.optimize._eta import Pace, Unit, clock_text, fitted_rate
from schedsearch.optimize._finals import awaited
from schedsearch.optimize._forecast import Forecast

RECORDED = Path(__file__).parent / "recorded-run.json"

RECORDED_SEARCH = Path(__file__).parent / "recorded-search.json"
"""Seconds at which the measurements of an earlier search ended, on a machine that kept its speed."""


class Clock:
    """A clock that stands until it is told to go."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def replayed(durations, *, plan=(), begun_at=0, moments=5):
    """Replay a stage; yield its share done, what was estimated to be left, and what was, also between two units."""
    clock = Clock()
    pace = Pace(plan, clock=clock)
    total = begun_at + len(durations)
    if not plan:
        pace.update(begun_at, total)
    for i, seconds in enumerate(durations):
        for moment in range(moments):
            left = sum(durations[i:]) - seconds * moment / moments
            yield i / len(durations), pace.remaining(), left
            clock.now += seconds / moments
        pace.update(begun_at + i + 1, total)
    assert pace.remaining() == 0.0


def off(replay):
    """The worst factor by which an estimate is off after the first tenth; of the last moments one unit is too much."""
    told = [(told, left) for share, told, left in replay if share >= 0.1]
    longest = max(left for _, left in told)
    return max(max(told / left, left / told) for told, left in told if left > 0.05 * longest)


def noisy(means, seed=0):
    rng = random.Random(seed)
    return [mean * rng.lognormvariate(0.0, 0.5) for mean in means]


@pytest.mark.parametrize(
    ("name", "durations"),
    [
        ("steady", [2.0] * 50),
        ("noisy", noisy([0.3] * 400)),
        ("a slow start", [5.0] * 4 + noisy([0.2] * 396)),
        ("getting slower", noisy([0.2 + 0.0005 * i for i in range(400)])),
        ("getting faster", noisy([0.4 - 0.0005 * i for i in range(400)])),
        ("cheap first looks", noisy([0.15, 0.15, 0.15, 0.6] * 100)),
    ],
)
def test_a_stage_is_told_within_a_factor_of_two_after_its_first_tenth(name, durations):
    assert off(replayed(durations)) < 2.0, name


def test_a_run_that_goes_on_is_told_by_what_it_does_now():
    durations = noisy([0.5] * 100)
    assert off(replayed(durations, begun_at=300)) < 2.0


def test_a_unit_that_takes_long_raises_the_estimate_as_it_does():
    clock = Clock()
    pace = Pace(clock=clock)
    for i in range(11):
        pace.update(i, 20)
        clock.now += 1.0
    assert pace.remaining() == pytest.approx(9.0)
    clock.now += 29.0  # the eleventh has taken half a minute so far
    assert pace.remaining() == pytest.approx(9 * (5.0 + 30.0) / 6)


def test_before_anything_is_measured_nothing_is_told():
    assert Pace(clock=Clock()).remaining() is None
    pace = Pace(clock=Clock())
    pace.update(0, 10)
    assert pace.remaining() is None


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_a_plan_is_scaled_by_what_was_measured(factor):
    """Units of two kinds, the first a large one: as where references come first and clocks last."""
    plan = [Unit("score", 30.0), *(Unit("score", 4.0 - 0.1 * i) for i in range(20)), *[Unit("time", 6.0)] * 12]
    durations = [unit.seconds * (factor if unit.kind == "score" else 1.0) for unit in plan]
    durations = [*noisy(durations[:21]), *durations[21:]]
    assert off(replayed(durations, plan=plan)) < 2.0
    first = next(replayed(durations, plan=plan))
    assert first[1] == pytest.approx(sum(unit.seconds for unit in plan)), "known before it begins"


def test_a_plan_that_does_not_fit_is_left_aside():
    clock = Clock()
    pace = Pace([Unit("score", 100.0)] * 3, clock=clock)
    pace.update(0, 10)
    clock.now += 4.0
    pace.update(2, 10)
    assert pace.remaining() == pytest.approx(16.0)


def test_rates_are_those_that_made_the_records():
    records = [(0.01 * evals + 0.05 * images, evals, images) for evals, images in ((56, 2), (24, 8), (0, 8), (10, 2))]
    rate = fitted_rate(records, fallback=1.0)
    assert rate == pytest.approx((0.01, 0.05))
    assert rate.seconds(evals=100, images=10) == pytest.approx(1.5)


def test_rates_never_tell_less_than_nothing():
    assert fitted_rate([], fallback=0.5) == (0.5, 0.0)
    assert fitted_rate([(3.0, 30, 3), (1.0, 10, 1)], fallback=0.5) == (0.1, 0.0), "one cannot be told from the other"
    assert min(fitted_rate([(1.0, 10, 1), (1.0, 100, 2), (1.0, 50, 9)], fallback=0.5)) >= 0.0
    assert min(fitted_rate([(1.0, 100, 9), (9.0, 110, 1), (0.5, 50, 9)], fallback=0.5)) >= 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0.0, "0:00"), (59.6, "1:00"), (3599.7, "1:00:00"), (86400.0, "24:00:00")]
)
def test_seconds_as_on_a_clock(seconds, text):
    assert clock_text(seconds) == text


# ---- a run that was recorded by record_run.py


@pytest.fixture(scope="module")
def recorded():
    """What a search measured when, who the finalists were on the way, and how long the stages after it took."""
    return json.loads(RECORDED.read_text("utf-8"))


def told_at(recorded, n):
    """The forecast of the last stages after ``n`` records, and what it takes for one to be made."""
    finalists = next(finalists for at, finalists in reversed(recorded["finalists"]) if at <= n)
    plans = awaited([SimpleNamespace(ms=ms, fitting=evals) for ms, evals in finalists])
    cost = SimpleNamespace(full_ms=recorded["full_ms"], predict_ms=lambda plan: plan.ms)
    bench = SimpleNamespace(cost=cost, card=SimpleNamespace(steps=recorded["steps"]))
    evaluations = [
        SimpleNamespace(seconds=seconds, denoiser_evals=evals, fidelity=images, status="ok" if is_ok else "failed")
        for _, seconds, evals, images, is_ok in recorded["records"][:n]
    ]
    study = SimpleNamespace(evaluations=lambda: evaluations)
    told = Forecast(bench, study, tuple(recorded["prompts"]), fitting_evals=lambda plan: plan.fitting)
    return told.finals(plans, recorded["fewer_steps"])


def test_the_end_of_a_recorded_search_is_told_within_a_factor_of_two():
    moments = json.loads(RECORDED_SEARCH.read_text("utf-8"))["moments"]
    durations = [now - before for before, now in pairwise(moments)]
    assert len(durations) == 399
    assert off(replayed(durations, moments=2)) < 1.5


def test_the_stages_after_a_recorded_search_are_forecast_within_a_factor_of_two(recorded):
    for n in range(40, 401, 20):
        assert 0.5 < told_at(recorded, n) / recorded["finals_seconds"] < 2.0, n
    assert told_at(recorded, 400) == pytest.approx(recorded["finals_seconds"], rel=0.15)


def test_the_end_of_a_recorded_run_is_told_within_a_factor_of_two_from_a_tenth_of_the_search_on(recorded):
    clock = Clock()
    pace = Pace(clock=clock)
    moments = [record[0] for record in recorded["records"]]
    end = moments[-1] + recorded["finals_seconds"]
    for done, moment in enumerate(moments, start=1):
        clock.now = moment
        pace.update(done, len(moments))
        if done >= 40 and done % 20 == 0:
            told = pace.remaining() + told_at(recorded, done)
            assert 0.5 < told / (end - moment) < 2.0, done
