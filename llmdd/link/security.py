"""Whether an end's links are authenticated, and where it may listen (``spec/security.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from llmdd._core.status import LLMStatusCode, failure

from .keys import LinkKeys, is_loopback


@dataclass(frozen=True)
class LinkSecurity:
    """What an instance was told about strangers.

    Attributes
    ----------
    keys
        By which it and its peers know each other; None: links are neither authenticated nor encrypted.
    is_open
        Whether it may listen without keys at any address.
    """

    keys: LinkKeys | None = None
    is_open: bool = False

    def require_may_listen(self, tag: str, host: str) -> None:
        """Raise ``LLM_PARAM_INVALID`` where others than processes of this host could link to it unknown."""
        if self.keys is not None or self.is_open or is_loopback(host):
            return
        raise failure(
            tag,
            LLMStatusCode.LLM_PARAM_INVALID,
            f"to listen at {host}, which is not a loopback address, takes keys: set link_key and link_allowed_keys, or "
            "LLMDD_LINK_KEY and LLMDD_LINK_ALLOWED_KEYS (llmdd keys new NAME makes a key); or let anybody in who "
            "reaches it: set open_links to True, or LLMDD_OPEN_LINKS to 1",
        )
