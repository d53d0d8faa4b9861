"""Two prefills and two decodes: every decode is linked to both prefills and pulls the requests that it was given.

The batch of a prefill mixes requests of both decodes. Its memory is free when the last of them is pulled, whoever that
is. Request ids need only be unique within a prefill: the cluster id in the key says which prefill is meant.
"""

from llm_datadist import CacheDesc, CacheKey, DataType, LLMRole
from processes import Meeting, check, check_pool_is_free, cluster_at, link, memory, run, some_bytes, start, unlink

CLUSTERS = {"prefill-1": 1, "prefill-2": 2, "decode-1": 3, "decode-2": 4}
BATCHES, BATCH = 3, 4
LAYERS, TOKENS, WIDTH = 2, 32, 128
SLOT_BYTES = TOKENS * WIDTH * 2


def cache_desc(slots: int) -> CacheDesc:
    return CacheDesc(num_tensors=2 * LAYERS, shape=(slots, TOKENS, WIDTH), data_type=DataType.DT_FLOAT16)


def prefill(meeting: Meeting) -> None:
    own_cluster, address = CLUSTERS[meeting.name], meeting.free_address()
    datadist = start(LLMRole.PROMPT, own_cluster, listen_ip_info=address)
    manager = datadist.cache_manager
    meeting.exchange(address)
    for batch in range(BATCHES):
        requests = range(batch * BATCH, (batch + 1) * BATCH)
        cache = manager.allocate_cache(
            cache_desc(BATCH), [CacheKey(own_cluster, req_id=request) for request in requests]
        )
        for tensor, tensor_addr in enumerate(cache.tensor_addrs):
            for slot, request in enumerate(requests):
                content = some_bytes(SLOT_BYTES, own_cluster, request, tensor)
                memory(tensor_addr + slot * SLOT_BYTES, SLOT_BYTES)[:] = content
        manager.deallocate_cache(cache)
        meeting.exchange(list(requests))
        meeting.exchange()  # both decodes have pulled their share of the batch
        check_pool_is_free(datadist)
        meeting.say(f"requests {requests[0]} to {requests[-1]} were pulled: the pool is free")
    meeting.exchange()
    datadist.finalize()


def decode(meeting: Meeting) -> None:
    datadist = start(LLMRole.DECODER, CLUSTERS[meeting.name])
    manager = datadist.cache_manager
    running = manager.allocate_cache(cache_desc(2 * BATCHES * BATCH))
    addresses = meeting.exchange()
    prefills = ["prefill-1", "prefill-2"]
    clusters = [cluster_at(addresses[name], CLUSTERS[name], meeting.ip) for name in prefills]
    link(datadist, *clusters)

    mine = 0 if meeting.name == "decode-1" else 1  # one decode takes the even requests, the other the odd ones
    pulled: list[tuple[int, int]] = []  # slot i has request pulled[i][1] of cluster pulled[i][0]
    for _ in range(BATCHES):
        announced = meeting.exchange()
        for name in prefills:
            for request in announced[name][mine::2]:
                manager.pull_cache(CacheKey(CLUSTERS[name], req_id=request), running, batch_index=len(pulled))
                pulled.append((CLUSTERS[name], request))
        meeting.exchange()

    for tensor, tensor_addr in enumerate(running.tensor_addrs):
        for slot, (cluster, request) in enumerate(pulled):
            expected = some_bytes(SLOT_BYTES, cluster, request, tensor)
            found = memory(tensor_addr + slot * SLOT_BYTES, SLOT_BYTES)
            check((found == expected).all(), f"request {request} of cluster {cluster}")
    meeting.say(f"{len(pulled)} requests of both prefills, byte for byte")
    unlink(datadist, *clusters)
    meeting.exchange()
    manager.deallocate_cache(running)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prefill-1": prefill, "prefill-2": prefill, "decode-1": decode, "decode-2": decode})
