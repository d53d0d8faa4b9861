"""Where the members of a communicator meet, as a rank table tells it (api §4.2).

A rank table is written for a vendor's network cards. What llmdd takes from it is one address for each rank: the
``device_ip`` of the rank's device, else the ``host_ip`` of its server, else its ``server_id`` if that is an address;
and the ``device_port``, else :data:`FIRST_PORT` plus the ``device_id``, so that the devices of a server differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from .listeners import Address

#: The port of device 0.
FIRST_PORT = 16666

_LAST_PORT = 65535


class RankTableError(ValueError):
    """A rank table from which no address can be derived for some rank."""


def canonical(rank_table: str) -> str:
    """The content of a rank table: the same text for two tables that say the same."""
    return json.dumps(_read(rank_table), sort_keys=True)


def addresses_of(rank_table: str, ranks: Iterable[int]) -> dict[int, Address]:
    """Rank → the address where that member is met; every rank has one of its own.

    Raises
    ------
    RankTableError
        One of the ranks is not in the table, or stands there twice, or without an address, or with another's.

    Examples
    --------
    >>> table = '''{"server_list": [{"host_ip": "10.0.0.7", "device": [
    ...     {"device_id": "0", "device_ip": "10.0.1.7", "rank_id": "0"}, {"device_id": "1", "rank_id": "1"}]}]}'''
    >>> addresses_of(table, [0, 1])
    {0: ('10.0.1.7', 16666), 1: ('10.0.0.7', 16667)}
    """
    wanted = list(ranks)
    found: dict[int, Address] = {}
    for server, device in _devices(_read(rank_table)):
        rank = _number(device.get("rank_id"))
        if rank not in wanted:
            continue
        if rank in found:
            raise RankTableError(f"rank {rank} stands in the rank table more than once")
        address = _host(server, device, rank), _port(device, rank)
        if address in found.values():
            raise RankTableError(f"the address {address} of rank {rank} is another rank's too")
        found[rank] = address
    missing = [rank for rank in wanted if rank not in found]
    if missing:
        raise RankTableError(f"the ranks {missing} are not in the rank table")
    return {rank: found[rank] for rank in wanted}


def _read(rank_table: str) -> Any:
    try:
        return json.loads(rank_table)
    except (ValueError, RecursionError):
        raise RankTableError(f"the rank table is not JSON: {rank_table[:80]!r}") from None


def _devices(table: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each device, with its server."""
    for server in _objects(table, "server_list"):
        for device in _objects(server, "device"):
            yield server, device


def _objects(owner: Any, name: str) -> list[dict[str, Any]]:
    found = owner.get(name) if isinstance(owner, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise RankTableError(f"{name} should be an array of objects")
    return found


def _host(server: dict[str, Any], device: dict[str, Any], rank: int) -> str:
    named = device.get("device_ip") or server.get("host_ip")
    host = named or server.get("server_id")
    try:
        address = ip_address(host) if isinstance(host, str) else None
    except ValueError:
        address = None
    if address is None or address.is_unspecified:
        raise RankTableError(f"rank {rank} has neither a device_ip nor a host_ip that is an address, but {host!r}")
    return str(address)


def _port(device: dict[str, Any], rank: int) -> int:
    name = "device_port" if "device_port" in device else "device_id"
    number = _number(device.get(name))
    if number is None:
        raise RankTableError(f"{name} of rank {rank} is {device.get(name)!r}, it should be a number")
    port = number if name == "device_port" else FIRST_PORT + number
    if not 0 < port <= _LAST_PORT:
        raise RankTableError(f"rank {rank} would have the port {port}")
    return port


def _number(value: Any) -> int | None:
    """A number that is written as one, or as a text of digits, as rank tables do."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return None
