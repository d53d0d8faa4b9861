"""``python bench/instructions``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __package__:
    from .command import main

    sys.exit(main())
else:
    # A folder that is run is no package, and stands where modules are looked for first. Run it again as one.
    package = Path(__file__).resolve().parent
    sys.path[0] = str(package.parent)
    runpy.run_module(package.name, run_name="__main__", alter_sys=True)
