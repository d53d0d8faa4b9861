from typing import Any, ClassVar

from llmdd._core.peer import Peer

class ExchangeEnded(Exception):
    RESULTS: ClassVar[dict[str, int]]
    result: int
    def __init__(self, reason: str) -> None: ...

class DistantPeer(Peer):
    def __init__(self, conversation: Any, remote_accessible: bool) -> None: ...
