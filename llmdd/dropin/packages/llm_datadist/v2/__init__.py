"""The CacheManager mode."""

from . import cache_manager as cache_manager
from . import config as config
from . import llm_datadist as llm_datadist
from . import llm_types as llm_types
from . import llm_utils as llm_utils
