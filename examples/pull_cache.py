"""Pull by ``CacheKey``: a prefill process hands over the KV caches of a batch, request by request.

Prefill binds a key to each batch slot that is in use, fills the slots, and drops its own reference at once. From then
on the keys alone keep the memory: with the last request pulled, prefill's pool is free, without a word from decode.
"""

import json

from llm_datadist import (
    CacheDesc,
    CacheKey,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)
from processes import POOL_BYTES, Meeting, check, check_pool_is_free, memory, run, some_bytes, split

PROMPT, DECODER = 1, 2  # cluster ids
NO_REQUEST = 2**64 - 1  # the request id of a placeholder
LAYERS, TOKENS, WIDTH = 2, 64, 128
SLOT_BYTES = TOKENS * WIDTH * 2


def cache_desc(slots: int) -> CacheDesc:
    """Keys and values of every layer, so many slots in each tensor."""
    return CacheDesc(num_tensors=2 * LAYERS, shape=(slots, TOKENS, WIDTH), data_type=DataType.DT_FLOAT16)


def init(role: LLMRole, cluster_id: int, listen: str = "") -> LLMDataDist:
    config = LLMConfig()
    config.device_id = 0
    config.enable_cache_manager = True
    config.mem_pool_cfg = json.dumps({"memory_size": POOL_BYTES, "page_shift": 16})
    config.sync_kv_timeout = 10000
    config.listen_ip_info = listen
    datadist = LLMDataDist(role, cluster_id)
    datadist.init(config.generate_options())
    return datadist


def prompt(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = init(LLMRole.PROMPT, PROMPT, address)
    manager = datadist.cache_manager

    requests = [100, NO_REQUEST, 101]  # slot 1 is a placeholder's, slot 3 has no key either
    cache = manager.allocate_cache(cache_desc(slots=4), [CacheKey(PROMPT, req_id=request) for request in requests])
    for tensor, tensor_addr in enumerate(cache.tensor_addrs):
        for slot, request in enumerate(requests):
            if request != NO_REQUEST:
                memory(tensor_addr + slot * SLOT_BYTES, SLOT_BYTES)[:] = some_bytes(SLOT_BYTES, request, tensor)
    manager.deallocate_cache(cache)
    meeting.say("two requests are ready, and held by their keys alone")
    meeting.exchange({"address": address, "requests": [100, 101]})

    meeting.exchange()  # decode has pulled both
    check_pool_is_free(datadist)
    meeting.say("both were pulled: the pool is free")
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    datadist = init(LLMRole.DECODER, DECODER)
    manager = datadist.cache_manager
    running = manager.allocate_cache(cache_desc(slots=8))
    prefilled = meeting.exchange()["prompt"]

    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = PROMPT
    cluster.append_local_ip_info(meeting.ip, 0)
    cluster.append_remote_ip_info(*split(prefilled["address"]))
    overall, _ = datadist.link_clusters([cluster], timeout=5000)
    check(overall == LLMStatusCode.LLM_SUCCESS, f"linked: {overall}")

    for slot, request in zip((5, 2), reversed(prefilled["requests"]), strict=True):
        manager.pull_cache(CacheKey(PROMPT, req_id=request), running, batch_index=slot)
        for tensor, tensor_addr in enumerate(running.tensor_addrs):
            pulled = memory(tensor_addr + slot * SLOT_BYTES, SLOT_BYTES)
            check((pulled == some_bytes(SLOT_BYTES, request, tensor)).all(), f"tensor {tensor} of request {request}")
        meeting.say(f"request {request} is in slot {slot}, byte for byte")

    try:
        manager.pull_cache(CacheKey(PROMPT, req_id=101), running, batch_index=0)
    except LLMException as error:
        check(error.status_code == LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"pulled twice: {error}")
        meeting.say("request 101 cannot be pulled a second time")
    else:
        check(False, "a request is pulled once")

    datadist.unlink_clusters([cluster], timeout=5000)
    meeting.exchange()
    manager.deallocate_cache(running)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
