"""Status codes, and the exception that carries one."""

from llmdd import LLMException as LLMException
from llmdd import LLMStatusCode as LLMStatusCode
from llmdd import Status as Status
