"""Number formats in the search: prices and features that see them, seeds, and who leaves them alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schedsearch.errors import UsageError
from schedsearch.schedule import COMPUTE, MODEL_ROW, PrecisionRule
from schedsearch.search import SEARCHERS, Auto, AutoConfig, make_searcher
from schedsearch.search._features import Features
from schedsearch.search._prices import Prices
from schedsearch.search._rule_seeds import in_formats, mixed
from schedsearch.search._seeds import seeds
from schedsearch.search._surrogate import KernelRanker
from schedsearch.space import PrecisionAxis, SearchSpace, mutated
from schedsearch.testing import (
    TOY_OBJECTIVES,
    searched,
    toy_blocks,
    toy_evaluator,
    toy_linears,
    toy_model_ref,
    toy_sigmas,
)

INT8 = PrecisionRule(pattern="*", weight="int8", activation="int8")
FP8 = PrecisionRule(pattern="*", weight="fp8_e4m3", activation="fp8_e4m3")
BLOCKS = toy_blocks(2, 2)
LEVELS = (("model", "CR1"), ("block", "CRS"), ("component", "CR"))
N = 8


def make_space(formats=(INT8, FP8), levels=LEVELS, **changes) -> SearchSpace:
    axis = PrecisionAxis.of(
        toy_linears(BLOCKS), [b.name for b in BLOCKS], formats, groups="component",
        layers=["*blocks.*"], protected=["*.norm*"],
    )  # fmt: skip
    parts = {
        "name": "toy", "model": toy_model_ref(), "blocks": BLOCKS, "sigma": toy_sigmas(N), "levels": levels,
        "counts": (N,), "precision": axis,
    }  # fmt: skip
    return SearchSpace(**{**parts, **changes})


SPACE = make_space()
FROZEN = SPACE.restrict(precision="frozen")
CLOSED = make_space(precision=PrecisionAxis())

MIXED = tuple(place % 3 for place in range(len(SPACE.precision.groups)))
MIXED_SHORT, MIXED_LARGE, MIXED_BELOW = MIXED[1:], (3, *MIXED[1:]), (-1, *MIXED[1:])


class Formats:
    """The toy evaluator, with a fifth of the cost saved by int8 everywhere and some error for it."""

    def __init__(self, space: SearchSpace) -> None:
        self._inner = toy_evaluator(space)
        self._axis = space.precision
        self.objectives = self._inner.objectives

    def evaluate(self, candidate, *, fidelity):
        found = self._inner.evaluate(replace(candidate, schedule=replace(candidate.schedule, precision=())), fidelity=2)
        choice = self._axis.choice(candidate.schedule.precision, candidate.schedule.pruned)
        share = sum(number > 0 for number in choice) / max(1, len(choice))
        error, cost = found.values
        errors = tuple(each + 0.001 * share for each in found.samples[0][1])
        return replace(
            found, candidate=candidate, values=(error + 0.001 * share, cost * (1.0 - 0.2 * share)), fidelity=fidelity,
            samples=((found.samples[0][0], errors),),
        )  # fmt: skip


def true_cost(schedule) -> float:
    """Milliseconds: 3 per call, 1 per running block, less 0.2 or 0.1 per running layer of attention in a format."""
    total, axis = 5.0, SPACE.precision
    by_layer = axis.by_layer(axis.choice(schedule.precision, schedule.pruned))
    for step, symbol in enumerate(schedule.row(MODEL_ROW)):
        if symbol != COMPUTE:
            continue
        total += 3.0
        for block in BLOCKS:
            if schedule.row(block.name)[step] != COMPUTE:
                continue
            total += 1.0
            for layer, number in by_layer.items():
                inside = f"{block.name}.attn"
                if layer.startswith(f"{inside}.") and schedule.row(inside)[step] == COMPUTE:
                    total -= 0.1 if number == 1 else 0.05
    return total


class TestPrices:
    def test_they_learn_what_a_format_saves_where_its_layers_run(self):
        rng = np.random.default_rng(0)
        plain = replace(SPACE.base, ops=())
        schedules = [plain]
        while len(schedules) < 160:
            schedules.append(mutated(schedules[int(rng.integers(len(schedules)))], SPACE, rng, rate=3.0))
        costs = np.array([true_cost(schedule) for schedule in schedules])
        prices = Prices(SPACE)
        prices.fit(schedules[:120], costs[:120])
        assert prices.error < 0.01
        assert prices.predict(schedules[120:]) == pytest.approx(costs[120:], rel=0.03)
        blind = Prices(CLOSED)
        blind.fit(schedules[:120], costs[:120])
        assert blind.error > 2 * prices.error

    def test_a_frozen_axis_has_no_prices(self):
        assert np.array_equal(Prices(FROZEN)._amounts([SPACE.base]), Prices(CLOSED)._amounts([SPACE.base]))


class TestFeatures:
    def test_shares_of_layers_in_each_format(self):
        axis = SPACE.precision
        whole = replace(SPACE.base, precision=axis.rules(axis.preset("all", 1)))
        half = replace(SPACE.base, precision=axis.rules(axis.preset("late", 2)))
        blind, seeing = Features([SPACE.base]).of([SPACE.base, whole]), Features([SPACE.base], axis)
        assert np.array_equal(blind[0], blind[1])
        vectors = seeing.of([SPACE.base, whole, half])[:, blind.shape[1] :]
        columns = 1 + len(axis.kinds) + len(axis.blocks)
        assert vectors.shape == (3, 2 * columns)
        assert not vectors[0].any()
        assert vectors[1, :columns] == pytest.approx(1.0)
        assert not vectors[1, columns:].any()
        assert not vectors[2, :columns].any()
        assert 0.0 < vectors[2, columns] < 1.0
        assert vectors[2, -2:] == pytest.approx(1.0)  # the last two blocks

    def test_the_ranker_learns_that_a_format_is_cheap(self):
        rng = np.random.default_rng(1)
        schedules = [SPACE.sample(rng) for _ in range(60)]
        axis = SPACE.precision
        share = np.array([np.mean([k > 0 for k in axis.choice(s.precision, s.pruned)]) for s in schedules])
        ranker = KernelRanker(axis=axis)
        ranker.fit(schedules[:45], -share[:45])
        mean, _ = ranker.predict(schedules[45:])
        assert np.corrcoef(mean, -share[45:])[0, 1] > 0.8


class TestSeeds:
    def test_presets_of_the_plain_run(self):
        found = {name: s for name, s in seeds(SPACE) if name.startswith("formats")}
        assert set(found) == {
            f"formats/{word}-{part}" for word in ("int8", "fp8_e4m3") for part in ("all", "inner", "late")
        }
        assert all(SPACE.check(s) is None and s.precision and not s.ops for s in found.values())
        first = [rule.pattern for rule in found["formats/int8-inner"].precision]
        assert not any(pattern.startswith("transformer_blocks.0.") or ".*." in pattern for pattern in first)

    def test_a_frozen_axis_has_the_seeds_of_a_space_without(self):
        assert seeds(FROZEN) == seeds(CLOSED)

    def test_any_schedule_can_be_put_in_a_format(self):
        row = replace(SPACE.base, ops=(("model", "CRCRCRCR"),))
        made = dict(in_formats(SPACE, row))
        assert all(s.ops == row.ops and SPACE.check(s) is None for s in made.values())

    def test_what_is_known_of_the_layers_stands_for_parts_of_the_blocks(self):
        row = replace(SPACE.base, ops=(("model", "CRCRCRCR"),))
        made = dict(in_formats(SPACE, row, [MIXED]))
        assert list(made) == ["int8-all", "fp8_e4m3-all", "1"]
        assert SPACE.precision.choice(made["1"].precision) == MIXED
        assert made["1"].ops == row.ops

    def test_given_ones_take_their_turns_right_after_the_plain_run(self):
        given = {"mixed": mixed(SPACE, SPACE.base, [MIXED, MIXED[::-1]])}
        names = [name for name, _ in seeds(SPACE, given=given)]
        assert names[:2] == ["plain", "mixed/1"]
        assert 2 < names.index("mixed/2") < 30
        assert [name for name in names if not name.startswith("mixed/")] == [name for name, _ in seeds(SPACE)]


class TestAuto:
    def test_the_best_of_the_first_population_are_tried_in_formats(self):
        config = AutoConfig(n_seeds=20, pool=8, first_look=1.0, opening=0)
        study, _ = searched(
            Auto(SPACE, seed=0, objectives=TOY_OBJECTIVES, config=config), SPACE, trials=60, evaluator=Formats(SPACE)
        )
        found = [e.candidate.schedule for e in study.evaluations()]
        dressed = [s for s in found[20:45] if s.precision and any(s.ops == other.ops for other in found[:20])]
        assert len({s.ops for s in dressed}) >= 2
        best = min(study.frontier().evaluations, key=lambda e: e.values[1])
        assert best.candidate.schedule.precision
        assert all(SPACE.check(s) is None for s in found)

    def test_seeds_are_in_formats_from_the_start_where_the_base_takes_too_much(self):
        config = AutoConfig(n_seeds=12, pool=6, low_bit=True)
        study, _ = searched(Auto(SPACE, seed=0, objectives=TOY_OBJECTIVES, config=config), SPACE, trials=10)
        whole = {SPACE.precision.preset("all", number) for number in (1, 2)}
        assert {SPACE.precision.choice(e.candidate.schedule.precision) for e in study.evaluations()} == whole

    def test_assignments_and_removals_that_are_given_are_tried_early_and_the_best_are_put_in_them(self):
        blocks = [block.name for block in BLOCKS]
        space = make_space(prunable=tuple(blocks), max_pruned=2)
        options = {"mixed": [list(MIXED)], "removals": [[blocks[1]], blocks[1:3]]}  # as a study keeps them
        searcher = make_searcher(
            "auto", space, seed=0, objectives=TOY_OBJECTIVES, n_seeds=20, pool=8, first_look=1.0, opening=0, **options
        )
        study, _ = searched(searcher, space, trials=45, evaluator=Formats(space))
        found = [e.candidate.schedule for e in study.evaluations()]
        choices = [space.precision.choice(s.precision, s.pruned) for s in found]
        assert choices.index(MIXED) == 1
        assert found[2].pruned == (blocks[1],)
        assert tuple(sorted(blocks[1:3])) in {s.pruned for s in found[:20]}
        assert len({s.ops for s, choice in zip(found[20:], choices[20:], strict=True) if choice == MIXED}) >= 2

    @pytest.mark.parametrize("wrong", [MIXED_SHORT, MIXED_LARGE, MIXED_BELOW])
    def test_assignments_of_other_spaces_are_refused(self, wrong):
        count = len(SPACE.precision.groups)
        with pytest.raises(
            UsageError, match=rf"mixed\[1\]: found .*, expected numbers from 0 to 2, one for each of {count} "
        ):
            make_searcher("auto", SPACE, seed=0, objectives=TOY_OBJECTIVES, mixed=[MIXED, wrong])

    def test_without_the_axis_it_asks_what_it_asked(self):
        asked = []
        for space in (FROZEN, CLOSED):
            config = AutoConfig(n_seeds=10, pool=6)
            study, _ = searched(Auto(space, seed=3, objectives=TOY_OBJECTIVES, config=config), space, trials=30)
            asked.append([e.candidate.schedule for e in study.evaluations()])
        assert asked[0] == asked[1]


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"auto", "random", "cachequant"}))
def test_searchers_that_know_other_axes_leave_formats_alone(name):
    searcher = make_searcher(name, SPACE, seed=0, objectives=TOY_OBJECTIVES)
    study, _ = searched(searcher, SPACE, trials=25)
    assert len(study)
    assert all(e.candidate.schedule.precision == () for e in study.evaluations())
