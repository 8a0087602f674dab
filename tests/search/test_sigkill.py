"""A run killed with SIGKILL at random moments and resumed each time ends with the records of one that was not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from schedsearch.search import make_searcher
from schedsearch.study import Study
from schedsearch.testing import TOY_OBJECTIVES, searched, toy_space

TRIALS = 60
LEVELS = {
    "ecad": (("component", "CR"),),
    "anneal": (("model", "CR123"),),
    "random": (("model", "CR123"), ("component", "CR")),
}

KILLER = """
import os, random, signal, sys, time
import optuna, sqlalchemy  # imported once: children are forked
from schedsearch.search import make_searcher
from schedsearch.testing import TOY_OBJECTIVES, searched, toy_space
import pymoo.algorithms.moo.nsga2

name, url, trials, levels = sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])
optuna.storages.RDBStorage("sqlite://")  # loads what optuna loads late
rng, kills, seen = random.Random(0), 0, -1
while True:
    child = os.fork()
    if child == 0:
        space = toy_space(levels)
        searched(make_searcher(name, space, seed=11, objectives=TOY_OBJECTIVES), space, trials=trials, storage=url)
        os._exit(0)
    deadline = time.monotonic() + rng.uniform(0.0, 0.05 + 0.03 * kills)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            print(kills)
            sys.exit(0)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
"""


@pytest.mark.parametrize("name", ["ecad", "anneal", "random"])
def test_killed_and_resumed_equals_uninterrupted(name, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    done = subprocess.run(
        [sys.executable, "-c", KILLER, name, url, str(TRIALS), repr(LEVELS[name])],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) >= 3  # it was killed a few times on the way
    space = toy_space(LEVELS[name])
    whole, _ = searched(make_searcher(name, space, seed=11, objectives=TOY_OBJECTIVES), space, trials=TRIALS)
    with Study.load(url) as study:
        assert [content(e) for e in study.evaluations()] == [content(e) for e in whole.evaluations()]
        assert [e.values for e in study.frontier()] == [e.values for e in whole.frontier()]


def content(evaluation):
    return (evaluation.candidate, evaluation.status, evaluation.values, evaluation.samples, evaluation.denoiser_evals)
