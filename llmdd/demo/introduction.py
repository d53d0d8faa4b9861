"""How the two ends of a run on two hosts find each other, see that they fit, and agree on the settings.

Where this process was told of keys (``llmdd.security_options``), the two ends know each other by them, and what they
say is encrypted; without, the prefill end listens as llmdd does: at loopback addresses, unless it is told to be open.

The prefill end listens. The decode end connects and says ``Hello``; the answer is ``Agreed`` or ``Declined``. The
connection then stays for the whole run. Whoever else connects is sent away, and the wait goes on.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from llmdd._core.status import LLMException
from llmdd.link.keys import UnusableKeys
from llmdd.link.secure_connection import NotAuthenticated
from llmdd.link.security import LinkSecurity
from llmdd.security_options import link_security

from .channel import Channel, OtherEndGone
from .choices import Choices, Disagreement, agree
from .messages import Agreed, Declined, Hello, UnexpectedMessage
from .settings import Settings
from .tunnel import tunnel

HELLO_LIMIT_SECONDS = 5.0
"""Whoever connects has this long to say what belongs here."""

MESSAGE_LIMIT_SECONDS = 20
"""A message that has begun to cross the connection has this long to end."""

SILENT_HOST_SECONDS = 20
"""A host that has crashed or was cut off is noticed after about this time."""

CALL_AGAIN_SECONDS = 0.2


class CannotMeet(Exception):
    """The two ends have not come together; the message says why, and what to do."""


@dataclass(frozen=True)
class Address:
    """A host, by name or number, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that ``text`` gives as ``host:port`` or ``[ipv6]:port``.

        Raises
        ------
        ValueError
            It gives none.

        Examples
        --------
        >>> Address.parse("[::1]:26000")
        Address(host='::1', port=26000)
        """
        try:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"{text!r} is no address: {error}") from None
        if not host or port is None or parts.netloc != text or parts.username is not None:
            raise ValueError(f"{text!r} is no address: it should be HOST:PORT, or [IPV6]:PORT")
        return cls(host, port)

    def with_port(self, port: int) -> Address:
        return Address(self.host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Meeting:
    """The other end was found.

    Parameters
    ----------
    channel
        To it.
    here, there
        The two hosts' numeric addresses, as the connection between them has them.
    choices
        What holds at both ends.
    """

    channel: Channel
    here: str
    there: str
    choices: Choices


class Reception:
    """The prefill end's listener, until it is left.

    Parameters
    ----------
    address
        Where to listen: a numeric host, and a port or 0 for any free one.

    Raises
    ------
    CannotMeet
        One cannot listen there, or may not, without keys.
    """

    def __init__(self, address: Address) -> None:
        self._security = _security()
        self._sent_away = ""
        try:
            self._security.require_may_listen("llmdd demo", address.host)
            family = socket.AF_INET6 if ipaddress.ip_address(address.host).version == 6 else socket.AF_INET
            self._socket = socket.create_server((address.host, address.port), family=family)
        except LLMException:
            raise CannotMeet(
                f"to listen at {address}, which is not a loopback address, takes keys: --key and --allowed-keys (llmdd "
                "keys new NAME makes a key); or let anybody in who reaches it: --open-links"
            ) from None
        except (OSError, ValueError) as error:
            raise CannotMeet(
                f"cannot listen at {address}: {error}; --listen takes a numeric address of this host, and a free port"
            ) from None
        self.address = address.with_port(self._socket.getsockname()[1])

    def __enter__(self) -> Reception:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait_for_decode(self, prompts: Sequence[bytes], choices: Choices, seconds: float) -> Meeting:
        """Wait for a decode end that fits, and agree with it.

        Raises
        ------
        CannotMeet
            None came in time, or one came that does not fit.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                sock, _ = self._socket.accept()
            except TimeoutError:
                break
            try:
                channel, here, there = _channel_over(sock, self._security, accepts=True)
            except CannotMeet as reason:
                self._sent_away = f"; somebody was sent away: {reason}"
                continue
            try:
                hello = channel.receive_within(HELLO_LIMIT_SECONDS)
            except (OtherEndGone, UnexpectedMessage):
                hello = None
            if not isinstance(hello, Hello):
                channel.close()
                continue
            return _answer(hello, Meeting(channel, here, there, choices), prompts)
        raise CannotMeet(
            f"nobody has called at {self.address} for {seconds:g} seconds: start llmdd demo --role decode --connect "
            f"{self.address} on the other host; if that says that nobody answers, this port is closed to it"
            f"{self._sent_away}"
        )


def _answer(hello: Hello, met: Meeting, prompts: Sequence[bytes]) -> Meeting:
    try:
        _require_fit(hello, "decode")
        choices = agree(met.choices, hello.choices)
        settings = Settings.for_prompts(prompts, choices)
        met.channel.send(Agreed(choices, settings.context, len(prompts)))
    except (Disagreement, CannotMeet) as reason:
        with suppress(OtherEndGone):
            met.channel.send(Declined(str(reason)))
        met.channel.close()
        raise CannotMeet(str(reason)) from None
    except OtherEndGone:
        met.channel.close()
        raise CannotMeet(f"the decode end, at {met.there}, has hung up before it was answered") from None
    return Meeting(met.channel, met.here, met.there, choices)


def _require_fit(hello: Hello, role: str) -> None:
    if hello.role != role:
        raise CannotMeet(f"both ends have --role {hello.role}: one must be prefill, the other decode")
    if hello.version != version("llmdd"):
        raise CannotMeet(
            f"the prefill end runs llmdd {version('llmdd')}, the decode end {hello.version}: install the same at both"
        )


def call_prefill(address: Address, choices: Choices, seconds: float) -> tuple[Meeting, Agreed]:
    """Call the prefill end until it answers, and agree with it.

    Raises
    ------
    CannotMeet
        It does not answer in time, is none, or does not fit.
    """
    security = _security()
    channel, here, there = _channel_over(_connect(address, seconds), security, accepts=False)
    try:
        channel.send(Hello("decode", version("llmdd"), choices))
        answer = channel.receive_within(HELLO_LIMIT_SECONDS)
    except (OtherEndGone, UnexpectedMessage):
        answer = None
    if isinstance(answer, Agreed):
        return Meeting(channel, here, there, answer.choices), answer
    channel.close()
    if isinstance(answer, Declined):
        raise CannotMeet(answer.reason)
    raise CannotMeet(
        f"whoever listens at {address} does not answer as the prefill end of a demo does: --connect takes the address "
        f"that llmdd demo --role prefill was told to --listen at; and this end has {'' if security.keys else 'no '}keys"
        " (--key, --allowed-keys): the other must, too, or neither"
    )


def _security() -> LinkSecurity:
    try:
        return link_security({})
    except LLMException as error:
        raise CannotMeet(str(error)) from None


def _connect(address: Address, seconds: float) -> socket.socket:
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            sock = socket.create_connection((address.host, address.port), timeout=max(left, CALL_AGAIN_SECONDS))
            if sock.getsockname() != sock.getpeername():
                return sock
            sock.close()  # where nobody listens, a call may be given the very port that it is for
            reason = "nobody listens there"
        except (ConnectionError, TimeoutError) as error:
            reason = error.strerror or str(error)
        except OSError as error:
            raise CannotMeet(f"cannot reach {address}: {error.strerror or error}") from None
        if left <= CALL_AGAIN_SECONDS:
            raise CannotMeet(
                f"nobody answers at {address} ({reason}): start llmdd demo --role prefill --listen {address} on that "
                "host, and let its firewall admit this port and the next one"
            )
        time.sleep(CALL_AGAIN_SECONDS)  # the kernel does not tell when somebody begins to listen on another host


def _channel_over(sock: socket.socket, security: LinkSecurity, *, accepts: bool) -> tuple[Channel, str, str]:
    """A channel over a connected socket, and the hosts at its two ends; :class:`CannotMeet` if one is a stranger."""
    here, there = sock.getsockname()[0], sock.getpeername()[0]
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_HOST_SECONDS // 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENT_HOST_SECONDS // 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_HOST_SECONDS * 1000)
    if security.keys is not None:
        try:
            sock = tunnel(sock, security.keys, HELLO_LIMIT_SECONDS, accepts=accepts)
        except (NotAuthenticated, UnusableKeys) as error:
            raise CannotMeet(f"no link with {there}: {error}") from None
    limit = struct.pack("ll", MESSAGE_LIMIT_SECONDS, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return Channel(Connection(sock.detach())), here, there
