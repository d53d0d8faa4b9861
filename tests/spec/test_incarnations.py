"""Every order in which a cluster is started anew keeps its promises, and every rule left out is found to be needed."""

from __future__ import annotations

import re

import pytest
from llmdd.spec.incarnations import MISTAKES, Explorer, main


def test_every_promise_holds() -> None:
    explorer = Explorer()
    found = explorer.run()
    assert found.violation is None, str(found)
    taken = {re.sub(r" \d+|, \d+", "", name) for name in explorer.taken}
    expected = {"dies", "calls", "commits", "pins by", "unpins by", "says farewell on", "promises on", "asks to unlink"}
    assert {f"life: {name}" for name in expected} <= taken
    words = {"request of", "commit of", "farewell of", "promise of", "end of"}
    assert {f"survivor: hears {word}" for word in words} <= taken
    assert "network: breaks the connection of" in taken


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_rule_left_out_is_found(mistake: str) -> None:
    rules, promise = MISTAKES[mistake]
    found = Explorer(rules).run()
    assert found.violation == promise
    assert len(found.trace) <= 9


def test_command_shows_the_way_to_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--mistake", "unlink-by-cluster-id"])
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "not taken down by what another incarnation has said" in lines[0]
    assert lines[-1].endswith("survivor: hears a request to unlink of life 1")
