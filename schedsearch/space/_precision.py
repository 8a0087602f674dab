"""The precision axis: groups of linear layers, each left as it is or in one of a few number formats.

Groups partition the layers that may change. A *choice* is one number per group: 0 leaves its layers as they are, ``k``
puts them in ``formats[k - 1]``. A schedule says a choice as precision rules, in one canonical form: no rule speaks of a
layer that stays as it is; layers of one format are named by few patterns, the kinds of a list of blocks that agree
everywhere by one (``transformer_blocks.*.attn.*``), runs of blocks by classes of digits (``[3-7]``); no two patterns
match the same layer, and rules stand in the order of the first layer they match. Rules do not speak of blocks that are
removed, except where a pattern is shorter for it.

The form depends on what each layer gets, not on the groups, so a part of a space with coarser groups says it alike.
This module does not know how fast a format is, nor how good.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase, translate
from functools import cached_property
from typing import Any

import numpy as np

from schedsearch.errors import SpaceError
from schedsearch.schedule import PrecisionRule
from schedsearch.schedule._validate import precision as _canonical
from schedsearch.schedule._vocabulary import MAX_RULES
from schedsearch.space._index_globs import index_globs

Choice = tuple[int, ...]
"""The format of every group, 0 for none."""

GROUPINGS = ("layer", "component", "block", "kind")
"""What makes a group: one layer of one block; a component's layers in one block; a block's; a layer in all blocks."""

_MEMORY = 20_000
"""Choices and rules remembered per axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayers:
    """What a space file's ``precision`` is about, on one model and device.

    Attributes:
        names: dotted names of the denoiser's linear layers, in its order.
        base: word of the dtype they have, such as ``bf16``.
        formats: what ``default`` stands for: formats this device carries out; patterns play no part.
    """

    names: tuple[str, ...]
    base: str
    formats: tuple[PrecisionRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Linear layers that have one format.

    Attributes:
        kind: what they are in any block, such as ``transformer_blocks.*.attn``.
        blocks: numbers of the blocks they are in, ascending; none outside blocks.
        layers: their dotted names.
    """

    kind: str
    blocks: tuple[int, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What layers shall have: those in ``labels`` a format, others none; of the ``dead`` ones it does not matter."""

    labels: Mapping[str, int]
    dead: frozenset[str]

    def of(self, layer: str) -> int | None:
        return None if layer in self.dead else self.labels.get(layer, 0)


@dataclass(frozen=True, kw_only=True)
class PrecisionAxis:
    """Which layers may have which formats. An axis without groups or formats is closed: all layers stay as they are.

    Attributes:
        linears: dotted names of all linear layers of the denoiser, in its order.
        blocks: names of its blocks, in order of execution.
        groups: the layers that may change.
        formats: what they may have besides what they have; all patterns are ``*``.

    Raises:
        SpaceError: if a layer is in two groups or unknown, a format is there twice, or there are more layers to change
            than a schedule may have rules.
    """

    linears: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    groups: tuple[LayerGroup, ...] = ()
    formats: tuple[PrecisionRule, ...] = ()

    def __post_init__(self) -> None:
        layers = [layer for group in self.groups for layer in group.layers]
        known = set(self.linears)
        for layer, count in Counter(layers).items():
            if count > 1 or layer not in known:
                raise SpaceError(f"precision: found layer {layer} {count} times, expected linear layers, each once.")
        if len(layers) > MAX_RULES:
            raise SpaceError(
                f"precision.layers: found {len(layers)} layers, expected at most {MAX_RULES}, as many as a schedule "
                "may have rules. Name fewer of them."
            )
        if len(set(self.formats)) < len(self.formats) or any(rule.pattern != "*" for rule in self.formats):
            raise SpaceError("precision.formats: found a format twice or with a pattern, expected each once.")

    @classmethod
    def of(
        cls,
        linears: Sequence[str],
        blocks: Sequence[str],
        formats: Iterable[PrecisionRule],
        *,
        layers: Sequence[str] = ("*",),
        protected: Sequence[str] = (),
        groups: str = "layer",
    ) -> PrecisionAxis:
        """The axis over layers that match one of the globs ``layers`` and none of ``protected``.

        Args:
            linears: all linear layers of the denoiser, in its order.
            blocks: names of its blocks, in order of execution.
            formats: what they may have; patterns play no part.
            layers: globs of dotted names.
            protected: globs of dotted names.
            groups: one of `GROUPINGS`.
        """
        places = {name: number for number, name in enumerate(blocks)}
        found: dict[str, list[str]] = {}
        kinds: dict[str, str] = {}
        for layer in linears:
            if _matches(layer, layers) and not _matches(layer, protected):
                key, kinds[key] = _group_of(layer, places, groups)
                found.setdefault(key, []).append(layer)
        made = tuple(
            LayerGroup(
                kind=kinds[key],
                blocks=tuple(sorted({places[block] for layer in names if (block := _block_of(layer, places))})),
                layers=tuple(names),
            )
            for key, names in found.items()
        )
        given = tuple(replace(rule, pattern="*") for rule in formats)
        kept = tuple(dict.fromkeys(_canonical("precision.formats", given)))
        return cls(linears=tuple(linears), blocks=tuple(blocks), groups=made, formats=kept)

    @property
    def is_open(self) -> bool:
        """Whether anything can be chosen."""
        return bool(self.groups and self.formats)

    def narrowed(self, formats: Sequence[PrecisionRule]) -> PrecisionAxis:
        """The axis with only these of its formats.

        Raises:
            SpaceError: if it does not have one of them.
        """
        kept = tuple(dict.fromkeys(replace(rule, pattern="*") for rule in formats))
        for rule in kept:
            if rule not in self.formats:
                raise SpaceError(f"precision: found {rule}, expected formats of this space; a part cannot be larger.")
        return replace(self, formats=kept)

    # ---- choices and rules

    def choice(self, rules: Sequence[PrecisionRule], pruned: Iterable[str] = ()) -> Choice:
        """The canonical choice nearest to ``rules``, of which the first that matches a layer counts.

        Formats that the axis does not have leave a layer as it is; a group has what most of its layers have; groups of
        removed blocks stay as they are.
        """
        if not rules:
            return self.plain
        key = (tuple(rules), tuple(pruned))
        if key not in self._choices:
            _forget(self._choices)
            self._choices[key] = self._choice(*key)
        return self._choices[key]

    def rules(self, choice: Choice, pruned: Iterable[str] = ()) -> tuple[PrecisionRule, ...]:
        """The canonical rules that say ``choice``, but for groups of removed blocks."""
        if not any(choice):
            return ()
        key = (tuple(choice), tuple(pruned))
        if key not in self._rules:
            _forget(self._rules)
            self._rules[key] = self._said(*key)
        return self._rules[key]

    def canonical(self, rules: Sequence[PrecisionRule], pruned: Iterable[str] = ()) -> tuple[PrecisionRule, ...]:
        """The canonical rules nearest to ``rules``; those of canonical rules are themselves."""
        if not rules or not self.is_open:
            return ()
        removed = tuple(pruned)
        return self.rules(self.choice(rules, removed), removed)

    def alive(self, pruned: Iterable[str]) -> tuple[bool, ...]:
        """Which groups have a layer that is not in a removed block."""
        gone = {self._places[name] for name in pruned if name in self._places}
        return tuple(not (group.blocks and gone.issuperset(group.blocks)) for group in self.groups)

    def by_layer(self, choice: Choice) -> dict[str, int]:
        """The format of every layer that is not left as it is."""
        return {
            layer: number for group, number in zip(self.groups, choice, strict=True) if number for layer in group.layers
        }

    @cached_property
    def plain(self) -> Choice:
        """All layers as they are."""
        return (0,) * len(self.groups)

    @cached_property
    def kinds(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the groups of every kind, in order."""
        found: dict[str, list[int]] = {}
        for number, group in enumerate(self.groups):
            found.setdefault(group.kind, []).append(number)
        return {kind: tuple(numbers) for kind, numbers in found.items()}

    def preset(self, name: str, number: int) -> Choice:
        """A hand-made choice: format ``number`` for all groups, or those of the ``inner`` blocks or the ``late`` half.

        Inner blocks are all but the first and the last, which are the most sensitive ones of most models.
        """
        last = len(self.blocks) - 1
        first = {"all": 0, "inner": 1, "late": (last + 1) // 2}[name]
        stop = last - 1 if name == "inner" else last
        return tuple(
            number if not group.blocks or (first <= group.blocks[0] and group.blocks[-1] <= stop) else 0
            for group in self.groups
        )

    def _choice(self, rules: tuple[PrecisionRule, ...], pruned: tuple[str, ...]) -> Choice:
        found: dict[str, int] = {}
        numbers = {rule: number for number, rule in enumerate(self.formats, start=1)}
        for rule in rules:
            number = numbers.get(replace(rule, pattern="*"), 0)
            for layer in self._matched(rule.pattern):
                found.setdefault(layer, number)
        gone = set(pruned)
        chosen = []
        for group in self.groups:
            votes = Counter(found.get(layer, 0) for layer in group.layers if self._owner.get(layer) not in gone)
            chosen.append(min(votes, key=lambda number: (-votes[number], number)) if votes else 0)
        return tuple(chosen)

    def _said(self, choice: Choice, pruned: tuple[str, ...]) -> tuple[PrecisionRule, ...]:
        gone = set(pruned)
        dead = frozenset(layer for layer in self.linears if self._owner.get(layer) in gone)
        wanted = _Wanted({n: k for n, k in self.by_layer(choice).items() if n not in dead}, dead)
        found: list[tuple[str, int]] = []
        for head, tree in self._lists.items():
            found += self._of_tree(head, tree, wanted)
        found += [(layer, number) for layer, number in wanted.labels.items() if layer not in self._owner]
        first = {name: place for place, name in enumerate(self.linears)}
        order = sorted(found, key=lambda pair: min(first[layer] for layer in self._matched(pair[0]) - dead))
        return tuple(replace(self.formats[number - 1], pattern=pattern) for pattern, number in order)

    # ---- patterns

    def _of_tree(self, head: str, layers: Sequence[tuple[str, ...]], wanted: _Wanted) -> list[tuple[str, int]]:
        """Patterns for the layers of a list of blocks: ``layers`` are the parts of their names after the block's."""
        rows = {parts: self._row(head, parts, wanted) for parts in layers}
        found: list[tuple[str, int]] = []

        def visit(depth: int, inside: Sequence[tuple[str, ...]]) -> None:
            same = {rows[parts] for parts in inside}
            if len(same) == 1:
                ending = ".".join(inside[0]) if len(inside) == 1 else ".".join((*inside[0][:depth], "*"))
                found.extend(self._of_row(head, ending, inside, same.pop(), wanted))
                return
            for part in dict.fromkeys(parts[depth : depth + 1] for parts in inside):
                visit(depth + 1, [parts for parts in inside if parts[depth : depth + 1] == part])

        visit(0, layers)
        return found

    def _row(self, head: str, parts: tuple[str, ...], wanted: _Wanted) -> tuple[int | None, ...]:
        """What a layer has in each block of a list; ``None`` in removed blocks and those without it."""
        names = [".".join((head, index, *parts) if head else (index, *parts)) for index in self._indices[head]]
        return tuple(wanted.of(name) if name in self._known else None for name in names)

    def _of_row(
        self, head: str, ending: str, inside: Sequence[tuple[str, ...]], row: Sequence[int | None], wanted: _Wanted
    ) -> list[tuple[str, int]]:
        """Patterns for layers that have the same ``row``; their names where a pattern would match others besides."""
        found: list[tuple[str, int]] = []
        indices = self._indices[head]
        for number in sorted({label for label in row if label}):
            chosen = [index for index, label in zip(indices, row, strict=True) if label == number]
            all_of_it = all(label in (number, None) for label in row)
            for glob in ("*",) if all_of_it and len(indices) > 1 else index_globs(chosen):
                pattern = ".".join((head, glob, ending) if head else (glob, ending))
                if all(wanted.of(layer) in (number, None) for layer in self._matched(pattern)):
                    found.append((pattern, number))
                    continue
                names = {
                    ".".join((head, index, *parts) if head else (index, *parts))
                    for parts in inside for index in chosen if fnmatchcase(index, glob)
                }  # fmt: skip
                found += [(layer, number) for layer in self.linears if layer in names]
        return found

    def _matched(self, pattern: str) -> frozenset[str]:
        """The linear layers that ``pattern`` matches."""
        if pattern in self._known:
            return frozenset((pattern,))
        if pattern not in self._matches:
            _forget(self._matches)
            match = re.compile(translate(pattern)).match
            self._matches[pattern] = frozenset(name for name in self.linears if match(name))
        return self._matches[pattern]

    # ---- derived once

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.linears)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.blocks)}

    @cached_property
    def _owner(self) -> dict[str, str]:
        """The block of every layer that is in one."""
        return {layer: block for layer in self.linears if (block := _block_of(layer, self._places))}

    @cached_property
    def _indices(self) -> dict[str, tuple[str, ...]]:
        """By list of blocks: the last part of the names of its blocks."""
        found: dict[str, list[str]] = {}
        for block in self.blocks:
            head, _, index = block.rpartition(".")
            found.setdefault(head, []).append(index)
        return {head: tuple(indices) for head, indices in found.items()}

    @cached_property
    def _lists(self) -> dict[str, list[tuple[str, ...]]]:
        """By list of blocks: the layers that any of its blocks has, as parts of their names."""
        found: dict[str, dict[tuple[str, ...], None]] = {}
        for layer, block in self._owner.items():
            parts = tuple(layer[len(block) + 1 :].split("."))
            found.setdefault(block.rpartition(".")[0], {})[parts] = None
        return {head: list(layers) for head, layers in found.items()}

    @cached_property
    def _choices(self) -> dict[tuple[tuple[PrecisionRule, ...], tuple[str, ...]], Choice]:
        return {}

    @cached_property
    def _rules(self) -> dict[tuple[Choice, tuple[str, ...]], tuple[PrecisionRule, ...]]:
        return {}

    @cached_property
    def _matches(self) -> dict[str, frozenset[str]]:
        return {}


def random_choice(rng: np.random.Generator, axis: PrecisionAxis) -> Choice:
    """A choice of an open axis: one format for a share of all groups, of some kinds or of a run of blocks; or a mix."""
    count, kind = len(axis.groups), int(rng.integers(4))
    one = 1 + int(rng.integers(len(axis.formats)))
    if kind == 0:
        hit = rng.random(count) < rng.random()
    elif kind == 1:
        taken = {name for name in axis.kinds if rng.random() < 0.5}
        hit = np.array([group.kind in taken for group in axis.groups])
    elif kind == 2:
        first, last = np.sort(rng.integers(0, max(1, len(axis.blocks)), size=2)).tolist()
        hit = np.array([all(first <= block <= last for block in group.blocks) for group in axis.groups])
    else:
        return tuple(rng.integers(0, len(axis.formats) + 1, size=count).tolist())
    return tuple(np.where(hit, one, 0).tolist())


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _block_of(layer: str, places: Mapping[str, int]) -> str:
    """The block a layer is in; empty outside blocks."""
    parts = layer.split(".")
    heads = (".".join(parts[:stop]) for stop in range(1, len(parts)))
    return next((head for head in heads if head in places), "")


def _group_of(layer: str, places: Mapping[str, int], groups: str) -> tuple[str, str]:
    """The key of a layer's group, and its kind: the key with the block's number left open."""
    block = _block_of(layer, places)
    if not block:
        return layer, layer
    head = block.rpartition(".")[0]
    everywhere = f"{head}.*" if head else "*"
    rest = layer[len(block) + 1 :]
    ending = {"layer": f".{rest}", "kind": f".{rest}", "component": f".{rest.split('.')[0]}", "block": ""}[groups]
    kind = f"{everywhere}{ending}"
    return (kind if groups == "kind" else f"{block}{ending}"), kind


def _forget(memory: dict[Any, Any]) -> None:
    """Drops the oldest half where it has grown too large."""
    if len(memory) >= _MEMORY:
        for key in list(memory)[: _MEMORY // 2]:
            del memory[key]
