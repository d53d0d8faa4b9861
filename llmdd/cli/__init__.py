"""The command line, ``llmdd``. It needs the extra ``cli`` (typer, rich, cryptography), which the library does not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .application import app as app

EXTRA = ("typer", "rich", "cryptography")


class MissingExtra(ImportError):
    """The command line was asked for where the packages of the extra ``cli`` are not installed."""


def __getattr__(name: str) -> Any:
    """Load ``app`` when it is asked for.

    The processes of a demo import this package too, as part of the main program that started them, and do without.
    """
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .application import app
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        raise MissingExtra(f"llmdd's command line needs {package}: pip install 'llmdd[cli]'") from missing
    return app


def main() -> None:
    """Run the command line; the entry point ``llmdd``."""
    try:
        from . import app
    except MissingExtra as missing:
        sys.exit(str(missing))
    app(prog_name="llmdd")
