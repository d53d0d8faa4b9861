"""What an owner's Python thread is busy with while others pull from it."""

from __future__ import annotations

import threading

#: 2²²⁰³ - 1 is prime, so what a power is can be checked; one takes about 20 ms, in which CPython keeps its GIL.
PRIME = (1 << 2203) - 1


class Computation:
    """A thread that raises numbers to powers, one after the other, each in one call that does not release the GIL."""

    def __init__(self) -> None:
        self._powers = 0
        self._wrong = False
        self._enough = threading.Event()
        begun = threading.Event()
        self._thread = threading.Thread(target=self._compute, args=[begun], daemon=True)
        self._thread.start()
        begun.wait()

    def _compute(self, begun: threading.Event) -> None:
        begun.set()
        while not self._enough.is_set():
            self._wrong |= pow(3, PRIME - 1, PRIME) != 1  # Fermat
            self._powers += 1

    def end(self) -> int:
        """Stop after the power that is being computed; how many there were."""
        self._enough.set()
        self._thread.join()
        if self._wrong:
            raise ArithmeticError("a power was wrong")
        return self._powers
