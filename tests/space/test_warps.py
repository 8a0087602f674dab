"""Families of noise levels against their formulas, the published lists and diffusers."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log, tan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.errors import SpaceError
from schedsearch.space import WARPS, warp
from schedsearch.testing import toy_sigmas

AYS_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0)


class TestEveryFamily:
    """`(n_steps + 1,)` levels, strictly falling, ends pinned exactly."""

    @given(
        st.sampled_from(sorted(WARPS)), st.integers(1, 60),
        st.sampled_from([(1.0, 0.0), (0.97, 0.0), (1.0, 0.02), (14.615, 0.0), (80.0, 0.002), (14.615, 0.029)]),
    )  # fmt: skip
    def test_falls_from_first_to_last(self, name, n_steps, ends):
        levels = warp(name, n_steps, first=ends[0], last=ends[1])
        assert len(levels) == n_steps + 1
        assert (levels[0], levels[-1]) == ends
        assert all(a > b for a, b in pairwise(levels))
        assert all(type(level) is float for level in levels)

    @pytest.mark.parametrize("name", sorted(WARPS))
    @pytest.mark.parametrize("n_steps", [1, 2, 9])
    def test_a_floor_is_the_level_before_the_last(self, name, n_steps):
        levels = warp(name, n_steps, first=1.0, last=0.0, floor=0.07)
        assert levels[0] == 1.0
        assert levels[-1] == 0.0
        assert n_steps == 1 or levels[-2] == 0.07


class TestFormulas:
    """Each family equals its formula."""

    N = 10
    U = np.arange(N + 1) / N

    @pytest.mark.parametrize(
        ("name", "params", "formula"),
        [
            ("uniform", {}, lambda u: 1 - u),
            ("quadratic", {}, lambda u: (1 - u) ** 2),
            ("quadratic", {"power": 1.5}, lambda u: (1 - u) ** 1.5),
            ("shift", {"shift": 3.0}, lambda u: 3 * (1 - u) / (1 + 2 * (1 - u))),
            ("shift", {"shift": exp(1.15)}, lambda u: exp(1.15) / (exp(1.15) + 1 / (1 - u + 1e-300) - 1)),  # FLUX
            ("karras", {"rho": 7.0}, lambda u: (1 - u) ** 7),
            # logSNR = -2 log tan(pi t / 2): noise over signal is tan(pi t / 2) with t = 1 - u
            ("cosine", {}, lambda u: 1 / (1 + 1 / np.tan(np.pi * (1 - u + 1e-300) / 2))),
        ],
    )
    def test_flow_levels_from_one_to_zero(self, name, params, formula):
        levels = warp(name, self.N, first=1.0, last=0.0, **params)
        assert levels == pytest.approx(formula(self.U), abs=1e-12)

    def test_shift_equals_the_shifted_default_grid(self):
        assert warp("shift", 28, first=1.0, last=0.0, shift=3.0) == pytest.approx(toy_sigmas(28, shift=3.0), abs=1e-15)

    def test_karras_is_the_list_of_edm(self):
        low, high, rho, n = 0.002, 80.0, 7.0, 18
        closed = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
        levels = warp("karras", n, first=high, last=0.0, floor=low, rho=rho)
        assert levels == pytest.approx([*closed, 0.0], rel=1e-12)
        # the figures of EDM's CIFAR-10 configuration (18 steps, 35 evaluations with Heun)
        assert levels[:3] == pytest.approx((80.0, 57.586, 40.786), abs=1e-3)
        assert levels[-3:] == pytest.approx((0.0085, 0.002, 0.0), abs=2e-3)

    def test_exponential_is_even_in_the_logarithm(self):
        levels = warp("exponential", 10, first=14.6, last=0.03)
        assert np.diff(np.log(levels)) == pytest.approx(np.full(10, (log(0.03) - log(14.6)) / 10))
        to_zero = warp("exponential", 10, first=1.0, last=0.0)
        assert to_zero == pytest.approx([*(0.1 ** (i / 9) for i in range(10)), 0.0])  # the floor is first / n_steps

    def test_cosine_of_a_variance_preserving_model(self):
        levels = warp("cosine", 8, first=14.615, last=0.0)
        angles = np.arctan(levels)  # uniform t
        assert np.diff(angles) == pytest.approx(np.full(8, -np.arctan(14.615) / 8))
        assert levels[4] == pytest.approx(tan(np.arctan(14.615) / 2))

    def test_logsnr_is_even_in_lambda(self):
        vp = warp("logsnr", 6, first=10.0, last=0.1)
        assert vp == pytest.approx(warp("exponential", 6, first=10.0, last=0.1))  # lambda = -log sigma
        flow = np.array(warp("logsnr", 6, first=0.95, last=0.05))
        assert np.diff(np.log((1 - flow) / flow)) == pytest.approx(np.full(6, 2 * log(19) / 6))
        pinned = np.array(warp("logsnr", 6, first=1.0, last=0.0, floor=0.1))[1:-1]
        assert np.log((1 - pinned) / pinned) == pytest.approx(log(9) * np.array([-0.6, -0.2, 0.2, 0.6, 1.0]))

    def test_beta_levels_are_quantiles(self):
        from scipy.stats import beta

        levels = warp("beta", 12, first=14.6, last=0.03, alpha=0.6, beta=0.8)
        assert beta.cdf((np.array(levels) - 0.03) / 14.57, 0.6, 0.8) == pytest.approx(1 - np.arange(13) / 12, abs=1e-9)
        assert warp("beta", 12, first=1.0, last=0.0, alpha=1.0, beta=1.0) == pytest.approx(1 - np.arange(13) / 12)


class TestAys:
    """The published tables, and what becomes of them elsewhere."""

    @pytest.mark.parametrize(("table", "published"), [("sd", AYS_SD), ("sdxl", AYS_SDXL)])
    def test_ten_steps_are_the_table(self, table, published):
        assert warp("ays", 10, first=14.615, last=0.0, table=table) == pytest.approx(published, rel=1e-12)

    def test_other_lengths_are_log_linear_in_the_table(self):
        # the recipe of the paper's page: interpolate log sigma over an even axis, then step to zero
        at = np.linspace(0, 1, 20)
        wanted = np.exp(np.interp(at, np.linspace(0, 1, 10), np.log(AYS_SD[:-1])))
        assert warp("ays", 20, first=14.615, last=0.0) == pytest.approx([*wanted, 0.0], rel=1e-12)

    def test_other_ends_keep_the_spacing(self):
        levels = np.log(warp("ays", 9, first=50.0, last=0.01))
        table = np.log(AYS_SD[:-1])
        relative = (levels - levels[0]) / (levels[-1] - levels[0])
        assert relative == pytest.approx((table - table[0]) / (table[-1] - table[0]))

    def test_flow_levels_have_the_ratios_of_the_table_and_the_pinned_start(self):
        levels = np.array(warp("ays", 10, first=1.0, last=0.0))
        assert levels[0] == 1.0
        assert levels[1:-1] / (1 - levels[1:-1]) == pytest.approx(AYS_SD[1:-1], rel=1e-12)


class TestDiffusers:
    """Equal to what the schedulers of diffusers make, in their float32."""

    N = 12

    FLOOR = 3 / N / (1 + 2 / N)

    @pytest.mark.parametrize(
        ("config", "name", "params"),
        [
            ({}, "shift", {"shift": 3.0}),
            ({"use_karras_sigmas": True}, "karras", {"floor": FLOOR}),
            ({"use_exponential_sigmas": True}, "exponential", {"floor": FLOOR}),
            ({"use_beta_sigmas": True}, "beta", {"floor": FLOOR}),
        ],
    )
    def test_flow_match_euler(self, config, name, params):
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, **config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / self.N, self.N).tolist())
        levels = warp(name, self.N, first=1.0, last=0.0, **params)
        assert levels == pytest.approx(scheduler.sigmas.numpy(), abs=1e-6)

    @pytest.mark.parametrize(
        ("schedule", "name", "params"), [("karras", "karras", {"rho": 7.0}), ("exponential", "exponential", {})]
    )
    def test_edm_euler(self, schedule, name, params):
        from diffusers import EDMEulerScheduler

        scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_schedule=schedule)
        scheduler.set_timesteps(18)
        levels = warp(name, 18, first=80.0, last=0.0, floor=0.002, **params)
        assert levels == pytest.approx(scheduler.sigmas.numpy(), rel=1e-5)

    def test_karras_ve_holds_the_squares_of_exponential_levels(self):
        from diffusers import KarrasVeScheduler

        scheduler = KarrasVeScheduler(sigma_min=0.02, sigma_max=100.0)
        scheduler.set_timesteps(9)
        squares = np.array(warp("exponential", 8, first=100.0, last=0.02)) ** 2
        # its list is indexed by timestep, which falls
        assert sorted(scheduler.schedule.numpy(), reverse=True) == pytest.approx(squares, rel=1e-5)

    def test_ays_tables(self):
        from diffusers.schedulers import AysSchedules

        for table, key in (("sd", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")):
            assert warp("ays", 10, first=14.615, last=0.0, table=table) == pytest.approx(AysSchedules[key], rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "linear"}, "warp: found 'linear', expected one of uniform, shift, karras"),
        ({"name": "karras", "shift": 3.0}, "warp karras: found parameter 'shift', expected rho"),
        ({"name": "uniform", "rho": 3.0}, "warp uniform: found parameter 'rho', expected none"),
        ({"name": "cosine", "n_steps": 0}, "warp cosine: found 0 steps from 1.0 to 0.0, expected 1 or more steps"),
        ({"name": "shift", "last": 1.0}, "expected 1 or more steps, falling"),
        ({"name": "shift", "last": -0.1}, "none below 0"),
        ({"name": "ays", "table": "flux"}, "warp ays: found table 'flux', expected one of sd, sdxl"),
        ({"name": "karras", "floor": 1.5}, "warp karras: found floor 1.5, expected a level between 0.0 and 1.0"),
        ({"name": "shift", "shift": 0.0}, "warp shift: found shift 0.0, expected a number above 0"),
        ({"name": "karras", "rho": 500.0, "n_steps": 900}, "expected a fall. Use fewer steps or milder parameters"),
    ],
)
def test_what_is_refused(arguments, text):
    with pytest.raises(SpaceError, match=text):
        warp(**{"n_steps": 4, "first": 1.0, "last": 0.0, **arguments})
