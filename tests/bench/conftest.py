"""The bundled model with six steps and few prompts, on a bench whose cost model is given."""

from __future__ import annotations

import dataclasses
import functools
import io

import pytest


def hasty_prices(*arguments):
    """The prices of number formats from one round."""
    from schedsearch.evaluate import with_linear_prices

    return with_linear_prices(*arguments, repeats=1)


@pytest.fixture(scope="session")
def once():
    """Turns a function into one that works once and gives its first answer ever after."""

    def wrapped(function):
        answers = []

        def answer(*arguments, **options):
            if not answers:
                answers.append(function(*arguments, **options))
            return answers[0]

        return answer

    return functools.cache(wrapped)


@pytest.fixture
def haste(monkeypatch, once, steady_cost):
    """Makes every stage short: four prompts per set, two of them at a time, few rounds, the model loaded once."""
    from schedsearch.bench import _elsewhere, _speeds
    from schedsearch.evaluate import evaluate_held_out, load_pipeline
    from schedsearch.optimize import _bench, _run
    from schedsearch_calibration import prompt_set

    def few(name):
        whole = prompt_set(name)
        return dataclasses.replace(whole, prompts=whole.prompts[:4])

    monkeypatch.setattr(_bench, "FIDELITY", 2)
    monkeypatch.setattr(_run, "prompt_set", few)
    monkeypatch.setattr(_run, "measure_cost", steady_cost)
    monkeypatch.setattr(_run, "with_linear_prices", once(hasty_prices))
    monkeypatch.setattr(_run, "load_pipeline", once(load_pipeline))
    monkeypatch.setattr(_elsewhere, "prompt_set", few)
    monkeypatch.setattr(_speeds, "evaluate_held_out", functools.partial(evaluate_held_out, repeats=2, warmup=0))


@pytest.fixture
def screen():
    """A display that keeps its lines in memory, as ``screen.text()`` tells."""
    from rich.console import Console

    from schedsearch.optimize import Display

    display = Display(Console(file=io.StringIO(), highlight=False, width=200))
    display.text = display.console.file.getvalue
    return display
