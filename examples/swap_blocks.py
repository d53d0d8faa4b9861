"""Host-side swap: decode preempts a sequence, its blocks go out to host memory and come in again later.

Decode's device memory is too small for two sequences. When a more urgent one arrives, the blocks of the first are
swapped out to a CPU cache, the urgent sequence is pulled into them and decoded, and the first comes in again, into
whatever blocks are then free. The CPU cache wraps memory of the program's own: here NumPy arrays.
"""

import numpy as np
from llm_datadist import BlocksCacheKey, Cache, CacheDesc, DataType, LLMRole, Placement
from numpy.typing import NDArray
from processes import Meeting, check, check_pool_is_free, cluster_at, link, memory, run, some_bytes, start, unlink

PROMPT, DECODER = 1, 2  # cluster ids
LAYERS, BLOCK_TOKENS, WIDTH = 2, 16, 128
BLOCK_BYTES = BLOCK_TOKENS * WIDTH * 2
FIRST, URGENT = 1, 2  # sequences


def cache_desc(blocks: int, placement: Placement = Placement.DEVICE) -> CacheDesc:
    return CacheDesc(2 * LAYERS, (blocks, BLOCK_TOKENS, WIDTH), DataType.DT_FLOAT16, placement)


def block_at(cache: Cache, tensor: int, block: int) -> NDArray[np.uint8]:
    return memory(cache.tensor_addrs[tensor] + block * BLOCK_BYTES, BLOCK_BYTES)


def holds(cache: Cache, block_table: list[int], sequence: int) -> bool:
    """Whether a sequence is in these blocks, byte for byte."""
    return all(
        (block_at(cache, tensor, block) == some_bytes(BLOCK_BYTES, sequence, tensor, place)).all()
        for tensor in range(2 * LAYERS)
        for place, block in enumerate(block_table)
    )


def prompt(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.PROMPT, PROMPT, listen_ip_info=address)
    manager = datadist.cache_manager
    cache = manager.allocate_blocks_cache(cache_desc(blocks=8), BlocksCacheKey(PROMPT))
    tables = {FIRST: [0, 1, 2], URGENT: [5, 7, 6]}
    for sequence, block_table in tables.items():
        for tensor in range(2 * LAYERS):
            for place, block in enumerate(block_table):
                block_at(cache, tensor, block)[:] = some_bytes(BLOCK_BYTES, sequence, tensor, place)
    meeting.exchange({"address": address, "first": tables[FIRST], "urgent": tables[URGENT]})
    meeting.exchange()
    manager.deallocate_blocks_cache(cache)
    check_pool_is_free(datadist)
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    datadist = start(LLMRole.DECODER, DECODER)
    manager = datadist.cache_manager
    device = manager.allocate_blocks_cache(cache_desc(blocks=4))
    arrays = [np.zeros((16, BLOCK_TOKENS, WIDTH), np.float16) for _ in range(2 * LAYERS)]
    host = Cache.create_cpu_cache(cache_desc(16, Placement.HOST), [array.ctypes.data for array in arrays])
    prefilled = meeting.exchange()["prompt"]
    cluster = cluster_at(prefilled["address"], PROMPT, meeting.ip)
    link(datadist, cluster)

    manager.pull_blocks(BlocksCacheKey(PROMPT), device, prefilled["first"], [2, 0, 1])
    check(holds(device, [2, 0, 1], FIRST), "the first sequence is pulled")
    meeting.say("the first sequence runs in device blocks [2, 0, 1] of 4")

    manager.swap_blocks(device, host, {2: 9, 0: 10, 1: 3})
    check(holds(host, [9, 10, 3], FIRST), "the first sequence is swapped out")
    meeting.say("it is swapped out to host blocks [9, 10, 3]")

    manager.pull_blocks(BlocksCacheKey(PROMPT), device, prefilled["urgent"], [1, 2, 0])
    check(holds(device, [1, 2, 0], URGENT), "the urgent sequence is pulled")
    for tensor in range(2 * LAYERS):  # decoding it writes on in its last block
        block_at(device, tensor, 0)[-WIDTH:] = 255
    manager.copy_blocks(device, {2: [3]})  # and forks it: block 3 is now in use, and stays so
    meeting.say("the urgent sequence runs in device blocks [1, 2, 0], and a beam of it keeps block 3")

    manager.swap_blocks(host, device, {9: 0, 10: 1, 3: 2})
    check(holds(device, [0, 1, 2], FIRST), "the first sequence is swapped in")
    check(all((block_at(device, t, 3) == some_bytes(BLOCK_BYTES, URGENT, t, 1)).all() for t in range(4)), "the beam")
    meeting.say("the first sequence runs on in device blocks [0, 1, 2], byte for byte")

    unlink(datadist, cluster)
    meeting.exchange()
    manager.deallocate_blocks_cache(device)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
