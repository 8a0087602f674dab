"""What a peer is: a library's own way to make a pipeline faster, with the settings people would try.

A peer is put on and taken off through the library's public functions alone; nothing of a library is changed. This
module knows no library.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

Values = Mapping[str, Any]
"""Options of a library by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a peer: in words, and as the options it is made of."""

    words: str
    values: Values = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a peer may know of the model it is put on.

    Attributes:
        steps: denoising steps of the plain run.
        branches: denoiser calls per step.
        dtype: of the weights.
        fresh: makes a pipeline of one's own, with nothing put on it.
        draw: runs a pipeline on calibration prompts, for libraries that calibrate themselves.
    """

    steps: int
    branches: int
    dtype: torch.dtype
    fresh: Callable[[], Any]
    draw: Callable[[Any], object]


class Peer(ABC):
    """A way to be faster that belongs to another library.

    Attributes:
        title: in tables.
        library: name of the distribution it comes from.
        is_kept: whether a pipeline it was put on is used again, because putting it on takes longer than a run.
    """

    title: str
    library: str
    is_kept: bool = False

    @abstractmethod
    def why_not(self, host: Host) -> str:
        """Returns why it cannot be used here; nothing where it can."""

    @abstractmethod
    def settings(self, host: Host) -> Sequence[Setting]:
        """Returns the settings to try, coarse ones first; may calibrate."""

    @abstractmethod
    def enable(self, pipe: Any, setting: Setting, host: Host) -> None:
        """Puts ``setting`` on ``pipe``."""

    @abstractmethod
    def disable(self, pipe: Any) -> None:
        """Takes off what `enable` has put on."""

    @contextmanager
    def applied(self, setting: Setting, host: Host) -> Iterator[Any]:
        """Yields a pipeline of its own with ``setting`` on it."""
        pipe = host.fresh()
        with muted():
            try:
                self.enable(pipe, setting, host)
            except Exception:
                with suppress(Exception):  # it may be half on
                    self.disable(pipe)
                raise
        try:
            yield pipe
        finally:
            with muted():
                self.disable(pipe)


class _Listener(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        text = " ".join(record.getMessage().split())
        if text not in self.heard:
            self.heard.append(text)


LOGGERS = frozenset({"diffusers", "cache_dit", "CACHE_DIT"})
"""Loggers of the libraries begin like this; many of them print by themselves and pass nothing on."""


@contextmanager
def muted() -> Iterator[list[str]]:
    """Keeps libraries from logging while the block runs, and collects what they warn of."""
    listener = _Listener()
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in LOGGERS]
    loggers = [logger for logger in map(logging.getLogger, names) if logger.handlers]
    handlers = [list(logger.handlers) for logger in loggers]
    level = logging.root.manager.disable
    for logger in loggers:
        logger.handlers = [listener]
    logging.disable(max(level, logging.INFO))  # loggers that come up meanwhile are not in the list
    try:
        yield listener.heard
    finally:
        logging.disable(level)
        for logger, before in zip(loggers, handlers, strict=True):
            logger.handlers = before
