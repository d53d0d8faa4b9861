"""Who may link to a node: by keys, or whoever reaches it.

1. A node has keys when both are given: its own, and those that it allows. One alone is refused.
2. Without keys a node listens at loopback addresses only, unless it is told to be open. That holds wherever an address
   to listen at is taken: in ``init``, in ``switch_role``, and in ``link``, from the rank table, if members call there.
3. Two nodes link when both have keys that allow the other's, or neither has any; to all others they are out of reach.
4. While a link stands, only the key that it was made with speaks for its cluster: another can neither replace it nor
   drop it.
5. An option counts before the environment.

Who holds which key is not modelled: nodes that have keys are taken to allow each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from .arguments import require
from .values import Address

KEY = "llmdd.LinkKey"
ALLOWED_KEYS = "llmdd.LinkAllowedKeys"
OPEN = "llmdd.OpenLinks"

#: Option → the environment variable that takes its place where it is not given.
ENVIRONMENT = {KEY: "LLMDD_LINK_KEY", ALLOWED_KEYS: "LLMDD_LINK_ALLOWED_KEYS", OPEN: "LLMDD_OPEN_LINKS"}


@dataclass(frozen=True)
class Security:
    """What a node was told about strangers."""

    has_keys: bool
    is_open: bool

    def check_listening(self, address: Address | None) -> None:
        """Rule 2."""
        if address is None or self.has_keys or self.is_open:
            return
        require(_is_loopback(address[0]), f"{address[0]} takes link_key and link_allowed_keys, or open_links")


def read_security(options: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Security:
    """Rules 1 and 5."""
    given = {key: options.get(key) or environment.get(name, "") for key, name in ENVIRONMENT.items()}
    require(bool(given[KEY]) == bool(given[ALLOWED_KEYS]), f"{KEY} and {ALLOWED_KEYS} go together")
    require(given[OPEN] in ("", "0", "1"), f"{OPEN} should be 0 or 1, but is {given[OPEN]!r}")
    return Security(has_keys=bool(given[KEY]), is_open=given[OPEN] == "1")


def _is_loopback(ip: str) -> bool:
    address = ip_address(ip)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
