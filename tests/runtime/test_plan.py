"""What a schedule does, step by step, without running anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.runtime._cache import Cache
from schedsearch.runtime._plan import plan
from schedsearch.schedule import ModelRef, Schedule, Solver
from schedsearch.types import BlockSpec

REF = ModelRef(pipeline="FluxPipeline", config="0" * 64, blocks="0" * 64, height=64, width=64)
BLOCKS = (
    tuple(BlockSpec(name=f"a.{i}", components=("attn", "ff")) for i in range(4)),
    tuple(BlockSpec(name=f"b.{i}", components=("attn",)) for i in range(2)),
)


def schedule(
    n_steps: int, pruned: tuple[str, ...] = (), sigma: tuple[float, ...] | None = None, **rows: str
) -> Schedule:
    return Schedule(
        sigma=sigma or tuple(1 - i / n_steps for i in range(n_steps + 1)),
        solver=(Solver(),) * n_steps,
        model=REF,
        ops=tuple((k.replace("__", "."), v) for k, v in rows.items()),
        pruned=pruned,
    )


def actions(s: Schedule, begin: int = 0) -> dict[tuple[str, ...], str]:
    return {site.modules: site.actions for site in plan(s, BLOCKS, begin=begin).sites}


def test_nothing_to_do_has_no_sites() -> None:
    assert plan(schedule(4), BLOCKS).sites == ()


def test_only_values_that_are_needed_are_kept() -> None:
    assert actions(schedule(8, model="CCRCCC2C")) == {(): "CKRKKK2C"}
    assert actions(schedule(5, model="CCCRC")) == {(): "CCKRC"}


def test_orders_are_clipped_to_the_history() -> None:
    assert actions(schedule(6, model="C3C3C3")) == {(): "KRK1K2"}


def test_adjacent_blocks_with_equal_rows_share_a_cache() -> None:
    s = schedule(4, a__1="CRCR", a__2="CRCR", a__3="CRRR", b__0="CRRR", b__1="CRRR")
    assert actions(s) == {("a.1", "a.2"): "KRKR", ("a.3",): "KRRR", ("b.0", "b.1"): "KRRR"}


def test_component_rows_split_a_run_and_yield_to_their_block() -> None:
    s = schedule(4, a__0="CRCC", a__1="CRCC", a__1__ff="CCRR")
    assert actions(s) == {("a.0",): "KRCC", ("a.1",): "KRCC", ("a.1.ff",): "K.RR"}


def test_the_model_row_wins_over_blocks_and_blocks_over_components() -> None:
    s = schedule(6, model="CCRCRC", a__0="CC1R1R", a__0__attn="C1111C")
    assert actions(s) == {(): "CKRKRC", ("a.0",): "CK.R.R", ("a.0.attn",): "KR...."}


def test_pruned_modules_skip_every_step() -> None:
    assert actions(schedule(3, pruned=("a.1", "b.0.attn"))) == {("a.1",): "SSS", ("b.0.attn",): "SSS"}


def test_a_run_that_begins_later_has_no_history() -> None:
    s = schedule(6, model="CC1R2C", a__0="CRRCR1")
    assert actions(s, begin=2) == {(): "..KRRC", ("a.0",): "..K..R"}
    assert actions(s, begin=5) == {(): ".....C", ("a.0",): ".....C"}


def test_sites_do_not_depend_on_the_first_step() -> None:
    s = schedule(6, a__0="CRCCCC", a__1="CCCRCC", a__1__ff="CRCCCC")
    shapes = [[site.modules for site in plan(s, BLOCKS, begin=b).sites] for b in range(6)]
    assert all(shape == shapes[0] for shape in shapes)


@settings(max_examples=60, deadline=None)
@given(
    row=st.text("CR123", min_size=4, max_size=12).map(lambda r: "C" + r),
    coefficients=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    gaps=st.lists(st.floats(0.05, 1.0), min_size=13, max_size=13),
)
def test_a_forecast_of_order_m_is_exact_for_polynomials_of_degree_m(
    row: str, coefficients: list[float], gaps: list[float]
) -> None:
    """For uneven sigmas, whenever the history suffices; lower orders are exact for lower degrees."""
    edges = [sum(gaps[: i + 1]) for i in range(len(row) + 1)]
    sigma = tuple((edges[-1] - e) / edges[-1] for e in [0.0, *edges[: len(row)]])
    (site,) = plan(schedule(len(row), sigma=sigma, model=row), BLOCKS).sites or (None,)
    if site is None:
        return
    for degree in range(site.order + 1):
        cache = Cache(site.order)
        for i, action in enumerate(site.actions):
            value = torch.tensor([sum(c * sigma[i] ** k for k, c in enumerate(coefficients[: degree + 1]))])
            numbers = tuple(torch.tensor(x) for x in site.numbers[i])
            if action == "K":
                cache.keep((value.double(),), tuple(n.double() for n in numbers))
            elif (action.isdigit() and int(action) >= degree) or (action == "R" and degree == 0):
                (forecast,) = cache.predict(tuple(n.double() for n in numbers))
                assert forecast.item() == pytest.approx(value.item(), abs=1e-5)


def test_reuse_returns_the_kept_value_bit_for_bit() -> None:
    cache = Cache(2)
    value = torch.randn(3, 5)
    cache.keep((value,), ())
    assert torch.equal(cache.predict(())[0], value)
    assert cache.n_bytes == 3 * value.numel() * 4


def test_buffers_are_reused_and_replaced_when_the_shape_changes() -> None:
    cache = Cache(0)
    cache.keep((torch.ones(2),), ())
    before = cache.levels[0][0].data_ptr()
    cache.keep((torch.zeros(2),), ())
    assert cache.levels[0][0].data_ptr() == before
    cache.keep((torch.zeros(3),), ())
    assert cache.levels[0][0].shape == (3,)
    cache.forget()
    assert cache.n_bytes == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_streams_stay_in_their_dtype(dtype: torch.dtype) -> None:
    cache = Cache(1)
    cache.keep((torch.full((4,), 1.0, dtype=dtype),), ())
    cache.keep((torch.full((4,), 2.0, dtype=dtype),), (torch.tensor(-2.0),))
    (value,) = cache.predict((torch.tensor(-0.5),))
    assert value.dtype == dtype
    assert value.tolist() == [3.0] * 4
