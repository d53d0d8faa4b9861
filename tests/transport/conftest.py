"""Both engines, side by side: what a test says of one holds for the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_hosts import Hosts, fresh_name
from programmable_engine import Network

from llmdd.transport.engine import EngineUnavailable
from llmdd.transport.nixl import NixlEngine


@pytest.fixture(scope="session")
def why_without_nixl() -> str:
    """Why NIXL cannot be used here; empty where it can."""
    try:
        NixlEngine(fresh_name()).close()
    except EngineUnavailable as missing:
        return str(missing)
    return ""


@pytest.fixture
def nixl_over_tcp(why_without_nixl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NIXL as between hosts; skips where there is none."""
    if why_without_nixl:
        pytest.skip(why_without_nixl)
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.fixture(params=["nixl", "programmable"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Hosts with engines of either kind, closed in the end."""
    if request.param == "nixl":
        request.getfixturevalue("nixl_over_tcp")
        hosts = Hosts(NixlEngine)
    else:
        hosts = Hosts(Network(target_proceeds=True).open)
    yield hosts
    for engine in hosts.opened:
        engine.close()
