"""Which calls are made, and when: by what they are about."""

from __future__ import annotations

from .blocks import BlocksRules
from .bulk import BulkRules
from .caches import CacheRules
from .communicators import CommunicatorRules
from .engines import EngineRules
from .leases import LeaseRules
from .memory import MemoryRules
from .transfers import TransferRules


class AllRules(
    EngineRules, CommunicatorRules, MemoryRules, CacheRules, BlocksRules, TransferRules, BulkRules, LeaseRules
):
    """Every call of the contract, and ours for many at once."""
