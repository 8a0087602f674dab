"""Exact errors of multistep steps along a recorded run, from its inner products alone: what `_paths.placed` adds up.

A step from node i to node j of the teacher's grid may use the model outputs at i and at the nodes visited before it.
Three ways to take it:

- `fitted_costs`: the coefficients that are best for this step (least squares, as in OLSS, Duan et al. 2023,
  arXiv 2305.14677), what a solver of family ``table`` is fitted to;
- `adams_costs`: the integral of the polynomial through these outputs, what a solver of family ``adams`` does;
- `forecast_costs`: the sum of that polynomial over the teacher's own steps between i and j, what a ``model`` row with
  reuse (order 0) or forecasts does on the default grid.

All are teacher-forced: each step begins on the teacher. Errors are root mean squares over prompts and elements, so they
add up along a path no worse than the triangle inequality says. This module does not know paths nor schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from schedsearch.study import Probe

Array = npt.NDArray[np.float64]
Nodes = npt.NDArray[np.intp]

Moments = Callable[[Nodes, Nodes, int], Array]
"""Of a step from ``start`` to ``end``: what weights times ``(sigma - sigma_start) ** power`` must add up to."""

RIDGE = 1e-12
"""Directions shorter than this share of a column count as dependent on those before it."""


def fitted_costs(probe: Probe, history: int, *, free_base: bool = True) -> tuple[Array, ...]:
    """Errors of best linear steps, for `_paths.placed`: arrays of 2 .. ``history + 1`` dimensions.

    Args:
        probe: the recorded run.
        history: most outputs a step may use, 1 to 3.
        free_base: whether the sample itself has a coefficient too.
    """
    return tuple(_fitted(probe, used, free_base=free_base) for used in range(1, history + 1))


def adams_costs(probe: Probe, history: int) -> tuple[Array, ...]:
    """Errors of Adams-Bashforth steps of order 1 .. ``history`` with uneven spacing, for `_paths.placed`."""
    sigma = np.asarray(probe.sigma)

    def moments(start: Nodes, end: Nodes, power: int) -> Array:
        span: Array = sigma[end] - sigma[start]
        return span ** (power + 1) / (power + 1)

    return tuple(_polynomial(probe, used, moments) for used in range(1, history + 1))


def forecast_costs(probe: Probe, history: int) -> tuple[Array, ...]:
    """Errors of forecasting what lies between two computed steps to order 0 .. ``history - 1``, for `_paths.placed`."""
    sigma = np.asarray(probe.sigma)
    n = probe.n_steps
    # sums[p, i, j] = sum over i <= t < j of (sigma_{t+1} - sigma_t) (sigma_t - sigma_i)^p
    offsets = sigma[None, :-1] - sigma[:, None]
    sums = np.zeros((history, n + 1, n + 1))
    for power in range(history):
        running = np.concatenate(
            [np.zeros((n + 1, 1)), np.cumsum(np.diff(sigma)[None, :] * offsets**power, axis=1)], axis=1
        )
        sums[power] = running - np.take_along_axis(running, np.arange(n + 1)[:, None], axis=1)

    def moments(start: Nodes, end: Nodes, power: int) -> Array:
        found: Array = sums[power, start, end]
        return found

    return tuple(_polynomial(probe, used, moments) for used in range(1, history + 1))


def emphasised(costs: Sequence[Array], probe: Probe, power: float) -> tuple[Array, ...]:
    """``costs`` times ``(sigma_i / sigma_0) ** power`` of the level each step begins at.

    Costs are errors where a step ends, but an early error goes on to change what later steps see. How much is not in
    the probe; on FLUX-like models a power of 0.5 to 1 places steps far better than 0 does.
    """
    weights = (np.asarray(probe.sigma) / probe.sigma[0])[:, None] ** power
    return tuple(
        np.where(np.isfinite(cost), cost, 0.0) * weights + np.where(np.isfinite(cost), 0.0, np.inf) for cost in costs
    )


def _chains(n: int, length: int) -> Nodes:
    """`(n_chains, length)` all rising tuples out of ``0..n``."""
    flat = np.fromiter((node for chain in combinations(range(n + 1), length) for node in chain), dtype=np.intp)
    return flat.reshape(-1, length)


def _filled(n: int, chains: Nodes, errors: Array) -> Array:
    costs = np.full((n + 1,) * chains.shape[1], np.inf)
    costs[tuple(chains.T)] = errors
    return costs


def _fitted(probe: Probe, used: int, *, free_base: bool) -> Array:
    """Errors of steps on exactly ``used`` outputs, indexed by the nodes of these, then the end."""
    n = probe.n_steps
    if n < used:
        return np.full((n + 1,) * (used + 1), np.inf)
    begun = _chains(n - 1, used)
    columns = probe.outputs[begun]  # (n_chains, used, n + 1)
    if free_base:
        columns = np.concatenate([columns, probe.states[begun[:, -1]][:, None]], axis=1)
    basis = _orthonormal(columns)
    moves = probe.states[None] - probe.states[begun[:, -1]][:, None]  # (n_chains, n + 1 ends, n + 1)
    for _ in range(2):  # the second pass removes what rounding left of the first
        moves = moves - (moves @ basis.transpose(0, 2, 1)) @ basis
    errors = np.linalg.norm(moves, axis=2)
    costs = np.full((n + 1,) * (used + 1), np.inf)
    costs[tuple(begun.T)] = np.where(np.arange(n + 1) > begun[:, -1:], errors, np.inf)
    return costs


def _orthonormal(columns: Array) -> Array:
    """Orthonormal bases of sets of vectors `(n_sets, n_vectors, n_dims)`, zero in place of dependent ones."""
    basis = columns / np.maximum(np.linalg.norm(columns, axis=2, keepdims=True), 1e-300)
    for k in range(basis.shape[1]):
        vector = basis[:, k].copy()
        for _ in range(2):
            for before in range(k):
                vector -= np.einsum("sd,sd->s", vector, basis[:, before])[:, None] * basis[:, before]
        length = np.linalg.norm(vector, axis=1, keepdims=True)
        basis[:, k] = np.where(length > np.sqrt(RIDGE), vector / np.maximum(length, 1e-300), 0.0)
    return np.asarray(basis, dtype=np.float64)


def _polynomial(probe: Probe, used: int, moments: Moments) -> Array:
    """Errors of steps whose ``used`` weights are exact for polynomials of lower degree with these ``moments``."""
    n = probe.n_steps
    chains = _chains(n, used + 1)
    if not len(chains):
        return np.full((n + 1,) * (used + 1), np.inf)
    start, end = chains[:, -2], chains[:, -1]
    sigma = np.asarray(probe.sigma)
    scale = (sigma[end] - sigma[start])[:, None]
    places = (sigma[chains[:, :-1]] - sigma[start][:, None]) / scale
    powers = np.arange(used)
    # sum_k w_k places_k^p = moment_p / scale^p for p = 0 .. used - 1
    system = places[:, None, :] ** powers[None, :, None]
    wanted = np.stack([moments(start, end, int(power)) for power in powers], axis=1) / scale**powers
    weights = np.linalg.solve(system, wanted[..., None])[..., 0]
    left = probe.states[end] - probe.states[start]
    for k in range(used):
        left = left - weights[:, k, None] * probe.outputs[chains[:, k]]
    return _filled(n, chains, np.linalg.norm(left, axis=1))
