"""Cache to blocks: prefill computes in one continuous slot, decode serves by paged attention.

The slot is cut into blocks on its way. The last one is filled only as far as the slot reaches; what lies behind in it
keeps the bytes that it had.
"""

from llm_datadist import CacheDesc, CacheKey, DataType, LLMRole, LLMStatusCode
from processes import (
    Meeting,
    check,
    check_pool_is_free,
    cluster_at,
    code_of,
    link,
    memory,
    run,
    some_bytes,
    start,
    unlink,
)

PROMPT, DECODER = 1, 2  # cluster ids
REQUEST = 100
LAYERS, WIDTH = 2, 128
TOKENS, BLOCK_TOKENS = 40, 16  # two whole blocks and a half
TOKEN_BYTES = WIDTH * 2
SLOT_BYTES, BLOCK_BYTES = TOKENS * TOKEN_BYTES, BLOCK_TOKENS * TOKEN_BYTES


def prompt(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.PROMPT, PROMPT, listen_ip_info=address)
    manager = datadist.cache_manager
    desc = CacheDesc(num_tensors=2 * LAYERS, shape=(2, TOKENS, WIDTH), data_type=DataType.DT_FLOAT16)
    cache = manager.allocate_cache(desc, [CacheKey(PROMPT, req_id=REQUEST)])
    for tensor, tensor_addr in enumerate(cache.tensor_addrs):
        memory(tensor_addr, SLOT_BYTES)[:] = some_bytes(SLOT_BYTES, tensor)
        memory(tensor_addr + SLOT_BYTES, SLOT_BYTES)[:] = 255  # the next slot, nobody's
    manager.deallocate_cache(cache)
    meeting.say(f"{TOKENS} tokens are in one slot of {SLOT_BYTES} bytes")
    meeting.exchange(address)

    meeting.exchange()  # decode has pulled the request
    check_pool_is_free(datadist)
    meeting.say("the request was pulled: the pool is free")
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    datadist = start(LLMRole.DECODER, DECODER)
    manager = datadist.cache_manager
    desc = CacheDesc(num_tensors=2 * LAYERS, shape=(8, BLOCK_TOKENS, WIDTH), data_type=DataType.DT_FLOAT16)
    cache = manager.allocate_blocks_cache(desc)
    for tensor_addr in cache.tensor_addrs:
        memory(tensor_addr, 8 * BLOCK_BYTES)[:] = 7
    prompt_cluster = cluster_at(meeting.exchange()["prompt"], PROMPT, meeting.ip)
    link(datadist, prompt_cluster)

    block_table = [6, 1, 3]
    manager.pull_blocks(CacheKey(PROMPT, req_id=REQUEST), cache, src_blocks=[], dst_blocks=block_table)
    for tensor, tensor_addr in enumerate(cache.tensor_addrs):
        slot = some_bytes(SLOT_BYTES, tensor)
        for place, block in enumerate(block_table):
            part = slot[place * BLOCK_BYTES : (place + 1) * BLOCK_BYTES]
            pulled = memory(tensor_addr + block * BLOCK_BYTES, BLOCK_BYTES)
            check((pulled[: len(part)] == part).all(), f"block {block} of tensor {tensor}")
            check((pulled[len(part) :] == 7).all(), f"what lies behind the last token in block {block}")
    meeting.say(f"they are in blocks {block_table} of {BLOCK_BYTES} bytes, byte for byte; the last is filled half-way")
    again = code_of(manager.pull_blocks, CacheKey(PROMPT, req_id=REQUEST), cache, dst_blocks=[0])
    check(again == LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, "a request is pulled once")

    unlink(datadist, prompt_cluster)
    meeting.exchange()
    manager.deallocate_blocks_cache(cache)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
