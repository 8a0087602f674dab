"""Schedules that others published, as plain data: what cannot be derived from a rule, and the parameters they report.

Sources are named beside each table. This module does not know what they are turned into.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FORA_INTERVALS = (2, 3, 4, 5, 6, 7)
"""Selvaraju et al. 2024, arXiv 2407.01425: recompute every N steps."""

ATTENTION_INTERVALS = (2, 4, 5, 7, 10, 20)
"""The same for attention alone, as ECAD (arXiv 2506.15682) lists it."""

TAYLORSEER = ((6, 2), (4, 2), (3, 2), (5, 2), (6, 1), (7, 2), (8, 2))
"""Liu et al. 2025, arXiv 2503.06923: pairs (interval, order), all with three computed steps at the start."""

SMOOTHCACHE_LIMITS = (0.18, 0.08, 0.35)
"""Liu et al. 2024, arXiv 2411.10510: largest relative change that is left uncomputed."""

SCM: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = MappingProxyType(
    {
        "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
        "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
        "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
        "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
    }
)
"""cache-dit's masks for 28 steps: lengths of the computed and of the cached runs, in turns."""

S3: Mapping[int, tuple[tuple[float, ...], tuple[int, ...]]] = MappingProxyType(
    {
        3: ((1.0, 0.598, 0.413, 0.0011), (1, 2, 1)),
        4: ((1.0, 0.730, 0.451, 0.242, 0.0013), (1, 2, 3, 1)),
        5: ((1.0, 0.735, 0.523, 0.316, 0.204, 0.0014), (1, 2, 3, 4, 1)),
        7: ((1.0, 0.834, 0.666, 0.498, 0.320, 0.215, 0.125, 0.0014), (1, 2, 2, 2, 2, 2, 2)),
        10: (
            (1.0, 0.780, 0.722, 0.688, 0.681, 0.523, 0.423, 0.303, 0.191, 0.079, 0.001),
            (1, 1, 2, 1, 1, 2, 2, 2, 2, 2),
        ),
    }
)
"""Liu et al. 2024, arXiv 2312.07243: times in [0, 1] of Stable Diffusion 1.4 (1 = noise) and the order of each step."""

SD_BETAS = (0.00085, 0.012, 1000)
"""Stable Diffusion's schedule: first and last beta, linear in their square roots, and the number of timesteps."""
