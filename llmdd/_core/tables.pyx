# cython: language_level=3
"""The machines of ``spec/`` as objects that step by name, for the code that is not hot: links and engines."""

from llmdd._core.layout cimport LAYOUT_VERSION_NUMBER
from llmdd._core.layout cimport PEER_LIMIT as LAYOUT_PEER_LIMIT
from llmdd._core.status import LLMException, LLMStatusCode

include "spec_machines.pxi"

SPEC_CHECKSUM = SPEC_CHECKSUM_TEXT
LAYOUT_VERSION = LAYOUT_VERSION_NUMBER
PEER_LIMIT = LAYOUT_PEER_LIMIT


class ImpossibleEvent(RuntimeError):
    """An event that the spec does not allow in this state: whoever sent it has lost count. Nothing has changed."""


class MachineTable:
    """One machine of the spec."""

    def __init__(self, name):
        self.name = name
        self.states, self.events, self.guards, self._cells = SPEC_MACHINES[name]
        self.initial = self.states[0]

    def step(self, state, event, **facts):
        """The next state and the effects of `event` in `state`.

        Guards that are not given count as false. Raises what the spec refuses with, or ImpossibleEvent.
        """
        unknown = set(facts).difference(self.guards)
        if unknown:
            raise TypeError(f"{self.name} has no guard {', '.join(sorted(unknown))}; it has {self.guards}")
        cell = (state, event, *[bool(facts.get(guard, False)) for guard in self.guards])
        outcome = self._cells.get(cell)
        if outcome is None:
            raise ImpossibleEvent(f"{self.name}: {event} cannot occur in {state}")
        kind, target, effects = outcome
        if kind == 1:
            return target, effects
        message = f"{self.name}: {event} is refused in {state}"
        if target == "RuntimeError":
            raise RuntimeError(message)
        code = LLMStatusCode[target]
        raise LLMException(message, status_code=code)


CACHE = MachineTable("cache")
BATCH_SLOT = MachineTable("batch_slot")
LINK = MachineTable("link")
COMMUNICATOR = MachineTable("communicator")
ENGINE = MachineTable("engine")
