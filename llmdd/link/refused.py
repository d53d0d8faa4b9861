"""That one of the two ends does not want the link."""

from __future__ import annotations

from llmdd._core.status import LLMStatusCode

from .messages import Refusal

# What a peer's refusal may make of a link_clusters entry (api §4.1); any other number is a failure.
_REFUSAL_CODES = (LLMStatusCode.LLM_PARAM_INVALID, LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_FAILED)


class Refused(Exception):
    """One of the two ends does not want the link."""

    def __init__(self, status_code: LLMStatusCode, reason: str, *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.status_code = status_code
        self.for_now = for_now

    @classmethod
    def by_peer(cls, refusal: Refusal) -> Refused:
        """What the other end says."""
        known = [code for code in _REFUSAL_CODES if code == refusal.status_code]
        code = known[0] if known else LLMStatusCode.LLM_FAILED
        return cls(code, f"the other end says: {refusal.reason!r}", for_now=refusal.for_now)

    @property
    def message(self) -> Refusal:
        """What the other end is told."""
        return Refusal(int(self.status_code), str(self)[:1000], self.for_now)
