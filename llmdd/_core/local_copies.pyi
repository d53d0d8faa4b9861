from llmdd._core.cache import Cache
from llmdd._core.exported_caches import ExportedCaches

class LocalCopies(ExportedCaches):
    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None: ...
    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None: ...
    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None: ...
