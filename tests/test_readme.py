"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()


def test_the_example_prints_what_its_comment_says() -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    [promised] = re.findall(r"print\(.*\)\s+# ([^;\n]+)", example)
    assert done.stdout.strip() == promised


def test_every_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []
