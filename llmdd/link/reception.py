"""Answering what other clusters ask for on a connection of their own."""

from __future__ import annotations

import asyncio
import logging

from llmdd._core.status import LLMException, LLMStatusCode

from .channel import Channel
from .communicators import Communicators
from .complaints import Complaints
from .endpoint import Endpoint
from .expected_conversations import ExpectedConversations
from .listener import Request
from .messages import Converse, LinkRequest, ProtocolError, UnlinkRequest
from .refused import Refused

_logger = logging.getLogger("llmdd.link")
_complaints = Complaints(_logger)

#: How long an acceptor gives a handshake, from the request to the commit.
HANDSHAKE_TIMEOUT_S = 5.0


class Reception:
    """Leads each request to those whom it concerns, and gives the reason when it is refused."""

    def __init__(self, endpoint: Endpoint, communicators: Communicators, conversations: ExpectedConversations) -> None:
        self._endpoint = endpoint
        self._communicators = communicators
        self._conversations = conversations

    async def serve(self, channel: Channel, request: Request) -> None:
        """Answer one request."""
        if isinstance(request, Converse):
            try:
                self._conversations.receive(channel, request)
            except ProtocolError as error:
                _complaints.warn("a conversation was sent away: %s", error)
            return
        try:
            if isinstance(request, UnlinkRequest):
                await self._endpoint.serve_unlink(channel, request)
                return
            serving = self._endpoint if request.communicator is None else self._communicators
            await asyncio.wait_for(serving.serve_link(channel, request), HANDSHAKE_TIMEOUT_S)
            return
        except asyncio.TimeoutError:
            reason = f"the handshake took longer than {HANDSHAKE_TIMEOUT_S} s"
            refused = Refused(LLMStatusCode.LLM_FAILED, reason, for_now=True)
        except LLMException as error:
            refused = Refused(error.status_code, str(error), for_now=True)
        except Refused as error:
            refused = error
        except (ProtocolError, OSError, ValueError) as error:
            refused = Refused(LLMStatusCode.LLM_FAILED, str(error), for_now=True)
        # A member that comes too early asks again and again, and nobody need be told.
        is_member = isinstance(request, LinkRequest) and request.communicator is not None
        tell = _logger.debug if is_member and refused.for_now else _complaints.warn
        tell("refused cluster %d: %s", request.identity.cluster_id, refused)
        try:
            channel.send(refused.message)
        except OSError as error:
            _logger.debug("cluster %d did not wait for the refusal: %s", request.identity.cluster_id, error)
