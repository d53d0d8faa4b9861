"""What the README and the guide show is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
GUIDE = (REPOSITORY / "docs" / "guide.md").read_text()


def python_in(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_example_prints_what_its_comment_says() -> None:
    [example] = python_in(README)
    [promised] = re.findall(r"print\(.*\)\s+# ([^;\n]+)", example)
    assert run(example) == promised


def test_the_guide_runs_from_top_to_bottom() -> None:
    assert run("\n".join(python_in(GUIDE))).startswith("0 0 PoolUsage(")


def test_every_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []
