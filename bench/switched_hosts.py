"""Any number of hosts that reach each other through a switch: network namespaces of this machine.

They have no names: whatever ends the process that made them, and the processes in them, the kernel takes them back, and
the devices with them. The cable of each can be pulled, and let less through.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from threading import Thread

from .contender import Unavailable
from .hosts import PREFIX, enter, ip, new_network

#: Each host's only device.
DEVICE = "eth0"

#: Of the range that is set aside for benchmarks (RFC 2544).
ADDRESSES = "198.18.0.{}"


class SwitchedHosts:
    """Hosts, numbered from 0, and the switch between them.

    Parameters
    ----------
    count : int
        At most 250.

    Attributes
    ----------
    networks : list of int
        For each host a descriptor of its network.

    Raises
    ------
    Unavailable
        If they cannot be made here; the message says what it takes.
    """

    def __init__(self, count: int) -> None:
        self.networks: list[int] = []
        self._switch = made_network()
        try:
            within(self._switch, lambda: ip("link set lo up", "link add switch type bridge", "link set switch up"))
            for number in range(count):
                self.networks.append(made_network())
                self._connect(number)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def address(number: int) -> str:
        """The address of a host."""
        return ADDRESSES.format(number + 1)

    def _connect(self, number: int) -> None:
        host, switch = self.networks[number], f"/proc/{os.getpid()}/fd/{self._switch}"
        cable = f"link add {DEVICE} type veth peer name port{number} netns {switch}"
        address = f"addr add {self.address(number)}/{PREFIX} dev {DEVICE}"
        within(host, lambda: ip("link set lo up", cable, address, f"link set {DEVICE} up"))
        within(self._switch, lambda: ip(f"link set port{number} master switch up"))

    def unplug(self, number: int) -> None:
        """Pull a host's cable: what is sent is lost, and nobody is told."""
        within(self._switch, lambda: ip(f"link set port{number} down"))

    def plug_in(self, number: int) -> None:
        within(self._switch, lambda: ip(f"link set port{number} up"))

    def limit_rate(self, number: int, megabits: int) -> None:
        """Let no more than so much leave a host in a second."""
        limit = ["rate", f"{megabits}mbit", "burst", "32kb", "latency", "100ms"]
        within(self.networks[number], lambda: tc("replace", "dev", DEVICE, "root", "tbf", *limit))

    def lift_limit(self, number: int) -> None:
        within(self.networks[number], lambda: tc("delete", "dev", DEVICE, "root"))

    def close(self) -> None:
        """Let go of all of it, once."""
        for network in [self._switch, *self.networks]:
            os.close(network)


def made_network() -> int:
    """A descriptor of a network in which nothing is yet."""
    made: list[int] = []
    in_a_thread(lambda: made.append(new_network()))
    return made[0]


def within(network: int, action: Callable[[], object]) -> None:
    """Do something with this process's own sockets and commands in another network."""

    def there() -> None:
        enter(network)
        action()

    in_a_thread(there)


def in_a_thread(action: Callable[[], object]) -> None:
    """In one of its own: a network belongs to a thread."""
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            action()
        except BaseException as failure:
            failures.append(failure)

    thread = Thread(target=attempt)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def tc(*words: str) -> None:
    """Run the program ``tc`` in this thread's network."""
    done = subprocess.run(["tc", "qdisc", *words], text=True, capture_output=True)
    if done.returncode:
        raise Unavailable(f"no rate can be limited here: tc says {done.stderr.strip()!r}")
