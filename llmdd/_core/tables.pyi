SPEC_CHECKSUM: str
LAYOUT_VERSION: int
PEER_LIMIT: int

class ImpossibleEvent(RuntimeError): ...

class MachineTable:
    name: str
    states: tuple[str, ...]
    events: tuple[str, ...]
    guards: tuple[str, ...]
    initial: str
    def __init__(self, name: str) -> None: ...
    def step(self, state: str, event: str, **facts: bool) -> tuple[str, tuple[str, ...]]: ...

CACHE: MachineTable
BATCH_SLOT: MachineTable
LINK: MachineTable
COMMUNICATOR: MachineTable
ENGINE: MachineTable
