"""Where a search over number formats and blocks may begin: what loses least by sums, for several savings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from schedsearch.schedule import PrecisionRule, rule_word
from schedsearch.sensitivity._assignment import Option, assigned
from schedsearch.sensitivity._records import REMOVED, Sensitivities

SHARES = (0.5, 0.75, 0.9, 0.25, 1.0)
"""Parts of what all formats together can save, the more promising first."""


def seed_choices(
    found: Sensitivities,
    groups: Sequence[Sequence[str]],
    formats: Sequence[PrecisionRule],
    *,
    cost: Literal["bytes", "ms"] = "bytes",
    shares: Sequence[float] = SHARES,
) -> tuple[tuple[int, ...], ...]:
    """Return the choices of formats that lose least and save a share of what any choice could, each once.

    Args:
        found: the measurements.
        groups: names of the layers that have one format together.
        formats: what they may have besides what they have; patterns play no part. One that was not measured for each
            layer of a group, or not timed where milliseconds are saved, is no option there.
        cost: what is saved.
        shares: 0 to 1 each.

    Returns:
        One number per group: 0 for what it has, ``k`` for ``formats[k - 1]``. Nothing if no format saves anything.
    """
    words = [rule_word(rule) for rule in formats]
    options = {str(place): _options(found, layers, words, cost) for place, layers in enumerate(groups)}
    most = sum(max(-way.cost for way in ways) for ways in options.values())
    if most <= 0.0:
        return ()
    # The largest saving is kept by its own choice, whatever adding in another order has rounded off.
    made = [assigned(options, -share * most * (1.0 - 1e-12)) for share in shares]
    return tuple(dict.fromkeys(tuple(int(word) for _, word in one.picks) for one in made))


def _options(
    found: Sensitivities, layers: Sequence[str], words: Sequence[str], cost: Literal["bytes", "ms"]
) -> list[Option]:
    ways = [Option(word="0", loss=0.0, cost=0.0)]
    for number, word in enumerate(words, start=1):
        cells = [cell for layer in layers if (cell := found.by_key.get((layer, word))) is not None]
        saved = [ms for cell in cells if (ms := cell.saved_ms if cost == "ms" else cell.saved_bytes) is not None]
        if len(saved) == len(layers):
            loss = sum(cell.effect for cell in cells)
            ways.append(Option(word=str(number), loss=loss, cost=-float(sum(saved))))
    return ways


def seed_removals(found: Sensitivities, blocks: Collection[str], most: int) -> tuple[tuple[str, ...], ...]:
    """Return the one, two, ... blocks to leave out that lose least by sums.

    Args:
        found: the measurements.
        blocks: names of those that may go; what was not measured stays.
        most: how many may go at once.
    """
    measured = [block for block in found.blocks if block in blocks and (block, REMOVED) in found.by_key]
    ranked = sorted(measured, key=lambda block: found.cell(block, REMOVED).effect)
    return tuple(tuple(ranked[:count]) for count in range(1, min(most, len(ranked)) + 1))
