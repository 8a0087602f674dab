"""Wall time with a clock of our own: order, warm-up, pairing and what does not count."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.evaluate import LatencySamples, TimedRun, device_name, measure_latency, paired_ratio
from schedsearch.evaluate._latency import quantile, synchroniser


class Machine:
    """A clock, and work that takes as long as it says; `slow` slows everything down from now on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.speed = 1.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, ms: float):
        def run() -> None:
            self.log.append(name)
            self.now += ms * self.speed / 1e3

        return run


@pytest.fixture
def machine():
    return Machine()


def test_runs_take_turns_and_warm_up_does_not_count(machine):
    runs = {"a": machine.work("a", 10.0), "b": machine.work("b", 30.0)}

    samples = measure_latency(runs, repeats=3, warmup=2, clock=machine.clock)

    assert machine.log == ["a", "b"] * 5
    assert samples["a"].ms == pytest.approx((10.0,) * 3)
    assert samples["b"].median_ms == pytest.approx(30.0)


def test_a_ratio_is_taken_inside_each_round(machine):
    def slow_down(done: int) -> None:
        machine.speed = 1.0 + done

    runs = {"plain": machine.work("plain", 40.0), "fast": machine.work("fast", 10.0)}
    samples = measure_latency(runs, repeats=5, warmup=0, clock=machine.clock, on_round=slow_down)

    assert samples["plain"].ms == pytest.approx((40.0, 80.0, 120.0, 160.0, 200.0))
    speedup = paired_ratio(samples["plain"], samples["fast"])
    assert (speedup.median, speedup.low, speedup.high, speedup.n) == pytest.approx((4.0, 4.0, 4.0, 5))


def test_preparation_is_not_timed_and_is_undone(machine):
    @contextmanager
    def prepare():
        machine.work("enter", 100.0)()
        yield
        machine.work("leave", 100.0)()

    run = TimedRun(call=machine.work("run", 5.0), prepare=prepare)
    samples = measure_latency({"a": run}, repeats=2, warmup=0, clock=machine.clock)

    assert machine.log == ["enter", "run", "leave"] * 2
    assert samples["a"].ms == pytest.approx((5.0, 5.0))


def test_the_collector_rests_while_timing_and_comes_back(machine):
    seen: list[bool] = []
    measure_latency({"a": lambda: seen.append(gc.isenabled())}, repeats=2, warmup=1)

    assert seen == [False] * 3
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error():
    def fail() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        measure_latency({"a": fail})
    assert gc.isenabled()


@pytest.mark.parametrize(("runs", "repeats"), [({}, 1), ({"a": lambda: None}, 0)])
def test_nothing_to_time_is_refused(runs, repeats):
    with pytest.raises(UsageError, match="expected at least one run, repeats >= 1 and warmup >= 0"):
        measure_latency(runs, repeats=repeats)


def test_ratios_need_the_same_rounds():
    with pytest.raises(UsageError, match="found 2 rounds of a and 1 of b, expected runs of one measurement"):
        paired_ratio(LatencySamples(name="a", ms=(1.0, 2.0)), LatencySamples(name="b", ms=(1.0,)))


@given(values=st.lists(st.floats(0.1, 1e3), min_size=1, max_size=9), q=st.floats(0.0, 1.0))
def test_quantiles_grow_from_least_to_most(values, q):
    sample = LatencySamples(name="a", ms=tuple(values))

    assert sample.quantile(0.0) == min(values)
    assert sample.quantile(1.0) == max(values)
    assert min(values) <= sample.quantile(q) <= max(values) + 1e-9
    assert sample.quantile(0.5) == pytest.approx(sample.median_ms)


def test_a_quantile_outside_zero_and_one_is_refused():
    with pytest.raises(UsageError, match=r"found q=1.5 of 2 values, expected q in \[0, 1\]"):
        quantile((1.0, 2.0), 1.5)


def test_the_device_is_named_in_words():
    assert "thread" in device_name("cpu")
    synchroniser("cpu")()
