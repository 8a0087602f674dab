"""The default search: the contract, its first population, first looks, and that it ends by itself."""

from __future__ import annotations

import pytest

from schedsearch.errors import UsageError
from schedsearch.search import Auto, AutoConfig
from schedsearch.space import calls_of
from schedsearch.testing import (
    TOY_OBJECTIVES,
    SearcherContract,
    searched,
    toy_evaluator,
    toy_joint_space,
    toy_space,
)


class TestAuto(SearcherContract):
    trials = 40
    contest_seeds = (0, 1)

    def make(self, space, *, seed):
        return Auto(space, seed=seed, objectives=TOY_OBJECTIVES, config=AutoConfig(n_seeds=20, pool=12))


def told(searcher, evaluator, asks):
    """The candidates of so many asks, each evaluated on its share of two prompts."""
    found = []
    while len(found) < asks and (candidates := searcher.ask(1)):
        found += candidates
        searcher.tell([evaluator.evaluate(c, fidelity=max(1, round(2 * c.share))) for c in candidates])
    return found


def test_every_schedule_is_looked_at_before_it_is_measured_in_full() -> None:
    space = toy_space((("model", "CR123"),))
    config = AutoConfig(n_seeds=8, first_look=0.5, pool=8)
    found = told(Auto(space, seed=0, objectives=TOY_OBJECTIVES, config=config), toy_evaluator(space), 60)
    assert found[0].schedule == space.base
    assert found[0].share == 1.0  # one end of the frontier
    looked = set()
    for candidate in found[1:]:
        if candidate.share == 1.0:
            assert candidate.schedule.id in looked
        else:
            assert candidate.share == 0.5
            looked.add(candidate.schedule.id)
    full = [c.schedule.id for c in found if c.share == 1.0]
    assert 3 < len(full) == len(set(full)) < len(looked)


def test_the_frontier_is_tried_as_fitted_steps_and_few_calls_are_polished_after_the_seeds() -> None:
    space = toy_joint_space()
    config = AutoConfig(n_seeds=20, first_look=0.5, pool=8, polished=4)
    found = told(Auto(space, seed=0, objectives=TOY_OBJECTIVES, config=config), toy_evaluator(space), 120)
    words = [candidate.origin.split()[0] for candidate in found]
    last = max(i for i, word in enumerate(words) if word == "seed")
    polished = [candidate for candidate in found if candidate.polish]
    assert all(word == "polished" for word, candidate in zip(words, found, strict=True) if candidate.polish)
    assert words.index("polished") > last
    assert {(c.polish, c.share) for c in polished} == {("levels", 1.0)}
    assert len({c.key for c in polished}) == len(polished) >= 2 * 3
    assert all(len(calls_of(c.schedule)) <= 4 for c in polished)
    for candidate in (c for c in found if c.origin == "fused"):
        assert {solver.family for solver in candidate.schedule.solver} == {"table"}
        assert len(calls_of(candidate.schedule)) > 4
        assert candidate.parents


def test_nothing_is_polished_where_nothing_shall_be() -> None:
    space = toy_joint_space()
    config = AutoConfig(n_seeds=20, first_look=0.5, pool=8, polished=0)
    found = told(Auto(space, seed=0, objectives=TOY_OBJECTIVES, config=config), toy_evaluator(space), 60)
    assert not [candidate for candidate in found if candidate.polish]


def test_every_candidate_says_how_it_came_about() -> None:
    space = toy_space((("model", "CR123"),))
    config = AutoConfig(n_seeds=8, first_look=0.5, pool=8)
    found = told(Auto(space, seed=0, objectives=TOY_OBJECTIVES, config=config), toy_evaluator(space), 120)
    assert found[0].origin.startswith("seed plain")
    for candidate in found[1:]:
        word = candidate.origin.split()[0]
        if candidate.share == 1.0:
            assert word == "first"
        else:
            assert (
                word in {"fresh", "seed"}
                if not candidate.parents
                else word in {"crossed", "fused", "mutated", "refined", "trimmed"}
            )
            assert (len(candidate.parents) == 2) == (word == "crossed")
    assert len({candidate.origin.split()[0] for candidate in found}) >= 5


def test_it_ends_when_the_volume_stalls() -> None:
    space = toy_space((("model", "CR"),), n_steps=8)
    searcher = Auto(space, seed=0, objectives=TOY_OBJECTIVES, config=AutoConfig(patience=20, pool=8))
    study, ended = searched(searcher, space, trials=2000)
    assert ended == "finished"
    assert len(study) < 400


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"first_look": 0.0}, "first_look: found 0, expected a share above 0"),
        ({"first_look": 1.5}, "first_look: found 1.5, expected 0 to 1"),
        ({"pool": 0}, "pool: found 0, expected 1 or more"),
        ({"polished": -1}, "polished: found -1, expected 0 or more"),
        ({"slack": -1.0}, "slack: found -1.0, expected 0 or more"),
    ],
)
def test_options_out_of_range(options, text) -> None:
    with pytest.raises(UsageError, match=text):
        AutoConfig(**options)
