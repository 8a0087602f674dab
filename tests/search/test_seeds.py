"""Seeds: the published counts and masks, exactly; and whatever comes out is legal, different and what its name says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedsearch.schedule import Solver
from schedsearch.search import _probe_seeds as probed
from schedsearch.search import _rule_seeds as ruled
from schedsearch.search._published import SCM, TAYLORSEER
from schedsearch.search._seeds import GENERATORS, default_budgets, seeds
from schedsearch.space import SearchSpace
from schedsearch.study import BlockProbe, Probe
from schedsearch.testing import toy_blocks, toy_model_ref, toy_sigmas

SOLVERS = (
    Solver(),
    *(Solver(family="adams", order=order) for order in (2, 3)),
    *(Solver(family="dpm", order=order, prediction="data") for order in (2, 3)),
    Solver(family="unipc", order=2, prediction="data", corrector="pseudo"),
    *(Solver(family="table", order=order) for order in (2, 3, 4)),
)
LEVELS = (("model", "CR123"), ("block", "CR123S"), ("component", "CRS"))


def space_of(n_steps=28, *, n_double=2, n_single=3, **changes):
    blocks = toy_blocks(n_double, n_single)
    parts = {
        "name": "toy", "model": toy_model_ref(), "blocks": blocks, "sigma": toy_sigmas(n_steps, 1.0), "levels": LEVELS,
        "counts": tuple(range(2, n_steps + 1)), "prunable": tuple(block.name for block in blocks), "max_pruned": 2,
        "solvers": SOLVERS, "free_sigma": True,
    }  # fmt: skip
    return SearchSpace(**{**parts, **changes})


def probe_of(space, seed=0):
    """Outputs that bend, blocks of different size, the second and third of which hardly do anything."""
    n = len(space.sigma) - 1
    rng = np.random.default_rng(seed)
    level = np.array(space.sigma[:-1])[:, None]
    outputs = np.cos(3.0 * level * rng.normal(size=40) + rng.normal(size=40))
    basis = np.vstack([rng.normal(size=40), outputs])
    sizes = [0.001 if 1 <= i <= 2 else 0.3 + 0.1 * i for i in range(len(space.blocks))]
    blocks = []
    for i, (block, size) in enumerate(zip(space.blocks, sizes, strict=True)):
        change = np.outer(np.linspace(0.02, 0.2, n), (1.0, 1.8, 2.5)) * (1.0 + 0.2 * i)
        change[np.arange(n)[:, None] + np.arange(1, 4) >= n] = np.nan
        blocks.append(BlockProbe(name=block.name, change=change, size=size))
    return Probe(
        sigma=space.sigma, gram=basis @ basis.T / 40, l1=np.abs(outputs[:, None] - outputs).mean(axis=2),
        blocks=tuple(blocks),
    )  # fmt: skip


SPACE = space_of()
PROBE = probe_of(SPACE)
ALL = seeds(SPACE, PROBE)
NAMED = dict(ALL)


class TestPublishedFacts:
    def test_full_steps_of_taylorseer_and_fora_at_50_steps(self):
        assert [len(ruled.interval_steps(50, n, 3)) for n in range(3, 9)] == [18, 14, 12, 10, 9, 8]
        assert [len(ruled.interval_steps(50, n, 1)) for n in range(3, 9)] == [17, 13, 10, 9, 8, 7]
        assert ruled.interval_steps(50, 6, 3)[:5] == (0, 1, 2, 8, 14)

    def test_full_steps_of_fora_at_20_steps(self):
        assert [len(ruled.interval_steps(20, n, 1)) for n in range(2, 8)] == [10, 7, 5, 4, 4, 3]

    def test_masks_of_cache_dit(self):
        masks = {name: ruled.run_lengths(*lengths) for name, lengths in SCM.items()}
        assert {name: mask.count("C") for name, mask in masks.items()} == {
            "slow": 18, "medium": 15, "fast": 11, "ultra": 8,
        }  # fmt: skip
        assert {len(mask) for mask in masks.values()} == {28}
        assert masks["ultra"] == "CCCCRRCRRRRRCRRRRRRCRRRRRRRC"
        assert NAMED["scm/ultra"].row("model") == masks["ultra"]

    @pytest.mark.parametrize(
        ("limit", "change", "mask"),
        [
            # the published masks of 50 steps at alpha .18 and .08, and of 30 steps at .35: they say where a change over
            # 1, 2 and 3 steps is within alpha
            (0.18, (0.05, *[0.08] * 9, *[0.15] * 40), "CRRRCRRCRRCRCRCRCRCRCRCRCRCRCRCRCRCRCRCRCRCRCRCRCC"),
            (0.08, (0.035, *[0.05] * 6, *[0.2] * 43), "CRRCRCR" + "C" * 43),
            (0.35, (0.15, *[0.2] * 26, *[0.5] * 3), "CRRCRCRCRCRCRCRCRCRCRCRCRCRCCC"),
        ],
    )
    def test_masks_of_smoothcache(self, limit, change, mask):
        n = len(change)
        taken = probed.smooth_steps(np.outer(change, (1.0, 2.0, 3.0)), limit)
        assert "".join("C" if step in taken else "R" for step in range(n)) == mask
        assert len(taken) == {0.18: 24, 0.08: 46, 0.35: 16}[limit]

    def test_taylorseer_as_published_is_there(self):
        for interval, order in TAYLORSEER:
            row = NAMED[f"taylorseer/n{interval}-o{order}-e3"].row("model")
            assert row[:3] == "CCC"
            assert {char for char in row[3:] if char != "C"} == {str(order)}

    def test_s3s_orders(self):
        schedule = NAMED["s3/grid-table-k5"]
        assert schedule.sigma == pytest.approx((1.0, 0.735, 0.523, 0.316, 0.204, 0.0), abs=3e-4)
        assert [solver.order for solver in schedule.solver] == [1, 2, 3, 4, 1]

    def test_noise_levels_of_stable_diffusion(self):
        """Its timesteps 850, 545 and 233 have these ratios of noise to signal (AYS tables, arXiv 2404.14507)."""
        vp = space_of(sigma=tuple(14.6 * level for level in toy_sigmas(28)))
        times = (1.0, 0.851, 0.546, 0.234, 0.001)
        assert ruled.same_noise(vp, times)[1:-1] == pytest.approx((6.475, 1.886, 0.652), rel=2e-3)
        ratios = [level / (1.0 - level) for level in ruled.same_noise(SPACE, times)[1:-1]]
        assert ratios == pytest.approx((6.475, 1.886, 0.652), rel=2e-3)


class TestRows:
    @given(st.integers(1, 30), st.integers(0, 3), st.data())
    def test_forecasts_never_exceed_their_history(self, n_steps, order, data):
        computed = (0, *data.draw(st.lists(st.integers(1, 29), unique=True)))
        row, history = ruled.forecast_row(n_steps, computed, order), 0
        for step, char in enumerate(row):
            if step in computed:
                assert char == "C"
                history += 1
            else:
                assert char == (str(min(order, history - 1)) if min(order, history - 1) > 0 else "R")

    @given(st.integers(1, 60), st.sampled_from(sorted(SCM)))
    def test_resampled_masks_keep_their_share(self, n_steps, name):
        mask = ruled.run_lengths(*SCM[name])
        row = ruled.resampled_mask(mask, n_steps)
        assert len(row) == n_steps
        assert row[0] == "C"
        assert abs(row.count("C") - mask.count("C") * n_steps / 28) <= 1.0 or row.count("C") == 1

    def test_delta_dit_reuses_late_blocks_early_and_early_blocks_late(self):
        schedule = NAMED["delta-dit/n2-2of5-switch14"]
        names = [block.name for block in SPACE.blocks]
        assert schedule.row(names[-1]) == "CR" * 7 + "C" * 14
        assert schedule.row(names[0]) == "C" * 14 + "CR" * 7
        assert schedule.row(names[2]) == "C" * 28

    def test_attention_alone(self):
        schedule = NAMED["attention-only/n4"]
        assert {name.rsplit(".", 1)[-1] for name, _ in schedule.ops} == {"attn"}
        assert {row for _, row in schedule.ops} == {"CRRR" * 7}


class TestFromTheProbe:
    def test_placed_steps_lie_on_the_default_grid(self):
        schedule = NAMED["placed-table/table3-max.5-k7"]
        assert set(schedule.sigma) <= set(SPACE.sigma)
        assert (schedule.n_steps, schedule.sigma[0], schedule.sigma[-1]) == (7, 1.0, 0.0)
        assert {(solver.family, solver.order) for solver in schedule.solver[2:]} == {("table", 3)}

    def test_forecast_masks_meet_every_budget(self):
        for budget in default_budgets(28):
            assert NAMED[f"forecast-dp/o1-max.5-k{budget}"].row("model").count("C") == budget

    def test_removed_blocks_are_the_quiet_ones(self):
        quiet = (SPACE.blocks[1].name, SPACE.blocks[2].name)
        assert set(NAMED["prune/near-identity"].pruned) == set(quiet)
        assert NAMED["prune/smallest1"].pruned[0] in quiet
        kept = space_of(max_pruned=0)
        assert not [name for name, _ in seeds(kept, PROBE, only=["prune"])]

    def test_quiet_intervals_too_long_for_the_space_are_left_out(self):
        narrow = space_of(max_pruned=1)
        assert [name for name, _ in seeds(narrow, PROBE, only=["prune"])] == ["prune/smallest1"]

    def test_blocks_share_a_budget_of_updates(self):
        for budget in (7, 5):
            schedule = NAMED[f"bac/k{budget}"]
            updates = [schedule.row(block.name).count("C") for block in SPACE.blocks]
            assert sum(updates) <= 5 * budget
            assert updates == sorted(updates)  # later blocks change faster here

    def test_a_probe_of_another_grid_is_not_used(self):
        other = space_of(sigma=toy_sigmas(28, 2.0))
        names = {name.split("/")[0] for name, _ in seeds(other, PROBE)}
        assert "steps-euler" in names
        assert not names & {"placed-table", "forecast-dp", "prune"}


NARROW = {
    "whole": SPACE,
    "model only": SPACE.restrict(levels=["model"]),
    "reuse only": SPACE.restrict(levels=["model"], symbols="R"),
    "components": SPACE.restrict(levels=["component"]),
    "one count": SPACE.restrict(counts=[28]),
    "few steps": SPACE.restrict(counts=[4, 5, 6]),
    "no levels": space_of(levels=()),
    "frozen grid": space_of(free_sigma=False),
    "one solver": space_of(solvers=(Solver(),)),
    "another default": space_of(solvers=SOLVERS[1:]),
    "nothing": space_of(levels=(), counts=(28,), free_sigma=False, solvers=(Solver(),)),
    "two steps": space_of(2, counts=(2,)),
}


class TestLegality:
    @pytest.mark.parametrize("name", NARROW)
    def test_all_are_canonical_members_and_different(self, name):
        space = NARROW[name]
        for probe in (None, PROBE if len(space.sigma) == 29 else probe_of(space)):
            found = seeds(space, probe, (7, 2, 5))
            assert [space.check(schedule) for _, schedule in found] == [None] * len(found)
            assert len({schedule.id for _, schedule in found}) == len(found) == len({name for name, _ in found})
            assert found[0] == ("plain", space.base)

    def test_nothing_to_choose_leaves_the_plain_run(self):
        assert seeds(NARROW["nothing"], PROBE) == (("plain", NARROW["nothing"].base),)

    def test_a_space_gets_what_it_can_say(self):
        def generators(space):
            return {name.split("/")[0] for name, _ in seeds(space, PROBE, (7, 5))}

        everything = set(GENERATORS) - {
            "t-gate",
            "formats",
        }  # these blocks have no cross-attention, and all formats are frozen
        assert generators(SPACE) == everything
        few = generators(NARROW["few steps"])
        assert "placed-table" in few
        one = generators(NARROW["one solver"])
        assert "steps-euler" in one
        assert not one & {"steps-table", "steps-adams", "steps-dpm", "steps-unipc", "placed-table"}
        frozen = seeds(NARROW["frozen grid"], PROBE, only=["steps-adams"])
        assert {name.split("-")[2] for name, _ in frozen} == {"default"}

    def test_names_say_how_many_steps_compute(self):
        for name, schedule in ALL:
            if (
                "-k" in name
                and name.split("/")[0].startswith(("steps", "placed", "forecast", "s3"))
                and "@" not in name
            ):
                assert schedule.row("model").count("C") == int(name.rsplit("-k", 1)[1])

    def test_cross_attention_can_be_gated(self):
        blocks = tuple(replace(block, components=("attn1", "attn2", "ff")) for block in SPACE.blocks)
        (gated, *_) = seeds(space_of(blocks=blocks), only=["t-gate"])
        assert gated[0] == "t-gate/m14"
        assert dict(gated[1].ops) == {f"{block.name}.attn2": "C" * 14 + "R" * 14 for block in blocks}


class TestOrder:
    def test_every_beginning_is_varied(self):
        turn = sum(source.at_once for name, source in GENERATORS.items() if name not in ("t-gate", "formats"))
        first = Counter(name.split("/")[0] for name, _ in ALL[:turn])
        alone = {"plain", "one-call"}  # these make one each
        assert len(first) == len(GENERATORS) - 2
        assert all(count == GENERATORS[name].at_once for name, count in first.items() if name not in alone)

    def test_the_first_ones_are_placed_for_many_numbers_of_calls(self):
        placed = [schedule for name, schedule in ALL[:80] if name.startswith("placed-table/table4-max.5")]
        assert len({schedule.n_steps for schedule in placed}) == len(placed) > 15

    def test_one_call_is_the_cheapest_run(self):
        for space in (SPACE, NARROW["frozen grid"]):
            schedule = dict(seeds(space, only=["one-call"]))["one-call"]
            assert schedule.row("model") == "C" + "R" * (space.counts[0] - 1)

    def test_budgets_are_taken_in_their_order(self):
        names = [name for name, _ in seeds(SPACE, PROBE, (6, 9, 4), only=["placed-table"])]
        assert [int(name.rsplit("-k", 1)[1]) for name in names[:3]] == [6, 9, 4]

    def test_the_coarsest_level_comes_first(self):
        names = [name for name, _ in seeds(SPACE, only=["fora"])]
        places = ["@" in name for name in names]
        assert places == sorted(places)

    def test_the_same_every_time(self):
        again = seeds(SPACE, PROBE, only=["bac", "gits", "teacache"])
        assert again == seeds(SPACE, PROBE, only=["bac", "gits", "teacache"])

    def test_default_budgets_are_legal(self):
        for n_steps in (1, 2, 4, 10, 28, 50):
            budgets = default_budgets(n_steps)
            assert len(set(budgets)) == len(budgets)
            assert all(1 <= budget <= n_steps for budget in budgets)
