"""The log: to standard output, from the level on that ``ASCEND_GLOBAL_LOG_LEVEL`` names (api §4.4).

What llmdd logs goes the same way, unless the program has given the logger ``llmdd`` handlers of its own.
"""

from __future__ import annotations

import logging
import os
import sys

NAME = "LLM_DATADIST"
LEVELS = {"0": logging.DEBUG, "1": logging.INFO, "2": logging.WARNING, "3": logging.ERROR}

log = logging.getLogger(NAME)


def _set_up(logger: logging.Logger) -> None:
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"[%(levelname)s] {NAME}(%(process)d): %(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(LEVELS.get(os.environ.get("ASCEND_GLOBAL_LOG_LEVEL", ""), logging.ERROR))
    logger.propagate = False


_set_up(log)
_set_up(logging.getLogger("llmdd"))
