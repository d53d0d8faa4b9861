"""``llmdd keys``: the keys that it makes link, and no others come to be lost."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from link_keys import Key, join, write
from typer.testing import CliRunner

from llmdd.cli import app
from llmdd.link.keys import LinkKeys

run = CliRunner().invoke


def test_a_new_key(tmp_path: Path) -> None:
    made = run(app, ["keys", "new", str(tmp_path / "prefill")])
    assert made.exit_code == 0, made.output
    key, certificate = tmp_path / "prefill.key", tmp_path / "prefill.crt"
    assert [file.stat().st_mode & 0o777 for file in (key, certificate)] == [0o600, 0o644]
    assert certificate.read_text() in key.read_text()
    LinkKeys(str(key), str(certificate))
    shown = run(app, ["keys", "show", str(key)])
    name, _, rest = shown.output.partition(" ")
    assert name in made.output
    assert rest.strip() == "CN=prefill, without end"


@pytest.mark.parametrize("there", ["key", "crt"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    before = write(tmp_path / f"prefill.{there}", "precious")
    made = run(app, ["keys", "new", str(tmp_path / "prefill")])
    assert made.exit_code == 1
    assert "nothing is made" in made.output
    assert [str(file) for file in tmp_path.iterdir()] == [before]
    assert Path(before).read_text() == "precious"


def test_a_list(tmp_path: Path) -> None:
    keys = [Key.make("one"), Key.make("authority", is_authority=True)]
    shown = run(app, ["keys", "show", write(tmp_path / "allowed.crt", join(keys))])
    assert [line.split()[:2] for line in shown.output.splitlines()] == [
        [keys[0].fingerprint, "CN=one,"],
        [keys[1].fingerprint, "CN=authority,"],
    ]
    assert [line.endswith("allows whoever it has signed") for line in shown.output.splitlines()] == [False, True]


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n", "\xe9"])
def test_what_is_no_list(tmp_path: Path, text: str) -> None:
    shown = run(app, ["keys", "show", write(tmp_path / "allowed.crt", text)])
    assert shown.exit_code == 1
    assert "allowed.crt" in shown.output
    assert shown.exception is None or isinstance(shown.exception, SystemExit)


def test_a_key_that_openssl_has_made(tmp_path: Path) -> None:
    """The command that docs/deployment.md gives to those who do not have ``llmdd keys``."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    (command,) = (line for line in page.splitlines() if line.startswith("openssl req"))
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    key = tmp_path / "prefill.key"
    LinkKeys(str(key), str(tmp_path / "prefill.crt"))
    shown = run(app, ["keys", "show", str(key)])
    assert "CN=prefill, until" in shown.output
    assert "signed" not in shown.output
