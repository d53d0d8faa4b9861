"""Layer-wise transfers."""

from llmdd import CacheTask as CacheTask
from llmdd import LayerSynchronizer as LayerSynchronizer
from llmdd import TransferConfig as TransferConfig
from llmdd import TransferWithCacheKeyConfig as TransferWithCacheKeyConfig
