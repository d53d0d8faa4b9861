"""What a program does with its caches."""

from llmdd import CacheManager as CacheManager
