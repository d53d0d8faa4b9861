"""The memory of a node, offered to and attached by a node on the same host.

The bytes of a tensor never travel: both nodes map the same memory. What travels, once per link, is an :class:`Offer`:
the descriptors of the segments and a few numbers that say how they are laid out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmdd._core.peer import PeerArena
from llmdd._core.store import CacheStore

MAX_SEGMENTS = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACES = Path("/proc/self/ns")


@dataclass(frozen=True)
class Offer:
    """What a peer needs in order to attach a node's memory. The descriptors are borrowed from the store."""

    description: dict[str, int]
    fds: tuple[int, ...]


def offer(store: CacheStore) -> Offer:
    """The segments of ``store``, as a peer may have them."""
    description, fds = store.export()
    return Offer(dict(description), tuple(fds))


def attach(description: Mapping[str, int], fds: Sequence[int], peer_bit: int, pid: int) -> PeerArena:
    """Map the segments that another node has offered.

    Parameters
    ----------
    description, fds
        As received from the other node. The descriptors may be closed afterwards.
    peer_bit
        The pin bit that the other node has granted to this one.
    pid
        The other node's process, as this one sees it.

    Raises
    ------
    ValueError
        If the segments are not what a node of this version would offer.
    """
    try:
        return PeerArena(dict(description), tuple(fds), peer_bit, pid)
    except (KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        raise ValueError(f"the peer's segments cannot be attached: {error!r}") from error


def host_identity() -> str:
    """What two processes have in common exactly when they can share memory.

    That is the running kernel, and the namespaces in which they find each other's sockets, see each other's death, and
    read the same clock, by which leases end.
    """
    found = (_NAMESPACES / kind for kind in ("net", "pid", "time"))
    numbers = (str(path.stat().st_ino) for path in found if path.exists())  # kernels before 5.6 have one clock for all
    return "/".join((_BOOT_ID.read_text().strip(), *numbers))
