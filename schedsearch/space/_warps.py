"""Families of noise levels: how a run's steps are spaced, by formula.

With ``u = i / m`` for level ``i`` of ``m`` steps, a family falls from ``first`` at ``u = 0`` to ``low`` at ``u = 1``:

    uniform       first + u (low - first)
    quadratic     low + (first - low) (1 - u)^power                                       Song 2020 (DDIM) with power 2
    shift         low + (first - low) a s / (1 + (a - 1) s),  s = 1 - u                   Esser 2024 (arXiv 2403.03206)
    karras        (first^(1/rho) + u (low^(1/rho) - first^(1/rho)))^rho                   Karras 2022 (arXiv 2206.00364)
    exponential   first^(1 - u) low^u
    logsnr        uniform in lambda, the log of signal over noise                         Lu 2022 (arXiv 2206.00927)
    cosine        lambda = -log tan(pi t / 2), t uniform                                  Nichol 2021 (arXiv 2102.09672)
    beta          low + (first - low) F^-1(1 - u), F the Beta(alpha, beta) distribution   Lee 2024 (arXiv 2407.12173)
    ays           a published table of 10 levels, log-linear between them                 Sabour 2024 (arXiv 2404.14507)

**The end.** ``low`` is ``last``, and one formula spans all steps, unless there is a ``floor``: then the formula ends at
``floor`` one step before the end, and the final step goes from there to ``last``, as EDM and diffusers do it
(``sigma_N = 0`` after ``sigma_(N-1) = sigma_min``). Zero is infinitely far away for the families that are even in a
logarithm (exponential, logsnr, ays), so these always have a floor when ``last`` is 0: ``first / n_steps`` unless stated
(the last level of an unshifted flow grid), for ays the end of its table. Likewise noise without signal, ``sigma = 1``
of a flow model, is infinitely far: logsnr begins where the signal-to-noise ratio is the inverse of the one at the
floor, ays at the ratio its table begins with, and only then is the first level pinned to ``first``.

Levels are sigma of a flow model (noise share) or of a variance-preserving one (noise over signal). The ratio of noise
to signal, which cosine, logsnr and ays are about, is ``sigma / (1 - sigma)`` and ``sigma``. This module does not know
which levels a model was trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import atan, exp, inf, isfinite, log, pi
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from schedsearch.errors import SpaceError

Array: TypeAlias = npt.NDArray[np.float64]
Kind = Literal["flow", "vp"]

_TABLES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
        "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    }
)
"""AYS, noise over signal at the 10 published timesteps of Stable Diffusion 1.5 and XL."""
_NEED_FLOOR = frozenset({"exponential", "logsnr", "ays"})


def warp(
    name: str,
    n_steps: int,
    *,
    first: float,
    last: float,
    floor: float | None = None,
    kind: Kind | None = None,
    **params: float | str,
) -> tuple[float, ...]:
    """`(n_steps + 1,)` strictly decreasing noise levels of one family, from exactly ``first`` to exactly ``last``.

    >>> warp("uniform", 4, first=1.0, last=0.0)
    (1.0, 0.75, 0.5, 0.25, 0.0)
    >>> tuple(round(level, 3) for level in warp("shift", 4, first=1.0, last=0.0, shift=3.0))
    (1.0, 0.9, 0.75, 0.5, 0.0)

    Args:
        name: a key of `WARPS`.
        n_steps: number of steps, 1 or more.
        first: first level.
        last: last level, 0 or more.
        floor: the level before ``last``; ``None`` leaves it to the family (see above).
        kind: ``flow`` or ``vp``; ``None`` is flow if ``first`` is at most 1.
        params: of the family: shift(shift), karras(rho), beta(alpha, beta), quadratic(power), ays(table: sd or sdxl).

    Raises:
        SpaceError: if the family or a parameter is unknown, a number is out of order, or two levels coincide.
    """
    if name not in WARPS:
        raise SpaceError(f"warp: found {name!r}, expected one of {', '.join(WARPS)}.")
    own = _parameters(name)
    for key, value in params.items():
        if key not in own:
            raise SpaceError(f"warp {name}: found parameter {key!r}, expected {' or '.join(own) or 'none'}.")
        if not isinstance(value, str) and not 0.0 < value < inf:
            raise SpaceError(f"warp {name}: found {key} {value!r}, expected a number above 0.")
    if n_steps < 1 or not 0.0 <= last < first < inf:
        raise SpaceError(
            f"warp {name}: found {n_steps} steps from {first!r} to {last!r}, expected 1 or more steps, falling, none "
            "below 0."
        )
    known: Kind = kind or ("flow" if first <= 1.0 else "vp")
    if floor is None and last == 0.0 and name in _NEED_FLOOR:
        floor = _default_floor(name, n_steps, first, known, str(params.get("table", "sd")))
    if floor is not None and n_steps > 1 and not last < floor < first:
        raise SpaceError(f"warp {name}: found floor {floor!r}, expected a level between {last!r} and {first!r}.")
    if n_steps == 1:  # no level but the two ends
        return float(first), float(last)
    stated = {"kind": known, **params} if name in _BY_RATIO else params
    spanned = n_steps if floor is None else n_steps - 1
    spread = WARPS[name](np.arange(spanned + 1) / spanned, first, last if floor is None else floor, **stated)
    inner = [float(level) for level in spread[1:-1]] + ([floor] if floor is not None else [])
    levels = (float(first), *inner, float(last))
    if not all(isfinite(level) for level in levels) or any(a <= b for a, b in pairwise(levels)):
        raise SpaceError(f"warp {name}: found levels {levels}, expected a fall. Use fewer steps or milder parameters.")
    return levels


def _parameters(name: str) -> tuple[str, ...]:
    signature = inspect.signature(WARPS[name])
    own = [key for key, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    return tuple(key for key in own if key != "kind")


def _default_floor(name: str, n_steps: int, first: float, kind: Kind, table: str) -> float:
    return _level(_table(table)[-1], kind) if name == "ays" else first / n_steps


# ---- noise over signal


def _ratio(sigma: float, kind: Kind) -> float:
    """Noise over signal; infinite for pure noise."""
    if kind == "vp":
        return sigma
    return sigma / (1.0 - sigma) if sigma < 1.0 else inf


def _level(ratio: float, kind: Kind) -> float:
    """The level with this ratio of noise to signal."""
    return ratio / (1.0 + ratio) if kind == "flow" else ratio


def _levels(log_ratio: Array, kind: Kind) -> Array:
    """The levels with these logarithms of noise over signal, ``-lambda``."""
    ratio: Array = np.exp(log_ratio)
    return ratio / (1.0 + ratio) if kind == "flow" else ratio


# ---- one function per family: levels at ``u``, falling from ``first`` to ``low``


def _uniform(u: Array, first: float, low: float) -> Array:
    return first + u * (low - first)


def _quadratic(u: Array, first: float, low: float, *, power: float = 2.0) -> Array:
    return low + (first - low) * (1.0 - u) ** power


def _shift(u: Array, first: float, low: float, *, shift: float = 3.0) -> Array:
    s = 1.0 - u
    return low + (first - low) * shift * s / (1.0 + (shift - 1.0) * s)


def _karras(u: Array, first: float, low: float, *, rho: float = 7.0) -> Array:
    a, b = first ** (1.0 / rho), low ** (1.0 / rho)
    levels: Array = (a + u * (b - a)) ** rho
    return levels


def _exponential(u: Array, first: float, low: float) -> Array:
    return np.exp(log(first) + u * (log(low) - log(first)))


def _beta(u: Array, first: float, low: float, *, alpha: float = 0.6, beta: float = 0.6) -> Array:
    from scipy.special import betaincinv  # here: start-up time

    quantile: Array = betaincinv(alpha, beta, 1.0 - u)
    return low + (first - low) * quantile


def _cosine(u: Array, first: float, low: float, *, kind: Kind) -> Array:
    a, b = _ratio(first, kind), _ratio(low, kind)
    t = 2.0 / pi * (atan(a) + u * (atan(b) - atan(a)))  # atan(inf) = pi / 2, and 0 at 0: finite at both ends
    noise, signal = np.sin(pi * t / 2.0), np.cos(pi * t / 2.0)
    levels: Array = noise / (noise + signal) if kind == "flow" else noise / signal
    return levels


def _logsnr(u: Array, first: float, low: float, *, kind: Kind) -> Array:
    b = log(_ratio(low, kind))
    a = log(_ratio(first, kind)) if isfinite(_ratio(first, kind)) else -b
    return _levels(a + u * (b - a), kind)


def _ays(u: Array, first: float, low: float, *, kind: Kind, table: str = "sd") -> Array:
    published = np.log(_table(table))
    position = (published - published[0]) / (published[-1] - published[0])
    a = _ratio(first, kind) if isfinite(_ratio(first, kind)) else exp(float(published[0]))
    b = _ratio(low, kind)
    spread = np.interp(u, np.linspace(0.0, 1.0, len(position)), position)
    return _levels(log(a) + spread * (log(b) - log(a)), kind)


def _table(name: str) -> tuple[float, ...]:
    if name not in _TABLES:
        raise SpaceError(f"warp ays: found table {name!r}, expected one of {', '.join(_TABLES)}.")
    return _TABLES[name]


_BY_RATIO = frozenset({"cosine", "logsnr", "ays"})
"""Families that are told whether levels are those of a flow model."""

WARPS: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "uniform": _uniform, "shift": _shift, "karras": _karras, "exponential": _exponential, "beta": _beta,
        "cosine": _cosine, "ays": _ays, "quadratic": _quadratic, "logsnr": _logsnr,
    }
)  # fmt: skip
"""Families by name, each a function ``(u, first, low, **params)`` to levels of the shape of ``u``."""
