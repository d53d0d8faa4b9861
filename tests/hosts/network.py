"""Hosts of a network of their own: network namespaces of this machine, joined by a switch."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

NAMESPACES = Path("/run/netns")
SWITCH_ADDRESS = "10.77.0.254"

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_libc = ctypes.CDLL(None, use_errno=True)


class NamespacesUnavailable(Exception):
    """This machine, or this user, cannot make network namespaces."""


class LossUnavailable(Exception):
    """This machine's kernel cannot let packets be late or lost on purpose."""


class Network:
    """Hosts that reach each other through a switch, and nothing else.

    The names are random. Everything is removed by :meth:`close`, and also if this process is killed before.
    """

    def __init__(self, count: int) -> None:
        name = f"llmdd-{secrets.token_hex(4)}"
        #: A namespace too; who stands in it is between the hosts.
        self.switch = f"{name}-switch"
        self.hosts = [Host(self.switch, f"{name}-{number}", number) for number in range(1, count + 1)]
        self._names = [self.switch, *(host.namespace for host in self.hosts)]
        try:
            self._remover = _remover(self._names)
            self._make()
        except FileNotFoundError as error:
            raise NamespacesUnavailable(f"there is no command {error.filename!r}: install iproute2") from None
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for name in self._names:
            try:
                _command("ip", "netns", "add", name)
            except RuntimeError as error:
                raise NamespacesUnavailable(f"network namespaces cannot be made here: {error}") from None
            _command("ip", "-n", name, "link", "set", "lo", "up")
        _command("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _command("ip", "-n", self.switch, "address", "add", f"{SWITCH_ADDRESS}/24", "dev", "bridge")
        _command("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            host.connect_to("bridge")

    def close(self) -> None:
        """Remove all of it. Again is nothing."""
        assert self._remover.stdin is not None
        self._remover.stdin.close()
        self._remover.wait()


class Host:
    """One host: its address, its processes' place, and the cable that leads to the switch."""

    def __init__(self, switch: str, namespace: str, number: int) -> None:
        self.namespace = namespace
        self.address = f"10.77.0.{number}"
        self.six = f"fd77::{number:x}"
        self._switch, self._port = switch, f"port{number}"

    @property
    def command(self) -> tuple[str, ...]:
        """What stands before a command that shall run on this host."""
        return ("ip", "netns", "exec", self.namespace)

    def connect_to(self, bridge: str) -> None:
        cable = ("eth0", "netns", self.namespace, "type", "veth", "peer", "name", self._port, "netns", self._switch)
        _command("ip", "link", "add", *cable)
        _command("ip", "-n", self._switch, "link", "set", self._port, "master", bridge, "up")
        _command("ip", "-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        # Without looking for another with this address, for which it could not be used for a second.
        _command("ip", "-n", self.namespace, "address", "add", f"{self.six}/64", "dev", "eth0", "nodad")
        _command("ip", "-n", self.namespace, "link", "set", "eth0", "up")

    def unplug(self) -> None:
        """Pull the cable: whatever is sent is lost, and nobody is told."""
        _command("ip", "-n", self._switch, "link", "set", self._port, "down")

    def plug_in(self) -> None:
        _command("ip", "-n", self._switch, "link", "set", self._port, "up")

    def limit_rate(self, megabits: int) -> None:
        """Let no more than so much leave this host in a second."""
        limit = ("tbf", "rate", f"{megabits}mbit", "burst", "32kb", "latency", "100ms")
        _command("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *limit)

    def lose(self, percent: float, delay_ms: int, spread_ms: int) -> None:
        """Let what leaves this host be late, by so much more or less, out of order, and lost now and then."""
        faults = ("netem", "delay", f"{delay_ms}ms", f"{spread_ms}ms", "loss", f"{percent}%")
        try:
            _command("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *faults)
        except RuntimeError as error:
            raise LossUnavailable(f"there is no netem here: {error}") from None

    def lift_limit(self) -> None:
        _command("tc", "-n", self.namespace, "qdisc", "delete", "dev", "eth0", "root")

    def held_back(self) -> int:
        """How often the limit has made something wait."""
        return sum(int(each["overlimits"]) for each in _told("tc", "-n", self.namespace, "-s", "-j", "qdisc", "show"))

    def bytes_sent(self) -> int:
        """All that has left this host since it was made."""
        (device,) = _told("ip", "-n", self.namespace, "-s", "-j", "link", "show", "dev", "eth0")
        return int(device["stats64"]["tx"]["bytes"])


def enter(namespace: str) -> None:
    """Let the sockets that the calling thread makes from now on be of that namespace."""
    descriptor = os.open(NAMESPACES / namespace, os.O_RDONLY)
    try:
        _call("setns", descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)


def move_to(namespace: str) -> None:
    """Let this process, which has one thread, be on that host, as ``ip netns exec`` does.

    ``/sys``, where libraries look for network devices, shows it those of the host.
    """
    enter(namespace)
    _call("unshare", _CLONE_NEWNS)
    _call("mount", None, b"/", None, _MS_REC | _MS_SLAVE, None)
    _call("mount", b"sysfs", b"/sys", b"sysfs", 0, None)


def _call(function: str, *arguments: int | bytes | None) -> None:
    """Call the C library's function, and raise what it says went wrong."""
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _remover(names: list[str]) -> subprocess.Popen[bytes]:
    """A process that removes the namespaces when its standard input ends, as it does too when this one is killed."""
    script = 'cat; for name; do ip netns delete "$name"; done'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "remover", *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that a Ctrl-C is for the tests alone
    )


def _command(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def _told(*words: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(_command(*words))
    return answer
