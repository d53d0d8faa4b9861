"""``python -m llmdd.dropin``: runs a program as ``python`` does, with ``llm_datadist`` given by llmdd."""

import sys

from llmdd.dropin.command import main

main(sys.argv[1:])
