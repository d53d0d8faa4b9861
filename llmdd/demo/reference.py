"""The reference process: the same model answers the same requests alone, without a cache ever changing hands."""

from __future__ import annotations

from .channel import Channel
from .messages import Finish, Generated, UnexpectedMessage, Verify
from .settings import Settings
from .transformer import generate


def run(channel: Channel, settings: Settings) -> None:
    """Answer what is asked for, one request after the other."""
    transformer = settings.transformer()
    while not isinstance(message := channel.receive(), Finish):
        if not isinstance(message, Verify):
            raise UnexpectedMessage(message)
        for token in generate(transformer, message.request.prompt, message.count):
            channel.send(Generated({message.request.req_id: token}, running=1))
