"""The plain pipeline compiled by torch: the whole denoiser, or its repeated blocks.

Needs a compiler on the machine where torch does (a C++ compiler on the CPU). Compiling takes longer than a run, so a
compiled pipeline is kept. Does not know other peers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from schedsearch.bench._peers._peer import Host, Peer, Setting, muted

WHOLE = "whole denoiser"
REPEATED = "repeated blocks"


class Compiled(Peer):
    """``torch.compile`` of the denoiser."""

    title = "full run, compiled"
    library = "torch"
    is_kept = True

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], Any] = {}

    def why_not(self, host: Host) -> str:
        """Returns nothing: what stands in the way shows when it is tried."""
        del host
        return ""

    def settings(self, host: Host) -> Sequence[Setting]:
        """Returns both ways to compile; blocks alone where the pipeline's class says which are repeated."""
        repeated = getattr(host.fresh().transformer, "_repeated_blocks", None)
        words = (REPEATED, WHOLE) if repeated else (WHOLE,)
        return [Setting(words=each) for each in words]

    def enable(self, pipe: Any, setting: Setting, host: Host) -> None:
        """Puts ``setting`` on ``pipe``; torch compiles when it is first called."""
        del host
        if setting.words == REPEATED:
            pipe.transformer.compile_repeated_blocks(fullgraph=True)
        else:
            pipe.transformer.compile()

    def disable(self, pipe: Any) -> None:
        """Does nothing: a compiled pipeline is kept, and is nobody else's."""

    @contextmanager
    def applied(self, setting: Setting, host: Host) -> Iterator[Any]:
        """Yields a compiled pipeline, the same one every time."""
        key = (id(host), setting.words)
        if key not in self._kept:
            pipe = host.fresh()
            with muted():
                self.enable(pipe, setting, host)
            self._kept[key] = pipe
        yield self._kept[key]
