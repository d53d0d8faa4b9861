"""``llmdd demo --role prefill|decode``: two commands that find each other by an address, here on one host."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import misbehaving
import pytest
from typer.testing import CliRunner

from llmdd.cli import app
from llmdd.demo import decode, decode_end, introduction, prefill_end
from llmdd.demo.channel import Channel, OtherEndGone
from llmdd.demo.choices import Choices, Disagreement, agree
from llmdd.demo.introduction import Address, CannotMeet, Meeting, Reception, call_prefill
from llmdd.demo.messages import Agreed, Declined, Failed, Hello, Listening, Message, Pulled
from llmdd.demo.orchestrator import DemoFailed
from llmdd.demo.released import PoolState, PrefillReleased
from llmdd.demo.report import Report

LIMIT_SECONDS = 120
PROMPTS = [b"one", b"two", b"three"]
CHOICES = Choices(tokens=3, batch=2, slots=2)
ANY_PORT = Address("127.0.0.1", 0)


# -- two commands ---------------------------------------------------------------------------------------------------


class Command:
    """``llmdd demo`` with some arguments, in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmdd.cli", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def end(self) -> tuple[int, str, str]:
        """Wait until it and everybody it has started have ended: its status, output and errors."""
        output, errors = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, output, errors


@contextmanager
def prefill_command(*arguments: str, host: str = "127.0.0.1") -> Iterator[tuple[Command, str]]:
    """The prefill end, once it listens, and the address at which it does."""
    command = Command("--role", "prefill", "--listen", f"{host}:0", *arguments)
    try:
        assert command.process.stderr is not None
        invitation = command.process.stderr.readline()
        found = re.fullmatch(
            r"waiting for the other end: llmdd demo --role decode --connect (\S+:[1-9]\d*)\n", invitation
        )
        assert found is not None, invitation + command.process.stderr.read()
        yield command, found[1]
    finally:
        command.process.kill()
        command.process.wait()


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """A file with two."""
    (tmp_path / "prompts").write_text("one prompt\nanother\n")
    return str(tmp_path / "prompts")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "0.0.0.0"])
def test_both_ends_tell_the_same(host: str, prompts: str) -> None:
    with prefill_command("--json", "--tokens", "4", "--prompts", prompts, "--open-links", host=host) as (
        prefill_end,
        address,
    ):
        reached_at = address.replace("0.0.0.0", "127.0.0.1")
        decode_status, decode_output, decode_errors = Command(
            "--role", "decode", "--connect", reached_at, "--json"
        ).end()
        prefill_status, prefill_output, prefill_errors = prefill_end.end()
    assert (decode_status, prefill_status) == (0, 0), decode_errors + prefill_errors
    assert decode_errors == prefill_errors == ""
    result = json.loads(decode_output)
    assert json.loads(prefill_output) == result
    assert result["identical"] is True
    assert result["leaked_bytes"] == 0
    assert result["tokens"] == 4 * result["requests"] == 8
    assert result["transport"] == "shared memory"


def test_the_summary_says_where_the_two_ends_are(prompts: str) -> None:
    with prefill_command("--prompts", prompts, "--seed", "3") as (prefill_end, address):
        status, summary, errors = Command(
            "--role", "decode", "--connect", address, "--tokens", "2", "--slots", "1"
        ).end()
        assert status == 0, errors
        assert prefill_end.end()[:2] == (0, summary)
    assert "prefill at 127.0.0.1, decode at 127.0.0.1" in summary
    assert re.search(r"requests +2\b", summary)
    assert re.search(r"tokens +4\b", summary)
    assert re.search(r"transport +shared memory", summary)
    assert summary.count("entirely free") == 2


@pytest.mark.parametrize("end", ["prefill", "decode"])
def test_the_decode_process_can_be_killed_from_either_end(end: str) -> None:
    kill = ("--kill", "decode")
    with prefill_command("--tokens", "4", *(kill if end == "prefill" else ())) as (prefill_end, address):
        decode_end = Command("--role", "decode", "--connect", address, *(kill if end == "decode" else ()))
        status, summary, errors = decode_end.end()
        assert status == 0, errors
        assert prefill_end.end()[:2] == (0, summary)
    assert re.search(r"killed after \d+ pulls", summary)
    assert "entirely free again" in summary
    assert "decode pool" not in summary


def test_different_choices_are_told_at_both_ends() -> None:
    complaint = "--tokens is 3 at the prefill end and 4 at the decode end: say the same, or say it at one"
    with prefill_command("--tokens", "3") as (prefill_end, address):
        for command in (Command("--role", "decode", "--connect", address, "--tokens", "4"), prefill_end):
            assert command.end() == (1, "", f"The demo failed: {complaint}\n")


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    address = f"127.0.0.1:{port}"
    status, output, errors = Command("--role", "decode", "--connect", address, "--wait", "0").end()
    assert (status, output) == (1, "")
    assert f"nobody answers at {address} (Connection refused): start llmdd demo --role prefill" in errors


def test_nobody_calls() -> None:
    with prefill_command("--wait", "0.01") as (prefill_end, address):
        status, output, errors = prefill_end.end()
    assert (status, output) == (1, "")
    assert f"nobody has called at {address} for 0.01 seconds: start llmdd demo --role decode --connect" in errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--listen", "127.0.0.1:1"), "it needs --role"),
        (("--connect", "127.0.0.1:1"), "it needs --role"),
        (("--role", "prefill"), "it takes --listen HOST:PORT"),
        (("--role", "decode"), "it takes --connect HOST:PORT"),
        (("--role", "prefill", "--connect", "127.0.0.1:1"), "it takes --listen HOST:PORT, and no --connect"),
        (("--role", "decode", "--listen", "127.0.0.1:1"), "it takes --connect HOST:PORT, and no --listen"),
        (("--role", "decode", "--connect", "127.0.0.1:1", "--prompts", "-"), "the prompts are the prefill end's"),
        (("--role", "both"), "--role"),
        (("--role", "prefill", "--listen", "26000"), "it should be HOST:PORT"),
        (("--role", "prefill", "--listen", "::1:26000"), "is no address"),
        (("--role", "decode", "--connect", "there:70000"), "is no address"),
        (("--wait", "-1"), "--wait"),
        (("--transport", "pigeon"), "--transport"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_arguments_are_explained(arguments: tuple[str, ...], complaint: str) -> None:
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("listen", ["203.0.113.1:0", "nowhere.invalid:0", "127.0.0.1:65535"])
def test_where_one_cannot_listen(listen: str) -> None:
    status, output, errors = Command("--role", "prefill", "--listen", listen, "--open-links").end()
    assert (status, output) == (1, "")
    assert f"cannot listen at {listen}" in errors


@contextmanager
def taken_port_after_a_free_one() -> Iterator[int]:
    """A port that is taken, while the one before it is free."""
    while True:
        with ExitStack() as opened:
            free = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = free.getsockname()[1] + 1
            try:
                opened.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue  # taken by somebody else, who may give it back at any time, or there is none
            free.close()
            yield port
            return


def test_llmdd_cannot_listen_at_the_next_port() -> None:
    with taken_port_after_a_free_one() as port:
        address = f"127.0.0.1:{port - 1}"
        prefill_end = Command("--role", "prefill", "--listen", address)
        decode_end = Command("--role", "decode", "--connect", address)
        for command in (prefill_end, decode_end):
            status, output, errors = command.end()
            assert (status, output) == (1, "")
            assert f"cannot listen at 127.0.0.1 port {port}" in errors
            assert "Traceback" not in errors


# -- an end dies ----------------------------------------------------------------------------------------------------


# A decode end whose decode process says which it is, and then nothing more.
WAITING_DECODE = """
import sys
from llmdd.demo import decode, decode_end
from llmdd.demo.choices import Choices
from llmdd.demo.introduction import Address
import misbehaving

if __name__ == "__main__":
    decode.run = misbehaving.print_own_number
    try:
        decode_end.run(Choices(), Address.parse(sys.argv[1]), 60, lambda progress: None)
    except Exception as failed:
        sys.exit(str(failed))
"""


@pytest.fixture
def run_with_waiting_decode(tmp_path: Path) -> Iterator[tuple[Command, subprocess.Popen[str], int]]:
    """A prefill end, a decode end, and the number of the decode process, which does nothing."""
    program = tmp_path / "program.py"
    program.write_text(WAITING_DECODE)
    environment = {**os.environ, "PYTHONPATH": str(Path(misbehaving.__file__).parent)}
    with prefill_command() as (prefill_end, address):
        decode_end = subprocess.Popen(
            [sys.executable, program, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
        )
        with decode_end:
            assert decode_end.stdout is not None
            yield prefill_end, decode_end, int(decode_end.stdout.readline())


Run = tuple[Command, subprocess.Popen[str], int]


def test_the_prefill_end_is_killed(run_with_waiting_decode: Run) -> None:
    prefill_end, decode_end, _ = run_with_waiting_decode
    prefill_end.process.kill()
    _, errors = decode_end.communicate(timeout=LIMIT_SECONDS)  # returns when nobody is left to write
    assert errors == "the prefill end, at 127.0.0.1, has gone\n"


def test_the_decode_end_is_killed(run_with_waiting_decode: Run) -> None:
    prefill_end, decode_end, _ = run_with_waiting_decode
    decode_end.kill()
    decode_end.communicate(timeout=LIMIT_SECONDS)
    status, output, errors = prefill_end.end()
    assert (status, output) == (1, "")
    assert errors == "The demo failed: the decode end, at 127.0.0.1, has gone or does not answer\n"


def test_the_decode_process_is_killed_by_somebody_else(run_with_waiting_decode: Run) -> None:
    prefill_end, decode_end, decode_process = run_with_waiting_decode
    os.kill(decode_process, signal.SIGKILL)
    reason = "the decode process failed:\nthe decode process was ended by signal SIGKILL\n"
    assert decode_end.communicate(timeout=LIMIT_SECONDS)[1] == reason
    assert prefill_end.end() == (1, "", f"The demo failed: {reason}")


# -- one end, and whoever else may be at the other --------------------------------------------------------------------


@dataclass
class Serving:
    """A prefill end in a thread of this process, the address at which it listens, and what comes of it."""

    address: Address
    report: Future[Report]


@contextmanager
def serving(choices: Choices = CHOICES) -> Iterator[Serving]:
    listening: Future[Address] = Future()
    with ThreadPoolExecutor(1) as threads:
        report = threads.submit(
            prefill_end.run, PROMPTS, choices, ANY_PORT, 60.0, listening.set_result, lambda progress: None
        )
        yield Serving(listening.result(LIMIT_SECONDS), report)


def generate_for(address: Address, choices: Choices = CHOICES) -> Report:
    return decode_end.run(choices, address, 60.0, lambda progress: None)


def connect(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port))


def hung_up(sock: socket.socket) -> bool:
    """Wait for the other end to close the connection."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_progress_is_shown_at_both_ends() -> None:
    seen: list[int] = []
    with serving() as prefill:
        report = decode_end.run(Choices(), prefill.address, 60.0, lambda progress: seen.append(progress.verified))
        assert prefill.report.result(LIMIT_SECONDS) == report
    assert report.passed
    assert report.hosts == ("127.0.0.1", "127.0.0.1")
    assert seen == sorted(seen)
    assert seen[-1] == 9


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: there\r\n\r\n",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x03abc",
        b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x10\x00\x01" + bytes(100),
        b"",
    ],
    ids=["HTTP", "nothing", "no message", "a negative length", "too long", "hangs up"],
)
def test_a_stranger_is_sent_away_and_the_wait_goes_on(said: bytes) -> None:
    with serving() as prefill:
        with connect(prefill.address) as stranger:
            stranger.sendall(said)
            with suppress(OSError):  # who has heard enough may have hung up by now
                stranger.shutdown(socket.SHUT_WR)
            assert hung_up(stranger)
        assert generate_for(prefill.address).passed
        assert prefill.report.result(LIMIT_SECONDS).passed


def test_one_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introduction, "HELLO_LIMIT_SECONDS", 0.05)
    with Reception(ANY_PORT) as reception, ThreadPoolExecutor(1) as threads:
        meeting = threads.submit(reception.wait_for_decode, PROMPTS, CHOICES, 60)
        with connect(reception.address) as silent:
            assert hung_up(silent)
        monkeypatch.undo()
        met, agreed = call_prefill(reception.address, CHOICES, 60)
        assert agreed.requests == 3
        for channel in (met.channel, meeting.result(LIMIT_SECONDS).channel):
            channel.close()


def test_one_who_stops_in_the_middle_of_a_word_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introduction, "MESSAGE_LIMIT_SECONDS", 1)
    with Reception(ANY_PORT) as reception, ThreadPoolExecutor(1) as threads:
        meeting = threads.submit(reception.wait_for_decode, PROMPTS, CHOICES, 60)
        with connect(reception.address) as slow:
            slow.sendall(b"\x00\x00")
            assert hung_up(slow)
        met, _ = call_prefill(reception.address, CHOICES, 60)
        for channel in (met.channel, meeting.result(LIMIT_SECONDS).channel):
            channel.close()


@pytest.mark.parametrize(
    ("role", "version", "complaint"),
    [
        ("prefill", introduction.version("llmdd"), "both ends have --role prefill"),
        ("decode", "0.0.1", r"the decode end 0\.0\.1: install the same at both"),
    ],
)
def test_an_end_that_does_not_fit_is_told(role: str, version: str, complaint: str) -> None:
    with serving() as prefill:
        channel = Channel(Connection(connect(prefill.address).detach()))
        channel.send(Hello(role, version, CHOICES))
        answer = channel.receive()
        channel.close()
        assert isinstance(answer, Declined)
        assert re.search(complaint, answer.reason)
        with pytest.raises(DemoFailed, match=complaint):
            prefill.report.result(LIMIT_SECONDS)


@contextmanager
def answering(*answers: Message, hello: bool = True) -> Iterator[Address]:
    """Somebody who answers a call with something else than a prefill end would, and waits until it is understood."""

    def answer(server: socket.socket) -> None:
        sock, _ = server.accept()
        channel = Channel(Connection(sock.detach()))
        if hello:
            channel.receive()
        for message in answers:
            channel.send(message)
        if answers:
            channel.hear_out(LIMIT_SECONDS)
        channel.close()

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        answered = threads.submit(answer, server)
        yield Address("127.0.0.1", server.getsockname()[1])
        answered.result(LIMIT_SECONDS)


AGREED = Agreed(CHOICES, context=64, requests=3)


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ((), "does not answer as the prefill end of a demo does"),
        ((Failed("no"),), "does not answer as the prefill end of a demo does"),
        ((Declined("not today"),), "^not today$"),
        ((AGREED, Pulled(1, 1)), "says what cannot be: Pulled"),
        ((AGREED, AGREED), "says what cannot be: Agreed"),
        ((AGREED, Failed("out of patience")), "^out of patience$"),
    ],
    ids=["hangs up", "another word", "declines", "pulls", "agrees twice", "fails"],
)
def test_a_prefill_end_that_is_none(answers: tuple[Message, ...], complaint: str) -> None:
    with answering(*answers) as address, pytest.raises(DemoFailed, match=complaint):
        generate_for(address)


def test_a_prefill_end_that_decode_cannot_link_to() -> None:
    """The reason is given without a traceback, though llmdd returns a code and only logs it."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    failed: list[Message] = []

    def prefill_end(server: socket.socket) -> None:
        sock, _ = server.accept()
        channel = Channel(Connection(sock.detach()))
        channel.receive()
        channel.send(AGREED)
        channel.send(Listening(("192.0.2.1", port)))  # as it knows itself; decode takes the address that it has called
        failed.append(channel.receive())
        channel.send(failed[0])
        channel.hear_out(LIMIT_SECONDS)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=prefill_end, args=(server,))
        thread.start()
        with pytest.raises(DemoFailed, match=rf"does not answer at 127\.0\.0\.1 port {port}") as caught:
            generate_for(Address("127.0.0.1", server.getsockname()[1]))
        thread.join()
    assert "Traceback" not in str(caught.value)
    assert "LLM_LINK_FAILED" in str(caught.value)


POOL = PoolState(1, 1)


@pytest.mark.parametrize(
    "said",
    [PrefillReleased(POOL, 0, None), Listening(("127.0.0.1", 1)), Hello("decode", "1", CHOICES)],
    ids=lambda message: type(message).__name__,
)
def test_a_decode_end_that_says_what_is_not_its_to_say(said: Message) -> None:
    with serving() as prefill:
        met, _ = call_prefill(prefill.address, CHOICES, 60)
        met.channel.send(said)
        last = last_word(met)
        assert isinstance(last, Failed)
        assert "says what nobody asked for" in last.text
        with pytest.raises(DemoFailed, match="says what nobody asked for"):
            prefill.report.result(LIMIT_SECONDS)


def last_word(met: Meeting) -> Message | None:
    """What the prefill end says last."""
    last = None
    while True:
        try:
            last = met.channel.receive()
        except OtherEndGone:
            return last
        if isinstance(last, Failed):
            met.channel.close()


@pytest.mark.parametrize(
    ("failing", "reason"),
    [(misbehaving.fail_at_once, "LookupError: failed on purpose"), (misbehaving.vanish, "ended early, with status 7")],
    ids=["fails", "vanishes"],
)
def test_a_decode_process_that_does_not_do_its_part(
    monkeypatch: pytest.MonkeyPatch, failing: object, reason: str
) -> None:
    monkeypatch.setattr(decode, "run", failing)
    with serving() as prefill:
        with pytest.raises(DemoFailed, match=rf"(?s)the decode process failed:\n.*{reason}"):
            generate_for(prefill.address)
        with pytest.raises(DemoFailed, match=rf"(?s)the decode process failed:\n.*{reason}"):
            prefill.report.result(LIMIT_SECONDS)


def test_the_decode_end_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as prefill:
        met, _ = call_prefill(prefill.address, CHOICES, 60)
        monkeypatch.setattr(prefill_end.orchestrator, "SILENCE_LIMIT_SECONDS", 0.1)
        last = last_word(met)
        assert isinstance(last, Failed)
        assert "has said anything" in last.text
        with pytest.raises(DemoFailed, match="has said anything"):
            prefill.report.result(LIMIT_SECONDS)


# -- what is agreed on -------------------------------------------------------------------------------------------------


def test_what_is_said_at_one_end_holds_at_both() -> None:
    prefill = Choices(tokens=12, seed=1, kill_decode=True)
    decode = Choices(tokens=12, slots=3, transport="nixl")
    agreed = Choices(tokens=12, slots=3, seed=1, transport="nixl", kill_decode=True)
    assert agree(prefill, decode) == agree(decode, prefill) == agreed


@pytest.mark.parametrize("option", ["tokens", "batch", "slots", "seed"])
def test_what_is_said_differently_is_named(option: str) -> None:
    with pytest.raises(Disagreement, match=f"--{option} is 2 at the prefill end and 3 at the decode end"):
        agree(Choices(**{option: 2}), Choices(**{option: 3}))


@pytest.mark.parametrize(
    "text", ["", "here", "here:", ":1", "here:x", "here:65536", "::1:5", "a@b:1", "b:1/c", "b:1?c"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Address.parse(text)


def test_addresses_are_written_as_they_are_read() -> None:
    for text in ("127.0.0.1:26000", "[::1]:26000", "prefill.example:1"):
        assert str(Address.parse(text)) == text


def test_a_host_that_has_no_address() -> None:
    with pytest.raises(CannotMeet, match=r"cannot reach nowhere\.invalid:1: "):
        call_prefill(Address("nowhere.invalid", 1), CHOICES, 60)
