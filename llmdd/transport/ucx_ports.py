"""Whether UCX has a TCP port to listen at: in a range that is used up, it would look for one for ever."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterator

from .engine import EngineUnavailable

#: What the user holds UCX's ports to, and the devices that it uses.
PORT_RANGE = "UCX_TCP_PORT_RANGE"
DEVICES = "UCX_NET_DEVICES"

_READ_ADDRESS = 0x8915  # SIOCGIFADDR, see netdevice(7)
_READ_FLAGS = 0x8913  # SIOCGIFFLAGS
_IS_UP = 1
_REQUEST_BYTES = 40


def require_a_free_port() -> None:
    """Find out before UCX does, if the user has set a range of ports.

    What another process takes in between is not known.

    Raises
    ------
    EngineUnavailable
        If all of them are in use on a device that UCX would use.
    """
    port_range = os.environ.get(PORT_RANGE, "")
    bounds = re.fullmatch(r"(\d+)-(\d+)", port_range)
    if bounds is None:  # Not set, a single one, or what UCX refuses by itself.
        return
    first, last = int(bounds[1]), int(bounds[2])
    if not 0 < first <= last < 1 << 16:
        return
    for device, address in _devices():
        if not any(_is_free(address, port) for port in range(first, last + 1)):
            raise EngineUnavailable(
                f"every port of {PORT_RANGE}={port_range} is in use on {device} ({address}); "
                "a process that links to other hosts needs one of its own: widen the range"
            )


def _devices() -> Iterator[tuple[str, str]]:
    """The network devices that UCX would use over TCP, with their addresses."""
    names = os.environ.get(DEVICES, "all")
    wanted, excluded = set(names.split(",")), set(names.removeprefix("^").split(","))
    for _, device in socket.if_nameindex():
        used = device not in excluded if names.startswith("^") else "all" in wanted or device in wanted
        address = _address_of(device) if used else None
        if address is not None:
            yield device, address


def _address_of(device: str) -> str | None:
    """Its IPv4 address; None if it has none, or is down."""
    request = struct.pack(f"{_REQUEST_BYTES}s", device.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            flags = fcntl.ioctl(any_socket, _READ_FLAGS, request)
            answer = fcntl.ioctl(any_socket, _READ_ADDRESS, request)
        except OSError:
            return None
    (is_up,) = struct.unpack_from("H", flags, 16)
    return socket.inet_ntoa(answer[20:24]) if is_up & _IS_UP else None


def _is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            trial.bind((address, port))
        except OSError:
            return False
    return True
