"""The control plane: how clusters meet, tell each other to part, and learn that the other has died.

=================  ====================================================================================
``messages``       every byte that crosses a socket
``channel``        a TCP connection that carries messages
``segments``       handing memory over a Unix socket
``handshake``      how two ends check each other and exchange their memory
``session``        one end of a link that was made
``courier``        pieces of registered memory, where only their owner can touch them
``grant``          the pin bit lent to a peer, and how it comes back
``reaper``         settling what peers have released
``link_table``     which clusters are linked: the link machine of the spec, one per cluster
``rank_table``     where the members of a communicator meet
``communicator``   one member's part in a communicator: the communicator machine of the spec
``communicators``  all of a node's communicators
``sessions``       every session that runs, and how it is parted from
``listener``       who may knock, how many, and for how long
``listeners``      at which addresses
``reception``      who answers what is asked for there
``service``        :class:`LinkService`, what the rest of llmdd sees of all this
=================  ====================================================================================

No byte of a tensor passes through here, and no message is sent for a transfer, but for the courier's: where the kernel
forbids one process to touch the registered memory of another.
"""

from .endpoint import LinkTarget
from .listeners import Address
from .service import DEFAULT_LINK_TOTAL_TIME_S, LinkService

__all__ = ["DEFAULT_LINK_TOTAL_TIME_S", "Address", "LinkService", "LinkTarget"]
