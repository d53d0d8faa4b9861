"""The engines that move bytes between hosts, by the names that users know."""

from __future__ import annotations

from collections.abc import Callable

from .engine import TransferEngine


def _nixl(name: str) -> TransferEngine:
    from .nixl import NixlEngine  # only where a peer is on another host

    return NixlEngine(name)


#: How an engine is opened: called with a name that no other engine has, of any node. Raises `EngineUnavailable`.
ENGINES: dict[str, Callable[[str], TransferEngine]] = {"nixl": _nixl}
