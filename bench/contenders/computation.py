"""What an owner's Python thread is busy with while others pull from it."""

from __future__ import annotations

import mmap
import threading

#: 2²²⁰³ - 1 is prime, so what a power is can be checked; one takes about 20 ms, in which CPython keeps its GIL.
PRIME = (1 << 2203) - 1


class Computation:
    """A thread that raises numbers to powers, one after the other, each in one call that does not release the GIL.

    Parameters
    ----------
    begun : mmap
        One byte, shared with whoever wants to know: 1 once the second power is being computed. Until then another
        thread of the process may still have the GIL, to say that it has started this one.
    """

    def __init__(self, begun: mmap.mmap) -> None:
        self._powers = 0
        self._wrong = False
        self._enough = threading.Event()
        self._begun = begun
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        while not self._enough.is_set():
            self._begun[0] = min(self._powers, 1)
            self._wrong |= pow(3, PRIME - 1, PRIME) != 1  # Fermat
            self._powers += 1
        self._begun[0] = 0

    def end(self) -> int:
        """Stop after the power that is being computed; how many there were."""
        self._enough.set()
        self._thread.join()
        if self._wrong:
            raise ArithmeticError("a power was wrong")
        return self._powers
