"""Who proposes: one algorithm per file behind one protocol, and the only loop."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from typing import Any, get_args, get_origin, get_type_hints

from schedsearch.errors import UsageError
from schedsearch.protocols import Searcher
from schedsearch.search._anneal import Anneal, AnnealConfig
from schedsearch.search._auto import Auto, AutoConfig
from schedsearch.search._autodiffusion import AutoDiffusion, AutoDiffusionConfig
from schedsearch.search._bayes import Bayes, BayesConfig
from schedsearch.search._cachequant import CacheQuant, CacheQuantConfig
from schedsearch.search._ecad import Ecad, EcadConfig
from schedsearch.search._fitted_steps import FEW_ORDER, respaced
from schedsearch.search._random import RandomConfig, RandomSearch
from schedsearch.search._s3 import S3
from schedsearch.search._s3_genes import S3Config
from schedsearch.search._seeds import seeds
from schedsearch.search._stop import Ended, Stop
from schedsearch.search._turn import Turn
from schedsearch.search.loop import run
from schedsearch.space import SearchSpace, shown
from schedsearch.study import Objective, Probe

_SEARCHERS = (Auto, Anneal, AutoDiffusion, Bayes, CacheQuant, Ecad, RandomSearch, S3)

SEARCHERS: dict[str, Any] = {searcher.name: searcher for searcher in _SEARCHERS}
"""Searcher classes by name: ``SEARCHERS[name](space, seed=, objectives=, config=)``, options in ``.Config``."""


def make_searcher(
    name: str,
    space: SearchSpace,
    *,
    seed: int,
    objectives: Sequence[Objective],
    probe: Probe | None = None,
    **config: object,
) -> Searcher:
    """The searcher of that name.

    Args:
        name: a key of `SEARCHERS`.
        space: where it searches.
        seed: 0 or more; with the evaluations told it decides every proposal.
        objectives: what it improves; searchers of one objective take the first.
        probe: what was recorded of a plain run of the model, for searchers that start from it.
        config: options of the searcher's ``Config``; lists may stand for tuples.

    Raises:
        UsageError: if the name or an option is unknown, or a value is of the wrong kind or out of range.
    """
    if name not in SEARCHERS:
        raise UsageError(
            f"search: found {name!r}, expected one of {', '.join(sorted(SEARCHERS))}.{_hint(name, SEARCHERS)}"
        )
    if seed < 0:
        raise UsageError(f"seed: found {seed}, expected 0 or more.")
    if not objectives:
        raise UsageError("objectives: found none, expected at least one.")
    searcher = SEARCHERS[name]
    defaults = searcher.Config()
    known = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    kinds = get_type_hints(searcher.Config)
    options = {}
    for key, value in config.items():
        if key not in known:
            raise UsageError(
                f"search {name}: found the option {key!r}, expected one of {', '.join(known)}.{_hint(key, known)}"
            )
        options[key] = _as_kind(f"search {name}, {key}", value, kinds[key], f"a value such as {known[key]!r}")
    made: Searcher = searcher(
        space, seed=seed, objectives=tuple(objectives), config=searcher.Config(**options), probe=probe
    )
    return made


_WORDS = {int: "a whole number", float: "a finite number", str: "text"}


def _as_kind(path: str, value: object, kind: Any, wanted: str) -> object:
    """``value`` as the declared ``kind``: lists become tuples, whole numbers floats; nothing else is converted."""
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        inner = get_args(kind)[0]
        return tuple(_as_kind(f"{path}[{i}]", item, inner, _WORDS.get(inner, "a list")) for i, item in enumerate(value))
    if kind is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if type(value) is not (get_origin(kind) or kind) or (isinstance(value, float) and not isfinite(value)):
        raise UsageError(f"{path}: found {shown(value)}, expected {wanted}.")
    return value


def _hint(found: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(found, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


__all__ = [
    "FEW_ORDER",
    "S3",
    "SEARCHERS",
    "Anneal",
    "AnnealConfig",
    "Auto",
    "AutoConfig",
    "AutoDiffusion",
    "AutoDiffusionConfig",
    "Bayes",
    "BayesConfig",
    "CacheQuant",
    "CacheQuantConfig",
    "Ecad",
    "EcadConfig",
    "Ended",
    "RandomConfig",
    "RandomSearch",
    "S3Config",
    "Stop",
    "Turn",
    "make_searcher",
    "respaced",
    "run",
    "seeds",
]
