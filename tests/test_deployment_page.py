"""Every message that the page about deployment explains is one that llmdd gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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
