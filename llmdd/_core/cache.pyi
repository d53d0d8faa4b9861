from typing import Any

import numpy as np
import numpy.typing as npt

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.enumerations import DataType

NUMPY_TYPES: dict[DataType, np.dtype[Any]]

class Cache:
    @property
    def cache_id(self) -> int: ...
    @property
    def cache_desc(self) -> CacheDesc: ...
    @property
    def is_blocks_cache(self) -> bool: ...
    @property
    def tensor_addrs(self) -> list[int]: ...
    @property
    def tensors(self) -> list[npt.NDArray[Any]]: ...
    @staticmethod
    def create_cpu_cache(cache_desc: CacheDesc, addrs: list[int]) -> Cache: ...
