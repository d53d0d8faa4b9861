"""What the search has found once does no harm again, nor do a few inputs drawn anew; the search is ``tests/fuzz``."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from attacks import siege
from decoders import DECODERS, decode_anything
from drawing import Draw

from llmdd.link import messages

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"


def drawn(seed: int, count: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(chance.choice([10, 40, 100, 400])) for _ in range(count)]


@pytest.fixture(scope="module")
def attack() -> Iterator[Callable[[bytes], None]]:
    with siege() as attack:
        yield attack


@pytest.mark.parametrize("path", sorted(CORPUS.glob("server-*")), ids=lambda path: path.stem)
def test_an_attack_that_was_found(attack: Callable[[bytes], None], path: Path) -> None:
    attack(path.read_bytes())


def test_some_attacks(attack: Callable[[bytes], None]) -> None:
    for data in drawn(1, 40):
        attack(data)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("decoder-*")), ids=lambda path: path.stem)
def test_bytes_that_were_found(path: Path) -> None:
    decode_anything(path.read_bytes())


def test_some_bytes() -> None:
    for data in drawn(2, 500):
        decode_anything(data)


def test_whatever_is_drawn_can_be_said_and_understood() -> None:
    """Otherwise the search would look at nothing but the refusals of what is no message."""
    for decoder in DECODERS:
        understood = set()
        for data in drawn(3, 40 * len(decoder.kinds)):
            if understood >= set(decoder.kinds):
                break
            try:
                understood.add(type(decoder.decode(decoder.draw(Draw(data)))))
            except decoder.refuses_with:
                continue  # such as text in a field that is longer than it may be
        assert understood >= set(decoder.kinds)


def test_an_input_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "decoder-of-a-test.bin"
    path.write_bytes(b"\0\0nonsense")
    done = subprocess.run([sys.executable, str(HERE), str(path)], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "does no harm" in done.stdout


def test_harm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that raises anything else, and one that quotes the peer."""

    def frank(decoder: msgspec.msgpack.Decoder[object], payload: bytes) -> object:
        try:
            return decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise messages.ProtocolError(str(error)) from None

    monkeypatch.setattr(messages, "decoded", frank)
    with pytest.raises(AssertionError):
        decode_anything(b"\0\0" + msgspec.msgpack.encode({"type": "two\nlines"}))
    with pytest.raises(RecursionError):
        nested = b"\x82\xa4type\xa6commit\xa1x" + b"\x91" * 200_000
        decode_anything(b"\0\0" + nested)
