"""``init``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from ..terms import PATIENCE_MS, Call
from .odd import LEASE_MS, chance
from .present import CLUSTER_IDS, machine_of

ROLES = ("PROMPT", "DECODER", "MIX")

#: An address of the loopback network that nobody else is likely to use, so that ports can be fixed.
LOOPBACK = f"127.{1 + (os.getpid() >> 16) % 250}.{os.getpid() >> 8 & 255}.{1 + (os.getpid() & 255) % 254}"
ADDRESSES = {node: (LOOPBACK, 26001 + number) for number, node in enumerate(CLUSTER_IDS)}

ODD_POOLS = (
    "",
    "{",
    "[1024]",
    "{}",
    '{"memory_size": 65536.0}',
    '{"memory_size": "65536"}',
    '{"memory_size": true}',
    '{"memory_size": null}',
    '{"memory_size": -1}',
    '{"memory_size": 0}',
    '{"memory_size": 65535}',
    '{"memory_size": 2047, "page_shift": 10, "unknown": 1}',
    '{"memory_size": 65536, "page_shift": 9}',
    '{"memory_size": 65536, "page_shift": 31}',
    '{"memory_size": 65536, "page_shift": 16.0}',
    f'{{"memory_size": {(2**32 - 1) << 10}, "page_shift": 10}}',
    65536,
    None,
)
ODD_NUMBERS = ("0", "1", "-1", "1.5", "", "x", " 1", "1_0", "+1", "100", "101", str(2**31), str(2**32), 1, None)
ODD_OPTIONS: dict[Any, Sequence[Any]] = {
    "llm.EnableCacheManager": ("0", "2", "", 1, None),
    "llm.EnableRemoteCacheAccessible": ("0", "1", "2", "", True, None),
    "llm.LocalCommRes": ("", "{}", 5, None),
    "llm.TransferBackend": ("hixl", "", "ucx", 5, None),
    "llm.listenIpInfo": (
        f"{LOOPBACK}:0",
        f"{LOOPBACK}:+1",
        f"{LOOPBACK}:1_0",
        LOOPBACK,
        f"{LOOPBACK}:",
        f"{LOOPBACK}:http",
        f"{LOOPBACK}:-1",
        f"{LOOPBACK}:65536",
        f"[{LOOPBACK}]:0",
        "::1:80",
        "[::1:80",
        "[::1]80",
        ":80",
        "127.0.0:80",
        "localhost:0",
        "",
        5,
        None,
        *(f"{ip}:{port}" for ip, port in ADDRESSES.values()),
    ),
    "llm.SyncKvCacheWaitTime": tuple(number for number in ODD_NUMBERS if number not in ("1", "100", "101")),
    "llmdd.CacheKeyLease": ("-1", "1.5", "", "x", " 1", "+1", str(2**31), 1, None),
    "llm.LinkRetryCount": ODD_NUMBERS,
    "llm.LinkTotalTime": tuple(number for number in ODD_NUMBERS if number != "1"),
    "llm.RdmaTrafficClass": ODD_NUMBERS,
    "llm.RdmaServiceLevel": ODD_NUMBERS,
    "ge.exec.deviceId": (*ODD_NUMBERS, "0;1"),
    "ge.flowGraphMemMaxSize": (*ODD_NUMBERS, "1,2"),
    "llm.MemPoolConfig": ODD_POOLS,
    "llm.HostMemPoolConfig": ODD_POOLS,
    "llm.unheard_of": ("any", 1),
    1: ("any",),
}


@st.composite
def pool_options(draw: DrawFn) -> str:
    """A small pool: it is full, or in pieces, now and then."""
    shift = draw(st.sampled_from((10, 10, 10, 12)))
    pages = draw(st.sampled_from((40, 24, 64, 100, 1) if chance(draw, 4) else (40, 24)))
    odd_bytes = draw(st.sampled_from((0, 0, 1023)))
    return json.dumps({"memory_size": (pages << shift) + odd_bytes, "page_shift": shift})


@st.composite
def good_options(draw: DrawFn, node: str, remote_mode: bool) -> dict[str, str]:
    """Options that a correct program would give."""
    options = {"llm.EnableCacheManager": "1", "llm.SyncKvCacheWaitTime": str(PATIENCE_MS)}
    if remote_mode != chance(draw, 30):
        options["llm.EnableRemoteCacheAccessible"] = "1"
    if not chance(draw, 12):
        options["llm.MemPoolConfig"] = draw(pool_options())
    if draw(st.booleans()):
        options["llm.HostMemPoolConfig"] = draw(pool_options())
    if not chance(draw, 15):
        ip, port = ADDRESSES[node]
        options["llm.listenIpInfo"] = f"{ip}:{0 if chance(draw, 8) else port}"
    if chance(draw, 8):
        options["llmdd.CacheKeyLease"] = draw(st.sampled_from(("0", str(LEASE_MS))))
    if chance(draw, 8):
        options["llm.LocalCommRes"] = draw(st.sampled_from(("", "{}")))
        if not remote_mode:
            options.setdefault("llm.EnableRemoteCacheAccessible", "0")  # on, if nothing is said (api §2.3)
    if options.get("llm.EnableRemoteCacheAccessible") == "1" and "llm.listenIpInfo" in options and chance(draw, 8):
        options["llm.TransferBackend"] = "hixl"
    return options


@st.composite
def inits(draw: DrawFn) -> Call:
    """``init`` of a node that is not initialised, if there is one."""
    machine = machine_of(draw)
    node = draw(st.sampled_from(machine.nodes_not_ready or machine.nodes))
    if chance(draw, 20):
        return Call(node, "init", (draw(st.sampled_from((None, [], "options", 1))),))
    options: dict[Any, Any] = draw(good_options(node, machine.remote_mode))
    if draw(st.booleans()):
        for key in draw(st.lists(st.sampled_from(list(ODD_OPTIONS)), min_size=1, max_size=3, unique=True)):
            options.pop(key, None)
            if not chance(draw, 6):
                options[key] = draw(st.sampled_from(ODD_OPTIONS[key]))
    return Call(node, "init", (options,))


@st.composite
def clusters(draw: DrawFn) -> list[tuple[str, dict[str, str], str]]:
    """Nodes to begin with: their names, options and roles."""
    remote_mode = draw(st.booleans())
    names = list(CLUSTER_IDS)[: draw(st.sampled_from((2, 3, 2, 3, 2, 3, 1)))]
    return [(name, draw(good_options(name, remote_mode)), draw(st.sampled_from(ROLES))) for name in names]
