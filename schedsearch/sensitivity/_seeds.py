"""Schedules that a search over number formats and blocks may begin from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from schedsearch.errors import UsageError
from schedsearch.schedule import Schedule, with_layer_tables
from schedsearch.sensitivity._chosen import mixed, protected_layers, removed_blocks, rules_of
from schedsearch.sensitivity._records import REMOVED, Sensitivities


def seed_schedules(
    found: Sensitivities,
    schedule: Schedule,
    *,
    bits: Sequence[float] = (),
    removals: Sequence[int] = (),
    words: Collection[str] | None = None,
) -> tuple[Schedule, ...]:
    """Return variants of a schedule, each once: mixed formats freely chosen, the same with the protection preset in the
    layers' own dtype (QuEST, arXiv 2402.03666), and the blocks of least effect left out.

    Args:
        found: the measurements.
        schedule: what is varied; its precision rules, removed blocks and tables of layers go, its other parts stay.
        bits: average bits per element to keep; one that no choice keeps is passed over.
        removals: numbers of blocks to leave out.
        words: formats to choose from; all by default.
    """
    bare = replace(with_layer_tables(schedule, {}, role=""), precision=(), pruned=(), measured=())
    made = [*_in_formats(found, bare, bits, words), *_without_blocks(found, bare, removals)]
    return tuple({one.id: one for one in made}.values())


def _in_formats(
    found: Sensitivities, bare: Schedule, bits: Sequence[float], words: Collection[str] | None
) -> Iterator[Schedule]:
    kept = dict.fromkeys(protected_layers([layer.name for layer in found.layers]), found.header.dtype)
    for limit in bits:
        for protected in ({}, kept):
            try:
                chosen = mixed(found, limit=limit, words=words, protected=protected)
            except UsageError:  # not even the fewest bits keep the limit
                continue
            yield replace(bare, precision=rules_of(found, dict(chosen.picks)))


def _without_blocks(found: Sensitivities, bare: Schedule, removals: Sequence[int]) -> Iterator[Schedule]:
    for n in removals:
        chosen = removed_blocks(found, saving=n, cost="count")
        gone = tuple(block for block, word in chosen.picks if word == REMOVED)
        inside = tuple(f"{block}." for block in gone)
        ops = tuple((name, row) for name, row in bare.ops if name not in gone and not name.startswith(inside))
        yield replace(bare, pruned=gone, ops=ops)
