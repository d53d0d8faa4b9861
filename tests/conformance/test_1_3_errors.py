"""api §1.3: the exception, the status object, the messages."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from llmdd import (
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Status,
)


def test_llm_exception_is_a_runtime_error() -> None:
    """api §1.3: ``LLMException(RuntimeError)``, ``__init__(*args, status_code=LLM_SUCCESS)``."""
    error = LLMException("one", 2)
    assert isinstance(error, RuntimeError)
    assert error.args == ("one", 2)
    assert error.status_code is LLMStatusCode.LLM_SUCCESS
    assert LLMException(status_code=LLMStatusCode.LLM_TIMEOUT).status_code is LLMStatusCode.LLM_TIMEOUT


def test_status_code_is_read_only() -> None:
    """api §1.3: ``status_code`` is a read-only property."""
    error = LLMException("text", status_code=LLMStatusCode.LLM_TIMEOUT)
    with pytest.raises(AttributeError):
        error.status_code = LLMStatusCode.LLM_SUCCESS  # type: ignore[misc]


def test_none_is_raised_with_success() -> None:
    """api §1.3, D67: llmdd never raises one whose code is LLM_SUCCESS."""
    for desc in (CacheDesc(1, (0, 4), DataType.DT_INT8), CacheDesc(1, (2**40, 2**40), DataType.DT_INT8)):
        with pytest.raises(LLMException) as refused:
            desc.size  # noqa: B018
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_status() -> None:
    """api §1.3: ``Status(status)``: ``is_ok()`` and ``status_code``."""
    assert Status(LLMStatusCode.LLM_SUCCESS).is_ok()
    assert not Status(LLMStatusCode.LLM_FAILED).is_ok()
    assert Status(LLMStatusCode.LLM_FAILED).status_code is LLMStatusCode.LLM_FAILED


def switch_to_an_address_in_use(datadist: LLMDataDist) -> None:
    with socket.create_server(("127.0.0.1", 0)) as in_use:
        datadist.switch_role(LLMRole.DECODER, {"llm.listenIpInfo": f"127.0.0.1:{in_use.getsockname()[1]}"})


FAILURES: list[tuple[str, str, Callable[[Any, Any], object]]] = [
    (
        "[allocate_cache]",
        "LLM_OUT_OF_MEMORY",
        lambda datadist, desc: datadist.cache_manager.allocate_cache(CacheDesc(1, (1, 1 << 30), DataType.DT_INT8)),
    ),
    (
        "[pull_cache]",
        "LLM_NOT_YET_LINK",
        lambda datadist, desc: datadist.cache_manager.pull_cache(
            CacheKeyByIdAndIndex(7, 1), datadist.cache_manager.allocate_cache(desc)
        ),
    ),
    ("[unlink]", "LLM_NOT_YET_LINK", lambda datadist, desc: datadist.unlink(1)),
    ("[link]", "LLM_LINK_FAILED", lambda datadist, desc: datadist.link("name", {1: 0, 2: 1}, "{}")),
    (
        "[switch_role]",
        "LLM_FAILED",
        lambda datadist, desc: switch_to_an_address_in_use(datadist),
    ),
    (
        "[LLMDataDist.init]",
        "LLM_PARAM_INVALID",
        lambda datadist, desc: LLMDataDist(LLMRole.MIX, 9).init(
            {"llm.EnableCacheManager": "1", "llm.LinkRetryCount": "0"}
        ),
    ),
]


@pytest.mark.parametrize(("tag", "code", "call"), FAILURES, ids=[tag for tag, _, _ in FAILURES])
def test_message_of_an_engine_failure(make_datadist: Any, tag: str, code: str, call: Callable[..., object]) -> None:
    """api §1.3: ``{tag} failed, error code is LLMStatusCode.LLM_X, {detail}.``"""
    desc = CacheDesc(1, (1, 4), DataType.DT_INT8)
    with pytest.raises(LLMException) as refused:
        call(make_datadist(1), desc)
    message = str(refused.value)
    assert refused.value.status_code is LLMStatusCode[code]
    assert message.startswith(f"{tag} failed, error code is LLMStatusCode.{code}, ")
    assert message.endswith(".")
