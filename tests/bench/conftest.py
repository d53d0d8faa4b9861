"""Lets these tests import contenders from beside them, as the processes of a match do."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
