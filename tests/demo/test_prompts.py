"""Where the demo's prompts come from."""

from __future__ import annotations

import io

import pytest

from llmdd.demo.prompts import LONGEST_PROMPT, UnusablePrompts, bundled_prompts, read_prompts


def test_the_bundled_prompts_are_many_and_of_very_different_lengths() -> None:
    prompts = bundled_prompts()
    assert len(prompts) >= 20
    assert len(prompts) % 4, "the last batch is not full, so that placeholders are needed"
    assert min(map(len, prompts)) == 1
    assert max(map(len, prompts)) > 300


def test_one_prompt_on_each_line_that_is_not_blank() -> None:
    text = b"first\r\n\n  second, indented \n\xff\xfe no text in any encoding\n\t\n"
    assert read_prompts(io.BytesIO(text), "a file") == [
        b"first",
        b"second, indented",
        b"\xff\xfe no text in any encoding",
    ]


@pytest.mark.parametrize("text", [b"", b"\n \n\t\n"])
def test_no_prompt_at_all(text: bytes) -> None:
    with pytest.raises(UnusablePrompts, match=r"a file has no prompt: give one on each line"):
        read_prompts(io.BytesIO(text), "a file")


def test_a_prompt_that_is_too_long_is_named() -> None:
    longest = b"x" * LONGEST_PROMPT
    assert read_prompts(io.BytesIO(longest), "a file") == [longest]
    with pytest.raises(UnusablePrompts, match=rf"line 3 of a file has {LONGEST_PROMPT + 1} bytes"):
        read_prompts(io.BytesIO(b"short\n\n" + longest + b"x\n"), "a file")
