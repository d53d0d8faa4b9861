"""What plain Python takes for the least that it can do."""

from __future__ import annotations

from ..exercise import Exercise, require


def nothing() -> None:
    """Called for the sake of the call."""


class EmptyCall(Exercise):
    """A call of a Python function that does nothing."""

    def run(self, turns: int) -> None:
        call = nothing
        for _ in range(turns):
            call()


class DictionarySubscript(Exercise):
    """``dictionary[key]`` with a tuple for a key, as a cache manager in plain Python would have them."""

    def __init__(self) -> None:
        self._dictionary = {("request", 0, req_id): req_id for req_id in range(10_000)}
        self._keys: list[tuple[str, int, int]] = []
        self._found = -1

    def prepare(self, turns: int) -> None:
        self._keys = list(self._dictionary)[:turns]

    def run(self, turns: int) -> None:
        dictionary = self._dictionary
        found = -1
        for key in self._keys:
            found = dictionary[key]
        self._found = found

    def inspect(self, turns: int) -> None:
        require(self._found == turns - 1, f"the last subscript gave {self._found}")
