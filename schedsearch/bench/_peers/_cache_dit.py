"""cache-dit (vipshop), through ``cache_dit.enable_cache(pipe, ...)`` and ``cache_dit.disable_cache(pipe)``.

DBCache with and without its calibrators, its pruning, and its step masks in both policies. What has to be known of it:

- It changes ``__call__`` of the pipeline's *class* while it is on, so only one pipeline may carry it at a time; taking
  it off puts the class back. What it does to the denoiser's forward stays: hence a pipeline of one's own for each
  setting.
- Its context has to be told the number of steps, or it never begins anew.
- Whether guidance takes a call of its own is a guess by the pipeline's name unless it is told.
- At least one block is computed in every step (``Fn_compute_blocks`` of 0 is refused while running).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from schedsearch.bench._peers._peer import Host, Peer, Setting

Options = Mapping[str, Any]
Grid = Callable[[Host], Iterator[tuple[str, Options]]]

POLICIES = ("medium", "ultra", "slow", "fast")
"""cache-dit's step masks."""

LEVELS: tuple[tuple[int, int, float], ...] = (
    (4, 4, 0.24), (1, 8, 0.8), (8, 3, 0.12), (2, 6, 0.35), (1, 12, 2.0), (4, 2, 0.08), (8, 2, 0.24),
)  # fmt: skip
"""Warm-up steps, most cached steps in a row, threshold: from cache-dit's own benchmarks, and beyond at both ends."""

CAREFUL = 0.3
"""Threshold up to which more than one block is computed in every step: beyond, speed is what is wanted."""


class CacheDit(Peer):
    """A configuration of cache-dit.

    Args:
        title: in tables.
        grid: words and options, coarse ones first.
        config: name of the configuration class.
        calibrator: name of the calibrator's configuration class, empty for none.
        calibrated: options of the calibrator.
    """

    library = "cache-dit"

    def __init__(
        self, title: str, grid: Grid, *, config: str = "DBCacheConfig", calibrator: str = "", **calibrated: Any
    ) -> None:
        self.title = title
        self._grid = grid
        self._config = config
        self._calibrator = calibrator
        self._calibrated = calibrated

    def why_not(self, host: Host) -> str:
        """Returns why it cannot be used here; nothing where it can."""
        del host
        if importlib.util.find_spec("cache_dit") is None:
            return "cache-dit is not installed: pip install 'schedsearch[peers]'"
        library = _library()
        for name in filter(None, (self._config, self._calibrator)):
            if not hasattr(library, name):
                return f"cache-dit {library.__version__} has no {name}"
        return ""

    def settings(self, host: Host) -> Sequence[Setting]:
        """Returns the settings to try."""
        return [Setting(words=words, values=options) for words, options in self._grid(host)]

    def enable(self, pipe: Any, setting: Setting, host: Host) -> None:
        """Puts ``setting`` on ``pipe``."""
        library = _library()
        config = getattr(library, self._config)(
            num_inference_steps=host.steps, enable_separate_cfg=host.branches > 1, **setting.values
        )
        calibrator = getattr(library, self._calibrator)(**self._calibrated) if self._calibrator else None
        library.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)

    def disable(self, pipe: Any) -> None:
        """Takes it off."""
        _library().disable_cache(pipe)


def _library() -> Any:
    return importlib.import_module("cache_dit")


def _dynamic(host: Host) -> Iterator[tuple[str, Options]]:
    for first, (warm, row, limit) in product((1, 4), LEVELS):
        if warm < host.steps and (first == 1 or limit <= CAREFUL):
            yield f"F{first}B0 W{warm} MC{row} R{limit:g}", {
                "Fn_compute_blocks": first, "Bn_compute_blocks": 0, "max_warmup_steps": warm,
                "max_continuous_cached_steps": row, "residual_diff_threshold": limit,
            }  # fmt: skip


def _pruned(host: Host) -> Iterator[tuple[str, Options]]:
    for warm, limit in product((4, 8), (0.08, 0.3, 0.15, 0.6)):
        if warm < host.steps:
            yield f"F1B0 W{warm} R{limit:g}", {
                "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": warm,
                "residual_diff_threshold": limit,
            }  # fmt: skip


def _masked(host: Host, policy: str) -> Iterator[tuple[str, Options]]:
    library = _library()
    for mask in POLICIES:
        yield f"{mask}, F1B0", {
            "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "steps_computation_policy": policy,
            "steps_computation_mask": library.steps_mask(mask_policy=mask, total_steps=host.steps),
            "residual_diff_threshold": 0.8,
        }  # fmt: skip


CACHE_DIT: dict[str, Peer] = {
    "cachedit-dbcache": CacheDit("cache-dit DBCache", _dynamic),
    "cachedit-taylorseer": CacheDit(
        "cache-dit DBCache + TaylorSeer", _dynamic, calibrator="TaylorSeerCalibratorConfig", taylorseer_order=1
    ),
    "cachedit-taylorseer-2": CacheDit(
        "cache-dit DBCache + TaylorSeer 2", _dynamic, calibrator="TaylorSeerCalibratorConfig", taylorseer_order=2
    ),
    "cachedit-dmd": CacheDit("cache-dit DBCache + DMD", _dynamic, calibrator="DMDCalibratorConfig"),
    "cachedit-foca": CacheDit("cache-dit DBCache + FoCa", _dynamic, calibrator="FoCaCalibratorConfig"),
    "cachedit-dbprune": CacheDit("cache-dit DBPrune", _pruned, config="DBPruneConfig"),
    "cachedit-scm": CacheDit("cache-dit SCM, static", partial(_masked, policy="static")),
    "cachedit-scm-taylorseer": CacheDit(
        "cache-dit SCM, static + TaylorSeer",
        partial(_masked, policy="static"),
        calibrator="TaylorSeerCalibratorConfig",
        taylorseer_order=1,
    ),
    "cachedit-scm-dynamic": CacheDit("cache-dit SCM, dynamic", partial(_masked, policy="dynamic")),
}
"""Its ways, by the name ``--only`` takes."""
