"""Registered memory: NumPy arrays take part in transfers where they are, without a copy into a pool.

Both directions between memory that belongs to the program and memory that does not: decode pulls a request out of
arrays that prefill has registered, and another one into arrays of its own. A registered cache is never freed by the
library, and its memory is the program's alone again when ``unregister_cache`` has returned.
"""

import numpy as np
from llm_datadist import CacheDesc, CacheKey, DataType, LLMRole, LLMStatusCode, Placement
from numpy.typing import NDArray
from processes import (
    Meeting,
    check,
    check_pool_is_free,
    cluster_at,
    code_of,
    link,
    memory,
    run,
    start,
    unlink,
)

PROMPT, DECODER = 1, 2  # cluster ids
LAYERS, SHAPE = 2, (2, 64, 128)  # two slots in each tensor
SLOT_BYTES = 64 * 128 * 4
OWN = CacheDesc(2 * LAYERS, SHAPE, DataType.DT_FLOAT, Placement.HOST)
IN_POOL = CacheDesc(2 * LAYERS, SHAPE, DataType.DT_FLOAT, Placement.DEVICE)


def own_arrays() -> list[NDArray[np.float32]]:
    return [np.zeros(SHAPE, np.float32) for _ in range(2 * LAYERS)]


def content(request: int, tensor: int) -> NDArray[np.float32]:
    """What a slot of a request holds."""
    return np.random.default_rng((request, tensor)).standard_normal(SHAPE[1:], np.float32)


def prompt(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.PROMPT, PROMPT, listen_ip_info=address)
    manager = datadist.cache_manager

    arrays = own_arrays()
    registered = manager.register_cache(
        OWN, [array.ctypes.data for array in arrays], [CacheKey(PROMPT, req_id=100), CacheKey(PROMPT, req_id=101)]
    )
    for tensor, array in enumerate(arrays):  # written after it was registered: it is the same memory
        array[0], array[1] = content(100, tensor), content(101, tensor)
    allocated = manager.allocate_cache(IN_POOL, [CacheKey(PROMPT, req_id=200)])
    for tensor, tensor_addr in enumerate(allocated.tensor_addrs):
        memory(tensor_addr, SLOT_BYTES)[:] = content(200, tensor).view(np.uint8).ravel()
    manager.deallocate_cache(allocated)
    meeting.say("requests 100 and 101 are in arrays of ours, request 200 is in the pool")
    meeting.exchange(address)

    meeting.exchange()  # 100 and 200 are pulled
    manager.unregister_cache(registered.cache_id)
    for array in arrays:
        array[:] = np.nan  # ours alone again
    meeting.say("the arrays are unregistered, and used for something else")
    meeting.exchange()
    meeting.exchange()  # 101 was asked for in vain
    check_pool_is_free(datadist)
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    datadist = start(LLMRole.DECODER, DECODER)
    manager = datadist.cache_manager
    arrays = own_arrays()
    registered = manager.register_cache(OWN, [array.ctypes.data for array in arrays])
    allocated = manager.allocate_cache(IN_POOL)
    cluster = cluster_at(meeting.exchange()["prompt"], PROMPT, meeting.ip)
    link(datadist, cluster)

    manager.pull_cache(CacheKey(PROMPT, req_id=100), allocated, batch_index=1)
    for tensor, tensor_addr in enumerate(allocated.tensor_addrs):
        pulled = memory(tensor_addr + SLOT_BYTES, SLOT_BYTES)
        check(pulled.tobytes() == content(100, tensor).tobytes(), f"tensor {tensor} of request 100")
    meeting.say("request 100 came out of prefill's arrays into the pool, byte for byte")

    manager.pull_cache(CacheKey(PROMPT, req_id=200), registered, batch_index=1)
    for tensor, array in enumerate(arrays):
        check(array[1].tobytes() == content(200, tensor).tobytes(), f"tensor {tensor} of request 200")
        check(not array[0].any(), "the other slot is untouched")
    meeting.say("request 200 came out of prefill's pool into our arrays, byte for byte")

    meeting.exchange()
    meeting.exchange()  # prefill has unregistered its arrays
    late = code_of(manager.pull_cache, CacheKey(PROMPT, req_id=101), allocated)
    check(late == LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"request 101 has gone with them: {late.name}")
    meeting.say("request 101 went with the registration")

    unlink(datadist, cluster)
    meeting.exchange()
    manager.unregister_cache(registered.cache_id)
    manager.deallocate_cache(allocated)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
