"""Where an instance may listen, and what it is told about keys: as by the model (``spec/security.py``)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from link_keys import Key, join, write
from llmdd.spec.options import read_options
from llmdd.spec.statecharts import Refused
from rank_tables import rank_table

from llmdd import LLMConfig, LLMDataDist, LLMException, LLMRole, LLMStatusCode
from llmdd.options import EngineOptions

ELSEWHERE = "192.0.2.1"  # no address of this host: to listen there is LLM_FAILED where it is not refused before
ONE, TWO = Key.make("one"), Key.make("two")
KEYS = {"llmdd.LinkKey": ONE.text, "llmdd.LinkAllowedKeys": join([ONE, TWO])}
BASE = {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": json.dumps({"memory_size": 1 << 20, "page_shift": 12})}
ENVIRONMENT = {
    "llmdd.LinkKey": "LLMDD_LINK_KEY",
    "llmdd.LinkAllowedKeys": "LLMDD_LINK_ALLOWED_KEYS",
    "llmdd.OpenLinks": "LLMDD_OPEN_LINKS",
}


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT.values():
        monkeypatch.delenv(name, raising=False)


def by_environment(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> None:
    for option, value in options.items():
        monkeypatch.setenv(ENVIRONMENT[option], value)


def listening(host: str, **more: str) -> dict[str, str]:
    return {**BASE, "llm.listenIpInfo": f"[{host}]:0" if ":" in host else f"{host}:0", **more}


def code_of_library(options: dict[str, str]) -> str:
    try:
        EngineOptions.parse(options)
    except LLMException as error:
        return error.status_code.name
    return "LLM_SUCCESS"


def code_of_model(options: dict[str, str]) -> str:
    try:
        read_options(options)
    except Refused as refused:
        return refused.error
    return "LLM_SUCCESS"


OPEN, CLOSED = {"llmdd.OpenLinks": "1"}, {"llmdd.OpenLinks": "0"}
CASES = [
    ("127.0.0.1", {}, {}, "LLM_SUCCESS"),
    ("127.3.4.5", {}, {}, "LLM_SUCCESS"),
    ("::1", {}, {}, "LLM_SUCCESS"),
    ("::ffff:127.0.0.1", {}, {}, "LLM_SUCCESS"),
    ("::ffff:10.0.0.1", {}, {}, "LLM_PARAM_INVALID"),
    ("0.0.0.0", {}, {}, "LLM_PARAM_INVALID"),
    ("::", {}, {}, "LLM_PARAM_INVALID"),
    (ELSEWHERE, {}, {}, "LLM_PARAM_INVALID"),
    (ELSEWHERE, OPEN, {}, "LLM_SUCCESS"),
    (ELSEWHERE, {}, OPEN, "LLM_SUCCESS"),
    (ELSEWHERE, CLOSED, OPEN, "LLM_PARAM_INVALID"),
    (ELSEWHERE, OPEN, CLOSED, "LLM_SUCCESS"),
    (ELSEWHERE, {"llmdd.OpenLinks": ""}, OPEN, "LLM_SUCCESS"),
    ("127.0.0.1", {"llmdd.OpenLinks": "yes"}, {}, "LLM_PARAM_INVALID"),
    ("127.0.0.1", {}, {"llmdd.OpenLinks": "true"}, "LLM_PARAM_INVALID"),
    (ELSEWHERE, KEYS, {}, "LLM_SUCCESS"),
    (ELSEWHERE, {}, KEYS, "LLM_SUCCESS"),
    ("127.0.0.1", {"llmdd.LinkKey": ONE.text}, {}, "LLM_PARAM_INVALID"),
    ("127.0.0.1", {"llmdd.LinkAllowedKeys": ONE.public_text}, {}, "LLM_PARAM_INVALID"),
    ("127.0.0.1", {"llmdd.LinkKey": ONE.text}, {"llmdd.LinkAllowedKeys": ONE.public_text}, "LLM_SUCCESS"),
    ("127.0.0.1", {}, {"llmdd.LinkKey": ONE.text}, "LLM_PARAM_INVALID"),
]


@pytest.mark.parametrize(("host", "given", "environment", "code"), CASES)
def test_who_may_listen_where(
    monkeypatch: pytest.MonkeyPatch, host: str, given: dict[str, str], environment: dict[str, str], code: str
) -> None:
    by_environment(monkeypatch, environment)
    options = listening(host, **given)
    assert (code_of_library(options), code_of_model(options)) == (code, code)


def assert_says_both_ways(refused: pytest.ExceptionInfo[LLMException], tag: str) -> None:
    assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    message = str(refused.value)
    assert message.startswith(f"[{tag}] failed")
    for word in (ELSEWHERE, "link_key", "link_allowed_keys", "llmdd keys new", "open_links", "LLMDD_OPEN_LINKS"):
        assert word in message


@pytest.fixture
def make_instance() -> Any:
    made: list[LLMDataDist] = []

    def make(options: dict[str, str]) -> LLMDataDist:
        made.append(LLMDataDist(LLMRole.MIX, 1))
        made[-1].init(options)
        return made[-1]

    yield make
    for instance in made:
        instance.finalize()


def test_init_says_both_ways(make_instance: Callable[..., LLMDataDist]) -> None:
    with pytest.raises(LLMException) as refused:
        make_instance(listening(ELSEWHERE))
    assert_says_both_ways(refused, "LLMDataDist.init")


def test_switch_role_does_too(make_instance: Callable[..., LLMDataDist]) -> None:
    instance = make_instance(listening("127.0.0.1"))
    before = instance.listen_address
    with pytest.raises(LLMException) as refused:
        instance.switch_role(LLMRole.DECODER, {"llm.listenIpInfo": f"{ELSEWHERE}:0"})
    assert_says_both_ways(refused, "switch_role")
    assert instance.listen_address == before
    assert "MIX" in repr(instance)


def test_link_by_rank_table_does_too(make_instance: Callable[..., LLMDataDist]) -> None:
    instance = make_instance(BASE)
    table = rank_table(2, [ELSEWHERE, "192.0.2.2"])
    with pytest.raises(LLMException) as refused:
        instance.link("pool", {1: 0, 2: 1}, table)
    assert_says_both_ways(refused, "link")
    # Nobody calls on the member with the highest rank: it does not listen.
    number = instance.link("pool", {2: 0, 1: 1}, table)
    assert number == 1, "the refused call has taken no number"
    instance.unlink(number)


def test_open_to_anybody(make_instance: Callable[..., LLMDataDist], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDD_OPEN_LINKS", "1")
    instance = make_instance(listening("0.0.0.0"))
    assert instance.listen_address is not None
    with socket.create_connection(("127.0.0.1", instance.listen_address[1])):
        pass


def test_a_bad_key_fails_init(make_instance: Callable[..., LLMDataDist], tmp_path: Path) -> None:
    key = write(tmp_path / "one.key", ONE.text, 0o644)
    with pytest.raises(LLMException, match=f"chmod 600 {key}") as refused:
        make_instance({**BASE, **KEYS, "llmdd.LinkKey": key})
    assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_the_configuration() -> None:
    config = LLMConfig()
    assert (config.link_key, config.link_allowed_keys, config.open_links) == ("", "", False)
    assert not [option for option in config.generate_options() if option.startswith("llmdd.")]
    config.link_key, config.link_allowed_keys, config.open_links = "a.key", "all.crt", False
    options = config.generate_options()
    assert [options[option] for option in ENVIRONMENT] == ["a.key", "all.crt", "0"]
    config.open_links = True
    assert config.generate_options()["llmdd.OpenLinks"] == "1"
    for name in ("link_key", "link_allowed_keys"):
        with pytest.raises(TypeError):
            setattr(config, name, 5)
        setattr(config, name, None)
    with pytest.raises(TypeError):
        config.open_links = 1  # type: ignore[assignment]
    config.open_links = None
    assert not [option for option in config.generate_options() if option.startswith("llmdd.")]
