"""Runs side by side on the bundled model with few steps: what is timed, scored, counted, and what goes wrong."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager, nullcontext

import pytest
import torch

from schedsearch.evaluate import Contender, SideBySide, find_card, load_pipeline, told
from schedsearch.evaluate._rounds import MAX_REASON, counting_linear_macs

STEPS = 4
PROMPTS = ("a red apple", "a blue fish")


@pytest.fixture(scope="module")
def mini():
    card = dataclasses.replace(find_card("flux-mini"), steps=STEPS)
    return load_pipeline(card), card


class Ticking:
    """A clock that moves on by one second with every look at it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def way(name, pipe, steps=STEPS):
    return Contender(name=name, steps=steps, prepare=lambda: nullcontext(pipe))


def test_every_way_is_timed_against_the_plain_runs_around_it_and_scored(mini):
    pipe, card = mini
    runs = SideBySide(pipe, card, PROMPTS, seed=7, clock=Ticking())
    ways = [way("same", pipe), way("half", pipe, 2)]
    turns = runs.round(0, ways)
    assert set(turns) == {"same", "half"}
    assert turns["same"].ms == 1000.0
    assert turns["same"].ratio == 1.0
    assert turns["same"].scores["psnr"] == 100.0
    assert turns["same"].scores["latent_error"] == 0.0
    assert 5.0 < turns["half"].scores["psnr"] < 60.0
    assert turns["half"].scores["converged_psnr"] < 60.0
    again = runs.round(0, ways[::-1])
    assert again["half"].scores == turns["half"].scores
    assert runs.round(1, ways)["half"].scores != turns["half"].scores


def test_work_is_counted_while_it_is_done(mini):
    pipe, card = mini
    runs = SideBySide(pipe, card, PROMPTS, seed=7)
    assert runs.look(0, way("half", pipe, 2)).work == pytest.approx(0.5)
    plain = runs.look(0, way("same", pipe))
    assert (plain.work, plain.changes) == (1.0, False)
    assert runs.look(0, dataclasses.replace(way("half", pipe, 2), is_compiled=True)).work == 1.0


def test_linear_layers_count_by_the_size_of_what_goes_in_and_out():
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with counting_linear_macs(module) as count:
        module(torch.zeros(7, 3))
    assert count.value == 7 * (3 * 5 + 5 * 2)
    module(torch.zeros(7, 3))
    assert count.value == 7 * (3 * 5 + 5 * 2)


def test_what_fails_says_so_and_the_others_go_on(mini):
    pipe, card = mini
    runs = SideBySide(pipe, card, PROMPTS, seed=7)

    @contextmanager
    def broken():
        raise RuntimeError("no such\nblock")
        yield

    @contextmanager
    def not_a_number():
        def spoil(_module, _inputs, output):
            return (output[0] * float("nan"),)

        hook = pipe.transformer.register_forward_hook(spoil)
        try:
            yield pipe
        finally:
            hook.remove()

    ways = [
        Contender(name="broken", steps=STEPS, prepare=broken),
        Contender(name="nan", steps=STEPS, prepare=not_a_number),
        way("same", pipe),
    ]
    turns = runs.round(0, ways)
    assert turns["broken"].error == "RuntimeError: no such block"
    assert turns["nan"].error == "pictures hold values that are no numbers"
    assert turns["same"].error == ""
    assert runs.look(0, ways[0]).error == "RuntimeError: no such block"


def test_reasons_are_short():
    text = told(ValueError("x" * 1000))
    assert len(text) == MAX_REASON
    assert text.endswith("...")
    assert told(KeyError()) == "KeyError"
