"""Pull blocks: paged attention at both ends, each with a block table of its own.

Prefill has written a sequence into whatever blocks were free; decode pulls it into blocks that are free there. A
``BlocksCacheKey`` names the blocks cache of a model as a whole, and is never released by a pull: prefill's block
manager, told that the pull is over, takes the blocks for the next sequence.
"""

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMRole
from processes import Meeting, check, check_pool_is_free, cluster_at, link, memory, run, some_bytes, start, unlink

PROMPT, DECODER = 1, 2  # cluster ids
MODEL = 7
LAYERS, BLOCK_TOKENS, WIDTH = 2, 16, 128
BLOCK_BYTES = BLOCK_TOKENS * WIDTH * 2


def cache_desc(blocks: int) -> CacheDesc:
    return CacheDesc(num_tensors=2 * LAYERS, shape=(blocks, BLOCK_TOKENS, WIDTH), data_type=DataType.DT_BF16)


def prompt(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.PROMPT, PROMPT, listen_ip_info=address)
    manager = datadist.cache_manager
    cache = manager.allocate_blocks_cache(cache_desc(blocks=10), BlocksCacheKey(PROMPT, MODEL))
    meeting.exchange(address)

    for block_table in ([7, 2, 5], [2, 9]):
        for tensor, tensor_addr in enumerate(cache.tensor_addrs):
            for place, block in enumerate(block_table):
                content = some_bytes(BLOCK_BYTES, len(block_table), tensor, place)
                memory(tensor_addr + block * BLOCK_BYTES, BLOCK_BYTES)[:] = content
        meeting.say(f"a sequence is in blocks {block_table}")
        meeting.exchange(block_table)
        meeting.exchange()  # it is pulled: its blocks may be used again

    meeting.exchange()
    manager.deallocate_blocks_cache(cache)
    check_pool_is_free(datadist)
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    datadist = start(LLMRole.DECODER, DECODER)
    manager = datadist.cache_manager
    cache = manager.allocate_blocks_cache(cache_desc(blocks=20))
    for tensor_addr in cache.tensor_addrs:
        memory(tensor_addr, 20 * BLOCK_BYTES)[:] = 0
    prompt_cluster = cluster_at(meeting.exchange()["prompt"], PROMPT, meeting.ip)
    link(datadist, prompt_cluster)

    for block_table in ([0, 19, 4], [11, 3]):
        table_there = meeting.exchange()["prompt"]
        manager.pull_blocks(BlocksCacheKey(PROMPT, MODEL), cache, src_blocks=table_there, dst_blocks=block_table)
        for tensor, tensor_addr in enumerate(cache.tensor_addrs):
            for place, block in enumerate(block_table):
                pulled = memory(tensor_addr + block * BLOCK_BYTES, BLOCK_BYTES)
                expected = some_bytes(BLOCK_BYTES, len(block_table), tensor, place)
                check((pulled == expected).all(), f"block {block} of tensor {tensor}")
        meeting.say(f"blocks {table_there} of prefill are in blocks {block_table} here, byte for byte")
        meeting.exchange()

    for tensor_addr in cache.tensor_addrs:
        for block in set(range(20)) - {0, 19, 4, 11, 3}:
            check(not memory(tensor_addr + block * BLOCK_BYTES, BLOCK_BYTES).any(), f"block {block} is untouched")
    meeting.say("all other blocks are untouched")
    unlink(datadist, prompt_cluster)
    meeting.exchange()
    manager.deallocate_blocks_cache(cache)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
