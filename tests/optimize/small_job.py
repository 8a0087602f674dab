"""A small whole job for the tests: the bundled model with six steps and few prompts.

Run as a program, it is killed again and again until it gets through.

    python small_job.py MODEL_FOLDER OUT COST_JSON
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import random
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from schedsearch.evaluate import (
    CostModel,
    evaluate_held_out,
    find_card,
    load_pipeline,
    measure_cost,
    with_linear_prices,
)
from schedsearch.optimize import Display, Optimized, OptimizeSettings, _bench, _finals, _run, optimize
from schedsearch_calibration import PromptSet, prompt_set


def few(name: str) -> PromptSet:
    """The first prompts of a set."""
    whole = prompt_set(name)
    return dataclasses.replace(whole, prompts=whole.prompts[: 2 if "held-out" in name else 4])


def shrink() -> None:
    """Makes every stage short."""
    _bench.FIDELITY = 2
    _bench.LADDER = _finals.LADDER = (2.0,)
    _finals.FRESH = 2
    _finals.AROUND = (0.0, 0.06)
    _run.prompt_set = few
    _run.measure_cost = functools.partial(measure_cost, repeats=1, warmup=0)
    _run.with_linear_prices = functools.partial(with_linear_prices, repeats=1)
    _finals.evaluate_held_out = functools.partial(evaluate_held_out, repeats=2, warmup=0)


def take_as_known(model: Path, cost: Path) -> None:
    """Has the jobs of this process share a pipeline and a cost model, which the file holds."""
    pipe = load_pipeline(find_card(str(model)))
    known = CostModel.from_json(cost.read_text())
    _run.load_pipeline = lambda *_, **__: pipe
    _run.measure_cost = lambda *_, **__: known


def job(model: Path, out: Path, *, resume: bool, **options: object) -> Optimized:
    """Runs the job without progress bars."""
    settings = OptimizeSettings(model=str(model), budget="60%macs", trials=16, out=out, resume=resume)
    quiet = Display(Console(file=io.StringIO(), highlight=False))
    return optimize(dataclasses.replace(settings, **options), quiet)


def main() -> None:
    """Kills the job at random moments, a little later each time, until one run gets through; prints the kills."""
    model, out, cost = (Path(word) for word in sys.argv[1:])
    shrink()
    take_as_known(model, cost)
    rng, kills = random.Random(1), 0
    while True:
        child = os.fork()
        if child == 0:
            job(model, out, resume=True)
            os._exit(0)
        deadline = time.monotonic() + rng.uniform(0.0, 1.5 * 1.4**kills)
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                sys.stdout.write(f"{kills}\n")
                sys.exit(1 if status else 0)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1


if __name__ == "__main__":
    main()
