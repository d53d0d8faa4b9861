"""Push blocks: prefill writes a sequence into the blocks that decode's block manager has picked for it.

As push_cache.py, with paged attention at both ends: decode says which of its blocks are to take the sequence, prefill
computes it in blocks of its own, and pushes block by block as they fill. Pushing releases no key.
"""

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMRole
from processes import Meeting, check, check_pool_is_free, cluster_at, link, memory, run, some_bytes, start, unlink

PROMPT, DECODER = 1, 2  # cluster ids
LAYERS, BLOCK_TOKENS, WIDTH = 3, 16, 128
BLOCK_BYTES = BLOCK_TOKENS * WIDTH * 2


def cache_desc(blocks: int) -> CacheDesc:
    return CacheDesc(num_tensors=2 * LAYERS, shape=(blocks, BLOCK_TOKENS, WIDTH), data_type=DataType.DT_FLOAT16)


def prompt(meeting: Meeting) -> None:
    datadist = start(LLMRole.PROMPT, PROMPT, enable_remote_cache_accessible=True)
    manager = datadist.cache_manager
    cache = manager.allocate_blocks_cache(cache_desc(blocks=8))
    there = meeting.exchange()["decoder"]
    decoder_cluster = cluster_at(there["address"], DECODER, meeting.ip)
    link(datadist, decoder_cluster)

    for place, (block, block_there) in enumerate(zip([6, 0, 3], there["block_table"], strict=True)):
        for tensor, tensor_addr in enumerate(cache.tensor_addrs):
            memory(tensor_addr + block * BLOCK_BYTES, BLOCK_BYTES)[:] = some_bytes(BLOCK_BYTES, tensor, place)
        manager.push_blocks(BlocksCacheKey(DECODER), cache, src_blocks=[block], dst_blocks=[block_there])
        meeting.say(f"block {block} is full and pushed to block {block_there}")
    unlink(datadist, decoder_cluster)
    meeting.exchange()

    manager.deallocate_blocks_cache(cache)
    check_pool_is_free(datadist)
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.DECODER, DECODER, listen_ip_info=address, enable_remote_cache_accessible=True)
    manager = datadist.cache_manager
    cache = manager.allocate_blocks_cache(cache_desc(blocks=12), BlocksCacheKey(DECODER))
    for tensor_addr in cache.tensor_addrs:
        memory(tensor_addr, 12 * BLOCK_BYTES)[:] = 0
    block_table = [11, 4, 5]
    meeting.exchange({"address": address, "block_table": block_table})

    meeting.exchange()  # prefill has pushed the whole sequence
    for tensor, tensor_addr in enumerate(cache.tensor_addrs):
        for place, block in enumerate(block_table):
            pushed = memory(tensor_addr + block * BLOCK_BYTES, BLOCK_BYTES)
            check((pushed == some_bytes(BLOCK_BYTES, tensor, place)).all(), f"block {block} of tensor {tensor}")
        for block in set(range(12)) - set(block_table):
            check(not memory(tensor_addr + block * BLOCK_BYTES, BLOCK_BYTES).any(), f"block {block} is untouched")
    meeting.say(f"the sequence is in blocks {block_table}, byte for byte, and the other blocks are untouched")

    manager.deallocate_blocks_cache(cache)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
