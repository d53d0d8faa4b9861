"""KV-cache lifecycle and transfer for disaggregated LLM serving, with the API of LLM-DataDist.

>>> config = LLMConfig()
>>> config.enable_cache_manager = True
>>> config.mem_pool_cfg = '{"memory_size": 1048576}'
>>> datadist = LLMDataDist(LLMRole.PROMPT, cluster_id=1)
>>> datadist.init(config.generate_options())
>>> cache = datadist.cache_manager.allocate_cache(CacheDesc(2, (1, 64), DataType.DT_FLOAT16), [CacheKey(1, req_id=7)])
>>> datadist.finalize()
"""

from __future__ import annotations

from typing import NoReturn

try:
    from llmdd._core.tables import LAYOUT_VERSION as LAYOUT_VERSION
    from llmdd._core.tables import SPEC_CHECKSUM as SPEC_CHECKSUM
except ModuleNotFoundError as error:
    if not str(error.name).startswith("llmdd."):
        raise
    raise ImportError(
        f"llmdd is imported from {__path__[0]}, where its compiled core is missing ({error.name}). If that is its "
        "source folder, install it (python3 -m venv .venv && .venv/bin/pip install .) and start Python in another "
        "folder, or by a script such as .venv/bin/pytest that does not put the current folder first on the path."
    ) from error

from llmdd._core.cache import Cache
from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import DataType, LLMRole, Memtype, Placement, RegisterMemStatus
from llmdd._core.enumerations import PushType as PushType
from llmdd._core.status import LLMException, LLMStatusCode, Status
from llmdd._core.store import PoolUsage as PoolUsage
from llmdd.cache_manager import CacheManager as CacheManager
from llmdd.cluster_info import LLMClusterInfo
from llmdd.configuration import LLMConfig, LlmConfig
from llmdd.datadist import LLMDataDist
from llmdd.layerwise import CacheTask
from llmdd.transfer_description import KvCache, LayerSynchronizer, MemInfo, TransferConfig, TransferWithCacheKeyConfig

__version__ = "0.1.0"

# What LLM-DataDist exports, in its order (api §1.1); what llmdd has beyond that is an attribute only.
__all__ = [  # noqa: RUF022
    "LLMClusterInfo",
    "LLMStatusCode",
    "LLMException",
    "LLMRole",
    "LlmConfig",
    "LLMConfig",
    "DataType",
    "Status",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "KvCache",
    "Cache",
    "BlocksCacheKey",
    "LLMDataDist",
    "Placement",
    "RegisterMemStatus",
    "LayerSynchronizer",
    "TransferConfig",
    "CacheTask",
    "TransferWithCacheKeyConfig",
    "Memtype",
    "MemInfo",
]
v2_list = __all__

_OF_THE_OLDER_API = frozenset({"TensorDesc", "Tensor", "KvCacheManager"})


def __getattr__(name: str) -> NoReturn:
    if name in _OF_THE_OLDER_API:
        raise ImportError(f"{name} belongs to the older API of LLM-DataDist (v1), which {__name__} does not have")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
