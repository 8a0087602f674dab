"""From sensitivities to a model's precision rules and removed blocks: what is chosen, under which limit.

A layer may keep what it is or take any format that was measured for it. Costs are bits of the weights (scales and
low-rank branch included), bytes of the checkpoint, or milliseconds of a denoiser call. Protected layers keep what they
are: the time embedding, the modulations (adaLN) and the first and last layers (TFMQ-DM, arXiv 2311.16503; QuEST, arXiv
2402.03666).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Literal

from schedsearch.errors import UsageError
from schedsearch.schedule import PrecisionRule
from schedsearch.sensitivity._assignment import Assignment, Option, assigned
from schedsearch.sensitivity._records import REMOVED, Cell, Choice, Sensitivities
from schedsearch.sensitivity._rules import OUTSIDE, block_of, compact_rules

Cost = Literal["bits", "bytes", "ms"]

MODULATIONS = "*.norm*.linear"
KEPT = "kept"
"""The word of a block that stays."""


def protected_layers(names: Collection[str]) -> tuple[str, ...]:
    """Return the layers of the protection preset: all outside the blocks (embeddings of time and text, first and last
    layers), and the modulations inside.
    """
    return tuple(name for name in names if block_of(name) == OUTSIDE or fnmatchcase(name, MODULATIONS))


def average_bits(found: Sensitivities, picks: Mapping[str, str]) -> float:
    """Return the mean bits per element of all linear layers' weights; a layer without a pick keeps what it is."""
    total = sum(_bits(found, layer.name, picks.get(layer.name, found.header.dtype)) for layer in found.layers)
    return total / found.weights


def mixed(
    found: Sensitivities,
    *,
    limit: float,
    cost: Cost = "bits",
    words: Collection[str] | None = None,
    protected: Mapping[str, str] | None = None,
) -> Assignment:
    """Return the formats of all layers that lose least by the sum of effects, within a limit.

    Args:
        found: the measurements.
        limit: average bits per element; bytes of all layers' weights; or milliseconds of a denoiser call relative to
            now, so minus what is to be saved.
        cost: which of them. Formats that were not timed, or are only simulated, save no milliseconds that are known:
            they are no choice then.
        words: formats to choose from; all by default. What the layer is now may always be kept.
        protected: layers whose word is settled.

    Raises:
        UsageError: no choice keeps the limit, or a protected layer's format was not timed where times are limited.
        EvaluationError: a protected layer's word was not measured.
    """
    words = set(found.by_word if words is None else words)
    settled = protected or {}
    options = {layer.name: _options(found, layer.name, cost, words, settled.get(layer.name)) for layer in found.layers}
    # A limit that is the average of some choice is kept by that choice, whatever the division has rounded off.
    return assigned(options, limit * found.weights * (1.0 + 1e-12) if cost == "bits" else limit)


def _options(found: Sensitivities, name: str, cost: Cost, words: Collection[str], settled: str | None) -> list[Option]:
    allowed = [word for word in (found.header.dtype, *found.by_word) if word in words or word == found.header.dtype]
    if settled is not None:
        allowed = [settled]
    rows = []
    for word in dict.fromkeys(allowed):
        is_base = word == found.header.dtype
        if not is_base and settled is None and not _is_known(found.by_key.get((name, word)), cost):
            continue
        loss = 0.0 if is_base else found.cell(name, word).effect
        rows.append(Option(word=word, loss=loss, cost=_cost(found, name, word, cost)))
    return rows


def _is_known(cell: Cell | None, cost: Cost) -> bool:
    return cell is not None and (cost != "ms" or cell.saved_ms is not None)


def most_saved_ms(found: Sensitivities, words: Collection[str] | None = None) -> float:
    """Return the milliseconds of a denoiser call that every layer's fastest format saves; 0 if none was timed."""
    words = set(found.by_word if words is None else words)
    best: dict[str, float] = {}
    for cell in found.cells:
        if cell.word in words and cell.saved_ms is not None:
            best[cell.module] = max(best.get(cell.module, 0.0), cell.saved_ms)
    return sum(best.values())


def _cost(found: Sensitivities, name: str, word: str, cost: Cost) -> float:
    if cost == "bits":
        return _bits(found, name, word)
    if cost == "bytes":
        return _bits(found, name, word) / 8.0
    if word == found.header.dtype:
        return 0.0
    saved = found.cell(name, word).saved_ms
    if saved is None:
        raise UsageError(
            f"assignment: found no time of {name} in {word}, expected one, as milliseconds are limited. Give a latency "
            "table that has it."
        )
    return -saved


def _bits(found: Sensitivities, name: str, word: str) -> float:
    """Bits of all elements of a layer's weight."""
    layer = next(layer for layer in found.layers if layer.name == name)
    return layer.weights * (layer.bits if word == found.header.dtype else found.cell(name, word).bits)


def rules_of(found: Sensitivities, picks: Mapping[str, str]) -> tuple[PrecisionRule, ...]:
    """Return the precision rules that give every layer its word; layers without one keep what they are.

    No rules at all if every layer does.
    """
    base = found.header.dtype
    words = {layer.name: picks.get(layer.name, base) for layer in found.layers}
    if set(words.values()) == {base}:
        return ()
    kept = Choice(word=base, weight=base, activation=base)
    return compact_rules(words.items(), {**found.by_word, base: kept})


def removed_blocks(
    found: Sensitivities, *, saving: float, cost: Literal["bytes", "ms", "count"] = "bytes"
) -> Assignment:
    """Return which blocks to leave out so that at least ``saving`` is saved and the sum of effects is least.

    Args:
        found: the measurements.
        saving: bytes of the checkpoint, milliseconds of a denoiser call, or number of blocks.
        cost: which of them.

    Returns:
        The word of every block: `REMOVED` or `KEPT`; its cost is minus what is saved.

    Raises:
        UsageError: all blocks together do not save that much, or times are asked for that were not measured.
        EvaluationError: no block's removal was measured.
    """
    options = {}
    for block in found.blocks:
        cell = found.cell(block, REMOVED)
        saved = {"bytes": float(cell.saved_bytes), "ms": cell.saved_ms, "count": 1.0}[cost]
        if saved is None:
            raise UsageError(f"assignment: found no time of {block}, expected one. Give a latency table that has it.")
        options[block] = [
            Option(word=KEPT, loss=0.0, cost=0.0),
            Option(word=REMOVED, loss=cell.effect, cost=-saved),
        ]
    return assigned(options, -saving)
