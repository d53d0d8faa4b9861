"""One instance of the library."""

from llmdd import LLMClusterInfo as LLMClusterInfo
from llmdd import LLMDataDist as LLMDataDist
from llmdd import LLMRole as LLMRole
from llmdd.datadist import _shutdown_handler as _shutdown_handler
