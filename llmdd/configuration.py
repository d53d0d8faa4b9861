"""The options of an instance, written property by property (api §1.4)."""

from __future__ import annotations

import json
import re
from typing import Any

from llmdd._core.status import invalid
from llmdd._core.validation import check_elements, check_int32, check_type, check_uint32
from llmdd.cluster_info import ipv4_as_int

DEFAULT_MEM_UTILIZATION = 0.95
UINT32_MAX = 2**32 - 1


class LlmConfig:
    """Collects the options of an instance, property by property (api §1.4).

    Only these have an effect here: ``sync_kv_timeout``, ``mem_pool_cfg``, ``host_mem_pool_cfg``,
    ``enable_cache_manager``, ``enable_remote_cache_accessible``, ``listen_ip_info``, ``link_total_time``,
    ``link_retry_count``, ``local_comm_res`` and ``transfer_backend``. The others are checked and kept.
    ``cache_key_lease`` is not of LLM-DataDist: its option has a prefix of its own, ``llmdd.``

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
        self._cache_key_lease: int | str | None = None
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
                options[key] = str(int(value) if isinstance(value, int) else value)  # True is the int 1

        if self._device_id is not None:
            options["ge.exec.deviceId"] = ";".join(map(str, self._device_id))
            if self._device_id:
                options["ge.session_device_id"] = str(self._device_id[0])
        if_set("llm.SyncKvCacheWaitTime", self._sync_kv_timeout)
        if_set("llmdd.CacheKeyLease", self._cache_key_lease)
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
        numbers = [int(number) for number in check_elements("device_id", _listed(device_id), int)]
        for number in numbers:
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
    def cache_key_lease(self) -> int | str | None:
        """How long the keys of ``allocate_cache`` are bound that is given no ``lease``, in milliseconds; 0: for ever.

        As long as nobody renews them (``CacheManager.renew_leases``). Not set, it is 0.
        """
        return self._cache_key_lease

    @cache_key_lease.setter
    def cache_key_lease(self, cache_key_lease: int | str) -> None:
        check_type("cache_key_lease", cache_key_lease, int, str)
        text = str(int(cache_key_lease) if isinstance(cache_key_lease, int) else cache_key_lease)
        if not _is_digits(text):
            raise invalid(f"cache_key_lease is {cache_key_lease}, it should be digits and >= 0")
        check_int32("cache_key_lease", int(text))
        self._cache_key_lease = cache_key_lease

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
        """``nixl``: this engine moves the bytes of every link, also between clusters of one host.

        Without it, it moves those between hosts only. ``hixl`` means what it means in the original (api §4.3).
        """
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


def _listed(device_id: int | list[int] | tuple[int, ...]) -> list[int] | tuple[int, ...]:
    return [device_id] if isinstance(device_id, int) else device_id


def _optional(name: str, value: Any, wanted: type) -> Any:
    return None if value is None else check_type(name, value, wanted)


def _is_digits(text: str) -> bool:
    return re.fullmatch(r"[0-9]+", text) is not None
