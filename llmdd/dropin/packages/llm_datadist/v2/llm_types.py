"""Caches, keys and what else calls take and give."""

from llmdd import BlocksCacheKey as BlocksCacheKey
from llmdd import Cache as Cache
from llmdd import CacheDesc as CacheDesc
from llmdd import CacheKey as CacheKey
from llmdd import CacheKeyByIdAndIndex as CacheKeyByIdAndIndex
from llmdd import DataType as DataType
from llmdd import KvCache as KvCache
from llmdd import MemInfo as MemInfo
from llmdd import Memtype as Memtype
from llmdd import Placement as Placement
from llmdd import PushType as PushType
from llmdd import RegisterMemStatus as RegisterMemStatus
