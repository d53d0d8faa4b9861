"""Programs that say ``from llm_datadist import ...``, run against llmdd as they stand.

``python -m llmdd.dropin script.py`` runs a script so; a program does the same for itself with :func:`install`. An
``llm_datadist`` that is really installed is left alone unless ``--replace``, or ``replace=True``, says otherwise.

The package ``llm_datadist`` that is then found lies in ``packages``, beside this file, and has nothing of its own: its
classes are llmdd's. It is found through ``sys.path``, which :mod:`multiprocessing` hands on, so processes started by
any of its methods find it too. A program started in another way (:mod:`subprocess`, a shell) must say so itself.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

NAME = "llm_datadist"
PACKAGES = Path(__file__).resolve().parent / "packages"


def install(replace: bool = False) -> bool:
    """Let ``import llm_datadist`` give llmdd's, here and in the processes that :mod:`multiprocessing` starts.

    Parameters
    ----------
    replace : bool, default False
        Also where another ``llm_datadist`` is installed.

    Returns
    -------
    bool
        Whether ``llm_datadist`` is llmdd's now: False only where another one is installed and `replace` is not set.

    Raises
    ------
    ImportError
        Another ``llm_datadist`` has been imported already, or an import hook goes before ``sys.path``, and `replace` is
        set: half a program would have the one and half the other.
    """
    found = installed()
    if found is not None and is_ours(found):
        return True
    if found is None:
        sys.path.append(str(PACKAGES))
    elif not replace:
        return False
    elif NAME in sys.modules:
        raise ImportError(f"{NAME} was imported already, from {found.origin}: install llmdd's before the first import")
    else:
        sys.path.insert(_position_of(found), str(PACKAGES))
    taken = installed()
    if taken is None or not is_ours(taken):
        raise ImportError(f"{NAME} is found by {taken and taken.loader}, which goes before sys.path")
    return True


def installed() -> ModuleSpec | None:
    """What ``import llm_datadist`` finds at present; a mere folder of that name is nothing."""
    spec = find_spec(NAME)
    return None if spec is None or spec.origin is None else spec


def is_ours(spec: ModuleSpec) -> bool:
    """Whether a package is the one beside this file."""
    return spec.origin is not None and PACKAGES in Path(spec.origin).resolve().parents


def _position_of(other: ModuleSpec) -> int:
    """Where in ``sys.path`` another package is found: ours goes right before it, and so before no more than it must."""
    for position, entry in enumerate(sys.path):
        spec = PathFinder.find_spec(NAME, [entry])
        if spec is not None and spec.origin == other.origin:
            return position
    return 0
