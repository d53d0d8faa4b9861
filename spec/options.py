"""What ``init`` makes of its options, check by check (api §2.3, §3.10)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from .arguments import check_given, check_type, require
from .statecharts import Refused
from .values import Address

MEMORY_POOLS = {"DEVICE": "llm.MemPoolConfig", "HOST": "llm.HostMemPoolConfig"}
NUMBERS = ("llm.LinkTotalTime", "llm.RdmaTrafficClass", "llm.RdmaServiceLevel")


@dataclass(frozen=True)
class PoolSettings:
    """The size of a memory pool."""

    memory_size: int
    page_shift: int


@dataclass(frozen=True)
class Settings:
    """What an engine was initialised with, as far as it changes the answer to any call."""

    remote_mode: bool
    needs_local_address: bool
    unlinks_by_force: bool
    listen_address: Address | None
    sync_kv_timeout: int
    cache_key_lease: int
    link_retry_count: int
    pools: Mapping[str, PoolSettings]


def read_options(options: Any) -> Settings:
    """Check the options in the contract's order; the numbers are the steps of api §2.3."""
    check_given("options", options, dict)  # 3
    _check_graph_memory(options)  # 4
    options = _with_defaults(options)  # 5
    cache_manager = options.get("llm.EnableCacheManager")
    if "llm.LocalCommRes" in options:  # 6
        require(
            cache_manager != "0",
            "llm.LocalCommRes is not supported when llm.EnableCacheManager is not configured.",
        )
    if "llm.TransferBackend" in options and options["llm.TransferBackend"] != "nixl":  # 7
        _check_transfer_backend(options)
    require(  # 8
        cache_manager == "1", "llm.EnableCacheManager should be 1", "LLM_FEATURE_NOT_ENABLED"
    )
    listen_address = _listen_address(options)  # 9
    for key, value in options.items():  # 10
        check_type("options key", key, str)
        check_type(f"options[{key}]", value, str)
    _check_values(options)  # 11
    return Settings(
        remote_mode=options.get("llm.EnableRemoteCacheAccessible") == "1",
        needs_local_address=not options.get("llm.LocalCommRes"),
        unlinks_by_force=options.get("llm.TransferBackend") == "hixl",  # api §4.3
        listen_address=listen_address,
        sync_kv_timeout=int(options.get("llm.SyncKvCacheWaitTime", 1000)),
        cache_key_lease=int(options.get("llmdd.CacheKeyLease", 0)),
        link_retry_count=int(options.get("llm.LinkRetryCount", 1)),
        pools={  # 12
            placement: read_pool(key, options[key]) for placement, key in MEMORY_POOLS.items() if key in options
        },
    )


def _check_graph_memory(options: dict[Any, Any]) -> None:
    key = "ge.flowGraphMemMaxSize"
    if key not in options:
        return
    check_type(key, options[key], str)
    require("," not in options[key], f"{key} only support one mem pool")
    require(_is_number(options[key]), f"{key} must be digit")


def _with_defaults(options: dict[Any, Any]) -> dict[Any, Any]:
    options = dict(options)
    if "llm.LocalCommRes" in options:
        options.setdefault("llm.EnableCacheManager", "1")
        options.setdefault("llm.EnableRemoteCacheAccessible", "1")
    return options


def _check_transfer_backend(options: dict[Any, Any]) -> None:
    require(
        options.get("llm.EnableCacheManager") == "1", "llm.TransferBackend is not supported without EnableCacheManager"
    )
    remote_mode = options.setdefault("llm.EnableRemoteCacheAccessible", "1")
    require(remote_mode != "0", "llm.TransferBackend is not supported without EnableRemoteCacheAccessible")
    require("llm.listenIpInfo" in options, "llm.TransferBackend is not supported without listenIpInfo")


def _listen_address(options: dict[Any, Any]) -> Address | None:
    text = options.get("llm.listenIpInfo")
    if not isinstance(text, str):
        return None  # absent, or refused in step 10
    return read_listen_address(text)


def read_listen_address(text: str) -> Address:
    """The address that a text names; port 0 means any free one."""
    ip, _, port = text.rpartition(":")
    require(_is_ip(ip), f'llm.listenIpInfo format should be "ip:port", but is {text!r}')
    require(_is_number(port), f"the port {port!r} is not a number", "ValueError")
    require(int(port) <= 65535, f"the port {port} is out of range", "ValueError")
    return (ip.strip("[]"), int(port))


def _is_ip(text: str) -> bool:
    """Whether a text is an IPv4 address, or an IPv6 address in brackets."""
    bracketed = text.startswith("[") and text.endswith("]")
    try:
        version = ip_address(text[1:-1] if bracketed else text).version
    except ValueError:
        return False
    return (version == 6) == bracketed


def _check_values(options: dict[str, str]) -> None:
    # nixl is this library's own: it says how the bytes travel, and changes the answer to no call.
    backend = options.get("llm.TransferBackend", "hixl")
    require(backend in ("hixl", "nixl"), f"llm.TransferBackend should be hixl or nixl, but is {backend!r}")
    for key in ("llm.EnableCacheManager", "llm.EnableRemoteCacheAccessible"):
        require(options.get(key, "0") in ("0", "1"), f"{key} should be 0 or 1")
    device = options.get("ge.exec.deviceId", "0")
    require(_is_number(device) and int(device) < 2**31, "ge.exec.deviceId should be one integer")
    timeout = options.get("llm.SyncKvCacheWaitTime", "1000")
    require(_is_number(timeout) and 0 < int(timeout) < 2**31, "llm.SyncKvCacheWaitTime should be a number of ms")
    retries = options.get("llm.LinkRetryCount", "1")
    require(_is_number(retries) and 1 <= int(retries) <= 100, "llm.LinkRetryCount should be in [1, 100]")
    lease = options.get("llmdd.CacheKeyLease", "0")
    require(_is_number(lease) and int(lease) < 2**31, "llmdd.CacheKeyLease should be a number of ms")
    for key in NUMBERS:
        number = options.get(key, "0")
        require(_is_number(number) and int(number) < 2**32, f"{key} should be a number in [0, 2**32)")


def read_pool(key: str, text: str) -> PoolSettings:
    """The pool that a JSON text describes (api §3.10)."""
    try:
        described = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("LLM_PARAM_INVALID", f"{key} is not JSON: {text!r}") from None
    require(isinstance(described, dict), f"{key} should be an object, but is {text!r}")
    size, shift = described.get("memory_size"), described.get("page_shift", 16)
    for name, value in (("memory_size", size), ("page_shift", shift)):
        is_unsigned = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        require(is_unsigned, f"{name} of {key} should be an unsigned integer, but is {value!r}")
    require(size > 0, f"memory_size of {key} should be > 0")
    require(10 <= shift < 31, f"page_shift of {key} should be in [10, 31), but is {shift}")
    require(1 <= size >> shift < 2**32 - 1, f"memory_size of {key} is {size}, in pages of {1 << shift} bytes")
    return PoolSettings(size, shift)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
