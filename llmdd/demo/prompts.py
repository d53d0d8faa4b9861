"""Where the prompts come from: one on each line of a text file, any bytes."""

from __future__ import annotations

from importlib.resources import files
from typing import BinaryIO

LONGEST_PROMPT = 1024
MAX_PROMPTS = 65_536


class UnusablePrompts(ValueError):
    """The prompts cannot be served; the message says which and why."""


def bundled_prompts() -> list[bytes]:
    """The prompts that come with llmdd."""
    return split_prompts((files(__package__) / "prompts.txt").read_bytes(), "the bundled prompts")


def read_prompts(stream: BinaryIO, origin: str) -> list[bytes]:
    """The prompts in ``stream``, which the user knows as ``origin``."""
    return split_prompts(stream.read(), origin)


def split_prompts(text: bytes, origin: str) -> list[bytes]:
    """One prompt from each line that is not blank.

    Raises
    ------
    UnusablePrompts
        There is none, or more than :data:`MAX_PROMPTS`, or one is longer than :data:`LONGEST_PROMPT` bytes.
    """
    prompts = []
    for number, line in enumerate(text.splitlines(), start=1):
        prompt = line.strip()
        if len(prompt) > LONGEST_PROMPT:
            raise UnusablePrompts(
                f"line {number} of {origin} has {len(prompt)} bytes; the demo's model reads at most {LONGEST_PROMPT}"
            )
        if prompt:
            prompts.append(prompt)
    if not prompts:
        raise UnusablePrompts(f"{origin} has no prompt: give one on each line")
    if len(prompts) > MAX_PROMPTS:
        raise UnusablePrompts(f"{origin} has {len(prompts)} prompts; the demo serves at most {MAX_PROMPTS}")
    return prompts
