"""Benchmark: how many denoiser evaluations does the prefix tree spare, and are the scores the same to the bit?

    python -m schedsearch.evaluate._bench_prefix --children 64 --csv prefix.csv

From each of a few schedules, children are bred as a search breeds them: each is mutated from one that was drawn among
the parent and the children so far. All are scored once through the tree and, unless told not to, once without it. The
naive number is that of separate runs: every real denoiser call of every schedule.
"""

# ruff: noqa: T201 -- a program
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from schedsearch.evaluate._bench_program import common_options, opened, write_rows
from schedsearch.evaluate._latency import device_name
from schedsearch.evaluate._models import ModelCard
from schedsearch.evaluate._reference import PairedRuns, Reference
from schedsearch.evaluate._rollout import Runner
from schedsearch.evaluate._trace import Spent, capture_call, counting_calls
from schedsearch.evaluate._tree import TREE_BYTES, PrefixTree
from schedsearch.evaluate._work import BlockLists, step_work
from schedsearch.evaluate._workload import Pipeline, Workload
from schedsearch.runtime import block_lists_of, blocks_of, default_sigmas, denoiser_of, model_ref
from schedsearch.schedule import MODEL_ROW, Schedule, Solver
from schedsearch.space import SearchSpace, load_space, mutated, warp
from schedsearch_calibration import prompt_set

BOUND = 0.60
"""Largest share of the naive denoiser evaluations that is allowed, over all parents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRow:
    """One parent and its children.

    Attributes:
        name: of the parent.
        schedules: different schedules scored.
        naive: denoiser evaluations of separate runs.
        spent: those through the tree.
        ratio: the second over the first.
        tree_s: seconds through the tree.
        plain_s: seconds without, 0 if not run.
        equal: whether all final latents agreed to the bit with those without.
        held_mib: memory the tree held in the end.
    """

    name: str
    schedules: int
    naive: int
    spent: int
    ratio: float
    tree_s: float
    plain_s: float
    equal: bool
    held_mib: float


def parents(pipe: Pipeline, workload: Workload) -> dict[str, Schedule]:
    """Return few placed steps with fitted and with fixed solvers, and the default grid with forecast rows."""
    size = {"height": workload.height, "width": workload.width}
    model = model_ref(pipe, **size)
    grid = default_sigmas(pipe, workload.steps, **size)
    placed = warp("shift", 7, first=grid[0], last=grid[-1], shift=1.5)
    n = len(grid) - 1
    every_third = "".join("C" if i % 3 == 0 or i < 3 else "1" for i in range(n))
    names = [block.name for block in blocks_of(pipe)]
    return {
        "7 steps, Adams": Schedule(sigma=placed, solver=(Solver(family="adams", order=2),) * 7, model=model),
        "7 steps, fitted": Schedule(
            sigma=placed, solver=tuple(Solver(family="table", order=min(i + 1, 3)) for i in range(7)), model=model
        ),
        "default grid, model row": Schedule(
            sigma=grid, solver=(Solver(),) * n, model=model, ops=((MODEL_ROW, every_third),)
        ),
        "default grid, block rows": Schedule(
            sigma=grid, solver=(Solver(),) * n, model=model, ops=tuple((name, every_third) for name in names[1:])
        ),
    }


def bred(parent: Schedule, space: SearchSpace, count: int, *, seed: int) -> tuple[Schedule, ...]:
    """Return ``parent`` and ``count`` different descendants, each mutated from one of those before it."""
    rng = np.random.default_rng(seed)
    family = {parent.id: parent}
    while len(family) <= count:
        known = list(family.values())
        child = mutated(known[int(rng.integers(len(known)))], space, rng)
        family.setdefault(child.id, child)
    return tuple(family.values())


def naive_evaluations(schedules: Sequence[Schedule], block_lists: BlockLists, *, images: int, branches: int) -> int:
    """Return images times real denoiser calls of separate runs."""
    works = (work for s in schedules for work in step_work(s, block_lists, branches=branches))
    return images * sum(work.calls for work in works if work.runs_denoiser)


def score(
    runs: PairedRuns, teacher: Reference, schedules: Sequence[Schedule], *, tree: PrefixTree, sentinel: str
) -> tuple[list[torch.Tensor | None], int, float]:
    """Return final latents (nothing for a run that ended in no numbers), denoiser evaluations and seconds."""
    found: list[torch.Tensor | None] = []
    started = time.perf_counter()
    with counting_calls(denoiser_of(runs.pipe), sentinel) as calls:
        spent = Spent(calls)
        runner = Runner(runs, teacher, tree=tree, stray=float("inf"), on_images=spent.add_images)
        for schedule in schedules:
            try:
                found.append(torch.cat(runner.roll(schedule, len(runs)).latents))
            except FloatingPointError:
                found.append(None)
    return found, spent.evaluations, time.perf_counter() - started


def measure_prefixes(
    pipe: Pipeline,
    card: ModelCard,
    *,
    children: int,
    prompts: int,
    seed: int = 0,
    tree_bytes: int = TREE_BYTES,
    compare: bool = True,
) -> tuple[PrefixRow, ...]:
    """Return one row per parent."""
    workload = Workload.from_card(card)
    lists = block_lists_of(pipe)
    size = {"height": workload.height, "width": workload.width}
    grid = default_sigmas(pipe, workload.steps, **size)
    space = load_space(card.family, model=model_ref(pipe, **size), blocks=blocks_of(pipe), sigma=grid)
    texts = prompt_set(card.calibration).prompts[:prompts]
    runs = PairedRuns(pipe, workload, texts, seed=seed, batch=8)
    teacher = Reference(runs)
    teacher.prepare(prompts)
    sentinel = capture_call(pipe, workload, texts[0]).sentinel
    rows = []
    for name, parent in parents(pipe, workload).items():
        schedules = bred(space.repair(parent), space, children, seed=seed)
        tree = PrefixTree(tree_bytes)
        shared, spent, tree_s = score(runs, teacher, schedules, tree=tree, sentinel=sentinel)
        alone: list[torch.Tensor | None] = list(shared)
        plain_s = 0.0
        if compare:
            alone, _, plain_s = score(runs, teacher, schedules, tree=PrefixTree(0), sentinel=sentinel)
        naive = naive_evaluations(schedules, lists, images=prompts, branches=workload.branches)
        rows.append(
            PrefixRow(
                name=name,
                schedules=len(schedules),
                naive=naive,
                spent=spent,
                ratio=spent / naive,
                tree_s=tree_s,
                plain_s=plain_s,
                equal=all(_same(a, b) for a, b in zip(shared, alone, strict=True)),
                held_mib=tree.n_bytes / 2**20,
            )
        )
    return tuple(rows)


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(torch.equal(one.nan_to_num(), other.nan_to_num()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table, write the CSV; 0 if the bound holds and all scores agree, else 1."""
    parser = common_options("Count what the prefix tree spares.")
    parser.add_argument("--children", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-compare", action="store_true", help="do not run everything a second time without the tree"
    )
    options = parser.parse_args(arguments)
    card, pipe, _ = opened(options)
    rows = measure_prefixes(
        pipe,
        card,
        children=options.children,
        prompts=options.prompts,
        seed=options.seed,
        compare=not options.no_compare,
    )
    print(f"{device_name(options.device)}; denoiser evaluations of {options.children} children and their parent")
    for row in rows:
        print(
            f"{row.name:24} naive {row.naive:6}  tree {row.spent:6}  {row.ratio:5.1%}  {row.tree_s:6.1f} s "
            f"(without {row.plain_s:6.1f} s)  {row.held_mib:7.1f} MiB  {'equal' if row.equal else 'NOT EQUAL'}"
        )
    share = sum(row.spent for row in rows) / sum(row.naive for row in rows)
    print(f"all {share:.1%}, allowed {BOUND:.0%}")
    write_rows(options.csv, rows)
    return 0 if share <= BOUND and all(row.equal for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
