"""What a node brings to its links."""

from __future__ import annotations

from dataclasses import dataclass

from llmdd._core.lease_calls import LeaseCalls

from .expected_conversations import ExpectedConversations
from .listeners import Listeners
from .messages import Identity
from .node_engines import NodeEngines
from .reaper import Reaper
from .sessions import Sessions


@dataclass(frozen=True)
class LocalEnd:
    """This end of every link of one node.

    Attributes
    ----------
    identity
        What the node says of itself.
    store, reaper
        Its memory, which peers on this host attach, and who takes back the pin bits granted to them.
    engines, conversations
        What reaches its peers on other hosts, and the connections that are to come from there.
    sessions, listeners
        Where the sessions of its links run, and where it can be met.
    """

    identity: Identity
    store: LeaseCalls
    reaper: Reaper
    engines: NodeEngines
    conversations: ExpectedConversations
    sessions: Sessions
    listeners: Listeners
