"""Push: prefill writes a request's KV cache into a slot that decode has set aside, layer by layer.

Pushing needs ``enable_remote_cache_accessible`` at both ends. The destination is named by the id of decode's cache and
the index of the slot. Prefill links to decode here, so decode is the one that listens.
"""

from llm_datadist import CacheDesc, CacheKeyByIdAndIndex, DataType, LLMRole
from processes import Meeting, check, check_pool_is_free, cluster_at, link, memory, run, some_bytes, start, unlink

PROMPT, DECODER = 1, 2  # cluster ids
LAYERS, TOKENS, WIDTH = 4, 64, 128
SLOT_BYTES = TOKENS * WIDTH * 2


def cache_desc(slots: int) -> CacheDesc:
    return CacheDesc(num_tensors=2 * LAYERS, shape=(slots, TOKENS, WIDTH), data_type=DataType.DT_FLOAT16)


def prompt(meeting: Meeting) -> None:
    datadist = start(LLMRole.PROMPT, PROMPT, enable_remote_cache_accessible=True)
    manager = datadist.cache_manager
    cache = manager.allocate_cache(cache_desc(slots=2))
    free = meeting.exchange()["decoder"]
    decoder_cluster = cluster_at(free["address"], DECODER, meeting.ip)
    link(datadist, decoder_cluster)

    slot = CacheKeyByIdAndIndex(DECODER, free["cache_id"], free["slot"])
    for layer in range(LAYERS):
        for tensor in (2 * layer, 2 * layer + 1):  # two tensors to a layer: keys and values
            memory(cache.tensor_addrs[tensor] + SLOT_BYTES, SLOT_BYTES)[:] = some_bytes(SLOT_BYTES, tensor)
        this_layer = range(layer, layer + 1)
        manager.push_cache(slot, cache, src_batch_index=1, src_layer_range=this_layer, dst_layer_range=this_layer)
        meeting.say(f"layer {layer} is computed and pushed")
    unlink(datadist, decoder_cluster)
    meeting.exchange()

    manager.deallocate_cache(cache)
    check_pool_is_free(datadist)
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.DECODER, DECODER, listen_ip_info=address, enable_remote_cache_accessible=True)
    manager = datadist.cache_manager
    running = manager.allocate_cache(cache_desc(slots=4))
    for tensor_addr in running.tensor_addrs:
        memory(tensor_addr, 4 * SLOT_BYTES)[:] = 0
    meeting.say(f"slot 3 of cache {running.cache_id} is set aside for a request")
    meeting.exchange({"address": address, "cache_id": running.cache_id, "slot": 3})

    meeting.exchange()  # prefill has pushed every layer
    for tensor, tensor_addr in enumerate(running.tensor_addrs):
        pushed = memory(tensor_addr + 3 * SLOT_BYTES, SLOT_BYTES)
        check((pushed == some_bytes(SLOT_BYTES, tensor)).all(), f"tensor {tensor} of the request")
        check(not memory(tensor_addr, 3 * SLOT_BYTES).any(), "the other slots are untouched")
    meeting.say("the request is there, byte for byte, and the other slots are untouched")

    manager.deallocate_cache(running)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
