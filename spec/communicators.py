"""Links by rank table, and switches of role (api §4.2, §4.3): what lives by the machine COMMUNICATOR.

Members are connected as soon as they can be: of two members the one with the higher rank calls on the other, at the
address that the rank table gives the lower, whenever anything has happened in the cluster (:func:`meet`). There is no
time here, so a deadline passes when somebody says so (:meth:`Member.link_total_time_passes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

from .arguments import check_given, check_integer, check_type, require
from .caches import CacheOwner
from .options import read_listen_address
from .statecharts import Refused
from .transfers import EngineId, Transfer, WouldWait
from .values import Address

if TYPE_CHECKING:
    from .reference import Cluster, Node

ROLES = ("PROMPT", "DECODER", "MIX")
MOST_MEMBERS = 4
LONGEST_NAME = 127
MOST_COMMUNICATORS = 512
FIRST_DEVICE_PORT = 16666


class Communicator:
    """One member's part in a communicator."""

    def __init__(self, node: Node, number: int, name: str, ranks: dict[int, int], table: Any) -> None:
        self.state = node.charts.communicator.machine.initial
        self.node = node
        self.number = number
        self.name = name
        self.ranks = ranks
        self.agreement = (name, tuple(sorted(ranks.items())), json.dumps(table, sort_keys=True))
        by_rank = read_addresses(table, list(ranks.values()))
        self.addresses = {cluster_id: by_rank[rank] for cluster_id, rank in ranks.items()}
        self.connected: dict[int, tuple[EngineId, int]] = {}  # the members' engines, and their numbers for this
        self.listens = False

    @property
    def all_connected(self) -> bool:
        return len(self.connected) == len(self.ranks) - 1

    @property
    def own_rank(self) -> int:
        return self.ranks[self.node.cluster_id]

    @property
    def higher(self) -> list[int]:
        """The members that call on this one."""
        return [cluster_id for cluster_id, rank in self.ranks.items() if rank > self.own_rank]

    @property
    def missing_lower(self) -> list[int]:
        """The members that this one has still to call on."""
        lower = [cluster_id for cluster_id, rank in self.ranks.items() if rank < self.own_rank]
        return [cluster_id for cluster_id in lower if cluster_id not in self.connected]

    def awaits(self, cluster_id: int) -> bool:
        """Whether a member may come to be connected by calling on this one."""
        return self.state == "PREPARING" and cluster_id in self.higher and cluster_id not in self.connected

    def fire(self, event: str) -> None:
        self.node.charts.communicator.fire(self, event)
        if self.state != "PREPARING":
            self.listens = False

    def connect(self, other: Communicator) -> None:
        """This end of what has come about between two members."""
        self.connected[other.node.cluster_id] = (other.node.engine, other.number)
        self.fire("member_connected")

    def part_members(self) -> None:
        """Let go of every member, and tell it so. The transfers that it has in progress here may finish."""
        for engine, number in self.connected.values():
            other = self.node.cluster.running(engine)
            if other is not None:
                other.communicators[number].lose(self.node.cluster_id)
        self.connected.clear()

    def lose(self, cluster_id: int) -> None:
        """A member has gone, or let go. One that is preparing waits for it anew."""
        del self.connected[cluster_id]

    def transfers(self) -> list[Transfer]:
        """Those in progress over this communicator, whoever called for them."""
        own = [each for each in self.node.cluster.transfers_of(self.node.engine) if each.over == self.number]
        return own + [each for engine, _ in self.connected.values() for each in self.transfers_here(engine)]

    def transfers_here(self, engine: EngineId) -> list[Transfer]:
        """Those that a connected member has called for."""
        numbers = dict(self.connected.values())
        calls = self.node.cluster.transfers_of(engine)
        return [each for each in calls if each.remote == self.node.engine and each.over == numbers[engine]]

    def drop_pins(self, engine: EngineId) -> None:
        """Every transfer that a connected member has in progress here is broken off."""
        for transfer in self.transfers_here(engine):
            if not transfer.broken_off:
                self.node.cluster.break_off(transfer)
                self.node.tenants[transfer.remote_cache].unpin(transfer.pin)

    def observable(self) -> tuple[Any, ...]:
        return (self.number, self.state, self.listens, self.agreement, tuple(sorted(self.connected.items())))


class Member(CacheOwner):
    """The part of a node that ``link``, ``unlink``, ``query_register_mem_status`` and ``switch_role`` concern."""

    role = "MIX"
    listen_address: Address | None
    communicators: dict[int, Communicator]

    def _become_empty(self) -> None:
        super()._become_empty()
        self.next_communicator = 1

    # -- communicators --------------------------------------------------------------------------------------------

    def link(self, comm_name: Any, cluster_rank_info: Any, rank_table: Any) -> int:
        settings = self._serving()
        check_type("comm_name", comm_name, str)
        require(comm_name != "", "comm_name can not be empty")
        require(len(comm_name) <= LONGEST_NAME, f"the length of comm_name should be less than {LONGEST_NAME + 1}")
        check_given("cluster_rank_info", cluster_rank_info, dict)
        for cluster_id, rank in cluster_rank_info.items():
            check_type("cluster_rank_info dict key", cluster_id, int)
            check_type("cluster_rank_info dict value", rank, int)
        require(
            len(cluster_rank_info) <= MOST_MEMBERS, f"the number of clusters can not be greater than {MOST_MEMBERS}"
        )
        for cluster_id, rank in cluster_rank_info.items():
            check_integer("cluster id", cluster_id, "uint64")
            check_integer("rank", rank, "uint32")
        check_type("rank_table", rank_table, str)
        require(len(cluster_rank_info) > 1, "cluster num must be bigger than 1")
        ranks = list(cluster_rank_info.values())
        require(ranks == sorted(set(ranks)), f"the ranks {ranks} must be ordered")
        require(not settings.unlinks_by_force, "not with this backend", "LLM_FEATURE_NOT_ENABLED")
        require(self.cluster_id in cluster_rank_info, f"the own cluster is not among {list(cluster_rank_info)}")
        require(len(self.communicators) < MOST_COMMUNICATORS, "too many communicators")
        communicator = Communicator(
            self._node, self.next_communicator, comm_name, dict(cluster_rank_info), read_table(rank_table)
        )
        if communicator.higher:
            settings.security.check_listening(communicator.addresses[self.cluster_id])
        self.next_communicator += 1
        self.communicators[communicator.number] = communicator
        communicator.fire("link")
        self.cluster.meet()
        return communicator.number

    def query_register_mem_status(self, comm_id: Any) -> str:
        communicator = self._communicator(comm_id)
        self.charts.communicator.step(_state_of(communicator), "query")
        assert communicator is not None
        return communicator.state

    def unlink(self, comm_id: Any) -> None:
        communicator = self._communicator(comm_id)
        self.charts.communicator.step(_state_of(communicator), "unlink")
        assert communicator is not None
        if communicator.transfers():
            raise WouldWait("unlink waits for the transfers in progress")
        self._drop_communicator(communicator)
        self.cluster.meet()

    def link_total_time_passes(self, comm_id: int) -> None:
        """The deadline of a communicator that is preparing."""
        self.communicators[comm_id].fire("give_up")
        self.cluster.meet()

    def _communicator(self, comm_id: Any) -> Communicator | None:
        settings = self._serving()
        check_integer("comm_id", comm_id, "uint64")
        require(not settings.unlinks_by_force, "not with this backend", "LLM_FEATURE_NOT_ENABLED")
        return self.communicators.get(comm_id)

    def _drop_communicator(self, communicator: Communicator) -> None:
        del self.communicators[communicator.number]
        communicator.fire("unlink")

    def _drop_communicators(self) -> None:
        """The engine goes: so does what others have in progress here."""
        for communicator in list(self.communicators.values()):
            for engine, _ in communicator.connected.values():
                communicator.drop_pins(engine)
            self._drop_communicator(communicator)

    def lose_members(self, cluster_id: int) -> None:
        """Notice that a member has gone, if it has."""
        for communicator in self.communicators.values():
            engine, _ = communicator.connected.get(cluster_id, (self.engine, 0))
            if self.cluster.running(engine) is None:
                communicator.drop_pins(engine)
                communicator.lose(cluster_id)

    def communicator_to(self, cluster_id: int) -> Communicator | None:
        """The communicator over which transfers to a cluster run: the oldest that is OK."""
        for communicator in self.communicators.values():
            if communicator.state == "OK" and cluster_id in communicator.connected:
                self.charts.communicator.fire(communicator, "transfer")
                return communicator
        return None

    def addresses(self) -> set[Address]:
        """Where this node listens."""
        own = {each.addresses[self.cluster_id] for each in self.communicators.values() if each.listens}
        return own | ({self.listen_address} if self.listen_address is not None else set())

    # -- roles ----------------------------------------------------------------------------------------------------

    def switch_role(self, role: Any, switch_options: Any = None) -> None:
        settings = self._serving()
        require(role in ROLES, f"role only support LLMRole, but got {role!r}", "TypeError")
        wanted = None
        if switch_options is not None:
            check_type("switch_options", switch_options, dict)
            if "llm.listenIpInfo" in switch_options:
                check_type("llm.listenIpInfo", switch_options["llm.listenIpInfo"], str)
                wanted = read_listen_address(switch_options["llm.listenIpInfo"])
                settings.security.check_listening(wanted)
        # Whoever asks for any free port again means the one that was found.
        address = self.listen_address if wanted == settings.listen_address else wanted
        backend = settings.unlinks_by_force
        keeps = wanted is None or address == self.listen_address
        require(not backend or keeps, "another address with this backend", "LLM_FEATURE_NOT_ENABLED")
        linked = not backend and self.is_linked
        self.charts.engine.peek(self, "switch_role", linked=linked)
        if address != self.listen_address:
            self.listen_address = self.cluster.bind(address)
        self.settings = replace(settings, listen_address=wanted)
        self.role = role
        self.charts.engine.fire(self, "switch_role", linked=linked)
        self.cluster.meet()

    @property
    def is_linked(self) -> bool:
        """Whether anything stands, or is held, that keeps the role from being switched."""
        links = any(link.state != "UNLINKED" for link in self._node.links.values())
        return links or bool(self.communicators)

    @property
    def _node(self) -> Node:
        return cast("Node", self)

    def check_communicators(self) -> None:
        """Every invariant of the communicators of a node."""
        for communicator in self.communicators.values():
            what = f"communicator {communicator.number} of {self.name} is {communicator.state}"
            connected = communicator.connected
            assert set(connected) < set(communicator.ranks), f"{what}, connected to {connected}"
            assert communicator.state != "PREPARING" or not communicator.all_connected, f"{what}, nobody is missing"
            assert communicator.state in ("PREPARING", "OK") or not connected, f"{what}, connected to {connected}"
            assert communicator.state == "PREPARING" or not communicator.listens, f"{what} and listens"
            for engine, number in connected.values():
                other = self.cluster.running(engine)
                if other is not None:
                    ends = other.communicators[number].connected[self.cluster_id]
                    assert ends == (self.engine, communicator.number), f"{what}, connected from one end only"


def _state_of(communicator: Communicator | None) -> str:
    return "UNKNOWN" if communicator is None else communicator.state


# -- meeting ---------------------------------------------------------------------------------------------------------


def meet(cluster: Cluster) -> None:
    """Connect every two members that can be, and let those fail that never will be."""
    while any(_listen(communicator) or _call(communicator) for communicator in list(_preparing(cluster))):
        pass


def _preparing(cluster: Cluster) -> Iterator[Communicator]:
    for _, node in sorted(cluster.nodes.items()):
        yield from [each for each in node.communicators.values() if each.state == "PREPARING"]


def _listen(communicator: Communicator) -> bool:
    """Listen for the higher members, where nobody else does; true if anything has changed."""
    node = communicator.node
    if communicator.state != "PREPARING" or communicator.listens or not communicator.higher:
        return False
    listener = node.cluster.listener(communicator.addresses[node.cluster_id])
    if listener is None or listener is node:
        communicator.listens = True
        return True
    assert node.settings is not None
    if node.settings.link_retry_count > 1:
        return False  # the next attempt may find the address free
    communicator.fire("give_up")
    return True


def _call(communicator: Communicator) -> bool:
    """Call on the lower members that are missing; true if anything has changed."""
    if communicator.state != "PREPARING":
        return False
    for cluster_id in communicator.missing_lower:
        listener = communicator.node.cluster.listener(communicator.addresses[cluster_id])
        if listener is not None and _call_at(communicator, cluster_id, listener):
            return True
    return False


def _call_at(caller: Communicator, cluster_id: int, listener: Node) -> bool:
    """What comes of calling on whoever listens where a member should."""
    own = caller.node
    assert own.settings is not None and listener.settings is not None
    if own.settings.security.has_keys != listener.settings.security.has_keys:
        if own.settings.security.has_keys:
            return False  # keys may come to be there
        caller.fire("give_up")
        return True
    if listener.cluster_id != cluster_id:
        caller.fire("give_up")
        return True
    waiting = [
        each for each in listener.communicators.values() if each.name == caller.name and each.awaits(own.cluster_id)
    ]
    agreed = [each for each in waiting if each.agreement == caller.agreement]
    if not waiting:
        return False
    other = (agreed or waiting)[0]
    if not agreed or own.settings.remote_mode != listener.settings.remote_mode:
        other.fire("give_up")
        caller.fire("give_up")
        return True
    other.connect(caller)
    caller.connect(other)
    return True


# -- rank tables -----------------------------------------------------------------------------------------------------


def read_table(text: str) -> Any:
    """The content of a rank table."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("LLM_LINK_FAILED", "the rank table is not JSON") from None


def read_addresses(table: Any, ranks: list[int]) -> dict[int, Address]:
    """Where each rank is met: an address of its own, or the table is refused."""
    found: dict[int, Address] = {}
    for server in _objects(table, "server_list"):
        for device in _objects(server, "device"):
            rank = _number(device.get("rank_id"))
            if rank in ranks:
                address = _host(server, device), _port(device)
                _need(rank not in found and address not in found.values(), f"{address} of rank {rank} is ambiguous")
                found[rank] = address
    _need(set(found) == set(ranks), f"of the ranks {ranks} only {sorted(found)} are there")
    return found


def _objects(table: Any, name: str) -> list[dict[str, Any]]:
    objects: Any = table.get(name) if isinstance(table, dict) else None
    _need(isinstance(objects, list) and all(isinstance(each, dict) for each in objects), f"{name} is {objects}")
    return list(objects)


def _host(server: dict[str, Any], device: dict[str, Any]) -> str:
    host: Any = device.get("device_ip") or server.get("host_ip") or server.get("server_id")
    _need(isinstance(host, str), f"{host} is no address")
    try:
        address = ip_address(host)
    except ValueError:
        raise Refused("LLM_LINK_FAILED", f"{host} is no address") from None
    _need(not address.is_unspecified, f"nobody can be met at {host}")
    return str(address)


def _port(device: dict[str, Any]) -> int:
    if "device_port" in device:
        port = _number(device["device_port"])
    else:
        number = _number(device.get("device_id"))
        port = None if number is None else FIRST_DEVICE_PORT + number
    _need(port is not None and 0 < port < 2**16, f"{device} has no port")
    assert port is not None
    return port


def _number(value: Any) -> int | None:
    """An unsigned number, or a text of digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _need(condition: bool, message: str) -> None:
    require(condition, message, "LLM_LINK_FAILED")
