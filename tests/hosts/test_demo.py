"""The demo with its two ends on two hosts, as docs/deployment.md shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from link_keys import Key, join, write

from hosts.network import Host, Network

LIMIT_SECONDS = 120
PORT = 26000


def start(host: Host, *arguments: str) -> subprocess.Popen[str]:
    """``llmdd demo`` on a host."""
    return subprocess.Popen(
        [*host.command, sys.executable, "-m", "llmdd.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "UCX_TLS": "tcp"},  # between namespaces of one machine UCX would find other ways
    )


def run(network: Network, folder: Path, *decode_arguments: str) -> dict[str, Any]:
    """The result of a run on two hosts that have keys, which is the same at both ends."""
    owner, puller = network.hosts
    address = f"{owner.address}:{PORT}"
    keys = [Key.make("prefill"), Key.make("decode")]
    allowed = write(folder / "allowed.crt", join(keys))
    of_prefill, of_decode = (
        ("--key", write(folder / f"{number}.key", key.text), "--allowed-keys", allowed)
        for number, key in enumerate(keys)
    )
    prefill = start(owner, "--role", "prefill", "--listen", address, "--json", "--tokens", "6", *of_prefill)
    decode = start(puller, "--role", "decode", "--connect", address, "--json", *of_decode, *decode_arguments)
    results = []
    for end in (decode, prefill):
        output, errors = end.communicate(timeout=LIMIT_SECONDS)
        assert end.returncode == 0, errors
        results.append(json.loads(output))
    assert results[0] == results[1]
    result: dict[str, Any] = results[0]
    assert result["identical"] is True
    assert result["leaked_bytes"] == 0
    assert result["transport"] == "nixl"
    return result


@pytest.mark.usefixtures("nixl")
def test_every_token_is_the_one_of_a_single_process(network: Network, tmp_path: Path) -> None:
    result = run(network, tmp_path)
    assert result["tokens"] == 6 * result["requests"]


@pytest.mark.usefixtures("nixl")
def test_prefill_gets_its_memory_back_when_the_decode_process_is_killed(network: Network, tmp_path: Path) -> None:
    result = run(network, tmp_path, "--kill", "decode")
    assert 0 < result["tokens"] < 6 * 26
