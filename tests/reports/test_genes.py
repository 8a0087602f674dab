"""Importance of genes: a decision that decides the gap comes out on top, and few schedules say nothing."""

from __future__ import annotations

import dataclasses

import pytest

from schedsearch.schedule import ModelRef, Schedule, Solver
from schedsearch.study import Candidate, Evaluation, Frontier, Objective
from schedsearch_reports._genes import FEWEST, genes

OBJECTIVES = (Objective(name="latency_ms", unit="ms", better="min"), Objective(name="psnr", unit="dB", better="max"))
MODEL = ModelRef(pipeline="FluxPipeline", config="a" * 64, blocks="b" * 64, height=64, width=64)


def tried(n: int) -> list[Evaluation]:
    """Schedules of 4 to 8 steps, each costing 20 ms a step; ``adams`` of order 2 gains 6 dB, the rest is noise."""
    found = []
    for i in range(n):
        steps, order, bend = 4 + i % 5, 1 + i % 2, (i * 7 % 11) / 40
        sigma = (*((1.0 - k / steps) ** (1.0 + bend) for k in range(steps)), 0.0)
        solver = (Solver(family="adams", order=order),) * steps
        quality = 3.0 * steps + 6.0 * order + (i * 13 % 17) / 17
        candidate = Candidate(schedule=Schedule(sigma=sigma, solver=solver, model=MODEL), searcher="auto", ask=i)
        found.append(Evaluation(candidate=candidate, status="ok", values=(20.0 * steps, quality)))
    return found


def test_what_decides_comes_out_on_top():
    records = tried(120)
    found = genes(records, Frontier.of(OBJECTIVES, records), 600.0)
    first = found.genes[0]
    assert first.label == "Mean order of the solvers"
    assert first.share > 0.5
    assert (first.near, first.rest) == (2.0, pytest.approx(1.5, abs=0.05))
    assert sum(gene.share for gene in found.genes) == pytest.approx(1.0)
    # Steps decide the cost, not how good a schedule is for it.
    assert next(gene.share for gene in found.genes if gene.label == "Steps") < 0.3


def test_the_same_records_give_the_same_numbers():
    records = tried(100)
    frontier = Frontier.of(OBJECTIVES, records)
    assert genes(records, frontier, 600.0) == genes(records, frontier, 600.0)


def test_what_does_not_vary_is_no_gene():
    records = tried(100)
    labels = {gene.label for gene in genes(records, Frontier.of(OBJECTIVES, records), 600.0).genes}
    assert "Blocks removed" not in labels
    assert "Steps" in labels


def test_few_schedules_say_nothing():
    records = tried(FEWEST)
    looks = [dataclasses.replace(r, candidate=dataclasses.replace(r.candidate, share=0.25)) for r in records]
    frontier = Frontier.of(OBJECTIVES, records)
    assert genes(looks, frontier, 600.0).genes == ()
    assert genes(records[: FEWEST // 2], frontier, 600.0).genes == ()
