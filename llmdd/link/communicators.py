"""The communicators of one node (api §4.2)."""

from __future__ import annotations

from collections.abc import Callable

from llmdd._core.enumerations import RegisterMemStatus
from llmdd._core.peer import Peer
from llmdd._core.status import LLMException, LLMStatusCode, failure
from llmdd._core.tables import COMMUNICATOR

from .channel import Channel
from .communicator import Agreement, Communicator
from .handshake import answer, require_cluster
from .local_end import LocalEnd
from .messages import Commit, CommunicatorTag, Detached, Identity, LinkRequest
from .rank_table import RankTableError
from .refused import Refused

#: How many may live in one node.
MAX_COMMUNICATORS = 512


class Communicators:
    """Makes and drops communicators, and brings those together with them who call on this node. On the event loop.

    Parameters
    ----------
    end
        The node.
    publish
        Called with the memory of all members to which transfers may run when they change: a new dict each time. Where
        several communicators lead to one cluster, the oldest of them is in it.
    total_time_s, attempts
        As of :class:`~llmdd.link.communicator.Communicator`.
    parting_time_s
        How long the transfers of other members may go on when a communicator is dropped.
    """

    def __init__(
        self,
        end: LocalEnd,
        publish: Callable[[dict[int, Peer]], None],
        *,
        total_time_s: float,
        attempts: int,
        parting_time_s: float,
    ) -> None:
        self._end = end
        self._publish = publish
        self._total_time_s = total_time_s
        self._attempts = attempts
        self._parting_time_s = parting_time_s
        self._living: dict[int, Communicator] = {}
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._living)

    def make(self, name: str, ranks: dict[int, int], rank_table: str) -> int:
        """Begin to bring a communicator about; its id.

        Raises
        ------
        LLMException
            ``LLM_PARAM_INVALID``: this cluster is no member, there are too many, or the address at which others call on
            this member takes keys; ``LLM_LINK_FAILED``: the rank table
            does not tell where the members meet.
        """
        if self._end.identity.cluster_id not in ranks:
            own = self._end.identity.cluster_id
            raise failure(
                "link", LLMStatusCode.LLM_PARAM_INVALID, f"cluster {own}, this one, is not among {list(ranks)}"
            )
        if len(self._living) >= MAX_COMMUNICATORS:
            raise failure("link", LLMStatusCode.LLM_PARAM_INVALID, f"there are {MAX_COMMUNICATORS} communicators")
        try:
            agreement = Agreement.of(name, ranks, rank_table)
        except RankTableError as error:
            raise failure("link", LLMStatusCode.LLM_LINK_FAILED, str(error)) from None
        own_rank = ranks[self._end.identity.cluster_id]
        if max(ranks.values()) > own_rank:  # others will call on this one
            host, _ = agreement.addresses[self._end.identity.cluster_id]
            self._end.security.require_may_listen("link", host)
        number = self._next_number
        self._next_number += 1
        self._living[number] = Communicator(
            number,
            agreement,
            self._end,
            self._members_changed,
            total_time_s=self._total_time_s,
            attempts=self._attempts,
        )
        self._end.store.communicators = len(self._living)
        return number

    def status(self, number: int) -> RegisterMemStatus:
        """How far a communicator has come; may be asked from any thread. ``LLM_NOT_YET_LINK`` if there is none."""
        state = _step(self._living.get(number), number, "query", "query_register_mem_status")
        return RegisterMemStatus[state]

    async def unlink(self, number: int) -> None:
        """Drop a communicator; waits for preparation to stop and for transfers to end."""
        communicator = self._living.get(number)
        _step(communicator, number, "unlink", "unlink")
        assert communicator is not None
        self._drop(communicator)
        await communicator.parted(self._parting_time_s)

    async def close(self) -> None:
        """Drop every communicator, waiting for preparation to stop; the sessions are for the caller to close."""
        communicators = list(self._living.values())
        for communicator in communicators:
            self._drop(communicator)
        for communicator in communicators:
            await communicator.stopped()

    def _drop(self, communicator: Communicator) -> None:
        del self._living[communicator.number]
        self._end.store.communicators = len(self._living)
        communicator.drop()

    def _members_changed(self) -> None:
        members: dict[int, Peer] = {}
        for communicator in self._living.values():
            members = {**communicator.members(), **members}
        self._publish(members)

    # -- what other members want ----------------------------------------------------------------------------------

    async def serve_link(self, channel: Channel, request: LinkRequest) -> None:
        """Connect a member that calls on this node; raises what it is refused with."""
        theirs, tag = request.identity, request.communicator
        assert tag is not None
        require_cluster(request, self._end.identity)
        communicator = self._waiting_for(theirs, tag)
        try:
            session = await answer(channel, self._end, request)
        except Refused as refused:
            if communicator.awaits(theirs, tag):
                communicator.give_up(refused)
            raise
        try:
            if isinstance(await channel.receive(Commit, Detached), Detached):
                session.discard()
                return
            if not communicator.awaits(theirs, tag):
                raise _not_now()
        except BaseException:
            session.discard()
            raise
        communicator.accept(session, tag)

    def _waiting_for(self, theirs: Identity, tag: CommunicatorTag) -> Communicator:
        """The communicator that a caller belongs to, if it waits for it."""
        waiting = [
            communicator
            for communicator in self._living.values()
            if communicator.agreement.name_digest == tag.name and communicator.awaits(theirs, tag)
        ]
        agreed = [communicator for communicator in waiting if communicator.agreement.digest == tag.agreement]
        if agreed:
            return next((communicator for communicator in agreed if communicator.was_called_by(theirs, tag)), agreed[0])
        if not waiting:
            raise _not_now()
        refused = Refused(
            LLMStatusCode.LLM_PARAM_INVALID,
            f"clusters {self._end.identity.cluster_id} and {theirs.cluster_id} were given different members or rank "
            f"tables for the communicator {waiting[0].agreement.name!r}",
        )
        waiting[0].give_up(refused)
        raise refused


def _not_now() -> Refused:
    return Refused(LLMStatusCode.LLM_NOT_YET_LINK, "the communicator is not waiting for this member", for_now=True)


def _step(communicator: Communicator | None, number: int, event: str, tag: str) -> str:
    """The state before ``event``, if the spec allows it there."""
    state = COMMUNICATOR.initial if communicator is None else communicator.state
    try:
        COMMUNICATOR.step(state, event)
    except LLMException as error:
        raise failure(tag, error.status_code, f"there is no communicator {number}") from None
    return state
