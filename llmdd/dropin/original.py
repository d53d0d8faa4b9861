"""What the original's API consists of, and what becomes of each part here: the data of ``docs/compatibility.md``.

Facts of the original (names, parameters, defaults, values, option keys) are compared with llmdd by
:mod:`llmdd.dropin.compatibility` before a page is written; what is said of them in words is written here.
"""

from __future__ import annotations

from dataclasses import dataclass

SAME = "same"
BETTER = "better"
NO_EFFECT = "no effect here"


@dataclass(frozen=True)
class Member:
    """A method, property or attribute of a class.

    ``parameters`` are a method's, as they stand in its definition, without ``self`` and types; None for a property.
    """

    name: str
    verdict: str
    words: str = ""
    parameters: str | None = None
    settable: bool = False


@dataclass(frozen=True)
class Class:
    """A class, by what its constructor takes; None where programs do not construct it.

    ``attributes`` tells the attribute for each parameter that is not called like it, ``sample`` arguments that are
    fine: by these the constructors of compiled classes are probed, which Python cannot look into.
    """

    name: str
    verdict: str
    words: str = ""
    parameters: str | None = None
    members: tuple[Member, ...] = ()
    sample: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Option:
    """A property of ``LLMConfig``: a value for it, and what that becomes. ``effective``: whether llmdd heeds the "
    "keys."""

    name: str
    value: object
    keys: tuple[str, ...]
    effective: bool
    words: str
    unset: object = ""


def method(name: str, parameters: str, verdict: str, words: str = "") -> Member:
    """A method."""
    return Member(name, verdict, words, parameters)


def attribute(name: str, verdict: str = SAME, words: str = "", *, settable: bool = False) -> Member:
    """A property or class attribute."""
    return Member(name, verdict, words, None, settable)


EXPORTED = (
    "LLMClusterInfo", "LLMStatusCode", "LLMException", "LLMRole", "LlmConfig", "LLMConfig", "DataType", "Status",
    "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "KvCache", "Cache", "BlocksCacheKey", "LLMDataDist", "Placement",
    "RegisterMemStatus", "LayerSynchronizer", "TransferConfig", "CacheTask", "TransferWithCacheKeyConfig", "Memtype",
    "MemInfo",
)  # fmt: skip

OF_THE_OLDER_API = ("TensorDesc", "Tensor", "KvCacheManager")

DATADIST = Class(
    "LLMDataDist",
    BETTER,
    "Any number of instances may be initialised in one process, each with its own pools, caches, links and "
    "numbering; the original allows one. `None` as the role is a TypeError.",
    "role, cluster_id",
    (
        method(
            "init",
            "options",
            BETTER,
            "Addresses may be IPv6 (`[::1]:26000`) or have port 0, any free one. A port beyond 65535 is refused, "
            "not truncated. Without the CacheManager mode it is `LLM_FEATURE_NOT_ENABLED`, not an import error. An "
            "`init` that failed has left nothing behind and may be called again.",
        ),
        method("finalize", "", SAME),
        attribute(
            "cache_manager",
            BETTER,
            "A manager kept beyond `finalize` answers every call with `LLM_ENGINE_FINALIZED`; the original's acts on "
            "whatever instance is initialised next, and may free a cache of it.",
        ),
        attribute("cluster_id"),
        method(
            "link_clusters",
            "clusters, timeout=3000",
            BETTER,
            "`timeout` bounds each link from begin to end, also when the other side stays silent, and silent "
            "connections keep nobody from linking. More than 16 clusters are `LLM_CLUSTER_NUM_EXCEED_LIMIT`, as "
            "documented. A server with another cluster id than the one asked for is refused; the original links to "
            "it under its own id. Linking again after a restart never takes a live link away.",
        ),
        method(
            "unlink_clusters",
            "clusters, timeout=3000, force=False",
            BETTER,
            "As `link_clusters`. `None` as `force` is a TypeError.",
        ),
        method(
            "link",
            "comm_name, cluster_rank_info, rank_table",
            BETTER,
            "Two communicators between the same clusters are independent: unlinking one leaves the other usable.",
        ),
        method("unlink", "comm_id", BETTER, "As `link`."),
        method("query_register_mem_status", "comm_id", SAME),
        method(
            "switch_role",
            "role, switch_options=None",
            BETTER,
            "A new ip with the old port is a new address. If the new address cannot be listened at, the old listener "
            "stays. `None` as the role is a TypeError.",
        ),
        attribute("kv_cache_manager", SAME, "Of the older API; refused."),
        method("check_link_status", "remote_cluster_id", SAME, "Of the older API; refused."),
        attribute("llm_engine_instance", SAME, "The instance that was initialised last and lives."),
    ),
)

MANAGER = Class(
    "CacheManager",
    SAME,
    "Obtained from `LLMDataDist.cache_manager`. Calls that wait for others end within `sync_kv_timeout`.",
    None,
    (
        method(
            "allocate_cache",
            "cache_desc, cache_keys=()",
            BETTER,
            "Of equal keys in one call the last takes effect, and any number of placeholders may be given, as "
            "documented; the original refuses both. Keys are told apart by model, and a request, a prefix and a "
            "blocks cache may have the same number. Keys are checked before memory is taken. The descriptor is left "
            "as it is, and its `batch_dim_index` is heeded.",
        ),
        method(
            "allocate_blocks_cache",
            "cache_desc, blocks_cache_key=None",
            BETTER,
            "The descriptor is left as it is: it can be used for `allocate_cache` afterwards.",
        ),
        method("deallocate_cache", "cache", BETTER, "Also where no memory pool was configured."),
        method("deallocate_blocks_cache", "cache", BETTER, "As `deallocate_cache`."),
        method(
            "register_cache",
            "cache_desc, addrs, cache_keys=(), remote_accessible=None",
            BETTER,
            "Keys are checked as in `allocate_cache`; the original accepts too many, duplicate and bound ones and "
            "then serves the wrong cache. Memory that is not mapped is refused. No limits on number, size or "
            "alignment. Memory registered twice stays accessible until both registrations are gone. After "
            "`link_clusters` too.",
        ),
        method(
            "register_blocks_cache",
            "cache_desc, addrs, blocks_cache_key=None, remote_accessible=None",
            BETTER,
            "As `register_cache`.",
        ),
        method(
            "unregister_cache",
            "cache_id",
            BETTER,
            "Safe under a live link: it waits for the transfers in flight. The id of an allocated cache is refused; "
            "the original frees that cache at once.",
        ),
        method(
            "remove_cache_key",
            "cache_key",
            BETTER,
            "Of a registered cache too; the original leaves its keys bound. A placeholder removes nothing; the "
            "original unbinds a blocks cache by it.",
        ),
        method(
            "pull_cache",
            "cache_key, cache, batch_index=0, size=-1, **kwargs",
            BETTER,
            "`kwargs` are `src_layer_range`, `dst_layer_range` and `tensor_num_per_layer=2`. "
            "Every key has its own account of the tensors that were pulled for it; the original has one for all "
            "keys of a cache, and loses data. A key is released when the bytes have arrived, before the call "
            "returns, and in remote mode too. The owner's present state counts, not an index read once. Slot, size "
            "and layers of the remote cache are checked in both modes. An empty layer range and an unknown keyword "
            "are refused; the original takes both for all layers. After a timeout no more bytes arrive.",
        ),
        method(
            "pull_blocks",
            "src_cache_key, dst_cache, src_blocks=(), dst_blocks=(), **kwargs",
            BETTER,
            "As `pull_cache`. A slot's last block gets the bytes that are left of the slot, and no byte of the next "
            "slot. Blocks of different sizes are refused. `src_blocks=None` is as empty.",
        ),
        method(
            "push_cache",
            "dst_cache_key, src_cache, src_batch_index=0, src_layer_range=None, dst_layer_range=None, size=-1, "
            "tensor_num_per_layer=2",
            BETTER,
            "Releases the key of the destination slot, as documented. What does not fit is refused before the first "
            "byte; the original writes beyond the slot. Without layer ranges all tensors are sent, whatever their "
            "number.",
        ),
        method(
            "push_blocks",
            "dst_cache_key, src_cache, src_blocks=(), dst_blocks=(), src_layer_range=None, dst_layer_range=None, "
            "tensor_num_per_layer=2",
            BETTER,
            "Blocks of different sizes are refused before the first byte. Ranges need to be equally long, not equal.",
        ),
        method(
            "transfer_cache_async",
            "src_cache, layer_synchronizer, transfer_configs, src_block_indices=None, dst_block_indices=None, "
            "dst_block_memory_size=None",
            BETTER,
            "Destination layers are counted from the begin of `dst_layer_range`; in the original a range that does "
            "not begin at 0 goes astray and still ends in success. A synchronizer that raises ends its configs with "
            "`LLM_FAILED`, and the others go on. Configs are not modified, and may be changed after the call. "
            "Destination addresses, blocks and slots are checked. Without block lists every block is sent, not the "
            "first alone. The source may be deallocated meanwhile.",
        ),
        method(
            "copy_cache",
            "dst, src, dst_batch_index=0, src_batch_index=0, offset=0, size=-1, req_id=None",
            SAME,
            "`req_id` has no effect; in the original it is for logs.",
        ),
        method("copy_blocks", "cache, copy_block_info", BETTER, "All indices are checked before the first byte moves."),
        method("swap_blocks", "src_cache, dst_cache, src_to_dst", SAME, "Copies from the first cache to the second."),
        method(
            "remap_registered_memory",
            "mem_infos",
            NO_EFFECT,
            "Arguments are checked; there is no device whose memory could be lost.",
        ),
        method("check_cache_key", "cache_key", SAME),
    ),
)

VALUES = (
    Class(
        "CacheDesc",
        BETTER,
        "A shape may have 32 dimensions, as the original's message says. `None` as a data type is a TypeError.",
        "num_tensors, shape, data_type, placement=Placement.DEVICE, batch_dim_index=0, seq_len_dim_index=-1, "
        "kv_tensor_format=None",
        (
            *map(
                attribute, ("num_tensors", "shape", "data_type", "placement", "seq_len_dim_index", "kv_tensor_format")
            ),
            attribute("batch_dim"),
            attribute("batch_size"),
            attribute("size", BETTER, "Of a shape that cannot be it raises `LLM_PARAM_INVALID`, not `LLM_SUCCESS`."),
            method(
                "update_dim",
                "dim_index, dim_value",
                BETTER,
                "Also where the shape was given as a tuple; checks both arguments; `batch_size` follows.",
            ),
        ),
        ("3", "(2, 5)", "DataType.DT_INT8", "Placement.HOST", "1", "0", "'ND'"),
        (("batch_dim_index", "batch_dim"),),
    ),
    Class(
        "CacheKey",
        BETTER,
        "Also by `prompt_cluster_id`. Keys cannot be changed.",
        "cluster_id, req_id, model_id=0, prefix_id=18446744073709551615",
        tuple(map(attribute, ("cluster_id", "prompt_cluster_id", "req_id", "model_id", "prefix_id"))),
        ("1", "2", "3", "4"),
    ),
    Class(
        "BlocksCacheKey",
        BETTER,
        "Also by `prompt_cluster_id`. Ids that are negative or None are refused.",
        "cluster_id, model_id=0",
        tuple(map(attribute, ("cluster_id", "prompt_cluster_id", "model_id"))),
        ("1", "2"),
    ),
    Class(
        "CacheKeyByIdAndIndex",
        BETTER,
        "An id below 1 names no cache; the original looks it up as a key.",
        "cluster_id, cache_id, batch_index=0",
        tuple(map(attribute, ("cluster_id", "cache_id", "batch_index"))),
        ("1", "2", "3"),
    ),
    Class(
        "Cache",
        SAME,
        "",
        None,
        (
            *map(attribute, ("cache_id", "cache_desc", "tensor_addrs", "is_blocks_cache")),
            method("create_cpu_cache", "cache_desc, addrs", SAME),
        ),
    ),
    Class(
        "KvCache",
        SAME,
        "Of the older API: no call makes or takes one.",
        None,
        (
            *map(attribute, ("cache_id", "cache_desc", "per_device_tensor_addrs")),
            method("create_cpu_cache", "cache_desc, addrs", SAME),
        ),
    ),
    Class("MemInfo", SAME, "", "mem_type, addr, size", tuple(map(attribute, ("mem_type", "addr", "size")))),
    Class(
        "TransferConfig",
        SAME,
        "",
        "dst_cluster_id, dst_addrs, src_layer_range=None, src_batch_index=0",
        (
            *(
                attribute(name, settable=True)
                for name in ("dst_cluster_id", "dst_addrs", "src_layer_range", "src_batch_index")
            ),
            attribute("dst_layer_range", SAME, "Always None."),
        ),
    ),
    Class(
        "TransferWithCacheKeyConfig",
        SAME,
        "",
        "cache_key, src_layer_range=None, dst_layer_range=None, src_batch_index=0",
        (
            attribute("cache_key", settable=True),
            attribute("src_layer_range", SAME, "Needed, in spite of its default.", settable=True),
            attribute("dst_layer_range", SAME, "Needed, in spite of its default.", settable=True),
            attribute("src_batch_index", settable=True),
            attribute("dst_cluster_id", BETTER, "Follows `cache_key` when that is set anew."),
        ),
    ),
    Class(
        "LayerSynchronizer",
        SAME,
        "To be subclassed.",
        None,
        (method("synchronize_layer", "layer_index, timeout_in_millis", SAME),),
    ),
    Class(
        "CacheTask",
        BETTER,
        "Results are kept for each config; the original keeps one for each cluster. After an exception in the "
        "worker the original reports success.",
        None,
        (
            method("synchronize", "timeout_in_millis=None", SAME),
            method("get_results", "timeout_in_millis=None", SAME),
        ),
    ),
    Class(
        "LLMClusterInfo",
        BETTER,
        "",
        "",
        (
            attribute("remote_cluster_id", settable=True),
            attribute("remote_role_type", NO_EFFECT, "In the original too.", settable=True),
            attribute("local_ip_info_list"),
            attribute("remote_ip_info_list"),
            method(
                "append_local_ip_info",
                "ip, port",
                BETTER,
                "IPv6 text is accepted. Text that is no address is a ValueError (and a RuntimeError, as in the "
                "original), `None` a TypeError.",
            ),
            method("append_remote_ip_info", "ip, port", BETTER, "As `append_local_ip_info`."),
        ),
    ),
    Class(
        "LLMException",
        BETTER,
        "Never raised with `LLM_SUCCESS`; braces in what a message quotes do no harm.",
        "*args, status_code=LLMStatusCode.LLM_SUCCESS",
        (attribute("status_code"),),
    ),
    Class("Status", SAME, "", "status", (method("is_ok", "", SAME), attribute("status_code"))),
)

CONFIG = Class(
    "LLMConfig",
    BETTER,
    "Also called `LlmConfig`.",
    "",
    (
        method(
            "generate_options",
            "",
            BETTER,
            "Gives a new dictionary each time, with what is set at that time; in the original a flag that was "
            "switched off again leaves its key.",
        ),
        method("gen_options", "", SAME, "The same method."),
        attribute("options", SAME, "What `generate_options` gives."),
    ),
)

OPTIONS = (
    Option("ge_options", {"ge.any": "1"}, ("ge.any",), False, "Passed through; keys of llmdd among them count.", {}),
    Option(
        "device_id", 3, ("ge.exec.deviceId", "ge.session_device_id"), False, "At `init` it must be one number.", None
    ),
    Option(
        "sync_kv_timeout",
        500,
        ("llm.SyncKvCacheWaitTime",),
        True,
        "How long a call may take or wait, in milliseconds; 1000 if it is not set.",
        None,
    ),
    Option("deploy_res_path", "/path", ("llm.deployResPath",), False, ""),
    Option("buf_pool_cfg", "{}", ("llm.BufPoolCfg",), False, "There are no staging buffers."),
    Option(
        "mem_pool_cfg",
        '{"memory_size": 1048576}',
        ("llm.MemPoolConfig",),
        True,
        "The DEVICE pool: bytes as `memory_size`, optionally `page_shift`. Without an accelerator it is host "
        "memory, in a pool of its own.",
    ),
    Option("host_mem_pool_cfg", '{"memory_size": 1048576}', ("llm.HostMemPoolConfig",), True, "The HOST pool."),
    Option("enable_cache_manager", False, ("llm.EnableCacheManager",), True, "Must be on.", False),
    Option(
        "enable_remote_cache_accessible",
        True,
        ("llm.EnableRemoteCacheAccessible",),
        True,
        "Remote mode: pushes are allowed, pulls of a cache are by id and slot only. Both ends must agree.",
        False,
    ),
    Option("listen_ip_info", "127.0.0.1:26000", ("llm.listenIpInfo",), True, "Where links are accepted."),
    Option(
        "link_total_time",
        30,
        ("llm.LinkTotalTime",),
        True,
        "How long a communicator of `link` may prepare, in seconds; 0 for 120.",
        0,
    ),
    Option("link_retry_count", 2, ("llm.LinkRetryCount",), True, "How many attempts share `link_total_time`.", 1),
    Option("rdma_traffic_class", 132, ("llm.RdmaTrafficClass",), False, "", None),
    Option("rdma_service_level", 4, ("llm.RdmaServiceLevel",), False, "", None),
    Option(
        "local_comm_res",
        "{}",
        ("llm.LocalCommRes",),
        True,
        "Its presence, even empty, turns the CacheManager mode and remote mode on; its contents have no effect, but "
        "that clusters to link to then need no local address.",
    ),
    Option(
        "transfer_backend",
        "hixl",
        ("llm.TransferBackend",),
        True,
        "`hixl` turns remote mode on, `unlink_clusters` needs no addresses, `link` is not available. Links stay usable "
        "from both ends. `nixl` is llmdd's own: this engine moves the bytes of every link, not only between hosts.",
    ),
    Option("global_resource_config", "{}", ("llm.GlobalResourceConfig",), False, ""),
    Option("cluster_info", '{"cluster_id": 1}', ("llm.ClusterInfo",), False, ""),
    Option("output_max_size", 9, ("llm.OutputMaxSize",), False, "", None),
    Option("enable_switch_role", True, ("llm.EnableSwitchRole",), False, "Roles can always be switched.", False),
    Option("mem_utilization", 0.5, ("llm.MemoryUtilization",), False, "", 0.95),
)

ENUMERATIONS: dict[str, dict[str, int]] = {
    "LLMRole": {"PROMPT": 1, "DECODER": 2, "MIX": 3},
    "Placement": {"HOST": 0, "DEVICE": 1},
    "RegisterMemStatus": {"OK": 0, "PREPARING": 1, "FAILED": 2},
    "Memtype": {"MEM_TYPE_DEVICE": 0, "MEM_TYPE_HOST": 1},
    "PushType": {"NO_CACHE_KEY": 0, "BLOCKS_CACHE_KEY": 1, "CACHE_KEY_BY_ID": 2},
    "DataType": {
        "DT_FLOAT": 0, "DT_FLOAT16": 1, "DT_INT8": 2, "DT_INT32": 3, "DT_UINT8": 4, "DT_INT16": 6, "DT_UINT16": 7,
        "DT_UINT32": 8, "DT_INT64": 9, "DT_UINT64": 10, "DT_DOUBLE": 11, "DT_BOOL": 12, "DT_STRING": 13, "DT_BF16": 27,
    },
}  # fmt: skip

ENUMERATION_WORDS = {
    "LLMRole": "Labels: transfers run in both directions whatever the roles.",
    "Placement": "Which pool a cache lives in. Every combination of placements can be transferred, without staging "
    "pools.",
    "RegisterMemStatus": "",
    "Memtype": "",
    "PushType": "Not exported; no call takes or gives one.",
    "DataType": "`DT_STRING` has 16 bytes, `DT_BF16` is `ml_dtypes.bfloat16` in `Cache.tensors`.",
}

FIRST_CODE = 0x5010B000

# Value, and when a call ends so here; None: never.
CODES: dict[str, tuple[int, str | None]] = {
    "LLM_SUCCESS": (0, "The result of a cluster that was linked, of a config that was sent."),
    "LLM_FAILED": (
        0xFFFFFFFF,
        "An address cannot be listened at; the other end of a link misbehaves; a synchronizer raised.",
    ),
    "LLM_WAIT_PROCESS_TIMEOUT": (FIRST_CODE + 1, None),
    "LLM_KV_CACHE_NOT_EXIST": (FIRST_CODE + 2, "The cache or key is not there: never made, released, or deallocated."),
    "LLM_REPEAT_REQUEST": (FIRST_CODE + 3, None),
    "LLM_REQUEST_ALREADY_COMPLETED": (FIRST_CODE + 4, None),
    "LLM_PARAM_INVALID": (FIRST_CODE + 5, "The call contradicts the contract."),
    "LLM_ENGINE_FINALIZED": (FIRST_CODE + 6, "The instance was finalized."),
    "LLM_NOT_YET_LINK": (FIRST_CODE + 7, "No link to that cluster, or its process has gone."),
    "LLM_ALREADY_LINK": (FIRST_CODE + 8, "There is a link to that cluster."),
    "LLM_LINK_FAILED": (FIRST_CODE + 9, "Nobody answers at that address; a rank table gives no address."),
    "LLM_UNLINK_FAILED": (FIRST_CODE + 10, "The other end cannot be reached; the link is kept."),
    "LLM_NOTIFY_PROMPT_UNLINK_FAILED": (FIRST_CODE + 11, None),
    "LLM_CLUSTER_NUM_EXCEED_LIMIT": (FIRST_CODE + 12, "More than 16 clusters in one call."),
    "LLM_PROCESSING_LINK": (FIRST_CODE + 13, None),
    "LLM_DEVICE_OUT_OF_MEMORY": (FIRST_CODE + 14, None),
    "LLM_PREFIX_ALREADY_EXIST": (FIRST_CODE + 15, None),
    "LLM_PREFIX_NOT_EXIST": (FIRST_CODE + 16, None),
    "LLM_SEQ_LENOVERLIMIT": (FIRST_CODE + 17, None),
    "LLM_NO_FREE_BLOCK": (FIRST_CODE + 18, None),
    "LLM_BLOCKS_OUT_OF_MEMORY": (FIRST_CODE + 19, None),
    "LLM_EXIST_LINK": (FIRST_CODE + 24, "A role cannot be switched while there are links."),
    "LLM_FEATURE_NOT_ENABLED": (FIRST_CODE + 25, "The CacheManager mode is off; `link` with the backend `hixl`."),
    "LLM_TIMEOUT": (FIRST_CODE + 26, "The call took longer than its time; the key is kept."),
    "LLM_LINK_BUSY": (
        FIRST_CODE + 27,
        "Others used the link for the whole of that time: nothing was begun, try again.",
    ),
    "LLM_OUT_OF_MEMORY": (FIRST_CODE + 28, "No run of free pages is long enough; a pool's memory cannot be had."),
    "LLM_DEVICE_MEM_ERROR": (507053, None),
    "LLM_SUSPECT_REMOTE_ERROR": (507057, None),
    "LLM_UNKNOWN_ERROR": (-1, None),
}

IMPORT_PATHS: dict[str, tuple[str, ...]] = {
    "llm_datadist": EXPORTED,
    "llm_datadist.status": ("LLMStatusCode", "LLMException", "Status"),
    "llm_datadist.configs": ("LLMRole", "LLMClusterInfo", "LLMConfig", "LlmConfig"),
    "llm_datadist.data_type": ("DataType", "dtype_to_np_dtype", "np_dtype_to_dtype", "valid_np_dtypes"),
    "llm_datadist.utils.utils": (
        "check_isinstance", "check_dict", "check_int32", "check_int64", "check_uint16", "check_uint32", "check_uint64",
    ),
    "llm_datadist.utils.log": ("log",),
    "llm_datadist.v2.llm_types": (
        "BlocksCacheKey", "Cache", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "DataType", "KvCache", "MemInfo",
        "Memtype", "Placement", "PushType", "RegisterMemStatus",
    ),
    "llm_datadist.v2.llm_utils": ("CacheTask", "LayerSynchronizer", "TransferConfig", "TransferWithCacheKeyConfig"),
    "llm_datadist.v2.cache_manager": ("CacheManager",),
    "llm_datadist.v2.llm_datadist": ("LLMDataDist", "_shutdown_handler"),
    "llm_datadist.v2.config": ("LLMConfig", "LlmConfig"),
}  # fmt: skip

# What llmdd offers beyond the original, and what is there for its own links and is not for programs.
ADDITIONS: dict[str, dict[str, str]] = {
    "Cache": {"tensors": "NumPy arrays over the cache's own memory; each keeps the memory as long as it lives."},
    "CacheManager": {
        "lookup": "The id and slot to which a key is bound, or None.",
        "lookup_many": "The same for many keys, or request ids in an array.",
        "remove_cache_keys": "`remove_cache_key` for many keys in one go.",
        "deallocate_many": "`deallocate_cache` for many caches, or their ids, in one go.",
        "pull_many": "`pull_cache` or `pull_blocks` for many keys in one go.",
        "renew_leases": "Lets the leases of keys end later, of this cluster or of linked ones.",
        "keep_leases": "Renews the leases of expected keys until they have been pulled.",
        "let_leases_lapse": "Ends that, of requests that were aborted.",
        "kept_leases": "The keys whose leases are kept.",
        "expire_leases": "Drops the keys whose leases are over, without waiting for the node to do so.",
        "cache_key_lease": "The lease of keys that are bound without one being given, in milliseconds.",
        "key_counts": "How many keys have gone, by how they went.",
        "pool_usage": "Total, free and page bytes of a pool.",
        "live_caches": "How many caches hold memory.",
        "live_keys": "How many keys are bound.",
        "waiting_allocations": "How many calls wait for memory, where `wait_for_memory` is on.",
        "paused": "Keeps other threads' calls out for the length of a `with` block.",
        "check": "Every invariant of the memory; AssertionError names what does not hold.",
        "cluster_id": "The instance's cluster id.",
        "remote_accessible": "Whether remote mode is on.",
        "closed": "Whether the instance was finalized.",
    },
    "CacheManager.allocate_cache": {"lease": "How long the keys are bound that nobody renews, in milliseconds."},
    "LLMConfig": {
        "cache_key_lease": "How long keys are bound that nobody renews, in milliseconds; unless it is set, for ever; "
        "`llmdd.CacheKeyLease`.",
        "wait_for_memory": "Whether a cache for which its pool has no room waits for it, up to `sync_kv_timeout`; "
        "`llmdd.WaitForMemory`.",
        "link_key": "This end's private key and certificate (`llmdd.LinkKey`, or `LLMDD_LINK_KEY` in the environment).",
        "link_allowed_keys": "The certificates of who may link (`llmdd.LinkAllowedKeys`, `LLMDD_LINK_ALLOWED_KEYS`).",
        "open_links": "Whether anybody may, at any address, without keys (`llmdd.OpenLinks`, `LLMDD_OPEN_LINKS`).",
        "peer_timeout": "Within how many milliseconds a peer on another host that is gone is noticed; 30000 if it is "
        "not set. Becomes `llmdd.PeerTimeout`.",
    },
    "LLMDataDist": {
        "listen_address": "Where links are accepted, with the port that was really taken.",
        "counters": "Transfers that failed, by code; links lost; pins dropped for peers that are gone; reads evicted.",
        "transports": "How bytes travel to and from each linked cluster: `shared memory`, or `nixl`.",
    },
}
INTERNAL: dict[str, frozenset[str]] = {
    "CacheManager": frozenset(
        {
            "abandon", "admit_peer", "admitted_peers", "close", "communicators", "dismiss_peer", "evict_peer",
            "export", "has_released", "lease_keeper", "leases_are_due", "peers", "pin_source", "pool_regions",
            "read_registered", "reap", "renew_for_peer", "send_to_addresses", "send_to_cache", "serve",
            "stop_waiting", "write_registered",
            "failed_transfers",
        }
    ),
    "TransferWithCacheKeyConfig": frozenset({"check_lengths"}),
}  # fmt: skip

# The tests that hold what is better, without ``test_``; where it ends in ``*``, all that begin so. Each thing that is
# said to be better has some, and no name but theirs stands here.
HELD_BY: dict[str, tuple[str, ...]] = {
    "from llmdd import *": ("d66*",),
    "LLMDataDist": ("2_any_number_of_instances", "instances_are_apart", "d71*"),
    "LLMDataDist.init": ("9_ipv6_can_be_linked_to", "9_port_zero_is_any_free_port", "9_bad_listen_address", "d73*"),
    "LLMDataDist.cache_manager": ("d70*",),
    "LLMDataDist.link_clusters": ("d56*", "d57*", "d58*", "d59*"),
    "LLMDataDist.unlink_clusters": ("unlink_deadline", "d76*"),
    "LLMDataDist.link": ("a_pair_stays_linked_while_one_communicator_remains",),
    "LLMDataDist.unlink": ("a_pair_stays_linked_while_one_communicator_remains",),
    "LLMDataDist.switch_role": ("d62*", "an_address_that_cannot_be_bound", "d76*"),
    "CacheManager.allocate_cache": ("d1_*", "d2_*", "d3_*", "d5_*", "d6_*", "d21*", "d22*", "d23*"),
    "CacheManager.allocate_blocks_cache": ("d22*",),
    "CacheManager.deallocate_cache": ("d11*",),
    "CacheManager.deallocate_blocks_cache": ("d11*",),
    "CacheManager.register_cache": (
        "d8_*",
        "memory_that_is_not_there_is_not_registered",
        "d48*",
        "d53*",
        "d49*",
        "d51*",
    ),
    "CacheManager.register_blocks_cache": ("d8_*",),
    "CacheManager.unregister_cache": ("d12*", "d50*", "unregistering_waits_for_who_uses_the_memory"),
    "CacheManager.remove_cache_key": ("d9_*", "d10*"),
    "CacheManager.pull_cache": ("d4_*", "d15*", "d16*", "d25*", "d27*", "d31*", "d32*", "d36*"),
    "CacheManager.pull_blocks": ("d29*", "d30*", "d68*"),
    "CacheManager.push_cache": ("d17*", "d39*", "d38*"),
    "CacheManager.push_blocks": ("d40*",),
    "CacheManager.transfer_cache_async": (
        "d41*",
        "d42*",
        "d44*",
        "d45*",
        "what_becomes_of_lists_and_configs_afterwards_has_no_effect",
        "d46*",
        "d47*",
        "a_source_that_is_deallocated_meanwhile_is_sent_to_the_end_and_then_freed",
    ),
    "CacheManager.copy_blocks": ("d35*",),
    "LLMConfig": ("d69*",),
    "LLMConfig.generate_options": ("d69*",),
    "CacheDesc": ("d54*", "d71*"),
    "CacheDesc.size": ("d67*",),
    "CacheDesc.update_dim": ("d24*",),
    "CacheKey": ("keys_do_not_change",),
    "BlocksCacheKey": ("keys_do_not_change", "d71*"),
    "CacheKeyByIdAndIndex": ("keys_do_not_change", "d28*"),
    "TransferWithCacheKeyConfig.dst_cluster_id": ("d43_the_cluster_follows_the_key",),
    "CacheTask": ("d43*", "d42*"),
    "LLMClusterInfo": ("d72*",),
    "LLMClusterInfo.append_local_ip_info": ("append", "d72*"),
    "LLMClusterInfo.append_remote_ip_info": ("append", "d72*"),
    "LLMException": ("none_is_raised_with_success", "d74*"),
}
