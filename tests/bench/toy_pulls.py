"""A contender with everything that could be left behind: another process, shared memory, a link."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory

from llmdd.bench.contender import Contender, require
from llmdd.bench.nodes import link, node
from llmdd.bench.other_end import OtherEnd

from llmdd import CacheDesc, CacheKey, DataType, LLMRole


class Owner:
    """Offers caches to whoever links."""

    def __init__(self) -> None:
        self._context = node(LLMRole.PROMPT, 1, 1 << 20, 12)
        datadist = self._context.__enter__()
        self.manager = datadist.cache_manager
        self.address = datadist.listen_address

    def where(self) -> tuple[str, int]:
        assert self.address is not None
        return self.address

    def offer(self, req_id: int) -> None:
        self.manager.deallocate_cache(
            self.manager.allocate_cache(CacheDesc(1, (1, 4096), DataType.DT_INT8), [CacheKey(1, req_id)])
        )

    def live(self) -> int:
        return self.manager.live_caches

    def close(self) -> None:
        self._context.__exit__(None, None, None)


class Pulls(Contender):
    """Pulls 4 KiB from an owner in another process."""

    def __init__(self) -> None:
        self.owner = OtherEnd(Owner)
        self.shared = SharedMemory(create=True, size=4096)
        self._context = node(LLMRole.DECODER, 2, 1 << 20, 12)
        datadist = self._context.__enter__()
        link(datadist, 1, self.owner.call("where"))
        self.manager = datadist.cache_manager
        self.cache = self.manager.allocate_cache(CacheDesc(1, (1, 4096), DataType.DT_INT8))
        self.number = 0

    def prepare(self, number: int) -> None:
        self.number = number
        self.owner.call("offer", number)

    def run(self) -> None:
        self.manager.pull_cache(CacheKey(1, self.number), self.cache)

    def verify(self) -> None:
        require(self.owner.call("live") == 0, "a key was not released")

    def other_processes(self) -> list[int]:
        return [self.owner.pid]

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        self.owner.close()
        self.shared.close()
        self.shared.unlink()
