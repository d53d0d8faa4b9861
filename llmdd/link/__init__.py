"""The control plane: how clusters meet, tell each other to part, and learn that the other has died.

=================  ====================================================================================
``messages``       every byte that crosses a socket
``channel``        a TCP connection that carries messages
``segments``       handing memory over a Unix socket
``handshake``      how two ends check each other and exchange their memory
``session``        one end of a link that was made
``grant``          the pin bit lent to a peer, and how it comes back
``reaper``         settling what peers have released
``link_table``     which clusters are linked: the link machine of the spec, one per cluster
``listener``       who may knock, how many, and for how long
``service``        :class:`LinkService`, what the rest of llmdd sees of all this
=================  ====================================================================================

No byte of a tensor passes through here, and no message is sent for a transfer.
"""

from .endpoint import LinkTarget
from .service import LinkService

__all__ = ["LinkService", "LinkTarget"]
