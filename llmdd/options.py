"""What ``LLMDataDist.init`` makes of its options (api §2.3, §3.10)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from llmdd._core.status import LLMException, LLMStatusCode, MissingArgument, failure, invalid
from llmdd._core.validation import check_type, check_uint16

DEFAULT_SYNC_KV_TIMEOUT_MS = 1000
DEFAULT_PAGE_SHIFT = 16
TRANSFER_BACKENDS = ("hixl", "nixl")
INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1


@dataclass(frozen=True)
class PoolOptions:
    """Size of one memory pool, in bytes, and of its pages, as a power of two."""

    memory_size: int
    page_shift: int


@dataclass(frozen=True)
class EngineOptions:
    """What ``LLMDataDist.init`` was asked for, checked in the order of api §2.3.

    ``uses_hixl`` is what the backend of that name means for the calls (api §4.3); bytes travel as without it.
    ``transport`` is the engine that is to move the bytes of every link; empty: only where memory cannot be shared.
    """

    remote_accessible: bool
    local_comm_res: str | None
    uses_hixl: bool
    transport: str
    listen_address: tuple[str, int] | None
    sync_kv_timeout_ms: int
    cache_key_lease_ms: int
    link_total_time_s: int
    link_retry_count: int
    device_pool: PoolOptions | None
    host_pool: PoolOptions | None

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> EngineOptions:
        """Check the options and take what has an effect.

        Raises
        ------
        AttributeError, TypeError, ValueError, LLMException
            As api §2.3 says, for the first that is wrong.
        """
        if options is None:
            raise MissingArgument("options only support [dict], but got None")
        check_type("options", options, dict)
        _check_graph_memory(options)
        cache_manager = options.get("llm.EnableCacheManager")
        remote = options.get("llm.EnableRemoteCacheAccessible")
        local_comm_res = options.get("llm.LocalCommRes")
        backend = options.get("llm.TransferBackend")
        if "llm.LocalCommRes" in options:
            cache_manager = options.get("llm.EnableCacheManager", "1")
            remote = options.get("llm.EnableRemoteCacheAccessible", "1")
            if cache_manager == "0":
                raise invalid("llm.LocalCommRes is not supported when llm.EnableCacheManager is not configured.")
        if "llm.TransferBackend" in options and backend != "nixl":
            remote = _check_hixl(options, cache_manager, remote)
        if cache_manager != "1":
            raise LLMException(
                "only the cache manager mode is supported: set llm.EnableCacheManager to 1",
                status_code=LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            )
        listen_address = None
        if "llm.listenIpInfo" in options:
            listen_address = parse_listen_address(options["llm.listenIpInfo"])
        for key, value in options.items():
            if not isinstance(key, str):
                raise TypeError(f"options dict key only support [str], but got {type(key)}")
            if not isinstance(value, str):
                raise TypeError(f"options dict value only support [str], but got {type(value)} for {key}")
        _check_values(options, remote, backend)
        return cls(
            remote_accessible=remote == "1",
            local_comm_res=local_comm_res,
            uses_hixl=backend == "hixl",
            transport="nixl" if backend == "nixl" else "",
            listen_address=listen_address,
            sync_kv_timeout_ms=int(options.get("llm.SyncKvCacheWaitTime", DEFAULT_SYNC_KV_TIMEOUT_MS)),
            cache_key_lease_ms=int(options.get("llmdd.CacheKeyLease", 0)),
            link_total_time_s=int(options.get("llm.LinkTotalTime", 0)),
            link_retry_count=int(options.get("llm.LinkRetryCount", 1)),
            device_pool=_parse_pool("llm.MemPoolConfig", options),
            host_pool=_parse_pool("llm.HostMemPoolConfig", options),
        )


def parse_listen_address(text: str) -> tuple[str, int]:
    """The host and port of ``ip:port`` or ``[ipv6]:port``.

    Raises
    ------
    LLMException
        ``LLM_PARAM_INVALID``: another form.
    ValueError
        A port that is no number from 0 to 65535.

    Examples
    --------
    >>> parse_listen_address("[::1]:0")
    ('::1', 0)
    """
    check_type("llm.listenIpInfo", text, str)
    form = re.fullmatch(r"\[(?P<six>[^\[\]]*)\]:(?P<port6>[^:]*)|(?P<four>[^:\[\]]*):(?P<port4>[^:]*)", text)
    if form is None:
        raise invalid(f'llm.listenIpInfo is {text!r}, its format should be "ip:port" or "[ipv6]:port"')
    host = form["six"] if form["six"] is not None else form["four"]
    port_text = form["port6"] if form["port6"] is not None else form["port4"]
    try:
        address = ip_address(host)
    except ValueError:
        raise invalid(f'llm.listenIpInfo is {text!r}, its format should be "ip:port" with a numeric ip') from None
    if (address.version == 6) != (form["six"] is not None):
        raise invalid(f'llm.listenIpInfo is {text!r}, its format should be "ip:port" or "[ipv6]:port"')
    if not _is_digits(port_text):
        raise ValueError(f"llm.listenIpInfo is {text!r}, its port is no number")
    return host, check_uint16("port of llm.listenIpInfo", int(port_text))


def _check_graph_memory(options: Mapping[str, str]) -> None:
    if "ge.flowGraphMemMaxSize" not in options:
        return
    size = options["ge.flowGraphMemMaxSize"]
    check_type("ge.flowGraphMemMaxSize", size, str)
    if "," in size:
        raise invalid(f"ge.flowGraphMemMaxSize is {size}, only support one mem pool")
    if not _is_digits(size):
        raise invalid(f"ge.flowGraphMemMaxSize is {size}, it must be digit")


def _check_hixl(options: Mapping[str, str], cache_manager: str | None, remote: str | None) -> str:
    if cache_manager != "1":
        raise invalid("llm.TransferBackend is not supported when llm.EnableCacheManager is not configured.")
    remote = "1" if remote is None else remote
    if remote == "0":
        raise invalid("llm.TransferBackend is not supported when llm.EnableRemoteCacheAccessible is 0.")
    if "llm.listenIpInfo" not in options:
        raise invalid("llm.listenIpInfo is required when llm.TransferBackend is configured.")
    return remote


def _check_values(options: Mapping[str, str], remote: str | None, backend: str | None) -> None:
    if backend is not None and backend not in TRANSFER_BACKENDS:
        raise _refused(f"llm.TransferBackend is {backend!r}, only {' and '.join(TRANSFER_BACKENDS)} are supported")
    if remote not in (None, "0", "1"):
        raise _refused(f"llm.EnableRemoteCacheAccessible is {remote!r}, it should be 0 or 1")
    device = options.get("ge.exec.deviceId", "0")
    if not _is_digits(device) or int(device) > INT32_MAX:
        raise _refused(f"ge.exec.deviceId is {device!r}, it should be one number")
    timeout = options.get("llm.SyncKvCacheWaitTime", str(DEFAULT_SYNC_KV_TIMEOUT_MS))
    if not _is_digits(timeout) or not 0 < int(timeout) <= INT32_MAX:
        raise _refused(f"llm.SyncKvCacheWaitTime is {timeout!r}, it should be digits, from 1 to {INT32_MAX}")
    retries = options.get("llm.LinkRetryCount", "1")
    if not _is_digits(retries) or not 1 <= int(retries) <= 100:
        raise _refused(f"llm.LinkRetryCount is {retries!r}, it should be from 1 to 100")
    lease = options.get("llmdd.CacheKeyLease", "0")
    if not _is_digits(lease) or int(lease) > INT32_MAX:
        raise _refused(f"llmdd.CacheKeyLease is {lease!r}, it should be milliseconds, from 0 to {INT32_MAX}")
    for key in ("llm.LinkTotalTime", "llm.RdmaTrafficClass", "llm.RdmaServiceLevel"):
        number = options.get(key, "0")
        if not _is_digits(number) or int(number) > UINT32_MAX:
            raise _refused(f"{key} is {number!r}, it should be a number from 0 to {UINT32_MAX}")


def _parse_pool(key: str, options: Mapping[str, str]) -> PoolOptions | None:
    if key not in options:
        return None
    text = options[key]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused(f"{key} is not JSON: {text[:80]!r}") from None
    if not isinstance(content, dict):
        raise _refused(f'{key} should be an object such as {{"memory_size": 1073741824}}, it is {text[:80]!r}')
    size = content.get("memory_size")
    shift = content.get("page_shift", DEFAULT_PAGE_SHIFT)
    if type(size) is not int or size <= 0:
        raise _refused(f"memory_size of {key} is {size!r}, it should be a number of bytes greater than 0")
    if type(shift) is not int or not 10 <= shift < 31:
        raise _refused(f"page_shift of {key} is {shift!r}, it should be in [10, 31)")
    if size < 1 << shift:
        raise _refused(f"memory_size of {key} is {size}, it should be one page of {1 << shift} bytes at least")
    if size >> shift >= UINT32_MAX:
        raise _refused(
            f"memory_size of {key} is {size}, it should have fewer than {UINT32_MAX} pages of {1 << shift} bytes"
        )
    return PoolOptions(size, shift)


def _refused(detail: str) -> LLMException:
    return failure("LLMDataDist.init", LLMStatusCode.LLM_PARAM_INVALID, detail)


def _is_digits(text: str) -> bool:
    return re.fullmatch(r"[0-9]+", text) is not None
