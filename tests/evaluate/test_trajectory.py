"""Latents along a run: linear between levels, thinned to fit, and recorded without disturbing the run."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import UsageError
from schedsearch.evaluate import Trajectory, pipeline_kwargs
from schedsearch.evaluate._reference import Reference, converged_schedule
from schedsearch.evaluate._trajectory import kept_points, relative_error, squared_sums
from schedsearch.runtime import apply, default_sigmas


@given(sigma=st.floats(-1.0, 2.0))
def test_a_straight_line_is_met_at_every_level(sigma):
    levels = (1.0, 0.7, 0.4, 0.1)
    line = Trajectory(sigma=levels, states=tuple(torch.tensor([3.0 * s + 1.0], dtype=torch.float64) for s in levels))

    assert line.at(sigma).item() == pytest.approx(3.0 * min(max(sigma, 0.1), 1.0) + 1.0)


def test_recorded_levels_give_their_own_state():
    states = tuple(torch.randn(2, 3) for _ in range(4))
    along = Trajectory(sigma=(1.0, 0.6, 0.3, 0.0), states=states)

    assert all(along.at(s) is state for s, state in zip(along.sigma, states, strict=True))
    assert torch.equal(along.rows(1, 2).at(0.3), states[2][1:2])
    assert along.n_bytes == 4 * 6 * 4


@pytest.mark.parametrize(("sigma", "n"), [((1.0, 0.5), 1), ((), 0), ((0.5, 1.0), 2)])
def test_states_and_falling_levels_belong_together(sigma, n):
    with pytest.raises(UsageError, match="expected one state for each of at least one level, and the levels to fall"):
        Trajectory(sigma=sigma, states=(torch.zeros(1),) * n)


@given(n=st.integers(2, 60), room=st.integers(0, 700))
def test_what_is_kept_fits_and_has_both_ends(n, room):
    kept = kept_points(n, 10, room)

    assert kept[0] == 0
    assert kept[-1] == n - 1
    assert len(kept) * 10 <= room or kept == (0, n - 1)
    assert len(kept) == n or len(kept) * 10 * 2 > room - 30 or len(kept) == 2  # no coarser than it must be


def test_errors_are_relative_and_nan_is_infinite():
    assert relative_error(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 4.0])) == 0.25
    assert relative_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf


def test_inner_products_are_those_of_numpy():
    columns = [torch.randn(2, 3, 4) for _ in range(3)]
    stacked = torch.stack([c.flatten() for c in columns]).double().numpy()

    assert squared_sums(columns[:2], columns[2]).numpy() == pytest.approx(stacked @ stacked.T)


def test_the_reference_is_the_plain_run_to_the_bit(tiny, tiny_runs, tiny_workload):
    runs = tiny_runs(n=3, batch=2)
    reference = Reference(runs)
    reference.prepare(3)

    for start, stop in ((0, 2), (2, 3)):
        latents = runs.latents(start, stop)
        kwargs = pipeline_kwargs(tiny_workload, runs._embeds.rows(start, stop), latents=runs.noise(start, stop))
        along = reference.trajectory(start, stop)
        assert torch.equal(along.states[-1], latents)
        assert torch.equal(along.states[0], runs.noise(start, stop))
        assert torch.equal(reference.pictures(start, stop).images, tiny(**kwargs)[0])
        assert along.sigma == default_sigmas(tiny, 6, height=8, width=8)
    assert torch.equal(reference.trajectory(0, 1).states[3], reference.trajectory(0, 2).states[3][:1])


def test_states_along_the_way_are_those_of_shorter_walks(tiny, tiny_runs):
    """Each recorded state is the Euler step from the one before: nothing is off by one."""
    runs = tiny_runs(n=1, batch=1)
    reference = Reference(runs)
    reference.prepare(1)
    along, outputs = reference.trajectory(0, 1), []
    hook = tiny.transformer.register_forward_hook(lambda _m, _a, out: outputs.append(out[0]))
    runs.latents(0, 1)
    hook.remove()

    for i, output in enumerate(outputs):
        step = along.states[i] + (along.sigma[i + 1] - along.sigma[i]) * output
        assert torch.allclose(step, along.states[i + 1], atol=1e-6)


def test_a_narrow_memory_keeps_fewer_levels(tiny_runs):
    runs = tiny_runs(n=2, batch=2)
    whole, thin = Reference(runs), Reference(runs, trajectory_bytes=4 * 2 * 16 * 4 * 4)
    for reference in (whole, thin):
        reference.prepare(2)

    assert len(whole.trajectory(0, 2).states) == 7
    assert len(thin.trajectory(0, 2).states) <= 4
    assert torch.equal(thin.pictures(0, 2).images, whole.pictures(0, 2).images)


def test_the_converged_run_follows_its_schedule(tiny, tiny_runs, tiny_workload):
    runs = tiny_runs(n=2, batch=2)
    reference = Reference(runs, name="converged")
    spent: list[int] = []
    reference.prepare(2, on_images=spent.append)
    schedule = converged_schedule(tiny, tiny_workload)
    with apply(tiny, schedule):
        latents = runs.latents(0, 2, steps=schedule.n_steps)

    assert spent == [2]
    assert schedule.sigma[::2] == default_sigmas(tiny, 6, height=8, width=8)
    assert reference.trajectory(0, 2).sigma == schedule.sigma
    assert torch.equal(reference.trajectory(0, 2).states[-1], latents)


@pytest.mark.slow
def test_the_converged_run_has_converged(mini, mini_card):
    """Twice the steps change the image by less than -55 dB; the plain run is farther away than that."""
    from schedsearch.evaluate import METRICS, Workload
    from schedsearch.evaluate._reference import PairedRuns

    runs = PairedRuns(mini, Workload.from_card(mini_card), ("rocket, red background",), seed=3, batch=1)
    reference = Reference(runs, name="converged")
    reference.prepare(1)
    finer = converged_schedule(mini, runs.workload, refinement=4)
    with apply(mini, finer):
        images = runs.pictures(runs.latents(0, 1, steps=finer.n_steps)).images
    psnr = METRICS["psnr"]

    assert psnr(images, reference.pictures(0, 1).images)[0] > 55.0
    assert psnr(images, runs.run(0, 1).images)[0] < 50.0
