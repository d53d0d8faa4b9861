"""The engines that move bytes between hosts, by the names that users know."""

from __future__ import annotations

from collections.abc import Callable

from .engine import TransferEngine


def _nixl(name: str, peer_timeout_ms: int) -> TransferEngine:
    from .nixl import NixlEngine  # only where a peer is on another host

    return NixlEngine(name, peer_timeout_ms)


#: How an engine is opened: called with a name that no other engine has, of any node, and how long a host of a peer may
#: answer nothing, in milliseconds, before what is written there has failed. Raises `EngineUnavailable`.
ENGINES: dict[str, Callable[[str, int], TransferEngine]] = {"nixl": _nixl}
