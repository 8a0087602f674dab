"""diffusers' own caches, through ``transformer.enable_cache(config)`` and ``disable_cache()``.

Each is a name of a config class and a grid of its options; a class that the installed diffusers does not have is said
to be missing, and one that this table does not know is tried with its defaults. What has to be known of them:

- FirstBlockCache decides for a whole batch by its mean: hence batch 1 wherever a decision counts.
- MagCache wants ratios of this very model. Its calibration mode prints them; that print is read, and nothing else.
- TaylorSeer keeps its factors in bfloat16 unless told; they get the dtype of the weights here.
- PyramidAttentionBroadcast and FasterCache want a callback for the time step, keep their state per module (not per
  guidance branch), and skip attention alone. FLUX is distilled, or guided by two calls in a row, so FasterCache has no
  batch of both branches to halve: it is told so, and skips attention.
- SeaCache wants ``cache_context`` to be told step and sigma, which FLUX's pipelines do not do; it then computes all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import product
from typing import Any

import diffusers

from schedsearch.bench._peers._peer import Host, Peer, Setting, muted
from schedsearch.errors import EvaluationError

Grid = Callable[[Host], Iterator[Mapping[str, Any]]]

LIBRARY: Any = diffusers
"""Its classes are made on first use and have no types."""

BLOCKS = r"^(transformer_blocks|single_transformer_blocks|blocks)\.\d+$"
"""Whole blocks, as TaylorSeer's identifiers name modules."""

ALL_BUT_ENDS = (-1, 951)
"""Time steps at which attention may be skipped when as much as possible is."""

ONLY_ONE = "spatial attention "
"""Options that begin like this have no counterpart in a picture's model, so words need not say it."""

CONFIG_NAME = re.compile(r"\w*(Cache|Broadcast)Config")


class DiffusersCache(Peer):
    """A cache of diffusers: its config class, and the options to try.

    Args:
        title: in tables.
        config: name of the class.
        grid: the options, coarse ones first.
        wants_time: whether the config has to be told how to read the time step.
    """

    library = "diffusers"

    def __init__(self, title: str, config: str, grid: Grid, *, wants_time: bool = False) -> None:
        self.title = title
        self.config = config
        self._grid = grid
        self._wants_time = wants_time

    def why_not(self, host: Host) -> str:
        """Returns why it cannot be used here; nothing where it can."""
        if not hasattr(LIBRARY, self.config):
            return f"diffusers {LIBRARY.__version__} has no {self.config}"
        denoiser = host.fresh().transformer
        if not hasattr(denoiser, "enable_cache"):
            return f"{type(denoiser).__name__} of diffusers {LIBRARY.__version__} has no enable_cache"
        return ""

    def settings(self, host: Host) -> Sequence[Setting]:
        """Returns the settings to try."""
        return [Setting(words=worded(values), values=values) for values in self._grid(host)]

    def enable(self, pipe: Any, setting: Setting, host: Host) -> None:
        """Puts ``setting`` on ``pipe``."""
        del host
        options = dict(setting.values)
        if self._wants_time:
            options["current_timestep_callback"] = lambda: pipe.current_timestep
        pipe.transformer.enable_cache(getattr(LIBRARY, self.config)(**options))

    def disable(self, pipe: Any) -> None:
        """Takes it off."""
        if pipe.transformer.is_cache_enabled:
            pipe.transformer.disable_cache()


class MagCache(DiffusersCache):
    """MagCache with ratios that its own calibration mode has measured on this model."""

    def __init__(self) -> None:
        super().__init__("diffusers MagCache", "MagCacheConfig", _no_grid)

    def settings(self, host: Host) -> Sequence[Setting]:
        """Returns the settings to try, after one calibration run.

        Raises:
            EvaluationError: the calibration printed no ratios.
        """
        ratios = self.calibrated(host)
        known = {"num_inference_steps": host.steps, "mag_ratios": ratios}
        grid = product(((3, 0.2), (6, 0.2), (8, 0.05)), (0.06, 0.24, 0.12, 0.5, 1.0))
        options = [
            {"threshold": limit, "max_skip_steps": most, "retention_ratio": kept} for (most, kept), limit in grid
        ]
        return [Setting(words=worded(each), values={**each, **known}) for each in options]

    def calibrated(self, host: Host) -> list[float]:
        """Returns the magnitude ratios of this model, as diffusers prints them at the end of a calibration run.

        Raises:
            EvaluationError: it printed none.
        """
        pipe = host.fresh()
        with muted():
            pipe.transformer.enable_cache(LIBRARY.MagCacheConfig(calibrate=True, num_inference_steps=host.steps))
            printed = StringIO()
            with redirect_stdout(printed):
                host.draw(pipe)
        found = re.findall(r"\[[-+.\deE, ]+\]", printed.getvalue())
        ratios = [float(ratio) for ratio in ast.literal_eval(found[-1])] if found else []
        if len(ratios) != host.steps:
            raise EvaluationError(
                f"MagCache: found {len(ratios)} ratios in what its calibration mode printed, expected {host.steps}."
            )
        return ratios


def worded(values: Mapping[str, Any]) -> str:
    """Returns options in words.

    >>> worded({"threshold": 0.1, "use_lite_mode": True, "skip_range": (100, 800)})
    'threshold 0.1, use lite mode, skip range 100 to 800'
    """
    words = []
    for name, value in values.items():
        plain = name.replace("_", " ").removeprefix(ONLY_ONE)
        if value is True:
            words.append(plain)
        elif isinstance(value, tuple):
            words.append(f"{plain} {' to '.join(map(str, value))}")
        elif isinstance(value, int | float | str) and value is not False:
            words.append(f"{plain} {value:g}" if isinstance(value, float) else f"{plain} {value}")
    return ", ".join(words) or "defaults"


def _no_grid(host: Host) -> Iterator[Mapping[str, Any]]:
    del host
    yield {}


def _first_block(host: Host) -> Iterator[Mapping[str, Any]]:
    del host
    for threshold in (0.1, 0.3, 0.05, 0.2, 0.5, 0.08, 0.15, 0.4, 0.75, 1.0):
        yield {"threshold": threshold}


def _taylorseer(host: Host, **more: Any) -> Iterator[Mapping[str, Any]]:
    for (before, order), interval in product(((3, 1), (3, 2), (1, 1)), (3, 5, 2, 4, 7)):
        yield {
            "cache_interval": interval, "disable_cache_before_step": before, "max_order": order,
            "taylor_factors_dtype": host.dtype, **more,
        }  # fmt: skip


def _pyramid(host: Host) -> Iterator[Mapping[str, Any]]:
    del host
    for skip, times in product((2, 4, 8), ((100, 800), ALL_BUT_ENDS)):
        yield {"spatial_attention_block_skip_range": skip, "spatial_attention_timestep_skip_range": times}


def _faster(host: Host) -> Iterator[Mapping[str, Any]]:
    del host
    for skip, times in product((2, 4, 8), ((-1, 681), ALL_BUT_ENDS)):
        yield {
            "spatial_attention_block_skip_range": skip, "spatial_attention_timestep_skip_range": times,
            "is_guidance_distilled": True,
        }  # fmt: skip


DIFFUSERS: dict[str, Peer] = {
    "diffusers-fbc": DiffusersCache("diffusers FirstBlockCache", "FirstBlockCacheConfig", _first_block),
    "diffusers-taylorseer": DiffusersCache(
        "diffusers TaylorSeer, attention", "TaylorSeerCacheConfig", _taylorseer
    ),
    "diffusers-taylorseer-blocks": DiffusersCache(
        "diffusers TaylorSeer, blocks", "TaylorSeerCacheConfig", partial(_taylorseer, cache_identifiers=[BLOCKS])
    ),
    "diffusers-taylorseer-lite": DiffusersCache(
        "diffusers TaylorSeer, lite", "TaylorSeerCacheConfig", partial(_taylorseer, use_lite_mode=True)
    ),
    "diffusers-magcache": MagCache(),
    "diffusers-pab": DiffusersCache(
        "diffusers PyramidAttentionBroadcast", "PyramidAttentionBroadcastConfig", _pyramid, wants_time=True
    ),
    "diffusers-fastercache": DiffusersCache(
        "diffusers FasterCache", "FasterCacheConfig", _faster, wants_time=True
    ),
    "diffusers-seacache": DiffusersCache("diffusers SeaCache", "SeaCacheConfig", _no_grid),
    "diffusers-textkv": DiffusersCache("diffusers TextKVCache", "TextKVCacheConfig", _no_grid),
}  # fmt: skip
"""The caches this release knows."""


def others() -> dict[str, Peer]:
    """Returns the caches of the installed diffusers that the table does not know, each with its defaults."""
    known = {peer.config for peer in DIFFUSERS.values() if isinstance(peer, DiffusersCache)}
    names = sorted(name for name in dir(LIBRARY) if CONFIG_NAME.fullmatch(name) and name not in known)
    return {f"diffusers-{n.lower()}": DiffusersCache(f"diffusers {n}, defaults", n, _no_grid) for n in names}
