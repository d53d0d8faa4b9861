"""Role switch: a prompt becomes a decoder when there is more to decode than to prefill, and back.

Whoever is prompt listens, and the other one links to it. A switch takes the listener along: ``switch_role`` with an
address listens there, without one it stops listening. Links must be gone before.
"""

import socket

from llm_datadist import CacheDesc, CacheKey, DataType, LLMDataDist, LLMRole, LLMStatusCode
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
    split,
    start,
    unlink,
)

CLUSTERS = {"first": 1, "second": 2}
SLOT_BYTES = 64 * 128 * 2
DESC = CacheDesc(num_tensors=2, shape=(1, 64, 128), data_type=DataType.DT_FLOAT16)


def prefill_one(meeting: Meeting, datadist: LLMDataDist, address: str, request: int) -> None:
    """Hand one request over to the other process."""
    own_cluster, manager = CLUSTERS[meeting.name], datadist.cache_manager
    cache = manager.allocate_cache(DESC, [CacheKey(own_cluster, req_id=request)])
    for tensor, tensor_addr in enumerate(cache.tensor_addrs):
        memory(tensor_addr, SLOT_BYTES)[:] = some_bytes(SLOT_BYTES, request, tensor)
    manager.deallocate_cache(cache)
    meeting.exchange({"address": address, "cluster": own_cluster})
    meeting.exchange()  # it is pulled; the link stands
    refused = code_of(datadist.switch_role, LLMRole.DECODER)
    check(refused == LLMStatusCode.LLM_EXIST_LINK, f"no switch while a link stands: {refused.name}")
    meeting.exchange()  # let the other one unlink
    meeting.exchange()  # it has
    check_pool_is_free(datadist)


def decode_one(meeting: Meeting, datadist: LLMDataDist, request: int) -> None:
    """Take one request over from the other process, which listens."""
    manager = datadist.cache_manager
    cache = manager.allocate_cache(DESC)
    [prefilled] = [value for value in meeting.exchange().values() if value]
    cluster = cluster_at(prefilled["address"], prefilled["cluster"], meeting.ip)
    link(datadist, cluster)
    manager.pull_cache(CacheKey(prefilled["cluster"], req_id=request), cache)
    for tensor, tensor_addr in enumerate(cache.tensor_addrs):
        check((memory(tensor_addr, SLOT_BYTES) == some_bytes(SLOT_BYTES, request, tensor)).all(), f"request {request}")
    meeting.say(f"request {request} came from cluster {prefilled['cluster']} at {prefilled['address']}, byte for byte")
    meeting.exchange()
    meeting.exchange()
    unlink(datadist, cluster)
    meeting.exchange()
    manager.deallocate_cache(cache)
    check_pool_is_free(datadist)


def check_nobody_listens(address: str) -> None:
    """See that an address was given up: somebody else may listen there."""
    socket.create_server(split(address)).close()


def first(meeting: Meeting) -> None:
    address = meeting.free_address()
    datadist = start(LLMRole.PROMPT, CLUSTERS["first"], listen_ip_info=address)
    prefill_one(meeting, datadist, address, request=100)
    datadist.switch_role(LLMRole.DECODER)
    check_nobody_listens(address)
    meeting.say("a decoder now, and not listening any more")
    decode_one(meeting, datadist, request=101)
    address = meeting.free_address()
    datadist.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": address})
    meeting.say(f"a prompt again, at {address}")
    prefill_one(meeting, datadist, address, request=102)
    datadist.finalize()


def second(meeting: Meeting) -> None:
    datadist = start(LLMRole.DECODER, CLUSTERS["second"])
    decode_one(meeting, datadist, request=100)
    address = meeting.free_address()
    datadist.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": address})
    meeting.say(f"a prompt now, at {address}")
    prefill_one(meeting, datadist, address, request=101)
    datadist.switch_role(LLMRole.DECODER)
    check_nobody_listens(address)
    meeting.say("a decoder again")
    decode_one(meeting, datadist, request=102)
    datadist.finalize()


if __name__ == "__main__":
    run({"first": first, "second": second})
