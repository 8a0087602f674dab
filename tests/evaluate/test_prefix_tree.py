"""The prefix tree: scores to the bit, calls counted, memory bounded, and no call shared that must not be."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedsearch.evaluate._reference import Reference
from schedsearch.evaluate._rollout import HopelessError, Runner
from schedsearch.evaluate._trace import Count, Spent, capture_call, counting_calls
from schedsearch.evaluate._tree import Kept, Needs, Node, PrefixTree, doings, room_on, root_key
from schedsearch.evaluate._work import step_work
from schedsearch.runtime import apply, block_lists_of, blocks_of, identity_schedule
from schedsearch.runtime._plan import plan as planned
from schedsearch.schedule import PrecisionRule, Solver, Tables, TableTensor, with_solver_table

SOLVERS = (
    Solver(),
    Solver(family="heun", order=2),
    Solver(family="adams", order=2),
    Solver(family="adams", order=3, corrector="implicit"),
    Solver(family="plms", order=3, prediction="noise"),
    Solver(family="dpm", order=2, prediction="data"),
    Solver(family="unipc", order=2, prediction="data", corrector="pseudo"),
    Solver(family="table", order=1),
    Solver(family="table", order=3),
)


class Machine:
    """Runs schedules with and without a tree, counting denoiser evaluations."""

    def __init__(self, pipe, runs, workload, *, batches=2):
        self.pipe, self.runs = pipe, runs
        self.lists = block_lists_of(pipe)
        self.names = [b.name for b in blocks_of(pipe)]
        self.parts = [f"{b.name}.{part}" for b in blocks_of(pipe) for part in b.components]
        self.full = identity_schedule(pipe, 6, height=8, width=8)
        self.teacher = Reference(runs)
        self.teacher.prepare(len(runs))
        self.sentinel = capture_call(pipe, workload, "x").sentinel
        self.spent = Spent(Count())

    def runner(self, tree, stray=float("inf")):
        return Runner(self.runs, self.teacher, tree=tree, stray=stray, on_images=self.book)

    def book(self, images):
        self.spent.add_images(images)

    def roll(self, runner, schedule, n=None):
        with counting_calls(self.pipe.transformer, self.sentinel) as calls:
            self.spent = Spent(calls)
            return runner.roll(schedule, n or len(self.runs))

    def naive(self, schedule):
        works = step_work(schedule, self.lists)
        return len(self.runs) * sum(work.calls for work in works if work.runs_denoiser)

    def schedule(self, rng, n=None):
        n = n or rng.randint(2, 6)
        inner = sorted((rng.randint(1, 63) / 64 for _ in range(n - 1)), reverse=True)
        sigma = (1.0, *inner, 0.0)
        if len(set(sigma)) != n + 1:
            sigma = tuple(1.0 - i / n for i in range(n + 1))
        family = [rng.choice(SOLVERS) for _ in range(n)]
        rows = {}
        if rng.random() < 0.5:
            rows["model"] = self.row(rng, n, "R123")
        for name in rng.sample(self.names, rng.randint(0, 3)):
            rows[name] = self.row(rng, n, "R12S")
        for name in rng.sample(self.parts, rng.randint(0, 2)):
            rows[name] = self.row(rng, n, "R1S")
        return dataclasses.replace(self.full, sigma=sigma, solver=tuple(family), ops=tuple(rows.items()))

    @staticmethod
    def row(rng, n, others):
        return "C" + "".join(rng.choice("CC" + others) for _ in range(n - 1))

    def mutated(self, schedule, rng):
        """One change of one step: its level, its solver, or one row there; or another step count."""
        n, i = schedule.n_steps, rng.randrange(schedule.n_steps)
        what = rng.choice(["sigma", "solver", "row", "row", "drop", "prune"])
        if what == "sigma" and i:
            sigma = list(schedule.sigma)
            sigma[i] = (sigma[i] + sigma[i + 1]) / 2
            return dataclasses.replace(schedule, sigma=tuple(sigma))
        if what == "solver":
            solver = list(schedule.solver)
            solver[i] = rng.choice(SOLVERS)
            return dataclasses.replace(schedule, solver=tuple(solver))
        if what == "drop" and n > 2 and i:
            keep = [k for k in range(n) if k != i]
            ops = tuple((name, "".join(row[k] for k in keep)) for name, row in schedule.ops)
            solver = tuple(schedule.solver[k] for k in keep)
            sigma = tuple(s for k, s in enumerate(schedule.sigma) if k != i)
            return dataclasses.replace(schedule, sigma=sigma, solver=solver, ops=ops)
        if what == "prune" and not schedule.ops:
            return dataclasses.replace(schedule, pruned=(rng.choice(self.names),))
        rows = dict(schedule.ops)
        name = rng.choice([*(rows or ["model"]), "model", *self.names])
        if i and name not in schedule.pruned:
            row = list(rows.get(name, "C" * n))
            row[i] = rng.choice("CR12" if name == "model" else "CR1S")
            rows[name] = "".join(row)
        return dataclasses.replace(schedule, ops=tuple(rows.items()))


@pytest.fixture(scope="module")
def machine(tiny, tiny_runs, tiny_workload):
    return Machine(tiny, tiny_runs(n=3, batch=2), tiny_workload)


@pytest.fixture(scope="module")
def single(tiny, tiny_runs, tiny_workload):
    return Machine(tiny, tiny_runs(n=2, batch=2), tiny_workload)


def fitted(schedule, rolled):
    rows = [()] * schedule.n_steps
    for call in rolled.calls:
        if call.family == "table":
            rows[call.step] = tuple(term.weight for term in call.nxt)
    return with_solver_table(schedule, rows) if any(s.family == "table" for s in schedule.solver) else schedule


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_scores_are_those_of_separate_runs_to_the_bit(machine, single, seed):
    """Over families of mutated schedules of all row levels, solvers and step counts, on one batch and on two, with room
    for everything and with room for little: the tree, no tree, and a plain replay of the fitted schedule agree.
    """
    rng = random.Random(seed)
    place = rng.choice([machine, single])
    tree = PrefixTree(rng.choice([2**30, 2**30, 40_000]))
    shared, alone = place.runner(tree), place.runner(PrefixTree(0))
    family = [place.schedule(rng)]
    for _ in range(7):
        family.append(place.mutated(rng.choice(family), rng))
    for schedule in family:
        one = place.roll(shared, schedule)
        assert place.spent.evaluations <= place.naive(schedule)
        other = place.roll(alone, schedule)
        assert place.spent.evaluations == place.naive(schedule)
        assert all(map(torch.equal, one.latents, other.latents))
        assert one.calls == other.calls
        assert tree.n_bytes <= tree.max_bytes
        ready = fitted(schedule, one)
        with apply(place.pipe, ready):
            for batch, latents in zip(one.batches, one.latents, strict=True):
                assert torch.equal(place.runs.latents(*batch, steps=ready.n_steps), latents)


def test_a_schedule_is_computed_once(machine):
    runner = machine.runner(PrefixTree())
    schedule = dataclasses.replace(machine.full, ops=(("model", "CCRC1C"),))

    machine.roll(runner, schedule)
    assert machine.spent.evaluations == 3 * 4
    machine.roll(runner, schedule)
    assert machine.spent.evaluations == 0


@pytest.mark.parametrize(
    ("change", "spent"),
    [
        ({"sigma": (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0)}, 1),  # the last call is at another level
        ({"solver": (Solver(),) * 5 + (Solver(family="adams", order=2),)}, 0),  # only what follows from it is new
        ({"solver": (Solver(),) * 4 + (Solver(family="adams", order=2),) * 2}, 1),
        ({"ops": (("model", "CCCCCR"),)}, 0),  # the prediction costs nothing, and its source is known
        ({"ops": (("model", "CCCRCC"),)}, 2),
        ({"ops": (("transformer_blocks.1", "CCCCCS"),)}, 1),
        ({"ops": (("transformer_blocks.1", "CCCCRC"),)}, 3),  # the residual of step 3 was not kept: from there on
        ({"pruned": ("transformer_blocks.1",)}, 6),
    ],
)
def test_what_agrees_is_shared_and_no_more(single, change, spent):
    base = dataclasses.replace(single.full, sigma=(1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0))
    runner = single.runner(PrefixTree())
    single.roll(runner, base)

    single.roll(runner, dataclasses.replace(base, **change))

    assert single.spent.evaluations == 2 * spent


def test_a_kept_value_is_no_obstacle(single):
    """A schedule that keeps a residual and one that does not share their calls, in this order and in the other."""
    keeps = dataclasses.replace(single.full, ops=(("transformer_blocks.0", "CCCCRC"),))
    for first, second, spent in ((keeps, single.full, 2), (single.full, keeps, 3)):
        runner = single.runner(PrefixTree())
        single.roll(runner, first)
        single.roll(runner, second)
        assert single.spent.evaluations == 2 * spent


def test_fitted_steps_are_shared_too(machine):
    table = (Solver(family="table", order=1), *(Solver(family="table", order=2),) * 5)
    schedule = dataclasses.replace(machine.full, solver=table)
    runner = machine.runner(PrefixTree())
    machine.roll(runner, schedule)

    machine.roll(runner, dataclasses.replace(schedule, solver=(*table[:4], *(Solver(),) * 2)))

    assert machine.spent.evaluations == 3 * 1


def test_other_prompts_fit_other_scalars(machine):
    schedule = dataclasses.replace(machine.full, solver=(Solver(family="table", order=1),) * 6)
    runner = machine.runner(PrefixTree())

    few, many = machine.roll(runner, schedule, 2), machine.roll(runner, schedule, 3)

    assert few.calls != many.calls
    assert few.calls == machine.roll(machine.runner(PrefixTree(0)), schedule, 2).calls


def test_a_run_that_strays_ends_with_where_and_why(single):
    far = dataclasses.replace(single.full, solver=(Solver(),) * 6, ops=(("model", "CRRRRR"),))
    runner = single.runner(PrefixTree(), stray=1e-6)

    with pytest.raises(
        HopelessError, match=r"after call 2 of 6, at sigma 0\.\d+, the latents are .* away from the def"
    ):
        single.roll(runner, far)
    assert single.spent.evaluations == 2
    with pytest.raises(HopelessError, match="after call 2 of 6"):  # and does so again, at no cost
        single.roll(runner, far)
    assert single.spent.evaluations == 0
    single.roll(single.runner(PrefixTree()), far)
    assert single.spent.evaluations == 2


def test_an_abandoned_run_leaves_the_pipeline_bare(single):
    runner = single.runner(PrefixTree(), stray=0.0)
    with pytest.raises(HopelessError):
        single.roll(runner, dataclasses.replace(single.full, ops=(("model", "CRCCCC"),)))

    assert not hasattr(single.pipe.transformer, "_schedsearch_handle")
    assert "forward" not in single.pipe.transformer.__dict__


def node(n, *others):
    return Node(sample=torch.zeros(n), output=torch.zeros(n), history=(), caches=dict(others))


def test_the_least_recently_used_node_goes_first():
    tree = PrefixTree(3 * 80)
    for key in (b"a", b"b", b"c"):
        tree.put((0, 1), key, node(10))
    tree.get((0, 1), b"a")
    tree.put((0, 1), b"d", node(10))

    assert [tree.get((0, 1), key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert tree.n_bytes == 3 * 80
    assert tree.get((0, 2), b"a") is None


def test_shared_tensors_count_once_and_until_the_last_holder_goes():
    tree, tensor = PrefixTree(10_000), torch.zeros(100)
    for key in (b"a", b"b"):
        tree.put((0, 1), key, Node(sample=tensor, output=tensor, history=()))
    assert (tree.n_bytes, len(tree)) == (400, 2)

    tree.max_bytes = 500
    tree.put((0, 1), b"c", node(20))
    assert (tree.n_bytes, len(tree)) == (160, 1)  # letting "a" go frees nothing yet, so "b" goes too
    tree.clear()
    assert (tree.n_bytes, len(tree)) == (0, 0)


def test_a_node_met_again_joins_its_caches():
    tree = PrefixTree()
    one, two = ("segment", ("b.0",), 0), ("segment", ("b.1",), 0)
    tree.put((0, 1), b"a", node(4, (one, Kept(steps=(0,), branches=()))))
    tree.put((0, 1), b"a", node(4, (two, Kept(steps=(1,), branches=()))))

    assert set(tree.get((0, 1), b"a").caches) == {one, two}
    assert tree.n_bytes == 32


def test_caches_that_would_fill_the_tree_are_not_stored():
    levels = (((torch.zeros(100),),), True)
    caches = {("segment", ("b.0",), 0): Kept(steps=(0,), branches=(levels,))}

    assert PrefixTree(400 * 16).takes(caches)
    assert not PrefixTree(400 * 16 - 1).takes(caches)


def test_needs_are_the_values_that_later_predictions_use(single):
    rows = (("transformer_blocks.0", "CCC2CR"),)
    made = planned(dataclasses.replace(single.full, ops=rows), single.lists)
    needs, place = Needs(made), ("segment", ("transformer_blocks.0",), 2)

    def met(index, *steps):
        return needs.met(index, {place: Kept(steps=steps, branches=())} if steps else {})

    assert [met(i) for i in range(6)] == [False, False, False, True, False, True]
    assert met(1, 1, 0)
    assert not met(1, 1)
    assert met(2, 2, 1, 0)
    assert not met(2, 2, 0)
    assert met(4, 4)
    assert met(4, 4, 2, 1)
    assert not met(4, 2)


def test_keeping_is_not_doing(single):
    keeps = planned(dataclasses.replace(single.full, ops=(("transformer_blocks.0", "CCCCRC"),)), single.lists)
    plain = planned(single.full, single.lists)

    assert doings(keeps)[:4] == doings(plain)[:4]
    assert doings(keeps)[4] != doings(plain)[4]


def test_a_cpu_has_room_for_the_default():
    assert room_on(torch.device("cpu")) == 2**30


@pytest.mark.slow
def test_mutated_schedules_cost_a_good_half(mini, mini_card):
    from schedsearch.evaluate._bench_prefix import BOUND, measure_prefixes

    card = dataclasses.replace(mini_card, steps=6)
    rows = measure_prefixes(mini, card, children=16, prompts=1, compare=False)

    assert sum(row.spent for row in rows) <= (BOUND + 0.15) * sum(row.naive for row in rows)


def test_runs_in_other_formats_share_nothing(tiny_plan):
    """Formats and what the side file holds for layers count from the first call on; a solver's table does not."""
    entry = TableTensor(name="x.bias", shape=(1,), dtype="F32", role="bias")
    ones, twos = (Tables(sha256=char * 64, tensors=(entry,)) for char in "12")
    rule = (PrecisionRule(pattern="*", weight="int8", activation="int8"),)
    keys = [
        root_key(tiny_plan(**fields))
        for fields in (
            {},
            {"precision": rule},
            {"precision": (dataclasses.replace(rule[0], rank=2),)},
            {"precision": rule, "tables": ones},
            {"precision": rule, "tables": twos},
        )
    ]
    assert len(set(keys)) == len(keys)
    fitted = tiny_plan(solver=(Solver(family="table"), *(Solver(),) * 3))
    assert root_key(with_solver_table(fitted, [[1.0, 1.0], *[[0.0, 0.0]] * 3])) == keys[0]
