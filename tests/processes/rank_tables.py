"""Rank tables whose addresses nobody else on this host uses."""

from __future__ import annotations

import json
import os
from itertools import count
from typing import Any

_tables = count(1)


def loopback_hosts(number: int) -> list[str]:
    """Addresses of this host, different for each call and each process of a test run."""
    call = next(_tables)
    return [f"127.{10 + os.getpid() % 240}.{call % 250}.{1 + index}" for index in range(number)]


def rank_table(ranks: int, hosts: list[str] | None = None, **device: str) -> str:
    """A table of so many ranks, each a device of its own at one of ``hosts``, with what else is said of each device."""
    servers: list[dict[str, Any]] = [
        {
            "device": [{"device_id": str(rank), "device_ip": host, "rank_id": str(rank), **device}],
            "server_id": str(rank),
        }
        for rank, host in enumerate(hosts or loopback_hosts(ranks))
    ]
    return json.dumps({"server_count": str(ranks), "status": "completed", "version": "1.0", "server_list": servers})
