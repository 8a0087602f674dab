"""Kernel launches as single nodes of a compiled graph.

torch.compile looks into Triton launches, but refuses some of what these use (hooks of the autotuner, options of the
compiler). So while it traces, a launch is an operator of its own, which it takes as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def one_node(schema: str, mutates: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator for a function that launches kernels and returns nothing.

    Args:
        schema: types of its arguments, all positional, in torch's notation.
        mutates: names of the arguments that are written to.
    """

    def decorate(launch: Callable[..., None]) -> Callable[..., None]:
        home = launch.__module__.split(".")[-2]  # the operation's folder
        name = f"schedsearch_kernels::{home}{launch.__name__}"
        operator = torch.library.custom_op(name, launch, mutates_args=mutates, schema=schema)

        def call(*arguments: object) -> None:
            if torch.compiler.is_compiling():
                operator(*arguments)
            else:
                launch(*arguments)

        return call

    return decorate
