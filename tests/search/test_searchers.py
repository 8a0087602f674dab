"""Every searcher in the table keeps the shipped contract."""

from __future__ import annotations

import importlib
import pkgutil

from schedsearch import search
from schedsearch.search import SEARCHERS, make_searcher
from schedsearch.testing import TOY_OBJECTIVES, SearcherContract


class TestRandom(SearcherContract):
    beats_random = False

    def make(self, space, *, seed):
        return make_searcher("random", space, seed=seed, objectives=TOY_OBJECTIVES)


class TestEcad(SearcherContract):
    levels = (("component", "CR"),)
    contest_trials = 240

    def make(self, space, *, seed):
        return make_searcher("ecad", space, seed=seed, objectives=TOY_OBJECTIVES)


class TestEcadBesideOtherLevels(SearcherContract):
    """The model row stays computed; only components are searched."""

    beats_random = False

    def make(self, space, *, seed):
        return make_searcher("ecad", space, seed=seed, objectives=TOY_OBJECTIVES, population=12)


class TestAnneal(SearcherContract):
    """A ladder around a fourfold cut; the contest is about the region it covers, at most 7 computed steps."""

    levels = (("model", "CR123"),)
    n_steps = 20
    contest_trials = 160
    reference_point = (0.3, 7.5)

    def make(self, space, *, seed):
        return make_searcher(
            "anneal", space, seed=seed, objectives=TOY_OBJECTIVES, iterations=40, hill_climb_rounds=1, ladder_share=0.5,
            budgets=[budget for budget in (5, 4, 3, 6, 2, 7, 1) if budget <= space.n_steps],
        )  # fmt: skip


class TestAnnealAsPublished(SearcherContract):
    """One budget, reuse only; what it should be good at is tested in test_anneal.py."""

    levels = (("model", "CR"),)
    beats_random = False
    trials = 20

    def make(self, space, *, seed):
        return make_searcher(
            "anneal", space, seed=seed, objectives=TOY_OBJECTIVES, ops="R" if space.n_steps > 1 else "", relative=False,
            spacings=(1.0,), budgets=(min(5, space.n_steps),),
        )  # fmt: skip


def test_every_searcher_file_is_in_the_table():
    names = set()
    for module in pkgutil.iter_modules(search.__path__):
        contents = vars(importlib.import_module(f"schedsearch.search.{module.name}"))
        names |= {
            item.name
            for item in contents.values()
            if isinstance(item, type) and hasattr(item, "ask") and hasattr(item, "Config")
        }
    assert names == set(SEARCHERS)
