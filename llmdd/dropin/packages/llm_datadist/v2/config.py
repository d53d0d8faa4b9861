"""The options of an instance."""

from llmdd import LLMConfig as LLMConfig
from llmdd import LlmConfig as LlmConfig
