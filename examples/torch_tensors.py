"""Torch tensors: the paged KV cache of an engine, registered by the addresses of its tensors.

An engine has allocated keys and values of every layer itself, as tensors of blocks. ``register_blocks_cache`` takes
their ``data_ptr()``; a pull then goes from tensors to tensors. The tensors must live, and stay where they are, until
``unregister_cache``.

Exits with status 77 where torch is not installed.
"""

import sys

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMRole, Placement
from processes import Meeting, check, cluster_at, link, run, start, unlink

try:
    import torch
except ModuleNotFoundError:
    print("torch is not installed: see examples/README.md")
    sys.exit(77)

PROMPT, DECODER = 1, 2  # cluster ids
LAYERS, BLOCK_TOKENS, HEADS, HEAD_WIDTH = 2, 16, 4, 32


def kv_caches(blocks: int) -> list[torch.Tensor]:
    """Keys and values of every layer; on an accelerator they would be there, and the rest the same."""
    return [torch.zeros(blocks, BLOCK_TOKENS, HEADS, HEAD_WIDTH, dtype=torch.bfloat16) for _ in range(2 * LAYERS)]


def cache_desc(tensors: list[torch.Tensor]) -> CacheDesc:
    return CacheDesc(len(tensors), tuple(tensors[0].shape), DataType.DT_BF16, Placement.DEVICE)


def sequence(tensor: int) -> torch.Tensor:
    """Three blocks of a sequence, the same in both processes."""
    random = torch.Generator().manual_seed(tensor)
    return torch.randn(3, BLOCK_TOKENS, HEADS, HEAD_WIDTH, generator=random).bfloat16()


def prompt(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.PROMPT, PROMPT, listen_ip_info=address)
    manager = datadist.cache_manager
    tensors = kv_caches(blocks=10)
    addrs = [tensor.data_ptr() for tensor in tensors]
    registered = manager.register_blocks_cache(cache_desc(tensors), addrs, BlocksCacheKey(PROMPT))

    block_table = [8, 3, 4]
    for index, tensor in enumerate(tensors):
        tensor[block_table] = sequence(index)
    meeting.say(f"a sequence is in blocks {block_table} of {len(tensors)} tensors {tuple(tensors[0].shape)}")
    meeting.exchange({"address": address, "block_table": block_table})
    meeting.exchange()
    manager.unregister_cache(registered.cache_id)
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    datadist = start(LLMRole.DECODER, DECODER)
    manager = datadist.cache_manager
    tensors = kv_caches(blocks=6)
    registered = manager.register_blocks_cache(cache_desc(tensors), [tensor.data_ptr() for tensor in tensors])
    prefilled = meeting.exchange()["prompt"]
    cluster = cluster_at(prefilled["address"], PROMPT, meeting.ip)
    link(datadist, cluster)

    block_table, others = [0, 5, 2], [1, 3, 4]
    manager.pull_blocks(BlocksCacheKey(PROMPT), registered, prefilled["block_table"], block_table)
    for index, tensor in enumerate(tensors):
        pulled, expected = tensor[block_table].view(torch.uint8), sequence(index).view(torch.uint8)
        check(torch.equal(pulled, expected), f"the sequence in tensor {index}")
        check(not tensor[others].any(), "the other blocks are untouched")
    meeting.say(f"it is in blocks {block_table} here, byte for byte, and the other blocks are untouched")

    unlink(datadist, cluster)
    meeting.exchange()
    manager.unregister_cache(registered.cache_id)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
