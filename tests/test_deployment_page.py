"""Every message that the page about deployment explains is one that llmdd gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from llmdd.link.stretches import GATHERED_BELOW
from llmdd.link.transfer_messages import MAX_CARRIED
from llmdd.transport.peer_timeout import DEFAULT_PEER_TIMEOUT_MS, probing
from llmdd.transport.staging import PARTS, STRETCH_BYTES

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "deployment.md").read_text()

#: What the system says, and not llmdd.
OF_THE_SYSTEM = {"Connection refused", "No route to host"}


def texts() -> str:
    """Every piece of text in the source, one a line."""
    found = []
    for path in (REPOSITORY / "llmdd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%\w", "\n", node.value))
    return "\n".join(found)


def messages() -> list[str]:
    """What the tables quote behind a code."""
    section = PAGE.partition("## When it does not work")[2]
    return re.findall(r"`LLM_\w+`: `([^`]+)`", section)


def test_the_page_explains_messages() -> None:
    assert len(messages()) > 10


@pytest.mark.parametrize("message", messages())
def test_a_message_is_one_that_llmdd_gives(message: str) -> None:
    known = texts()
    pieces = [piece.strip(" :") for piece in message.split("…")]
    assert [piece for piece in pieces if piece not in OF_THE_SYSTEM and piece not in known] == []


def test_every_link_leads_to_a_file() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target


def test_the_figures_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"Transfers of up to {MAX_CARRIED >> 10} KiB travel on the messages" in text
    assert f"stretches of {STRETCH_BYTES >> 20} MiB, {['', 'one', 'two', 'three', 'four'][PARTS]} of which" in text
    assert f"an area of {PARTS * STRETCH_BYTES >> 20} MiB" in text
    assert f"pieces of less than {GATHERED_BELOW >> 10} KiB on the average" in text
    assert f"is noticed within {DEFAULT_PEER_TIMEOUT_MS // 1000} s" in text
    assert f"otherwise after {probing(DEFAULT_PEER_TIMEOUT_MS).idle_s} s" in text
