"""Reads a space file (YAML) strictly, and binds it to one model.

``spaces/README.md`` describes the file. Anything unknown, of the wrong type or illegal is a `SpaceError` with the
dotted path, what was found, what was expected and what to do. This module does not know what the space is used for.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import NoReturn

from schedsearch.errors import SpaceError
from schedsearch.schedule import (
    COMPUTE,
    CORRECTORS,
    ESTIMATES,
    FAMILIES,
    MAX_STEPS,
    MODEL_ROW,
    NUMBER_FORMATS,
    OPS,
    PREDICTIONS,
    SKIP,
    ModelRef,
    PrecisionRule,
    Solver,
    rule_of_word,
)
from schedsearch.space._forbidden import Forbidden, SolverPattern
from schedsearch.space._precision import GROUPINGS, LinearLayers, PrecisionAxis
from schedsearch.space._space import CLOSED, LEVELS, MAX_LATTICE, SearchSpace
from schedsearch.space._yaml import read_yaml, shown, shown_key
from schedsearch.types import BlockSpec

FORMAT = "schedsearch.space"
VERSION = 1

_PACKAGE = "schedsearch_spaces"
_MARK = f"\nformat: {FORMAT}\n"
"""Tells a space file from other data in the package."""
_FROZEN = {"guidance": "pipeline", "precision": "pipeline"}
"""Parts of a schedule that may be said to stay as they are, and how; ``precision`` unless it is opened."""

_MAX_ORDER = 4
_MAX_SOLVERS = 40
_ONE_ORDER = {"euler": 1, "heun": 2}
"""Families that exist at one order only."""
_ESTIMATING = ("dpm", "unipc")
"""Families with more than one estimate of derivatives; they are also the ones written in the data by default."""
_SOLVER_FIELDS = {"family": FAMILIES, "prediction": PREDICTIONS, "corrector": CORRECTORS, "estimate": ESTIMATES}


def shipped_spaces() -> tuple[str, ...]:
    """Names of the space files that come with the package."""
    files = [file for file in importlib.resources.files(_PACKAGE).iterdir() if file.name.endswith(".yaml")]
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if _MARK in file.read_text(encoding="utf-8")))


def space_file(source: str | Path | None) -> dict[str, str]:
    """Returns what tells a space file from others: its name, and the hash of what is in it; empty for none.

    It is read and parsed, so that a file that cannot be is refused before a model is loaded for it.

    Raises:
        SpaceError: there is no such file, or it is not valid YAML.
    """
    if source is None:
        return {}
    where, document = _read(source)
    _Reader(where, None).header(document)
    content = json.dumps(document, sort_keys=True, default=str)
    return {"name": where, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def load_space(
    source: str | Path,
    *,
    model: ModelRef,
    blocks: Sequence[BlockSpec],
    sigma: Sequence[float],
    linears: LinearLayers | None = None,
) -> SearchSpace:
    """The search space that a file declares, for one model.

    Args:
        source: name of a shipped space such as ``flux``, or path of a YAML file.
        model: the denoiser the schedules will be for.
        blocks: its schedulable blocks, in order of execution.
        sigma: `(n_steps + 1,)` its default noise levels, post-shift, strictly decreasing.
        linears: its linear layers, and the formats that the device carries out; without them all formats stay.

    Raises:
        SpaceError: if there is no such file, it is not valid YAML, or any of it is unknown, of the wrong type or
            illegal.
    """
    where, document = _read(source)
    return _Reader(where, linears).space(document, model, tuple(blocks), tuple(float(level) for level in sigma))


def _read(source: str | Path) -> tuple[str, object]:
    """The file's name for messages, and what it holds."""
    if isinstance(source, str) and source in shipped_spaces():
        name = f"{source}.yaml"
        return name, read_yaml(importlib.resources.files(_PACKAGE) / name, name, SpaceError)
    path = Path(source)
    if not path.is_file():
        names = ", ".join(shipped_spaces())
        raise SpaceError(f"{source}: found no such space, expected one of {names}, or the path of a YAML file.")
    return path.name, read_yaml(path, path.name, SpaceError)


class _Reader:
    """Typed getters over one parsed file; every complaint names the file and the dotted path."""

    def __init__(self, where: str, linears: LinearLayers | None) -> None:
        self._where = where
        self._linears = linears

    def space(
        self, document: object, model: ModelRef, blocks: tuple[BlockSpec, ...], sigma: tuple[float, ...]
    ) -> SearchSpace:
        top = self.header(document)
        self._text("summary", top.get("summary", ""))
        self._frozen(top)
        levels = self._levels(top["levels"])
        prunable, max_pruned = self._pruned(top.get("pruned"), blocks)
        free_sigma, lattice = self._sigma(top)
        return SearchSpace(
            name=self._text("name", top["name"]),
            model=model,
            blocks=blocks,
            sigma=sigma,
            levels=levels,
            counts=self._counts(top.get("steps", "default"), len(sigma) - 1),
            prunable=prunable,
            max_pruned=max_pruned,
            forbidden=self._forbidden(top.get("forbidden", [])),
            solvers=self._solvers(top["solvers"]) if "solvers" in top else (Solver(),),
            free_sigma=free_sigma,
            lattice=lattice,
            precision=self._precision(top["precision"], blocks) if "precision" in top else CLOSED,
        )

    def header(self, document: object) -> Mapping[str, object]:
        """The members of a space file, which it is by its own word."""
        top = self._mapping(
            "", document, needed=("format", "version", "name", "levels"),
            optional=("summary", "steps", "sigma", "lattice", "solvers", "pruned", "forbidden", "precision",
                      "frozen"),
        )  # fmt: skip
        self._exactly("format", top["format"], FORMAT)
        self._exactly("version", top["version"], VERSION)
        return top

    def _levels(self, value: object) -> tuple[tuple[str, str], ...]:
        table = self._mapping("levels", value, needed=(), optional=LEVELS)
        if not table:
            self._fail("levels", "no level", f"at least one of {', '.join(LEVELS)}", "Name a level and its symbols.")
        return tuple(
            (level, self._symbols(f"levels.{level}", table[level], level)) for level in LEVELS if level in table
        )

    def _symbols(self, path: str, value: object, level: str) -> str:
        text = self._text(path, value)
        legal = OPS.replace(SKIP, "") if level == MODEL_ROW else OPS
        for char in text:
            if char not in legal:
                self._fail(path, shown(char), f"symbols out of {legal}", "Remove it.")
        if COMPUTE not in text or len(set(text)) != len(text):
            self._fail(path, shown(text), f"{COMPUTE} and every symbol once", "Write each symbol once, C among them.")
        return "".join(char for char in OPS if char in text)

    def _counts(self, value: object, default: int) -> tuple[int, ...]:
        if value == "default":
            return (default,)
        table = self._mapping("steps", value, needed=("min", "max"))
        low, high = (
            default
            if table[end] == "default"
            else self._integer(f"steps.{end}", table[end], 1, MAX_STEPS, besides=", or default")
            for end in ("min", "max")
        )
        if table["min"] != "default" and table["max"] != "default" and low > high:
            self._fail("steps", f"min {low} above max {high}", "min at most max", "Exchange them.")
        return tuple(sorted({default, *range(low, high + 1)}))

    def _sigma(self, top: Mapping[str, object]) -> tuple[bool, int]:
        """Whether noise levels are free, and the lattice they lie on."""
        free = self._one_of("sigma", top.get("sigma", "default"), ("default", "free")) == "free"
        if "lattice" not in top:
            return free, 2048
        if not free:
            self._fail("lattice", shown(top["lattice"]), "no lattice, as sigma is default", "Remove it, or free sigma.")
        return free, self._integer("lattice", top["lattice"], 2, MAX_LATTICE)

    def _solvers(self, value: object) -> tuple[Solver, ...]:
        records: dict[Solver, None] = {}
        for i, item in enumerate(self._list("solvers", value)):
            for record in self._solver_group(f"solvers[{i}]", item):
                if record in records:
                    self._fail(f"solvers[{i}]", f"{record.family} a second time", "every solver once", "Remove one.")
                records[record] = None
        if not 1 <= len(records) <= _MAX_SOLVERS:
            self._fail("solvers", f"{len(records)} solvers", f"1 to {_MAX_SOLVERS}", "Name the ones worth searching.")
        return tuple(records)

    def _solver_group(self, path: str, item: object) -> list[Solver]:
        """The records of one entry: every combination of its lists, those of the first order first."""
        group = self._mapping(
            path, item, needed=("family",), optional=("orders", "predictions", "correctors", "estimates")
        )
        family = self._one_of(f"{path}.family", group["family"], FAMILIES)
        fixed = _ONE_ORDER.get(family)
        low, high = (fixed, fixed) if fixed else (1, _MAX_ORDER)
        if "orders" not in group and fixed is None:
            self._fail(f"{path}.orders", "nothing", f"a list of orders from 1 to {_MAX_ORDER}", "Add it.")
        orders = [
            self._integer(f"{path}.orders[{i}]", order, low, high)
            for i, order in enumerate(self._list(f"{path}.orders", group.get("orders", [fixed])))
        ]
        estimates = ESTIMATES if family in _ESTIMATING else ESTIMATES[:1]
        default = "data" if family in _ESTIMATING else Solver().prediction
        predictions = self._choices(f"{path}.predictions", group.get("predictions", [default]), PREDICTIONS)
        correctors = self._choices(f"{path}.correctors", group.get("correctors", ["none"]), CORRECTORS)
        kinds = self._choices(f"{path}.estimates", group.get("estimates", ["default"]), estimates)
        lists: dict[str, Sequence[object]] = {
            "orders": orders, "predictions": predictions, "correctors": correctors, "estimates": kinds,
        }  # fmt: skip
        for key, values in lists.items():
            if not values or len(set(values)) < len(values):
                self._fail(f"{path}.{key}", shown(values), "a list of at least one, every entry once", "Correct it.")
        return [
            Solver(family=family, order=order, prediction=prediction, corrector=corrector, estimate=estimate)
            for order, prediction, corrector, estimate in product(orders, predictions, correctors, kinds)
        ]

    def _pruned(self, value: object, blocks: tuple[BlockSpec, ...]) -> tuple[tuple[str, ...], int]:
        if value is None:
            return (), 0
        table = self._mapping("pruned", value, needed=("max_fraction", "blocks"))
        fraction = table["max_fraction"]
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0.0 <= fraction < 1.0:
            self._fail("pruned.max_fraction", shown(fraction), "a number from 0 to below 1", "Some block must stay.")
        globs = [
            self._text(f"pruned.blocks[{i}]", item)
            for i, item in enumerate(self._list("pruned.blocks", table["blocks"]))
        ]
        names = tuple(b.name for b in blocks if any(fnmatchcase(b.name, glob) for glob in globs))
        return names, min(int(fraction * len(blocks) + 1e-9), len(names))

    def _forbidden(self, value: object) -> tuple[Forbidden, ...]:
        rules = []
        for i, item in enumerate(self._list("forbidden", value)):
            here = f"forbidden[{i}]"
            rule = self._mapping(here, item, needed=("rows", "symbols", "reason"), optional=("solver",))
            symbols = self._text(f"{here}.symbols", rule["symbols"])
            for char in symbols:
                if char not in OPS or char == COMPUTE:
                    self._fail(
                        f"{here}.symbols", shown(char), f"symbols out of {OPS[1:]}", "Computing is always allowed."
                    )
            reason = self._text(f"{here}.reason", rule["reason"])
            if not reason:
                self._fail(f"{here}.reason", "nothing", "why", "The reason is shown to whoever breaks the rule.")
            rows = self._text(f"{here}.rows", rule["rows"])
            solver = self._solver_pattern(f"{here}.solver", rule["solver"]) if "solver" in rule else ()
            if solver and rows != MODEL_ROW:
                self._fail(f"{here}.rows", shown(rows), f"{MODEL_ROW} beside a solver", "A solver sees only that row.")
            rules.append(Forbidden(rows=rows, symbols=symbols, reason=reason, solver=solver))
        return tuple(rules)

    def _solver_pattern(self, path: str, value: object) -> SolverPattern:
        pattern = self._mapping(path, value, needed=(), optional=("family", "order", *tuple(_SOLVER_FIELDS)[1:]))
        if not pattern:
            self._fail(path, "no field", "at least one of family, order, prediction, corrector", "Name the solvers.")
        return tuple(
            (field, self._integer(f"{path}.order", wanted, 1, _MAX_ORDER))
            if field == "order"
            else (field, self._one_of(f"{path}.{field}", wanted, _SOLVER_FIELDS[field]))
            for field, wanted in pattern.items()
        )

    def _precision(self, value: object, blocks: tuple[BlockSpec, ...]) -> PrecisionAxis:
        """The axis, closed where the model's layers are not known; the file is checked all the same."""
        table = self._mapping("precision", value, needed=("formats", "layers"), optional=("groups", "protected"))
        groups = self._one_of("precision.groups", table.get("groups", "layer"), GROUPINGS)
        globs = {
            key: [
                self._text(f"precision.{key}[{i}]", item)
                for i, item in enumerate(self._list(f"precision.{key}", table.get(key, [])))
            ]
            for key in ("layers", "protected")
        }
        known = self._linears or LinearLayers(names=(), base="bf16")
        formats = known.formats
        if table["formats"] != "default":
            items = self._list("precision.formats", table["formats"])
            formats = tuple(self._format(f"precision.formats[{i}]", item, known.base) for i, item in enumerate(items))
        return PrecisionAxis.of(
            known.names, [block.name for block in blocks], formats, groups=groups,
            layers=globs["layers"], protected=globs["protected"],
        )  # fmt: skip

    def _format(self, path: str, item: object, base: str) -> PrecisionRule:
        word = self._text(path, item)
        rule = rule_of_word(word, base=base)
        if rule is None or rule.weight == rule.activation == base:
            self._fail(
                path, shown(word), "WEIGHT, WEIGHT/ACTIVATION, and where wanted @row or @tensor and +RANK after it",
                f"Formats are {', '.join(NUMBER_FORMATS)}; base is the model's own, for activations only.",
            )  # fmt: skip
        return rule

    def _frozen(self, top: Mapping[str, object]) -> None:
        table = self._mapping("frozen", top.get("frozen", {}), needed=(), optional=tuple(_FROZEN))
        if "precision" in table and "precision" in top:
            self._fail("frozen.precision", "it beside precision", "one of the two", "Remove one.")
        for part, found in table.items():
            self._exactly(f"frozen.{part}", found, _FROZEN[part])

    # ---- typed getters

    def _fail(self, path: str, found: str, expected: str, fix: str) -> NoReturn:
        at = f"{self._where}: {path}" if path else self._where
        raise SpaceError(f"{at}: found {found}, expected {expected}. {fix}")

    def _mapping(
        self, path: str, value: object, *, needed: Sequence[str], optional: Sequence[str] = ()
    ) -> Mapping[str, object]:
        known = (*needed, *optional)
        if not isinstance(value, dict):
            self._fail(path, _kind(value), f"a mapping with {', '.join(known)}", "See spaces/README.md.")
        for key in value:
            if key not in known:
                here = f"{path}.{shown_key(key)}" if path else shown_key(key)
                self._fail(here, "an unknown key", f"one of {', '.join(known)}", "Remove it or correct its spelling.")
        for key in needed:
            if key not in value:
                self._fail(f"{path}.{key}" if path else key, "nothing", "a value", "Add it; see spaces/README.md.")
        return value

    def _list(self, path: str, value: object) -> Sequence[object]:
        if not isinstance(value, list):
            self._fail(path, _kind(value), "a list", "Put the items in [ ].")
        return value

    def _text(self, path: str, value: object) -> str:
        if not isinstance(value, str):
            self._fail(path, _kind(value), "text", 'Put it in quotes, such as "CR".')
        return value

    def _integer(self, path: str, value: object, low: int, high: int, *, besides: str = "") -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            wanted = f"a whole number from {low} to {high}" if low < high else str(low)
            self._fail(path, shown(value), f"{wanted}{besides}", "Correct it.")
        return value

    def _one_of(self, path: str, value: object, choices: Sequence[str]) -> str:
        if not isinstance(value, str) or value not in choices:
            self._fail(path, shown(value), f"one of {', '.join(choices)}", "Correct its spelling.")
        return value

    def _choices(self, path: str, value: object, choices: Sequence[str]) -> list[str]:
        return [self._one_of(f"{path}[{i}]", item, choices) for i, item in enumerate(self._list(path, value))]

    def _exactly(self, path: str, value: object, wanted: object) -> None:
        if value != wanted or isinstance(value, bool):
            self._fail(path, shown(value), repr(wanted), "It is the only value this release supports.")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {shown(value)}"
