"""What every searcher must do, as a test class to inherit from.

    class TestMine(SearcherContract):
        def make(self, space, *, seed):
            return Mine(space, seed=seed, objectives=TOY_OBJECTIVES)

Attributes of the class adapt it: the part of the toy space to search, how many evaluations to give, and whether it must
beat random draws. This module does not know any searcher but the one it compares with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from schedsearch.errors import UsageError
from schedsearch.protocols import Searcher
from schedsearch.search import Ended, RandomSearch, Stop, run
from schedsearch.space import SearchSpace, load_space
from schedsearch.study import Candidate, Evaluation, Study
from schedsearch.testing._gaussian import TOY_OBJECTIVES, GaussianEvaluator, toy_blocks, toy_model_ref, toy_sigmas

SETTINGS = {"purpose": "contract"}


def toy_space(
    levels: Sequence[tuple[str, str]], *, n_steps: int = 10, n_double: int = 2, n_single: int = 2
) -> SearchSpace:
    """A space over the toy model with these pairs (level, symbols)."""
    return SearchSpace(
        name="toy", model=toy_model_ref(), blocks=toy_blocks(n_double, n_single), sigma=toy_sigmas(n_steps),
        levels=tuple(levels), counts=(n_steps,),
    )  # fmt: skip


def toy_joint_space() -> SearchSpace:
    """The space of FLUX over a toy model of twelve steps, with everything open."""
    return load_space("flux", model=toy_model_ref(), blocks=toy_blocks(2, 2), sigma=toy_sigmas(12))


def toy_evaluator(space: SearchSpace, *, fails: Callable[[Candidate], bool] = lambda _: False) -> GaussianEvaluator:
    """An evaluator of schedules of ``space``."""
    return GaussianEvaluator(blocks=space.blocks, full=space.base, fails=fails)


def searched(
    searcher: Searcher, space: SearchSpace, *, trials: int, evaluator: GaussianEvaluator | None = None,
    storage: object = "memory:",
) -> tuple[Study, Ended]:  # fmt: skip
    """The study of a run of ``searcher``, and why it ended; goes on with what ``storage`` holds."""
    study = Study.open(
        storage, "contract", objectives=TOY_OBJECTIVES, settings=SETTINGS, resume=True,  # type: ignore[arg-type]
    )  # fmt: skip
    evaluator = evaluator or toy_evaluator(space)
    return study, run(study, searcher, evaluator, space=space, stop=Stop(trials=trials), fidelity=2)


class SearcherContract:
    """Inherit, and say how the searcher is made.

    Attributes:
        levels: the part of the toy space to search, pairs (level, symbols).
        n_steps: steps of the toy model.
        trials: evaluations the searcher gets in most tests.
        beats_random: whether its frontiers must have more volume than those of random draws.
        contest_trials: evaluations both get in that contest.
        contest_seeds: seeds over which the volumes are averaged.
        reference_point: of the volumes: relative error and calls.
    """

    levels: tuple[tuple[str, str], ...] = (("model", "CR123"), ("component", "CR"))
    n_steps = 10
    trials = 60
    beats_random = True
    contest_trials = 120
    contest_seeds: tuple[int, ...] = (0, 1, 2)
    reference_point: tuple[float, float] = (0.5, 10.0)

    def make(self, space: SearchSpace, *, seed: int) -> Searcher:
        """The searcher under test."""
        raise NotImplementedError

    def space(self) -> SearchSpace:
        """The space it is tested on."""
        return toy_space(self.levels, n_steps=self.n_steps)

    def _trail(
        self, searcher: Searcher, *, asks: int, fails: Callable[[Candidate], bool] = lambda _: False
    ) -> list[str]:
        """Ids in the order proposed, from plain asks and tells."""
        evaluator = toy_evaluator(self.space(), fails=fails)
        ids: list[str] = []
        while len(ids) < asks and (candidates := searcher.ask(1)):
            ids += [candidate.schedule.id for candidate in candidates]
            searcher.tell([evaluator.evaluate(candidate, fidelity=2) for candidate in candidates])
        return ids[:asks]

    def test_has_a_name(self) -> None:
        """Its name is text, and its candidates carry it."""
        searcher = self.make(self.space(), seed=0)
        assert searcher.name
        assert {candidate.searcher for candidate in searcher.ask(1)} == {searcher.name}

    def test_proposes_only_legal_candidates_numbered_on(self) -> None:
        """All candidates are canonical members of the space; asks count 0, 1, 2, ..."""
        space, asked = self.space(), 0
        searcher, evaluator = self.make(space, seed=3), toy_evaluator(space)
        while asked < self.trials and (candidates := searcher.ask(1)):
            for candidate in candidates:
                assert space.check(candidate.schedule) is None
                assert candidate.ask == asked
                asked += 1
            searcher.tell([evaluator.evaluate(candidate, fidelity=1) for candidate in candidates])
        assert asked > 0

    def test_same_seed_asks_the_same_and_another_seed_does_not(self) -> None:
        """Proposals are a function of the seed and of what was told."""
        first, again, other = (self._trail(self.make(self.space(), seed=s), asks=self.trials) for s in (5, 5, 6))
        assert first == again
        assert first != other

    def test_leaves_global_random_states_alone_and_ignores_them(self) -> None:
        """Neither reads nor moves the generators that belong to everybody."""
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
        before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
        first = self._trail(self.make(self.space(), seed=2), asks=30)
        assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index] # noqa: NPY002
        np.random.seed(2)  # noqa: NPY002
        random.seed(2)
        assert self._trail(self.make(self.space(), seed=2), asks=30) == first

    def test_two_of_them_do_not_disturb_each_other(self) -> None:
        """Interleaved with a twin of another seed, it proposes what it proposes alone."""
        evaluator = toy_evaluator(self.space())
        alone = self._trail(self.make(self.space(), seed=4), asks=40)
        pair, ids = (self.make(self.space(), seed=4), self.make(self.space(), seed=9)), [[], []]  # type: ignore[var-annotated]
        while len(ids[0]) < 40:
            for searcher, seen in zip(pair, ids, strict=True):
                candidates = searcher.ask(1)
                seen += [candidate.schedule.id for candidate in candidates]
                if candidates:
                    searcher.tell([evaluator.evaluate(candidate, fidelity=2) for candidate in candidates])
        assert ids[0][:40] == alone[:40]

    @pytest.mark.parametrize("cut", [1, 17, 40])
    def test_resumed_run_is_the_uninterrupted_one(self, cut: int) -> None:
        """A new searcher on the records of a run that stopped ends with the same records."""
        from schedsearch.study._storage import open_storage

        space, storage = self.space(), open_storage("memory:")
        whole, _ = searched(self.make(space, seed=7), space, trials=self.trials)
        searched(self.make(space, seed=7), space, trials=min(cut, self.trials - 1), storage=storage)
        resumed, _ = searched(self.make(space, seed=7), space, trials=self.trials, storage=storage)
        assert [_content(e) for e in resumed.evaluations()] == [_content(e) for e in whole.evaluations()]

    def test_no_schedule_is_measured_twice(self) -> None:
        """Repeated proposals are answered from the record; only more prompts are a reason to measure again."""
        space = self.space()
        evaluator = toy_evaluator(space)
        study, _ = searched(self.make(space, seed=1), space, trials=self.trials, evaluator=evaluator)
        measured = {(e.candidate.key, e.fidelity) for e in study.evaluations()}
        assert evaluator.calls == len(study) == len(measured)

    def test_survives_failed_evaluations(self) -> None:
        """A third of the measurements fail, then all of them; it goes on."""
        space = self.space()
        some = toy_evaluator(space, fails=lambda candidate: candidate.ask % 3 == 1)
        study, _ = searched(self.make(space, seed=1), space, trials=self.trials, evaluator=some)
        assert {evaluation.status for evaluation in study.evaluations()} == {"ok", "failed"}
        every = toy_evaluator(space, fails=lambda _: True)
        study, _ = searched(self.make(space, seed=1), space, trials=self.trials // 2, evaluator=every)
        assert {evaluation.status for evaluation in study.evaluations()} == {"failed"}

    def test_finishes_on_a_space_of_one(self) -> None:
        """One step leaves nothing to choose: one record, then no more candidates."""
        space = toy_space(self.levels, n_steps=1)
        assert space.cardinality() == 1
        study, ended = searched(self.make(space, seed=0), space, trials=10)
        assert (len(study), ended) == (1, "finished")

    def test_refuses_a_wrong_order(self) -> None:
        """Asking twice, and telling what was not asked, are errors that say so."""
        searcher, evaluator = self.make(self.space(), seed=0), toy_evaluator(self.space())
        with pytest.raises(UsageError, match=r"tell: found evaluations of the asks"):
            searcher.tell([])
        candidates = searcher.ask(1)
        with pytest.raises(UsageError, match=r"without evaluations, expected a tell first"):
            searcher.ask(1)
        evaluations = [evaluator.evaluate(candidate, fidelity=1) for candidate in candidates]
        with pytest.raises(UsageError, match=r"the candidates last asked for, in their order"):
            searcher.tell([*evaluations, *evaluations])

    def test_beats_random_draws(self) -> None:
        """At the same number of evaluations its frontiers have more volume, on average over fixed seeds."""
        if not self.beats_random:
            pytest.skip("this searcher is not meant to beat random draws")
        assert self.contest(self.make) > self.contest(
            lambda space, seed: RandomSearch(space, seed=seed, objectives=TOY_OBJECTIVES)
        )

    def contest(self, make: Callable[..., Searcher]) -> float:
        """Mean volume of the frontiers found by what ``make(space, seed=)`` returns."""
        space = self.space()
        volumes = []
        for seed in self.contest_seeds:
            study, _ = searched(make(space, seed=seed), space, trials=self.contest_trials)
            volumes.append(study.frontier().hypervolume(self.reference_point))
        return float(np.mean(volumes))


def _content(evaluation: Evaluation) -> tuple[object, ...]:
    """All of an evaluation but the time it took."""
    return (evaluation.candidate, evaluation.status, evaluation.values, evaluation.samples, evaluation.denoiser_evals)
