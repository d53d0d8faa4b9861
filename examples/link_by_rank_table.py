"""Links by rank table: three clusters call ``link`` all at once, and every pair of them is linked.

Nobody is server or client, and nobody has ``listen_ip_info``: the rank table, the same at every member, says where each
rank is met. ``link`` returns at once; ``query_register_mem_status`` says when the members are connected.
"""

import json
import time

from llm_datadist import CacheDesc, CacheKey, DataType, LLMRole, LLMStatusCode, RegisterMemStatus
from processes import Meeting, check, check_pool_is_free, code_of, memory, run, some_bytes, split, start

CLUSTER_OF_RANK = {0: 10, 1: 11, 2: 12}
SLOT_BYTES = 64 * 128 * 2
CONNECTED_WITHIN_S = 60.0


def rank_table(addresses: list[str]) -> str:
    """One server with a device for each rank, met at an address of its own."""
    devices = []
    for rank, (ip, port) in enumerate(map(split, addresses)):
        devices.append({"device_id": str(rank), "device_ip": ip, "device_port": str(port), "rank_id": str(rank)})
    server = {"server_id": "node-0", "device": devices}
    return json.dumps({"version": "1.0", "status": "completed", "server_count": "1", "server_list": [server]})


def member(meeting: Meeting) -> None:
    rank = int(meeting.name.removeprefix("rank-"))
    own_cluster = CLUSTER_OF_RANK[rank]
    others = [cluster for cluster in CLUSTER_OF_RANK.values() if cluster != own_cluster]
    datadist = start(LLMRole.MIX, own_cluster, link_total_time=60)
    manager = datadist.cache_manager
    desc = CacheDesc(num_tensors=2, shape=(len(others), 64, 128), data_type=DataType.DT_FLOAT16)

    # one slot for each other member, under a request id that names it
    offered = manager.allocate_cache(desc, [CacheKey(own_cluster, req_id=other) for other in others])
    for tensor, tensor_addr in enumerate(offered.tensor_addrs):
        for slot, other in enumerate(others):
            content = some_bytes(SLOT_BYTES, own_cluster, other, tensor)
            memory(tensor_addr + slot * SLOT_BYTES, SLOT_BYTES)[:] = content
    manager.deallocate_cache(offered)
    received = manager.allocate_cache(desc)

    addresses = meeting.exchange(meeting.free_address())
    table = rank_table([addresses[f"rank-{rank}"] for rank in CLUSTER_OF_RANK])
    communicator = datadist.link("pool", {cluster: rank for rank, cluster in CLUSTER_OF_RANK.items()}, table)
    deadline = time.monotonic() + CONNECTED_WITHIN_S
    while (status := datadist.query_register_mem_status(communicator)) == RegisterMemStatus.PREPARING:
        check(time.monotonic() < deadline, "the members are connected")
        time.sleep(0.005)
    check(status == RegisterMemStatus.OK, f"the members are connected: {status}")
    meeting.say(f"communicator {communicator} is {status.name}: linked to clusters {others}")

    meeting.exchange()  # everybody's status is OK
    for slot, other in enumerate(others):
        manager.pull_cache(CacheKey(other, req_id=own_cluster), received, batch_index=slot)
        for tensor, tensor_addr in enumerate(received.tensor_addrs):
            pulled = memory(tensor_addr + slot * SLOT_BYTES, SLOT_BYTES)
            check((pulled == some_bytes(SLOT_BYTES, other, own_cluster, tensor)).all(), f"tensor {tensor} of {other}")
    meeting.say(f"pulled from clusters {others}, byte for byte")

    meeting.exchange()  # everybody has pulled
    datadist.unlink(communicator)
    after = code_of(manager.pull_cache, CacheKey(others[0], req_id=own_cluster), received)
    check(after == LLMStatusCode.LLM_NOT_YET_LINK, f"no transfer after unlink: {after.name}")
    manager.deallocate_cache(received)
    check_pool_is_free(datadist)
    meeting.exchange()
    datadist.finalize()


if __name__ == "__main__":
    run({f"rank-{rank}": member for rank in CLUSTER_OF_RANK})
