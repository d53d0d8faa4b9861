"""Status codes, and the exception that carries one."""

from __future__ import annotations

from enum import IntEnum

_BASE = 0x5010B000


class LLMStatusCode(IntEnum):
    """How a call ended (api §1.2). The values are those of LLM-DataDist."""

    LLM_SUCCESS = 0
    LLM_FAILED = 0xFFFFFFFF
    LLM_WAIT_PROCESS_TIMEOUT = _BASE + 1
    LLM_KV_CACHE_NOT_EXIST = _BASE + 2
    LLM_REPEAT_REQUEST = _BASE + 3
    LLM_REQUEST_ALREADY_COMPLETED = _BASE + 4
    LLM_PARAM_INVALID = _BASE + 5
    LLM_ENGINE_FINALIZED = _BASE + 6
    LLM_NOT_YET_LINK = _BASE + 7
    LLM_ALREADY_LINK = _BASE + 8
    LLM_LINK_FAILED = _BASE + 9
    LLM_UNLINK_FAILED = _BASE + 10
    LLM_NOTIFY_PROMPT_UNLINK_FAILED = _BASE + 11
    LLM_CLUSTER_NUM_EXCEED_LIMIT = _BASE + 12
    LLM_PROCESSING_LINK = _BASE + 13
    LLM_DEVICE_OUT_OF_MEMORY = _BASE + 14
    LLM_PREFIX_ALREADY_EXIST = _BASE + 15
    LLM_PREFIX_NOT_EXIST = _BASE + 16
    LLM_SEQ_LENOVERLIMIT = _BASE + 17
    LLM_NO_FREE_BLOCK = _BASE + 18
    LLM_BLOCKS_OUT_OF_MEMORY = _BASE + 19
    LLM_EXIST_LINK = _BASE + 24
    LLM_FEATURE_NOT_ENABLED = _BASE + 25
    LLM_TIMEOUT = _BASE + 26
    LLM_LINK_BUSY = _BASE + 27
    LLM_OUT_OF_MEMORY = _BASE + 28
    LLM_DEVICE_MEM_ERROR = 507053
    LLM_SUSPECT_REMOTE_ERROR = 507057
    LLM_UNKNOWN_ERROR = -1

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class LLMException(RuntimeError):
    """A call that broke the contract, or could not be carried out; :attr:`status_code` says which (api §1.3)."""

    def __init__(self, *args: object, status_code: LLMStatusCode = LLMStatusCode.LLM_SUCCESS) -> None:
        super().__init__(*args)
        self._status_code = status_code

    @property
    def status_code(self) -> LLMStatusCode:
        return self._status_code

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_exception, (self.args, self._status_code)


def _restore_exception(args: tuple[object, ...], status_code: LLMStatusCode) -> LLMException:
    return LLMException(*args, status_code=status_code)


class MissingArgument(AttributeError, TypeError):
    """None where a value is required: an AttributeError as documented (api D68), and a TypeError (seed §6)."""


class Status:
    """A status code as an object; kept because existing programs import it (api §1.3)."""

    def __init__(self, status: LLMStatusCode) -> None:
        self._status = status

    def is_ok(self) -> bool:
        return self._status == LLMStatusCode.LLM_SUCCESS

    @property
    def status_code(self) -> LLMStatusCode:
        return self._status


def failure(tag: str, status_code: LLMStatusCode, detail: str) -> LLMException:
    """The exception for a call that failed after its arguments were accepted (api §1.3).

    Examples
    --------
    >>> print(failure("pull_cache", LLMStatusCode.LLM_TIMEOUT, "1000 ms have passed"))
    [pull_cache] failed, error code is LLMStatusCode.LLM_TIMEOUT, 1000 ms have passed.
    """
    return LLMException(f"[{tag}] failed, error code is {status_code}, {detail}.", status_code=status_code)


def invalid(message: str) -> LLMException:
    """The exception for an argument that breaks the contract."""
    return LLMException(message, status_code=LLMStatusCode.LLM_PARAM_INVALID)
