"""The rules by which a cache lives, as data. Every other statement of them is generated from this file.

``seed §n`` is a clause of the reference page for ``allocate_cache``; ``api §n`` a section of the behavioural contract,
``api Dn`` one of its numbered decisions; ``design`` an invariant that both imply.

The rules
---------
 1. A cache is kept alive by three kinds of reference: its *id*, one *key* for each bound batch slot, and one *pin* for
    each transfer in flight or view of its memory.
 2. ``allocate_cache`` takes the id reference and binds the keys; nothing else ever adds an id or key reference.
 3. ``deallocate_cache`` drops the id reference. Doing it again does nothing.
 4. A key reference is dropped by a completed transfer of its slot's last outstanding tensor, by ``remove_cache_key``,
    or by the end of its lease.
 5. A transfer of some of the tensors drops nothing until every tensor has been transferred *for that key*.
 6. A prefix key is not dropped by transfers, only by ``remove_cache_key`` or the end of its lease. Nor is any key of a
    registered cache, which has no lease.
 7. A placeholder binds nothing and holds nothing. So does a slot whose key was left out.
 8. A key given twice in one call is bound where it stands last; where it stood before it is superseded.
 9. When neither id nor keys remain the slot is closed: no transfer can begin, those in flight finish.
10. Memory returns to the pool when the slot is closed and no pin is left: at that moment, once, never earlier.
11. Whoever dies holding pins has them dropped for him; what he had not completed he has not done.
12. What is refused changes nothing.
13. A blocks cache has one slot, the whole of it, and its key names a model. The key goes with the id, and by nothing
    else.
14. The memory of a registered cache is the caller's. ``unregister_cache`` takes its id and its keys at once, and the
    memory is the caller's again when no pin is left; ``deallocate_cache`` leaves it registered.
15. ``allocate_cache`` may bind its keys with a *lease*, so many milliseconds from the call on. When a lease is over its
    key reference is dropped, as by ``remove_cache_key``. That waits for nothing else: for no call, no other lease, and
    nothing that a peer does or fails to do.
16. Renewing a lease makes it end so many milliseconds from now, unless it ends later anyway. A key that is bound
    without one stays so. Owner and peers may renew, and none of them brings a key back.
17. Who keeps the leases of keys renews each three times in its length, at least, until it has found the key and then
    finds it no more, or is told to stop.
"""

from __future__ import annotations

from .machine import Effect, Event, Guard, Machine, Refusal, State, Transition

CACHE = Machine(
    name="cache",
    meaning="What keeps the memory of a cache from going back to the pool.",
    initial="FREE",
    states=(
        State(
            "FREE",
            "No cache lives here; its memory is in the pool, or the caller's.",
            "seed §1",
            {"tenant": False},
        ),
        State(
            "HELD",
            "Referenced by its id alone.",
            "seed §1, §2",
            {"tenant": True, "id": True, "keys": False},
        ),
        State(
            "INDEXED",
            "Referenced by its id and by keys.",
            "seed §1",
            {"tenant": True, "id": True, "keys": True},
        ),
        State(
            "DRAINING",
            "Deallocated, waiting for its keys to be consumed.",
            "seed §1, §3",
            {"tenant": True, "id": False, "keys": True},
        ),
        State(
            "RELEASING",
            "No reference left: closed to new transfers, those in flight finish.",
            "api §3.3",
            {"tenant": True, "id": False, "keys": False},
        ),
    ),
    events=(
        Event("allocate", "allocate_cache succeeds, or another call that makes a cache."),
        Event("drop_id", "deallocate_cache; of a registered cache unregister_cache."),
        Event("drop_key", "A key reference goes: its slot was transferred, or the key removed or withdrawn."),
        Event("pin", "A transfer begins, or a view of the memory is made."),
        Event("unpin", "A transfer ends however it ends, a view is dropped, or their holder dies."),
        Event("settle", "The owner looks whether the memory can go back."),
    ),
    guards=(
        Guard("keys_remain", "at least one batch slot is still keyed"),
        Guard("pinned", "at least one transfer or view holds the cache"),
    ),
    effects=(
        Effect("take_memory", "take the pages of every tensor from the pool, or the caller's memory as it is"),
        Effect("open_slot", "let transfers begin"),
        Effect("close_slot", "let no new transfer begin"),
        Effect("return_memory", "give every page back to the pool, or the caller's memory back to the caller"),
        Effect("advance_generation", "make every word and index entry of this tenant stale"),
    ),
    transitions=(
        Transition(
            "allocate", "FREE", "INDEXED", "seed §1, §5", when=("keys_remain",), effects=("take_memory", "open_slot")
        ),
        Transition(
            "allocate", "FREE", "HELD", "seed §1, §10", when=("not keys_remain",), effects=("take_memory", "open_slot")
        ),
        Transition("drop_id", "HELD", "RELEASING", "seed §2", effects=("close_slot",)),
        Transition("drop_id", "INDEXED", "DRAINING", "seed §1, §2"),
        Transition("drop_id", "DRAINING", "DRAINING", "api §3.3 (repeated: no-op)"),
        Transition("drop_id", "RELEASING", "RELEASING", "api §3.3 (repeated: no-op)"),
        Transition("drop_id", "FREE", "FREE", "api §3.3 (unknown: no-op)"),
        Transition("drop_key", "INDEXED", "INDEXED", "seed §3", when=("keys_remain",)),
        Transition("drop_key", "INDEXED", "HELD", "seed §1, §3", when=("not keys_remain",)),
        Transition("drop_key", "DRAINING", "DRAINING", "seed §3", when=("keys_remain",)),
        Transition(
            "drop_key", "DRAINING", "RELEASING", "seed §1, §3", when=("not keys_remain",), effects=("close_slot",)
        ),
        Transition("pin", "HELD", "HELD", "api §3.3 (a transfer in flight pins)"),
        Transition("pin", "INDEXED", "INDEXED", "api §3.3 (a transfer in flight pins)"),
        Transition("pin", "DRAINING", "DRAINING", "api §3.3 (still pullable)"),
        Transition("unpin", "HELD", "HELD", "api §3.3"),
        Transition("unpin", "INDEXED", "INDEXED", "api §3.3"),
        Transition("unpin", "DRAINING", "DRAINING", "api §3.3"),
        Transition("unpin", "RELEASING", "RELEASING", "api §3.3"),
        Transition("settle", "FREE", "FREE", "design: a spurious look does nothing"),
        Transition("settle", "HELD", "HELD", "design: a spurious look does nothing"),
        Transition("settle", "INDEXED", "INDEXED", "design: a spurious look does nothing"),
        Transition("settle", "DRAINING", "DRAINING", "design: a spurious look does nothing"),
        Transition("settle", "RELEASING", "RELEASING", "api §3.3 (never under a transfer)", when=("pinned",)),
        Transition(
            "settle",
            "RELEASING",
            "FREE",
            "seed §1",
            when=("not pinned",),
            effects=("return_memory", "advance_generation"),
        ),
    ),
    refusals=(
        Refusal("pin", "FREE", "LLM_KV_CACHE_NOT_EXIST", "api §3.6 (2, 7)"),
        Refusal("pin", "RELEASING", "LLM_KV_CACHE_NOT_EXIST", "api §3.4 (after release)"),
    ),
)

BATCH_SLOT = Machine(
    name="batch_slot",
    meaning="Which key, if any, holds one batch slot of a cache.",
    initial="UNKEYED",
    states=(
        State("UNKEYED", "No key: placeholder, left out, superseded, transferred, removed, expired.", "seed §10, §11"),
        State("REQUEST_KEYED", "Held by a request key, which a transfer consumes.", "seed §3, §9"),
        State("PREFIX_KEYED", "Held by a prefix key, which transfers leave in place.", "api D18"),
        State("BLOCKS_KEYED", "The one slot of a blocks cache, held by a model's key.", "api §3.1, §3.3"),
    ),
    events=(
        Event("bind_request", "A request key is given for this slot."),
        Event("bind_prefix", "A prefix key is given for this slot."),
        Event("bind_blocks", "A blocks key is given for a blocks cache."),
        Event("bind_placeholder", "A placeholder is given for this slot, or no key at all."),
        Event("supersede", "The same key is given again for a later slot."),
        Event("transfer", "A pull from, or a push into, this slot has completed."),
        Event("remove", "remove_cache_key names this slot's key."),
        Event("renew", "The owner or a peer renews the lease of this slot's key."),
        Event("expire", "The owner looks whether the lease of this slot's key is over."),
        Event("withdraw", "The cache goes, and its keys with it: a blocks cache or a registered one."),
    ),
    guards=(
        Guard("registered", "the cache's memory is the caller's own"),
        Guard("tensors_remain", "some tensor has not been transferred for this key"),
        Guard("lease_over", "the key was bound with a lease, which is over"),
    ),
    effects=(
        Effect("index_key", "let the key be looked up"),
        Effect("unindex_key", "let the key be found no more"),
        Effect("drop_key", "tell the cache that a key reference has gone"),
        Effect("renew_lease", "let the lease end later, if there is one that ends earlier"),
    ),
    transitions=(
        Transition("bind_request", "UNKEYED", "REQUEST_KEYED", "seed §9", effects=("index_key",)),
        Transition("bind_prefix", "UNKEYED", "PREFIX_KEYED", "api §3.1", effects=("index_key",)),
        Transition("bind_blocks", "UNKEYED", "BLOCKS_KEYED", "api §3.1", effects=("index_key",)),
        Transition("bind_placeholder", "UNKEYED", "UNKEYED", "seed §10"),
        Transition("supersede", "REQUEST_KEYED", "UNKEYED", "seed §11", effects=("unindex_key",)),
        Transition("supersede", "PREFIX_KEYED", "UNKEYED", "seed §11", effects=("unindex_key",)),
        Transition("transfer", "UNKEYED", "UNKEYED", "api §3.4 (nothing to release)"),
        Transition("transfer", "PREFIX_KEYED", "PREFIX_KEYED", "api §3.4, D18"),
        Transition("transfer", "BLOCKS_KEYED", "BLOCKS_KEYED", "api §3.4 (never)"),
        Transition("transfer", "REQUEST_KEYED", "REQUEST_KEYED", "api §3.4 (registered: kept)", when=("registered",)),
        Transition(
            "transfer",
            "REQUEST_KEYED",
            "REQUEST_KEYED",
            "api §3.4 (layer-wise), D4",
            when=("not registered", "tensors_remain"),
        ),
        Transition(
            "transfer",
            "REQUEST_KEYED",
            "UNKEYED",
            "seed §3a",
            when=("not registered", "not tensors_remain"),
            effects=("unindex_key", "drop_key"),
        ),
        Transition("remove", "REQUEST_KEYED", "UNKEYED", "seed §3b", effects=("unindex_key", "drop_key")),
        Transition("remove", "PREFIX_KEYED", "UNKEYED", "seed §3b", effects=("unindex_key", "drop_key")),
        Transition("renew", "REQUEST_KEYED", "REQUEST_KEYED", "design: leases", effects=("renew_lease",)),
        Transition("renew", "PREFIX_KEYED", "PREFIX_KEYED", "design: leases", effects=("renew_lease",)),
        Transition("renew", "BLOCKS_KEYED", "BLOCKS_KEYED", "design: leases (it has none)"),
        Transition("expire", "UNKEYED", "UNKEYED", "design: a spurious look does nothing"),
        Transition("expire", "BLOCKS_KEYED", "BLOCKS_KEYED", "design: a spurious look does nothing"),
        Transition(
            "expire", "REQUEST_KEYED", "REQUEST_KEYED", "design: a spurious look does nothing", when=("not lease_over",)
        ),
        Transition(
            "expire", "PREFIX_KEYED", "PREFIX_KEYED", "design: a spurious look does nothing", when=("not lease_over",)
        ),
        Transition(
            "expire",
            "REQUEST_KEYED",
            "UNKEYED",
            "design: leases",
            when=("lease_over",),
            effects=("unindex_key", "drop_key"),
        ),
        Transition(
            "expire",
            "PREFIX_KEYED",
            "UNKEYED",
            "design: leases",
            when=("lease_over",),
            effects=("unindex_key", "drop_key"),
        ),
        Transition("withdraw", "UNKEYED", "UNKEYED", "api §3.3 (nothing to drop)"),
        Transition("withdraw", "REQUEST_KEYED", "UNKEYED", "api §3.3, §3.11", effects=("unindex_key", "drop_key")),
        Transition("withdraw", "PREFIX_KEYED", "UNKEYED", "api §3.3, §3.11", effects=("unindex_key", "drop_key")),
        Transition("withdraw", "BLOCKS_KEYED", "UNKEYED", "api §3.3", effects=("unindex_key", "drop_key")),
    ),
    refusals=(Refusal("renew", "UNKEYED", "LLM_KV_CACHE_NOT_EXIST", "api §3.4 (after release)"),),
)

LINK = Machine(
    name="link",
    meaning="One end's view of its link to another cluster.",
    initial="UNLINKED",
    states=(
        State("UNLINKED", "No link: transfers are refused.", "api §3.6 (5)"),
        State("LINKED", "Transfers run in both directions.", "api §4.1"),
        State("BROKEN", "The other end has gone; this end still holds the link.", "api §4.1, D63"),
    ),
    events=(
        Event("link", "link_clusters is called here."),
        Event("accept", "The other end links to us."),
        Event("transfer", "A transfer over the link is asked for."),
        Event("unlink", "unlink_clusters is called here."),
        Event("force_unlink", "unlink_clusters(force=True) is called here."),
        Event("peer_unlinked", "The other end unlinked and told us."),
        Event("peer_gone", "The other end's process died, or it dropped its end by force."),
    ),
    guards=(Guard("peer_reachable", "the other end answers at its address"),),
    effects=(
        Effect("attach_peer", "exchange memory segments with the other end"),
        Effect("detach_peer", "wait for the transfer in progress, then let the other end's memory go"),
        Effect("drop_peer_pins", "drop every pin the other end held here"),
        Effect("tell_peer", "tell the other end to drop its end"),
    ),
    transitions=(
        Transition("link", "UNLINKED", "LINKED", "api §4.1", when=("peer_reachable",), effects=("attach_peer",)),
        Transition("accept", "UNLINKED", "LINKED", "api §4.1", effects=("attach_peer",)),
        Transition(
            "accept",
            "LINKED",
            "LINKED",
            "api §4.1 (client restarted: replaced)",
            effects=("detach_peer", "drop_peer_pins", "attach_peer"),
        ),
        Transition(
            "accept",
            "BROKEN",
            "LINKED",
            "api §4.1 (client restarted: replaced)",
            effects=("detach_peer", "attach_peer"),
        ),
        Transition("transfer", "LINKED", "LINKED", "api §4.1"),
        Transition(
            "unlink",
            "LINKED",
            "UNLINKED",
            "api §4.1",
            when=("peer_reachable",),
            effects=("tell_peer", "detach_peer", "drop_peer_pins"),
        ),
        Transition(
            "unlink",
            "BROKEN",
            "UNLINKED",
            "api §4.1",
            when=("peer_reachable",),
            effects=("tell_peer", "detach_peer"),
        ),
        Transition(
            "unlink",
            "UNLINKED",
            "UNLINKED",
            "api §4.1 (also when no link existed)",
            when=("peer_reachable",),
            effects=("tell_peer",),
        ),
        Transition("force_unlink", "LINKED", "UNLINKED", "api §4.1", effects=("detach_peer", "drop_peer_pins")),
        Transition("force_unlink", "BROKEN", "UNLINKED", "api §4.1", effects=("detach_peer",)),
        Transition("force_unlink", "UNLINKED", "UNLINKED", "api §4.1 (also when no link existed)"),
        Transition("peer_unlinked", "LINKED", "UNLINKED", "api §4.1", effects=("detach_peer", "drop_peer_pins")),
        Transition("peer_unlinked", "BROKEN", "UNLINKED", "api §4.1", effects=("detach_peer",)),
        Transition("peer_unlinked", "UNLINKED", "UNLINKED", "api §4.1"),
        Transition("peer_gone", "LINKED", "BROKEN", "api D63", effects=("drop_peer_pins",)),
        Transition("peer_gone", "BROKEN", "BROKEN", "api D63"),
        Transition("peer_gone", "UNLINKED", "UNLINKED", "api D63"),
    ),
    refusals=(
        Refusal("link", "UNLINKED", "LLM_LINK_FAILED", "api §4.1", when=("not peer_reachable",)),
        Refusal("link", "LINKED", "LLM_ALREADY_LINK", "api §4.1"),
        Refusal("link", "BROKEN", "LLM_ALREADY_LINK", "api §4.1 (server restarted)"),
        Refusal("transfer", "UNLINKED", "LLM_NOT_YET_LINK", "api §3.6 (5)"),
        Refusal("transfer", "BROKEN", "LLM_NOT_YET_LINK", "api D63"),
        Refusal("unlink", "UNLINKED", "LLM_UNLINK_FAILED", "api §4.1", when=("not peer_reachable",)),
        Refusal("unlink", "LINKED", "LLM_UNLINK_FAILED", "api §4.1", when=("not peer_reachable",)),
        Refusal("unlink", "BROKEN", "LLM_UNLINK_FAILED", "api §4.1", when=("not peer_reachable",)),
    ),
)

COMMUNICATOR = Machine(
    name="communicator",
    meaning="One member's part in what link makes of two to four clusters.",
    initial="UNKNOWN",
    states=(
        State("UNKNOWN", "There is no such communicator: never made, or unlinked.", "api §4.2"),
        State("PREPARING", "Some member is not connected yet: transfers are refused.", "api §4.2"),
        State("OK", "Every member is connected: transfers run in all directions.", "api §4.2"),
        State("FAILED", "Not every member came in time, or one refused.", "api §4.2"),
    ),
    events=(
        Event("link", "link is called here."),
        Event("member_connected", "Another member and this one have exchanged their memory."),
        Event("give_up", "The deadline has passed, or a member has refused."),
        Event("transfer", "A transfer to a member is asked for."),
        Event("query", "query_register_mem_status is called."),
        Event("unlink", "unlink is called here."),
    ),
    guards=(Guard("all_connected", "every member of the map is connected to this one"),),
    effects=(
        Effect("meet_members", "wait for, and call on, the members at the addresses of the rank table"),
        Effect("publish_members", "let transfers to the members begin"),
        Effect("part_members", "wait for the transfers in progress, then let the members' memory go"),
    ),
    transitions=(
        Transition("link", "UNKNOWN", "PREPARING", "api §4.2", effects=("meet_members",)),
        Transition("member_connected", "PREPARING", "PREPARING", "api §4.2", when=("not all_connected",)),
        Transition(
            "member_connected", "PREPARING", "OK", "api §4.2", when=("all_connected",), effects=("publish_members",)
        ),
        Transition("give_up", "PREPARING", "FAILED", "api §4.2", effects=("part_members",)),
        Transition("transfer", "OK", "OK", "api §4.2"),
        Transition("query", "PREPARING", "PREPARING", "api §4.2"),
        Transition("query", "OK", "OK", "api §4.2"),
        Transition("query", "FAILED", "FAILED", "api §4.2"),
        Transition("unlink", "PREPARING", "UNKNOWN", "api §4.2", effects=("part_members",)),
        Transition("unlink", "OK", "UNKNOWN", "api §4.2", effects=("part_members",)),
        Transition("unlink", "FAILED", "UNKNOWN", "api §4.2"),
    ),
    refusals=(
        Refusal("transfer", "UNKNOWN", "LLM_NOT_YET_LINK", "api §3.6 (5)"),
        Refusal("transfer", "PREPARING", "LLM_NOT_YET_LINK", "api §4.2"),
        Refusal("transfer", "FAILED", "LLM_NOT_YET_LINK", "api §4.2"),
        Refusal("query", "UNKNOWN", "LLM_NOT_YET_LINK", "api §2.4, §4.2"),
        Refusal("unlink", "UNKNOWN", "LLM_NOT_YET_LINK", "api §2.4, §4.2"),
    ),
)

ENGINE = Machine(
    name="engine",
    meaning="One LLMDataDist instance.",
    initial="UNINITIALIZED",
    states=(
        State("UNINITIALIZED", "Made, not yet initialised.", "api §2.4"),
        State("READY", "Initialised: calls are served.", "api §2.3"),
        State("FINALIZED", "Everything was released; may be initialised again.", "api §2.1, §4.4"),
    ),
    events=(
        Event("init", "LLMDataDist.init succeeds."),
        Event("call", "Any call that needs an initialised instance."),
        Event("switch_role", "LLMDataDist.switch_role."),
        Event("finalize", "LLMDataDist.finalize."),
    ),
    guards=(Guard("linked", "some link stands, or is held, that is an obstacle"),),
    effects=(
        Effect("acquire_resources", "obtain the pools, start numbering at 1, listen"),
        Effect("change_role", "take the role, and listen where it is said, or nowhere"),
        Effect("release_everything", "drop links, caches, pools and listeners"),
    ),
    transitions=(
        Transition("init", "UNINITIALIZED", "READY", "api §2.3", effects=("acquire_resources",)),
        Transition("init", "READY", "READY", "api §2.3 (1)"),
        Transition("init", "FINALIZED", "READY", "api §4.4", effects=("acquire_resources",)),
        Transition("call", "READY", "READY", "api §2.1"),
        Transition("switch_role", "READY", "READY", "api §4.3", when=("not linked",), effects=("change_role",)),
        Transition("finalize", "UNINITIALIZED", "UNINITIALIZED", "api §4.4 (no-op)"),
        Transition("finalize", "READY", "FINALIZED", "api §4.4", effects=("release_everything",)),
        Transition("finalize", "FINALIZED", "FINALIZED", "api §4.4 (no-op)"),
    ),
    refusals=(
        Refusal("call", "UNINITIALIZED", "RuntimeError", "api §2.4"),
        Refusal("call", "FINALIZED", "LLM_ENGINE_FINALIZED", "api §2.1, D70"),
        Refusal("switch_role", "UNINITIALIZED", "RuntimeError", "api §2.4"),
        Refusal("switch_role", "READY", "LLM_EXIST_LINK", "api §2.4, §4.3", when=("linked",)),
        Refusal("switch_role", "FINALIZED", "LLM_ENGINE_FINALIZED", "api §2.1, D70"),
    ),
)

MACHINES = (CACHE, BATCH_SLOT, LINK, COMMUNICATOR, ENGINE)
