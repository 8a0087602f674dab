"""Contracts for plug-ins, a diffusion model in closed form and a random FLUX. Needs pytest for the contracts."""

from __future__ import annotations

from importlib import import_module
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
    from schedsearch.testing._family_contract import FamilyContract
    from schedsearch.testing._metric_contract import MetricContract
    from schedsearch.testing._searcher_contract import (
        SearcherContract,
        searched,
        toy_evaluator,
        toy_joint_space,
        toy_space,
    )
    from schedsearch.testing._space_contract import SpaceContract

_HOMES = {
    "FamilyContract": "_family_contract",
    "MetricContract": "_metric_contract",
    "SearcherContract": "_searcher_contract",
    "SpaceContract": "_space_contract",
    "searched": "_searcher_contract",
    "toy_evaluator": "_searcher_contract",
    "toy_joint_space": "_searcher_contract",
    "toy_space": "_searcher_contract",
}
"""Of what is imported on first use: the contracts need pytest, two of them torch."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"schedsearch.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "TOY_OBJECTIVES",
    "FamilyContract",
    "GaussianEvaluator",
    "GaussianMixture",
    "MetricContract",
    "SearcherContract",
    "SpaceContract",
    "random_flux",
    "searched",
    "toy_blocks",
    "toy_evaluator",
    "toy_joint_space",
    "toy_linears",
    "toy_model_ref",
    "toy_sigmas",
    "toy_space",
]
