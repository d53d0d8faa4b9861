"""The options of an instance: :class:`LLMConfig` writes them (api §1.4), :class:`EngineOptions` reads them (api §2.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from llmdd._core.enumerations import Placement
from llmdd._core.status import LLMException, LLMStatusCode, failure, invalid
from llmdd._core.validation import check_int32, check_type, check_uint16, check_uint32
from llmdd.cluster_info import ipv4_as_int

DEFAULT_SYNC_KV_TIMEOUT_MS = 1000
DEFAULT_PAGE_SHIFT = 16
DEFAULT_MEM_UTILIZATION = 0.95
INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1


class LlmConfig:
    """Collects the options of an instance, property by property (api §1.4).

    Only these have an effect here: ``sync_kv_timeout``, ``mem_pool_cfg``, ``host_mem_pool_cfg``, ``enable_cache_manager``,
    ``enable_remote_cache_accessible``, ``listen_ip_info``, ``link_total_time``, ``link_retry_count``, ``local_comm_res``
    and ``transfer_backend``. The others are checked and kept.

    Examples
    --------
    >>> config = LLMConfig()
    >>> config.enable_cache_manager = True
    >>> config.mem_pool_cfg = '{"memory_size": 1048576}'
    >>> config.generate_options()["llm.MemPoolConfig"]
    '{"memory_size": 1048576}'
    """

    def __init__(self) -> None:
        self._ge_options: dict[str, str] = {}
        self._device_id: list[int] | None = None
        self._device_id_given: int | list[int] | tuple[int, ...] | None = None
        self._sync_kv_timeout: int | str | None = None
        self._deploy_res_path: str | None = None
        self._buf_pool_cfg: str | None = None
        self._mem_pool_cfg: str | None = None
        self._host_mem_pool_cfg: str | None = None
        self._enable_cache_manager: bool | None = None
        self._enable_remote_cache_accessible: bool | None = None
        self._listen_ip_info: str | None = None
        self._link_total_time: int | None = None
        self._link_retry_count: int | None = None
        self._rdma_traffic_class: int | None = None
        self._rdma_service_level: int | None = None
        self._local_comm_res: str | None = None
        self._transfer_backend: str | None = None
        self._global_resource_config: str | None = None
        self._cluster_info: str | None = None
        self._output_max_size: int | None = None
        self._enable_switch_role: bool | None = None
        self._mem_utilization: float = DEFAULT_MEM_UTILIZATION

    def generate_options(self) -> dict[str, str]:
        """The options for ``LLMDataDist.init``: a new dictionary with what is set now, and nothing else (api D69)."""
        options: dict[str, str] = dict(self._ge_options)

        def flag(key: str, value: bool | None) -> None:
            if value is not None:
                options[key] = "1" if value else "0"

        def if_not_empty(key: str, value: str | None) -> None:
            if value:
                options[key] = value

        def if_set(key: str, value: object) -> None:
            if value is not None:
                options[key] = str(value)

        if self._device_id is not None:
            options["ge.exec.deviceId"] = ";".join(map(str, self._device_id))
            if self._device_id:
                options["ge.session_device_id"] = str(self._device_id[0])
        if_set("llm.SyncKvCacheWaitTime", self._sync_kv_timeout)
        if_not_empty("llm.deployResPath", self._deploy_res_path)
        if_not_empty("llm.BufPoolCfg", self._buf_pool_cfg)
        if_not_empty("llm.MemPoolConfig", self._mem_pool_cfg)
        if_not_empty("llm.HostMemPoolConfig", self._host_mem_pool_cfg)
        flag("llm.EnableCacheManager", self._enable_cache_manager)
        flag("llm.EnableRemoteCacheAccessible", self._enable_remote_cache_accessible)
        if_not_empty("llm.listenIpInfo", self._listen_ip_info)
        if_set("llm.LinkTotalTime", self._link_total_time)
        if_set("llm.LinkRetryCount", self._link_retry_count)
        if_set("llm.RdmaTrafficClass", self._rdma_traffic_class)
        if_set("llm.RdmaServiceLevel", self._rdma_service_level)
        if_set("llm.LocalCommRes", self._local_comm_res)
        if_set("llm.TransferBackend", self._transfer_backend)
        if_set("llm.GlobalResourceConfig", self._global_resource_config)
        if_not_empty("llm.ClusterInfo", self._cluster_info)
        if_set("llm.OutputMaxSize", self._output_max_size)
        if self._enable_switch_role:
            options["llm.EnableSwitchRole"] = "1"
        options["llm.MemoryUtilization"] = str(self._mem_utilization)
        return options

    gen_options = generate_options

    @property
    def options(self) -> dict[str, str]:
        """As :meth:`generate_options`."""
        return self.generate_options()

    @property
    def ge_options(self) -> dict[str, str]:
        """Options that are passed through under their own keys."""
        return self._ge_options

    @ge_options.setter
    def ge_options(self, ge_options: dict[str, str]) -> None:
        check_type("ge_options", ge_options, dict)
        for key, value in ge_options.items():
            if not isinstance(key, str):
                raise TypeError(f"ge_options dict key only support [str], but got {type(key)}")
            if not isinstance(value, str):
                raise TypeError(f"ge_options dict value only support [str], but got {type(value)}")
        self._ge_options = dict(ge_options)

    @property
    def device_id(self) -> int | list[int] | tuple[int, ...] | None:
        """One accelerator's number, or several; without effect here."""
        return self._device_id_given

    @device_id.setter
    def device_id(self, device_id: int | list[int] | tuple[int, ...]) -> None:
        check_type("device_id", device_id, int, list, tuple)
        numbers = [device_id] if isinstance(device_id, int) else list(device_id)
        for number in numbers:
            if not isinstance(number, int):
                raise TypeError(f"device_id inner type only support [int], but got {type(number)}")
            if number < 0:
                raise invalid(f"device_id is {number}, it should be >= 0")
            check_int32("device_id", number)
        self._device_id = numbers
        self._device_id_given = device_id

    @property
    def sync_kv_timeout(self) -> int | str | None:
        """How long a call may take or wait, in milliseconds (seed §8); 1000 if it is not set."""
        return self._sync_kv_timeout

    @sync_kv_timeout.setter
    def sync_kv_timeout(self, sync_kv_timeout: int | str) -> None:
        check_type("sync_kv_timeout", sync_kv_timeout, int, str)
        text = str(int(sync_kv_timeout) if isinstance(sync_kv_timeout, int) else sync_kv_timeout)
        if not _is_digits(text) or int(text) <= 0:
            raise invalid(f"sync_kv_timeout is {sync_kv_timeout}, it should be digits and > 0")
        check_int32("sync_kv_timeout", int(text))
        self._sync_kv_timeout = sync_kv_timeout

    @property
    def deploy_res_path(self) -> str:
        """Without effect here."""
        return self._deploy_res_path or ""

    @deploy_res_path.setter
    def deploy_res_path(self, deploy_res_path: str | None) -> None:
        self._deploy_res_path = _optional("deploy_res_path", deploy_res_path, str)

    @property
    def buf_pool_cfg(self) -> str:
        """Without effect here: there are no staging buffers."""
        return self._buf_pool_cfg or ""

    @buf_pool_cfg.setter
    def buf_pool_cfg(self, buf_pool_cfg: str | None) -> None:
        self._buf_pool_cfg = _optional("buf_pool_cfg", buf_pool_cfg, str)

    @property
    def mem_pool_cfg(self) -> str:
        """The DEVICE pool: a JSON object with ``memory_size`` in bytes, optionally ``page_shift`` (api §3.10)."""
        return self._mem_pool_cfg or ""

    @mem_pool_cfg.setter
    def mem_pool_cfg(self, mem_pool_cfg: str | None) -> None:
        self._mem_pool_cfg = _optional("mem_pool_cfg", mem_pool_cfg, str)

    @property
    def host_mem_pool_cfg(self) -> str:
        """The HOST pool, written as :attr:`mem_pool_cfg`."""
        return self._host_mem_pool_cfg or ""

    @host_mem_pool_cfg.setter
    def host_mem_pool_cfg(self, host_mem_pool_cfg: str | None) -> None:
        self._host_mem_pool_cfg = _optional("host_mem_pool_cfg", host_mem_pool_cfg, str)

    @property
    def enable_cache_manager(self) -> bool:
        """Must be on (api D73)."""
        return bool(self._enable_cache_manager)

    @enable_cache_manager.setter
    def enable_cache_manager(self, enable_cache_manager: bool | None) -> None:
        self._enable_cache_manager = _optional("enable_cache_manager", enable_cache_manager, bool)

    @property
    def enable_remote_cache_accessible(self) -> bool:
        """Remote mode: linked clusters may push, and pull by cache id and batch index only (api §3.9)."""
        return bool(self._enable_remote_cache_accessible)

    @enable_remote_cache_accessible.setter
    def enable_remote_cache_accessible(self, enable_remote_cache_accessible: bool | None) -> None:
        self._enable_remote_cache_accessible = _optional(
            "enable_remote_cache_accessible", enable_remote_cache_accessible, bool
        )

    @property
    def listen_ip_info(self) -> str:
        """Where to accept links: ``ip:port`` or ``[ipv6]:port``; port 0 for any free one."""
        return self._listen_ip_info or ""

    @listen_ip_info.setter
    def listen_ip_info(self, listen_ip_info: str | None) -> None:
        self._listen_ip_info = _optional("listen_ip_info", listen_ip_info, str)

    @property
    def link_total_time(self) -> int:
        """How long a communicator may prepare, in seconds; 0 for the default."""
        return self._link_total_time or 0

    @link_total_time.setter
    def link_total_time(self, link_total_time: int) -> None:
        check_type("link_total_time", link_total_time, int)
        if not 0 <= link_total_time <= UINT32_MAX:
            raise invalid(f"link_total_time is {link_total_time}, it should be in [0, {UINT32_MAX}]")
        self._link_total_time = link_total_time

    @property
    def link_retry_count(self) -> int:
        """How many attempts share :attr:`link_total_time`, 1 to 100."""
        return 1 if self._link_retry_count is None else self._link_retry_count

    @link_retry_count.setter
    def link_retry_count(self, link_retry_count: int) -> None:
        check_type("link_retry_count", link_retry_count, int)
        if not 1 <= link_retry_count <= 100:
            raise invalid(f"link_retry_count is {link_retry_count}, it should be in [1, 100]")
        self._link_retry_count = link_retry_count

    @property
    def rdma_traffic_class(self) -> int | None:
        """Without effect here."""
        return self._rdma_traffic_class

    @rdma_traffic_class.setter
    def rdma_traffic_class(self, rdma_traffic_class: int) -> None:
        self._rdma_traffic_class = check_uint32("rdma_traffic_class", rdma_traffic_class)

    @property
    def rdma_service_level(self) -> int | None:
        """Without effect here."""
        return self._rdma_service_level

    @rdma_service_level.setter
    def rdma_service_level(self, rdma_service_level: int) -> None:
        self._rdma_service_level = check_uint32("rdma_service_level", rdma_service_level)

    @property
    def local_comm_res(self) -> str:
        """Setting it, even to an empty string, turns the cache manager and remote mode on (api §2.3)."""
        return self._local_comm_res or ""

    @local_comm_res.setter
    def local_comm_res(self, local_comm_res: str | None) -> None:
        self._local_comm_res = _optional("local_comm_res", local_comm_res, str)

    @property
    def transfer_backend(self) -> str:
        """Only ``hixl`` is accepted (api §4.3)."""
        return self._transfer_backend or ""

    @transfer_backend.setter
    def transfer_backend(self, transfer_backend: str | None) -> None:
        self._transfer_backend = _optional("transfer_backend", transfer_backend, str)

    @property
    def global_resource_config(self) -> str:
        """Without effect here."""
        return self._global_resource_config or ""

    @global_resource_config.setter
    def global_resource_config(self, global_resource_config: str | None) -> None:
        self._global_resource_config = _optional("global_resource_config", global_resource_config, str)

    @property
    def cluster_info(self) -> str:
        """A JSON object; addresses in ``listen_ip_info`` become integers. Without effect here."""
        return self._cluster_info or ""

    @cluster_info.setter
    def cluster_info(self, cluster_info: str | None) -> None:
        _optional("cluster_info", cluster_info, str)
        if not cluster_info:
            self._cluster_info = cluster_info
            return
        content = json.loads(cluster_info)
        listeners = content.get("listen_ip_info", []) if isinstance(content, dict) else []
        for listener in listeners if isinstance(listeners, list) else []:
            if isinstance(listener, dict) and isinstance(listener.get("ip"), str):
                listener["ip"] = ipv4_as_int(listener["ip"])
        self._cluster_info = json.dumps(content)

    @property
    def output_max_size(self) -> int | None:
        """Without effect here."""
        return self._output_max_size

    @output_max_size.setter
    def output_max_size(self, output_max_size: int) -> None:
        self._output_max_size = check_type("output_max_size", output_max_size, int)

    @property
    def enable_switch_role(self) -> bool:
        """Without effect: roles can always be switched (api D61)."""
        return bool(self._enable_switch_role)

    @enable_switch_role.setter
    def enable_switch_role(self, enable_switch_role: bool | None) -> None:
        self._enable_switch_role = _optional("enable_switch_role", enable_switch_role, bool)

    @property
    def mem_utilization(self) -> float:
        """Without effect here."""
        return self._mem_utilization

    @mem_utilization.setter
    def mem_utilization(self, mem_utilization: float) -> None:
        check_type("mem_utilization", mem_utilization, float)
        if not 0.0 <= mem_utilization <= 1.0:
            raise invalid(f"mem_utilization is {mem_utilization}, it should be in [0.0, 1.0]")
        self._mem_utilization = mem_utilization


LLMConfig = LlmConfig


def _optional(name: str, value: Any, wanted: type) -> Any:
    return None if value is None else check_type(name, value, wanted)


def _is_digits(text: str) -> bool:
    return re.fullmatch(r"[0-9]+", text) is not None


@dataclass(frozen=True)
class PoolOptions:
    """Size of one memory pool, in bytes, and of its pages, as a power of two."""

    memory_size: int
    page_shift: int


@dataclass(frozen=True)
class EngineOptions:
    """What ``LLMDataDist.init`` was asked for, checked in the order of api §2.3."""

    remote_accessible: bool
    local_comm_res: str | None
    transfer_backend: str | None
    listen_address: tuple[str, int] | None
    sync_kv_timeout_ms: int
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
            raise AttributeError("options only support [dict], but got None")
        check_type("options", options, dict)
        _check_graph_memory(options)
        cache_manager = options.get("llm.EnableCacheManager")
        remote = options.get("llm.EnableRemoteCacheAccessible")
        local_comm_res = options.get("llm.LocalCommRes")
        backend = options.get("llm.TransferBackend")
        if local_comm_res is not None:
            cache_manager = "1" if cache_manager is None else cache_manager
            remote = "1" if remote is None else remote
            if cache_manager == "0":
                raise invalid("llm.LocalCommRes is not supported when llm.EnableCacheManager is not configured.")
        if backend is not None:
            remote = _check_backend(options, cache_manager, remote)
        if cache_manager is None or cache_manager == "0":
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
        _check_values(options, cache_manager, remote, backend)
        return cls(
            remote_accessible=remote == "1",
            local_comm_res=local_comm_res,
            transfer_backend=backend,
            listen_address=listen_address,
            sync_kv_timeout_ms=int(options.get("llm.SyncKvCacheWaitTime", DEFAULT_SYNC_KV_TIMEOUT_MS)),
            device_pool=_parse_pool("llm.MemPoolConfig", options),
            host_pool=_parse_pool("llm.HostMemPoolConfig", options),
        )

    def pool(self, placement: Placement) -> PoolOptions | None:
        """The pool for one placement."""
        return self.device_pool if placement is Placement.DEVICE else self.host_pool


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
    size = options.get("ge.flowGraphMemMaxSize")
    if size is None:
        return
    check_type("ge.flowGraphMemMaxSize", size, str)
    if "," in size:
        raise invalid(f"ge.flowGraphMemMaxSize is {size}, only support one mem pool")
    if not _is_digits(size):
        raise invalid(f"ge.flowGraphMemMaxSize is {size}, it must be digit")


def _check_backend(options: Mapping[str, str], cache_manager: str | None, remote: str | None) -> str:
    if cache_manager is None or cache_manager == "0":
        raise invalid("llm.TransferBackend is not supported when llm.EnableCacheManager is not configured.")
    remote = "1" if remote is None else remote
    if remote == "0":
        raise invalid("llm.TransferBackend is not supported when llm.EnableRemoteCacheAccessible is 0.")
    if "llm.listenIpInfo" not in options:
        raise invalid("llm.listenIpInfo is required when llm.TransferBackend is configured.")
    return remote


def _check_values(options: Mapping[str, str], cache_manager: str, remote: str | None, backend: str | None) -> None:
    if backend is not None and backend != "hixl":
        raise _refused(f"llm.TransferBackend is {backend!r}, only hixl is supported")
    for key, flag in (("llm.EnableCacheManager", cache_manager), ("llm.EnableRemoteCacheAccessible", remote)):
        if flag not in (None, "0", "1"):
            raise _refused(f"{key} is {flag!r}, it should be 0 or 1")
    device = options.get("ge.exec.deviceId", "0")
    if not _is_digits(device) or int(device) > INT32_MAX:
        raise _refused(f"ge.exec.deviceId is {device!r}, it should be one number")
    timeout = options.get("llm.SyncKvCacheWaitTime", str(DEFAULT_SYNC_KV_TIMEOUT_MS))
    if not _is_digits(timeout) or not 0 < int(timeout) <= INT32_MAX:
        raise _refused(f"llm.SyncKvCacheWaitTime is {timeout!r}, it should be digits, from 1 to {INT32_MAX}")
    retries = options.get("llm.LinkRetryCount", "1")
    if not _is_digits(retries) or not 1 <= int(retries) <= 100:
        raise _refused(f"llm.LinkRetryCount is {retries!r}, it should be from 1 to 100")
    for key in ("llm.LinkTotalTime", "llm.RdmaTrafficClass", "llm.RdmaServiceLevel"):
        number = options.get(key, "0")
        if not _is_digits(number) or int(number) > UINT32_MAX:
            raise _refused(f"{key} is {number!r}, it should be a number from 0 to {UINT32_MAX}")


def _parse_pool(key: str, options: Mapping[str, str]) -> PoolOptions | None:
    text = options.get(key, "")
    if not text:
        return None
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
        raise _refused(f"memory_size of {key} is {size}, it should have fewer than {UINT32_MAX} pages of {1 << shift} bytes")
    return PoolOptions(size, shift)


def _refused(detail: str) -> LLMException:
    return failure("LLMDataDist.init", LLMStatusCode.LLM_PARAM_INVALID, detail)
