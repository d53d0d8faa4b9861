"""The control plane: how clusters meet, tell each other to part, and learn that the other has died.

==========================  ========================================================================================
``messages``                every byte that crosses a socket, but for those of a transfer
``transfer_messages``       the bytes of a transfer's questions and answers
``channel``                 a TCP connection that carries messages
``connection``              what that connection is: a socket, or what is used as one
``secure_connection``       one under TLS, whose ends have shown each other their keys
``keys``                    those keys
``security``                whether there are any, and where an end may listen
``readiness``               waiting for a connection
``handshake``               how two ends check each other, and by which way bytes will travel between them
``refused``                 that one of them does not want the link
``local_end``               what a node brings to its links
``session``                 one end of a link that was made
``sessions``                every session that runs, and how it is parted from
``link_table``              which clusters are linked: the link machine of the spec, one per cluster
``rank_table``              where the members of a communicator meet
``communicator``            one member's part in a communicator: the communicator machine of the spec
``communicators``           all of a node's communicators
``listener``                who may knock, how many, and for how long
``listeners``               at which addresses
``reception``               who answers what is asked for there
``service``                 :class:`LinkService`, what the rest of llmdd sees of all this
==========================  ========================================================================================

Between two ends on one host, which share memory:

==========================  ========================================================================================
``memory_handover``         the part of the handshake in which they hand each other their memory
``segments``                memory over a Unix socket
``local_session``           the session of such a link
``grant``                   the pin bit lent to a peer, and how it comes back
``reaper``                  settling what peers have released
``courier``                 pieces of registered memory, where only their owner can touch them
==========================  ========================================================================================

Between two that an engine connects, because they are on different hosts or one of them insists on it:

==========================  ========================================================================================
``introduction``            the part of the handshake in which they make their engines known to each other
``expected_conversations``  the connections that are to come for it
``node_engines``            a node's engine
``distant_session``         the session of such a link
``conversation``            how one end asks the other for transfers
``attendance``              how it is answered
``stretches``               writing a stream to the other end, by either of them
``guest_grant``             the place of a peer at the attendance, and how it comes back
==========================  ========================================================================================

No byte of a tensor passes through here, and no message is sent for a transfer between ends that share memory, but for
the courier's: where the kernel forbids one process to touch the registered memory of another.
"""

from .endpoint import LinkTarget
from .listeners import Address
from .service import DEFAULT_LINK_TOTAL_TIME_S, LinkService

__all__ = ["DEFAULT_LINK_TOTAL_TIME_S", "Address", "LinkService", "LinkTarget"]
