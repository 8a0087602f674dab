"""Where `auto` may begin by what `schedsearch sensitivity` measured: mixed formats, and blocks to leave out.

Knows nothing of how an assignment is found, nor what becomes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from schedsearch.errors import UsageError
from schedsearch.evaluate import LinearPrices
from schedsearch.optimize._bench import Bench, OptimizeSettings
from schedsearch.schedule import PrecisionRule, rule_word
from schedsearch.sensitivity import (
    REMOVED,
    Cell,
    Sensitivities,
    read_sensitivities,
    seed_choices,
    seed_removals,
    sensitivities_text,
)

MOST_REMOVED = 3
"""Most blocks that are left out at once for a start."""


def read_starts(settings: OptimizeSettings) -> Sensitivities | None:
    """Returns the measurements that ``settings`` name, if they do.

    Raises:
        UsageError: another searcher than `auto` is asked for.
        EvaluationError: the file cannot be read, or breaks a rule of its format.
    """
    if settings.sensitivity is None:
        return None
    if settings.search != "auto":
        raise UsageError(
            f"--sensitivity: found it beside --search {settings.search}, expected auto, which begins from what was "
            "measured. Leave one out."
        )
    return read_sensitivities(settings.sensitivity)


def require_same_model(bench: Bench) -> None:
    """Refuses measurements of another model, or of this one in another dtype.

    Raises:
        UsageError: they are.
    """
    found, layers = bench.sensitivities, bench.layers
    if found is None:
        return
    header = found.header
    names = tuple(layer.name for layer in found.layers)
    if (header.config, header.dtype, names) != (bench.plain.model.config, layers.base, layers.names):
        raise UsageError(
            f"--sensitivity: found measurements of {header.model} in {header.dtype}, expected some of this model in "
            f"{layers.base}. Make them with `schedsearch sensitivity --model {bench.settings.model} --dtype "
            f"{bench.settings.dtype}`."
        )


def digest_of(found: Sensitivities) -> str:
    """Returns what tells these measurements from others."""
    return hashlib.sha256(sensitivities_text(found).encode()).hexdigest()


def starts(bench: Bench) -> dict[str, object]:
    """Returns options of `auto`: assignments of the searched formats, and blocks to leave out, that lose least by sums.

    What a format saves is milliseconds by this run's own timing, or bytes where operations or memory are limited.
    """
    found, axis, space = bench.sensitivities, bench.space.precision, bench.space
    if found is None:
        return {}
    mixed: list[tuple[int, ...]] = []
    if axis.is_open:
        found = _timed(found, bench.cost.prices)
        groups = [group.layers for group in axis.groups]
        costs: list[Literal["bytes", "ms"]] = ["ms"] if bench.cost_name == "latency_ms" else []
        for cost in [*costs, "bytes"] if bench.max_bytes is not None else costs:
            mixed += seed_choices(found, groups, axis.formats, cost=cost)
    removable = [name for name in found.blocks if space.repair(replace(space.base, pruned=(name,))).pruned]
    removals = seed_removals(found, removable, min(MOST_REMOVED, space.max_pruned))
    return {"mixed": list(dict.fromkeys(mixed)), "removals": removals}


def told(bench: Bench, options: Mapping[str, object]) -> str:
    """Returns what came of the measurements, in one line; empty where there are none."""
    if bench.sensitivities is None:
        return ""
    axis = bench.space.precision
    counts = [len(made) if isinstance(made := options.get(key), list | tuple) else 0 for key in ("mixed", "removals")]
    said = f"Sensitivities: the search begins from {counts[0]} mixed formats and {counts[1]} sets of removed blocks too"
    missing = [rule for rule in axis.formats if rule_word(rule) not in bench.sensitivities.by_word]
    if missing and axis.is_open:
        words = ",".join(_with_activation(rule) for rule in missing)
        said += f"; not measured were formats that are searched here: `schedsearch sensitivity --formats {words}`"
    return said


def _with_activation(rule: PrecisionRule) -> str:
    """The format's word with the activation spelled out, which that command would else take for the model's dtype."""
    word = rule_word(rule)
    return word if "/" in word else word.replace(rule.weight, f"{rule.weight}/{rule.activation}", 1)


def _timed(found: Sensitivities, prices: LinearPrices | None) -> Sensitivities:
    """``found`` with what its formats save by ``prices``; nothing is known of a format that was not timed."""
    if prices is None:
        return found
    shapes = dict(prices.layers)

    def restated(cell: Cell) -> Cell:
        price = prices.price(shapes[cell.module], found.by_word[cell.word].rule(cell.module))
        plain = prices.price(shapes[cell.module], None)
        return replace(cell, saved_ms=plain.ms - price.ms if price.basis == "executed" else None)

    return found.having(cells=tuple(restated(c) for c in found.cells if c.word != REMOVED and c.module in shapes))
