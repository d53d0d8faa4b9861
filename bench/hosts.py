"""Where the two processes of a transfer are: on one host, or each in a network namespace of its own.

Two namespaces have nothing but the network in common, as two hosts have. A pair of virtual devices joins them, and what
one sends the other receives, through the kernel's whole TCP. They have no names: whatever ends the processes in them,
the kernel takes them back, and the devices with them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .contender import Unavailable

#: Of the range that is set aside for benchmarks (RFC 2544).
NEAR_ADDRESS, FAR_ADDRESS, PREFIX = "198.18.0.1", "198.18.0.2", 24
NEAR_DEVICE, FAR_DEVICE = "near", "far"

#: How long the kernel may take to say that a device is running.
PATIENCE_S = 10.0

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_RTMGRP_LINK = 1

_libc = ctypes.CDLL(None, use_errno=True)

Make = Callable[..., Any]


class OneHost:
    """Both processes are where this one is."""

    near = far = "127.0.0.1"

    def other(self, make: Make) -> Make:
        """What makes in the other process, which is forked from this one, what `make` makes."""
        return make

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """The ends of a connection between the two: this process's, and the other's."""
        return socket.socketpair()


class TwoHosts:
    """This process is on one host from now on; what :meth:`other` makes will be on another.

    UCX would find that the two share a kernel, and move everything through its memory: it is told to use TCP.

    Attributes
    ----------
    near, far : str
        The addresses of this host and of the other.

    Raises
    ------
    Unavailable
        If a process may not have a network namespace of its own here, or the program ``ip`` is missing.
    """

    near, far = NEAR_ADDRESS, FAR_ADDRESS

    def __init__(self) -> None:
        os.environ["UCX_TLS"] = "tcp"
        leave_network()
        self._near = network()
        _call("unshare", _CLONE_NEWNET)
        self._far = network()
        _call("setns", self._near, _CLONE_NEWNET)
        ip(f"link add {NEAR_DEVICE} type veth peer name {FAR_DEVICE} netns /proc/{os.getpid()}/fd/{self._far}")
        bring_up(NEAR_DEVICE, NEAR_ADDRESS)
        _call("setns", self._far, _CLONE_NEWNET)
        bring_up(FAR_DEVICE, FAR_ADDRESS)
        _call("setns", self._near, _CLONE_NEWNET)
        see_network()
        await_running(NEAR_DEVICE)

    def other(self, make: Make) -> Make:
        """What makes on the other host, in a process that is forked from this one, what `make` makes."""

        def there(*arguments: Any, **keywords: Any) -> Any:
            move_to(self._far, FAR_DEVICE)
            return make(*arguments, **keywords)

        return there

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """The ends of a TCP connection between the two hosts, which sends at once whatever it is given."""
        _call("setns", self._far, _CLONE_NEWNET)
        with socket.create_server((self.far, 0)) as listener:
            _call("setns", self._near, _CLONE_NEWNET)
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        for end in (ours, theirs):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return ours, theirs


def leave_network() -> None:
    """Go to a network and a table of mounts of this process's own; as a user who is root there, if need be."""
    with suppress(PermissionError):
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
        return
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
    except OSError as refusal:
        raise Unavailable(f"a process may have no network of its own here ({refusal}): run it as root") from refusal


def move_to(descriptor: int, device: str) -> None:
    """Let this process be in another network, when its device is running. It must have no threads yet."""
    enter(descriptor)
    _call("unshare", _CLONE_NEWNS)
    see_network()
    await_running(device)


def network() -> int:
    """A descriptor of this thread's network, which others can enter by it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_network() -> int:
    """Take the calling thread to a network in which nothing is yet, and give a descriptor of that."""
    try:
        _call("unshare", _CLONE_NEWNET)
    except PermissionError as refusal:
        raise Unavailable(f"a process may have no network of its own here ({refusal}): run it as root") from None
    return network()


def enter(descriptor: int) -> None:
    """Let the calling thread be in another network."""
    _call("setns", descriptor, _CLONE_NEWNET)


def see_network() -> None:
    """Let ``/sys``, where libraries look for network devices, show those of this process's network; to it alone."""
    try:
        _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        _call("mount", b"sysfs", b"/sys", b"sysfs", 0, None)
    except PermissionError as refusal:
        raise Unavailable(f"the devices of another network cannot be seen here ({refusal}): run it as root") from None


def bring_up(device: str, address: str) -> None:
    ip("link set lo up", f"addr add {address}/{PREFIX} dev {device}", f"link set {device} up")


def ip(*commands: str) -> None:
    """Run commands of the program ``ip`` in this process's network."""
    try:
        done = subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, capture_output=True)
    except FileNotFoundError as missing:
        raise Unavailable("the program ip is not installed: install Debian's iproute2") from missing
    if done.returncode:
        raise Unavailable(f"no virtual network devices can be made here: ip says {done.stderr.strip()!r}")


def await_running(device: str) -> None:
    """Wait until the kernel says that what is sent from `device` arrives; UCX overlooks a device before."""
    state = Path("/sys/class/net", device, "operstate")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, _RTMGRP_LINK))
        changes.settimeout(PATIENCE_S)
        while state.read_text(encoding="ascii").strip() != "up":
            changes.recv(1 << 16)


def _call(function: str, *arguments: Any) -> None:
    """Call a function of the C library, and raise the error that it reports."""
    if getattr(_libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
