from typing import Any, ClassVar

from llmdd._core.peer import Peer

RENEWAL_RESULTS: dict[str, int]

class ExchangeEnded(Exception):
    RESULTS: ClassVar[dict[str, int]]
    result: int
    def __init__(self, reason: str) -> None: ...

class DistantPeer(Peer):
    renewals: Any
    def __init__(self, conversation: Any, remote_accessible: bool) -> None: ...
