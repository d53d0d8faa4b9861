"""What an instance is made of: its role, its options, the clusters it links to."""

from llmdd import LLMClusterInfo as LLMClusterInfo
from llmdd import LLMConfig as LLMConfig
from llmdd import LlmConfig as LlmConfig
from llmdd import LLMRole as LLMRole
