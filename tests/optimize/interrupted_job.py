"""Runs the small job of ``small_job.py`` by the command line, in processes that get SIGINT while they search.

    python interrupted_job.py MODEL_FOLDER OUT COST_JSON

Prints, as JSON, how two of them ended: one that was interrupted once, and one that was interrupted again while it was
still busy with what it had found.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import small_job

from schedsearch import cli
from schedsearch.evaluate import PipelineEvaluator

WAIT = 100.0


def records(out: Path) -> int:
    """How many schedules the study holds, as far as one can see from outside."""
    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True, timeout=5.0) as study:
            return int(study.execute("select count(*) from trials").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def until(is_met: Callable[[], bool], child: int) -> None:
    """Waits, as long as the child lives."""
    deadline = time.monotonic() + WAIT
    while not is_met():
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            if not done:
                os.kill(child, signal.SIGKILL)
            sys.exit(f"the child ended or hung: {status}")
        time.sleep(0.02)


def begun(words: list[str], told: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """A child that runs the command line; what it says goes into ``told``."""
    child = os.fork()
    if child:
        return child
    place = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(place, 1)
    os.dup2(place, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare()
    sys.argv = ["schedsearch", *words]
    code = 1
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError


def ended(child: int) -> tuple[int, float]:
    """The exit code, negative for a signal, and the seconds it took to end."""
    began = time.monotonic()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def main() -> None:
    """Runs the two and says how they ended."""
    model, out, cost = (Path(word) for word in sys.argv[1:])
    small_job.shrink()
    small_job.take_as_known(model, cost)
    words = ["optimize", "--model", str(model), "--budget", "60%macs", "--trials", "5000", "--out", str(out)]
    told = out.parent / "told.txt"
    answers = []

    child = begun(words, told)
    until(lambda: records(out) >= 12, child)
    os.kill(child, signal.SIGINT)
    answers.append((*ended(child), records(out), told.read_text()))

    marker = out.parent / "fitting"

    def slow_fit() -> None:
        def fit(*_: object) -> None:
            marker.touch()
            time.sleep(WAIT)

        PipelineEvaluator.fit = fit  # type: ignore[method-assign, assignment]

    before = records(out)
    child = begun([*words, "--resume"], told, slow_fit)
    until(lambda: records(out) >= before + 3, child)
    os.kill(child, signal.SIGINT)
    until(marker.exists, child)
    os.kill(child, signal.SIGINT)
    answers.append((*ended(child), records(out), told.read_text()))
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
