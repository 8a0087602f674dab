"""The only loop: what it records, when it stops, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace
from math import nan

import pytest

from schedsearch.errors import StudyMismatchError, UsageError
from schedsearch.protocols import Evaluator, Searcher
from schedsearch.search import SEARCHERS, Stop, loop, make_searcher, run
from schedsearch.study import Candidate, Study
from schedsearch.testing import TOY_OBJECTIVES, toy_evaluator, toy_space

SPACE = toy_space((("model", "CR"),), n_steps=6)


def scheduled(row):
    return replace(SPACE.base, ops=(("model", row),))


@dataclass
class Scripted:
    """Asks for rows from a list, in batches; remembers what it was told."""

    batches: list[list[str]]
    name: str = "scripted"
    told: list = field(default_factory=list)
    offset: int = 0

    def ask(self, n):
        if not self.batches:
            return ()
        rows = self.batches.pop(0)
        start, self.offset = self.offset, self.offset + len(rows)
        return [Candidate(schedule=scheduled(row), searcher=self.name, ask=start + i) for i, row in enumerate(rows)]

    def tell(self, evaluations):
        self.told += evaluations


def new_study(storage="memory:"):
    return Study.open(storage, "loop", objectives=TOY_OBJECTIVES, settings={}, resume=True)


def looped(study, searcher, evaluator=None, **options):
    evaluator = evaluator or toy_evaluator(SPACE)
    return run(study, searcher, evaluator, **{"space": SPACE, "stop": Stop(), "fidelity": 2, **options})


def test_everything_fits_the_protocols():
    assert isinstance(Scripted([]), Searcher)
    assert isinstance(toy_evaluator(SPACE), Evaluator)
    for name in SEARCHERS:
        space = toy_space((("model", "CR"), ("component", "CR")))
        assert isinstance(make_searcher(name, space, seed=0, objectives=TOY_OBJECTIVES), Searcher)


def test_a_repeated_schedule_is_told_again_for_nothing_and_leaves_no_record():
    study, searcher, evaluator, seen = (
        new_study(),
        Scripted([["CRCCCC", "CCRCCC"], ["CRCCCC"]]),
        toy_evaluator(SPACE),
        [],
    )
    assert looped(study, searcher, evaluator, on_evaluation=seen.append) == "finished"
    assert evaluator.calls == len(study) == len(seen) == 2
    first, _, again = searcher.told
    assert (again.values, again.candidate.ask) == (first.values, 2)
    assert (again.seconds, again.denoiser_evals) == (0.0, 0)
    assert study.spent.denoiser_evals == sum(e.denoiser_evals for e in study.evaluations()) > 0


def test_trials_stop_inside_a_batch_and_a_larger_limit_goes_on():
    study, rows = new_study(), ["CRCCCC", "CCRCCC", "CCCRCC", "CCCCRC"]
    searcher = Scripted([rows])
    assert looped(study, searcher, stop=Stop(trials=3)) == "trials"
    assert (len(study), searcher.told) == (3, [])
    assert looped(study, Scripted([rows]), stop=Stop(trials=3)) == "trials"
    again, evaluator = Scripted([rows]), toy_evaluator(SPACE)
    assert looped(study, again, evaluator, stop=Stop(trials=9)) == "finished"
    assert (len(study), evaluator.calls, len(again.told)) == (4, 1, 4)
    assert list(study.evaluations()) == again.told


def test_minutes_count_what_earlier_runs_spent(monkeypatch):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    study, searcher = new_study(), Scripted([[row] for row in ("CRCCCC", "CCRCCC", "CCCRCC", "CCCCRC")])
    assert looped(study, searcher, stop=Stop(minutes=2.0)) == "minutes"
    assert 0 < len(study) < 4
    spent = new_study()
    record = toy_evaluator(SPACE).evaluate(Candidate(schedule=SPACE.base, searcher="x", ask=50), fidelity=2)
    spent.append(replace(record, seconds=120.0))
    assert looped(spent, Scripted([["CRCCCC"]]), stop=Stop(minutes=2.0)) == "minutes"
    assert len(spent) == 1


def test_a_searcher_that_only_repeats_itself_is_stopped(monkeypatch):
    monkeypatch.setattr(loop, "MAX_IDLE_ASKS", 5)
    searcher = Scripted([["CRCCCC"]] * 50)
    assert looped(new_study(), searcher) == "stalled"
    assert len(searcher.told) == 6


def test_replaying_a_long_study_is_no_stall(monkeypatch):
    monkeypatch.setattr(loop, "MAX_IDLE_ASKS", 3)
    rows = [["CRCCCC"], ["CCRCCC"], ["CCCRCC"], ["CCCCRC"], ["CCCCCR"]]
    study = new_study()
    looped(study, Scripted(list(rows)))
    assert looped(study, Scripted([*rows, ["CRRCCC"]])) == "finished"
    assert len(study) == 6


def test_a_value_that_is_no_number_becomes_a_failure():
    evaluator = toy_evaluator(SPACE)
    plain = evaluator.evaluate
    evaluator.evaluate = lambda candidate, *, fidelity: replace(plain(candidate, fidelity=fidelity), values=(nan, 1.0))
    study = new_study()
    looped(study, Scripted([["CRCCCC"]]), evaluator)
    record = study.lookup(0)
    assert (record.status, record.values) == ("failed", ())
    assert record.reason == "values (nan, 1.0): not a number"


@pytest.mark.parametrize(
    ("share", "fewest", "fidelity", "kept"),
    [(0.25, 1, 2, 0.25), (0.25, 4, 4, 0.25), (0.25, 8, 8, 1.0), (0.25, 99, 8, 1.0), (1.0, 4, 8, 1.0)],
)
def test_a_first_look_is_on_as_many_prompts_as_an_objective_needs(share, fewest, fidelity, kept):
    class Looking(Scripted):
        def ask(self, n):
            return [replace(candidate, share=share) for candidate in super().ask(n)]

    searcher = Looking([["CRCRCR"]])
    with new_study() as study:
        looped(study, searcher, fidelity=8, fewest=fewest)

    assert searcher.told[0].fidelity == fidelity
    assert searcher.told[0].candidate.share == kept


def test_an_earlier_measurement_on_fewer_prompts_is_not_enough():
    study = new_study()
    assert looped(study, Scripted([["CRCCCC"]]), fidelity=1) == "finished"
    searcher = Scripted([["CCRCCC"], ["CRCCCC"]], offset=1)
    with pytest.raises(UsageError, match="found ask number 1, expected 0"):
        looped(study, searcher, fidelity=2)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            "C1CCCC",
            r"ask 0: found an illegal schedule, ops.model\[1\]: found 1, expected R: row model may hold CR. This",
        )
    ],
)
def test_an_illegal_proposal_is_the_searchers_bug(row, text):
    study = new_study()
    with pytest.raises(UsageError, match=text):
        looped(study, Scripted([[row]]))
    assert len(study) == 0


def test_records_of_another_searcher_are_refused():
    study = new_study()
    looped(study, Scripted([["CRCCCC"]]))
    with pytest.raises(
        StudyMismatchError, match=r"ask 0: found schedule sha256:.* It was made by another release or searcher"
    ):
        looped(study, Scripted([["CCRCCC"]]))


class TestMakeSearcher:
    @pytest.mark.parametrize(
        ("name", "options", "text"),
        [
            ("aneal", {}, r"search: found 'aneal', expected one of anneal, auto, .*, s3. Did you mean anneal\?"),
            (
                "random",
                {"patient": 3},
                r"search random: found the option 'patient', expected one of patience. Did you mean",
            ),
            ("random", {"patience": 0}, "patience: found 0, expected 1 or more"),
            ("random", {"patience": "3"}, "search random, patience: found '3', expected a value such as 200"),
            ("random", {"patience": True}, "search random, patience: found True, expected a value such as 200"),
            ("anneal", {"budgets": ["4"]}, r"search anneal, budgets\[0\]: found '4', expected a whole number"),
            ("anneal", {"budgets": [4, True]}, r"search anneal, budgets\[1\]: found True, expected a whole number"),
            ("anneal", {"budgets": [float("nan")]}, r"search anneal, budgets\[0\]: found nan, expected a whole number"),
            ("anneal", {"budgets": 4}, r"search anneal, budgets: found 4, expected a value such as \(\)"),
            ("anneal", {"spacings": [1, float("nan")]}, r"search anneal, spacings\[1\]: found nan, expected a finite"),
            ("anneal", {"op_moves": float("inf")}, r"search anneal, op_moves: found inf, expected a value such as 0.3"),
            ("anneal", {"op_moves": 10**5000}, r"search anneal, op_moves: found a int too large to show"),
            ("ecad", {"mutation": 2}, "mutation: found 2.0, expected a probability"),
            ("ecad", {"population": 3}, "population: found 3, expected 4 or more"),
            ("anneal", {"budgets": [7]}, r"budgets\[0\]: found 7, expected 1 to 6 computed steps"),
            ("anneal", {"ops": "S"}, "ops: found 'S', expected symbols of the model row, R"),
            ("anneal", {"iterations": -1}, "iterations: found -1, expected 0 or more"),
            ("anneal", {"temperature_end": 1}, "temperature: found 0.05 to 1.0, expected a fall that stays above 0"),
            ("random", {"seed": -1}, "seed: found -1, expected 0 or more"),
            ("random", {"objectives": ()}, "objectives: found none, expected at least one"),
        ],
    )
    def test_misuse_is_named(self, name, options, text):
        space = toy_space((("model", "CR"), ("component", "CR")), n_steps=6)
        with pytest.raises(UsageError, match=text):
            make_searcher(name, space, **{"seed": 0, "objectives": TOY_OBJECTIVES, **options})

    @pytest.mark.parametrize(
        ("name", "levels", "text"),
        [
            ("ecad", (("model", "CR"),), "search ecad: found no component row that may hold R in space toy"),
            ("anneal", (("component", "CR"),), "search anneal: found no model row in space toy"),
        ],
    )
    def test_a_space_without_the_needed_level_is_named(self, name, levels, text):
        with pytest.raises(UsageError, match=text):
            make_searcher(name, toy_space(levels), seed=0, objectives=TOY_OBJECTIVES)


def test_importing_search_loads_no_heavy_library():
    heavy = ("torch", "pymoo", "optuna", "moocore")
    code = f"import sys, schedsearch.search; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
