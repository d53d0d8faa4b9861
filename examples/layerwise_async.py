"""Layer-wise transfer: a layer's KV cache is on its way while the model computes the next one.

Prefill starts ``transfer_cache_async`` before it computes anything. The transfer's thread asks a ``LayerSynchronizer``
for each layer, which waits for the event that the model sets when it has computed that layer.

To prove the order, and not for any use, the model waits after each layer until decode has said that it has seen the
layer in its own memory: so layer ``i`` arrived before layer ``i + 1`` was computed.
"""

import hashlib
import threading
import time

import numpy as np
from llm_datadist import CacheDesc, DataType, LayerSynchronizer, LLMRole, LLMStatusCode, TransferConfig
from numpy.typing import NDArray
from processes import Meeting, check, check_pool_is_free, cluster_at, link, memory, run, start, unlink

PROMPT, DECODER = 1, 2  # cluster ids
LAYERS, TOKENS, WIDTH = 4, 64, 128
SLOT_BYTES = TOKENS * WIDTH * 4
ARRIVES_WITHIN_S = 60.0


def cache_desc(slots: int) -> CacheDesc:
    return CacheDesc(num_tensors=2 * LAYERS, shape=(slots, TOKENS, WIDTH), data_type=DataType.DT_FLOAT)


class Model:
    """Layers of projections and tanh; enough to need each layer's result for the next."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.hidden = random.standard_normal((TOKENS, WIDTH), np.float32)
        self.weights = random.standard_normal((LAYERS, 3, WIDTH, WIDTH), np.float32) / WIDTH**0.5

    def compute(self, layer: int, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Compute one layer, its keys and values right into the cache."""
        to_keys, to_values, onward = self.weights[layer]
        keys[:] = self.hidden @ to_keys
        values[:] = self.hidden @ to_values
        self.hidden = np.tanh(self.hidden @ onward + values)


class WhenComputed(LayerSynchronizer):
    """Lets a layer go when the model has computed it."""

    def __init__(self) -> None:
        self.computed = [threading.Event() for _ in range(LAYERS)]

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return self.computed[layer_index].wait(None if timeout_in_millis is None else timeout_in_millis / 1000)


def digest(parts: list[NDArray[np.uint8]]) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def prompt(meeting: Meeting) -> None:
    datadist = start(LLMRole.PROMPT, PROMPT)
    manager = datadist.cache_manager
    cache = manager.allocate_cache(cache_desc(slots=2))
    there = meeting.exchange()["decoder"]
    decoder_cluster = cluster_at(there["address"], DECODER, meeting.ip)
    link(datadist, decoder_cluster)

    slot = [memory(tensor_addr + SLOT_BYTES, SLOT_BYTES) for tensor_addr in cache.tensor_addrs]  # slot 1
    synchronizer, model = WhenComputed(), Model()
    config = TransferConfig(DECODER, there["slot_addrs"], range(LAYERS), src_batch_index=1)
    task = manager.transfer_cache_async(cache, synchronizer, [config])
    check(task.synchronize(timeout_in_millis=1) == LLMStatusCode.LLM_TIMEOUT, "no layer is computed yet")
    for layer in range(LAYERS):
        keys, values = (part.view(np.float32).reshape(TOKENS, WIDTH) for part in slot[2 * layer : 2 * layer + 2])
        model.compute(layer, keys, values)
        meeting.say(f"layer {layer} is computed")
        synchronizer.computed[layer].set()
        meeting.exchange(digest(slot[2 * layer : 2 * layer + 2]))
        meeting.exchange()  # decode has seen it
    check(task.synchronize() == LLMStatusCode.LLM_SUCCESS, f"all layers are sent: {task.get_results()}")

    unlink(datadist, decoder_cluster)
    manager.deallocate_cache(cache)
    check_pool_is_free(datadist)
    meeting.exchange()
    datadist.finalize()


def decoder(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.DECODER, DECODER, listen_ip_info=address)
    manager = datadist.cache_manager
    running = manager.allocate_cache(cache_desc(slots=4))
    slot_addrs = [tensor_addr + 3 * SLOT_BYTES for tensor_addr in running.tensor_addrs]
    slot = [memory(slot_addr, SLOT_BYTES) for slot_addr in slot_addrs]
    for part in slot:
        part[:] = 0
    meeting.exchange({"address": address, "slot_addrs": slot_addrs})

    for layer in range(LAYERS):
        expected = meeting.exchange()["prompt"]
        deadline = time.monotonic() + ARRIVES_WITHIN_S
        while digest(slot[2 * layer : 2 * layer + 2]) != expected:
            check(time.monotonic() < deadline, f"layer {layer} arrives")
            time.sleep(0.001)
        check(not any(part.any() for part in slot[2 * layer + 2 :]), "no later layer is there")
        meeting.say(f"layer {layer} is here, byte for byte, and no later one")
        meeting.exchange()

    meeting.exchange()
    manager.deallocate_cache(running)
    check_pool_is_free(datadist)
    datadist.finalize()


if __name__ == "__main__":
    run({"prompt": prompt, "decoder": decoder})
