"""What other libraries do to the same pipeline, one small file per library and one table of all of them."""

from collections.abc import Mapping

from schedsearch.bench._peers._cache_dit import CACHE_DIT
from schedsearch.bench._peers._compiled import Compiled
from schedsearch.bench._peers._diffusers import DIFFUSERS, others
from schedsearch.bench._peers._fresh import fresh
from schedsearch.bench._peers._peer import Host, Peer, Setting, muted


def peers() -> Mapping[str, Peer]:
    """Returns every peer by the name ``--only`` takes."""
    return {"compiled": Compiled(), **DIFFUSERS, **others(), **CACHE_DIT}


__all__ = ["Host", "Peer", "Setting", "fresh", "muted", "peers"]
