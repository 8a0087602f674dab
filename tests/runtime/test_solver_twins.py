"""Solver families against their twins in diffusers, both driven by one closed-form network at the twin's own levels."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from schedsearch.runtime._solver import FLOW, VP, n_calls, program
from schedsearch.schedule import Schedule, Solver
from schedsearch.testing import GaussianMixture, toy_model_ref
from schedsearch.testing._gaussian import replayed

# diffusers interpolates its levels with numpy functions on tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MIXTURE = GaussianMixture.random(7, n_components=4, n_dims=3)
NOISE = np.random.default_rng(7).normal(size=(16, 3))
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def ours(levels, sigma, solvers, *, output="noise", noise=NOISE):
    plan = Schedule(sigma=tuple(float(s) for s in sigma), solver=tuple(solvers), model=toy_model_ref())
    return replayed(plan, MIXTURE.network(output, levels), noise, levels=levels, output=output)


def theirs(scheduler, sigmas, *, output="noise", levels=VP, noise=NOISE):
    """Walks ``scheduler``, whose call i is at level ``sigmas[i]``."""
    network, x = MIXTURE.network(output, levels), torch.from_numpy(noise)
    for t, s in zip(scheduler.timesteps, sigmas, strict=True):
        x = scheduler.step(torch.from_numpy(network(x.numpy().astype(np.float64), float(s))), t, x).prev_sample
    return x.numpy()


def assert_twins(a, b, tolerance=1e-5):
    assert np.isfinite(a).all()
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def quiet(scheduler_class, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers means to drop the noise-predicting DPM-Solver
        return scheduler_class(**config)


def lowered(order, n_steps, *, window):
    """Per-step orders with diffusers' low orders at the end of a run: 1 at the last step, 2 at the one before."""
    return [min(order, n_steps - i) if n_steps - i <= window else order for i in range(n_steps)]


class TestFirstOrder:
    @pytest.mark.parametrize("n_steps", [4, 9])
    @pytest.mark.parametrize("to_one", [True, False])
    def test_ddim(self, n_steps, to_one):
        twin = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=to_one)
        twin.alphas_cumprod = twin.alphas_cumprod.double()
        twin.final_alpha_cumprod = twin.alphas_cumprod[0] if not to_one else twin.final_alpha_cumprod.double()
        twin.set_timesteps(n_steps)
        cumulative = [twin.alphas_cumprod[t] for t in twin.timesteps] + [twin.final_alpha_cumprod]
        sigma = [((1 - a) / a).sqrt() for a in cumulative]
        if not to_one:
            sigma[-1] *= 1 - 1e-12  # its last step, from timestep 0 to 0, goes nowhere
        reference = theirs(twin, sigma[:-1])
        for family in ("euler", "adams", "plms", "dpm", "unipc"):
            for prediction in ("velocity", "noise", "data"):
                record = Solver(family=family, prediction=prediction)
                assert_twins(ours(VP, sigma, [record] * n_steps), reference, 1e-6)

    def test_flow_euler(self):
        twin = FlowMatchEulerDiscreteScheduler()
        twin.set_timesteps(sigmas=np.linspace(1.0, 0.1, 7).tolist())
        reference = theirs(twin, twin.sigmas[:-1], output="velocity", levels=FLOW)
        for family in ("euler", "adams", "plms", "dpm", "unipc"):
            assert_twins(ours(FLOW, twin.sigmas, [Solver(family=family)] * 7, output="velocity"), reference, 1e-6)


class TestDpm:
    @pytest.mark.parametrize("estimate", ["midpoint", "heun"])
    @pytest.mark.parametrize("order", [1, 2, 3])
    @pytest.mark.parametrize("n_steps", [6, 20])
    @pytest.mark.parametrize(
        ("algorithm", "end"), [("dpmsolver++", "zero"), ("dpmsolver++", "sigma_min"), ("dpmsolver", "sigma_min")]
    )
    def test_variance_preserving(self, estimate, order, n_steps, algorithm, end):
        twin = quiet(
            DPMSolverMultistepScheduler, **BETAS, solver_order=order, algorithm_type=algorithm, solver_type=estimate,
            final_sigmas_type=end,
        )  # fmt: skip
        twin.set_timesteps(n_steps)
        reference = theirs(twin, twin.sigmas[:-1])
        prediction = "data" if algorithm == "dpmsolver++" else "noise"
        # fewer than 15 steps end at orders 2 and 1; to level 0 the last step is of order 1 in any case
        orders = lowered(order, n_steps, window=2 if n_steps < 15 else int(end == "zero"))
        solvers = [Solver(family="dpm", order=o, prediction=prediction, estimate=estimate) for o in orders]
        assert_twins(ours(VP, twin.sigmas, solvers), reference)
        if estimate == "midpoint":
            plain = [Solver(family="dpm", order=o, prediction=prediction) for o in orders]
            assert np.array_equal(ours(VP, twin.sigmas, plain), ours(VP, twin.sigmas, solvers))

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_flow(self, order):
        twin = DPMSolverMultistepScheduler(
            solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        twin.set_timesteps(20)
        reference = theirs(twin, twin.sigmas[:-1], output="velocity", levels=FLOW)
        solvers = [Solver(family="dpm", order=order, prediction="data")] * 20
        assert_twins(ours(FLOW, twin.sigmas, solvers, output="velocity"), reference)


class TestUniPC:
    @pytest.mark.parametrize("order", [1, 2, 3])
    @pytest.mark.parametrize(
        ("prediction", "end", "estimate"),
        [
            ("data", "zero", "bh2"),  # bh1 to level 0 is not a number in diffusers
            ("data", "sigma_min", "bh1"),
            ("data", "sigma_min", "bh2"),
            ("noise", "sigma_min", "bh1"),
            ("noise", "sigma_min", "bh2"),
        ],
    )
    def test_variance_preserving(self, estimate, order, prediction, end):
        n_steps = 8
        twin = UniPCMultistepScheduler(
            **BETAS, solver_order=order, solver_type=estimate, predict_x0=prediction == "data", final_sigmas_type=end
        )
        twin.set_timesteps(n_steps)
        reference = theirs(twin, twin.sigmas[:-1])
        solvers = [
            Solver(family="unipc", order=o, prediction=prediction, corrector="pseudo", estimate=estimate)
            for o in lowered(order, n_steps, window=order)
        ]
        assert_twins(ours(VP, twin.sigmas, solvers), reference)

    def test_the_corrector_is_chosen_by_step(self):
        """diffusers' list of disabled steps speaks of the step that is corrected, as a schedule does."""
        twin = UniPCMultistepScheduler(**BETAS, disable_corrector=[1, 2, 5], final_sigmas_type="sigma_min")
        twin.set_timesteps(8)
        solvers = [
            Solver(family="unipc", order=o, prediction="data", corrector="none" if i in (1, 2, 5) else "pseudo")
            for i, o in enumerate(lowered(2, 8, window=2))
        ]
        assert_twins(ours(VP, twin.sigmas, solvers), theirs(twin, twin.sigmas[:-1]))

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_flow(self, order):
        twin = UniPCMultistepScheduler(
            solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        twin.set_timesteps(8)
        reference = theirs(twin, twin.sigmas[:-1], output="velocity", levels=FLOW)
        orders = lowered(order, 8, window=order)
        solvers = [Solver(family="unipc", order=o, prediction="data", corrector="pseudo") for o in orders]
        assert_twins(ours(FLOW, twin.sigmas, solvers, output="velocity"), reference)


class TestHeun:
    def test_flow(self):
        twin = FlowMatchHeunDiscreteScheduler(shift=3.0)
        twin.set_timesteps(6)
        reference = theirs(twin, twin.timesteps / 1000, output="velocity", levels=FLOW)
        sigma = [*dict.fromkeys(twin.sigmas.tolist())]
        assert_twins(ours(FLOW, sigma, [Solver(family="heun", order=2)] * 6, output="velocity"), reference)

    def test_variance_preserving(self):
        """The twin's sample is ``x / alpha``."""
        twin = HeunDiscreteScheduler(**BETAS)
        twin.set_timesteps(6)
        sigma = [*dict.fromkeys(twin.sigmas.tolist())]
        x = torch.from_numpy(NOISE / VP.alpha(sigma[0]))
        for t in twin.timesteps:
            level = (twin.sigmas[0] if twin.step_index is None else twin.sigmas[twin.step_index]).item()
            seen = twin.scale_model_input(x, t).numpy().astype(np.float64)
            x = twin.step(torch.from_numpy(MIXTURE.noise(seen, level, VP)), t, x).prev_sample
        record = Solver(family="heun", order=2, prediction="noise")
        assert_twins(ours(VP, sigma, [record] * 6), x.numpy())

    def test_edm(self):
        """Karras 2022, algorithm 1, on its own levels (rho 7): two evaluations a step, one on the last."""
        i = np.arange(8) / 7
        sigma = [*(80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0]
        x, evaluations = NOISE / VP.alpha(sigma[0]), 0
        for s0, s1 in itertools.pairwise(sigma):
            d = (x - MIXTURE.data(VP.alpha(s0) * x, s0, VP)) / s0
            ahead, evaluations = x + (s1 - s0) * d, evaluations + 1
            if s1 > 0:
                d = 0.5 * (d + (ahead - MIXTURE.data(VP.alpha(s1) * ahead, s1, VP)) / s1)
                ahead, evaluations = x + (s1 - s0) * d, evaluations + 1
            x = ahead
        solvers = [Solver(family="heun", order=2, prediction="noise")] * 8
        assert_twins(ours(VP, sigma, solvers, output="data"), x, 1e-10)
        assert n_calls(Schedule(sigma=tuple(sigma), solver=tuple(solvers), model=toy_model_ref())) == evaluations == 15


class TestLinearMultistep:
    @pytest.mark.parametrize("to_one", [True, False])
    def test_pndm(self, to_one):
        """Its first step takes the mean of two outputs; the second of them is forgotten."""
        n_steps = 10
        twin = PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=to_one, steps_offset=1)
        twin.set_timesteps(n_steps)
        times = [*twin._timesteps[::-1].tolist(), None]
        cumulative = [twin.final_alpha_cumprod if t is None else twin.alphas_cumprod[t] for t in times]
        sigma = [float(((1 - a.double()) / a.double()).sqrt()) for a in cumulative]
        called = [float(((1 - a) / a).sqrt()) for a in (twin.alphas_cumprod[t].double() for t in twin.timesteps)]
        reference = theirs(twin, called)
        solvers = [
            Solver(family="heun", order=2, prediction="noise"),
            *(Solver(family="plms", order=min(i + 1, 4), prediction="noise") for i in range(1, n_steps)),
        ]
        assert_twins(ours(VP, sigma, solvers), reference)
        plan = Schedule(sigma=tuple(sigma), solver=tuple(solvers), model=toy_model_ref())
        assert [c.sigma for c in program(plan)] == pytest.approx(called)

    @pytest.mark.parametrize("order", [1, 2, 3, 4])
    def test_lms_is_adams_in_the_noise(self, order):
        """The twin's sample is ``x / alpha``; its orders are an argument of each step."""
        twin = LMSDiscreteScheduler(**BETAS)
        twin.set_timesteps(8)
        x = torch.from_numpy(NOISE / VP.alpha(twin.sigmas[0].item()))
        for i, t in enumerate(twin.timesteps):
            seen = twin.scale_model_input(x, t).numpy().astype(np.float64)
            output = torch.from_numpy(MIXTURE.noise(seen, twin.sigmas[i].item(), VP))
            x = twin.step(output, t, x, order=order).prev_sample
        solvers = [Solver(family="adams", order=order, prediction="noise")] * 8
        assert_twins(ours(VP, twin.sigmas, solvers), x.numpy())
