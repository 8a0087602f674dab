"""Contracts for plug-ins, a diffusion model in closed form and a random FLUX. Needs pytest for the contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from schedsearch.testing._gaussian import (
    TOY_OBJECTIVES,
    GaussianEvaluator,
    GaussianMixture,
    toy_blocks,
    toy_linears,
    toy_model_ref,
    toy_sigmas,
)
from schedsearch.testing._random_flux import random_flux

if TYPE_CHECKING:
    from schedsearch.testing._searcher_contract import SearcherContract, searched, toy_evaluator, toy_space

_NEEDS_PYTEST = ("SearcherContract", "searched", "toy_evaluator", "toy_space")


def __getattr__(name: str) -> Any:
    if name in _NEEDS_PYTEST:
        from schedsearch.testing import _searcher_contract

        return getattr(_searcher_contract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "TOY_OBJECTIVES",
    "GaussianEvaluator",
    "GaussianMixture",
    "SearcherContract",
    "random_flux",
    "searched",
    "toy_blocks",
    "toy_evaluator",
    "toy_linears",
    "toy_model_ref",
    "toy_sigmas",
    "toy_space",
]
