"""``python -m llmdd.cli`` is ``llmdd``."""

from . import main

if __name__ == "__main__":
    main()
