"""One member's part in what ``link`` makes of two to four clusters: the communicator machine of the spec (api §4.2).

Of two members the one with the higher rank calls on the other, at the address that the rank table gives the lower. It
calls again and again until the other one is there and waits for it too: nobody has to come first. Members are connected
only while they prepare: a member that has come to be ``OK`` takes nobody in who comes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from llmdd._core.peer import Peer
from llmdd._core.status import LLMException
from llmdd._core.tables import COMMUNICATOR

from .channel import connect
from .handshake import initiate
from .listeners import Address
from .local_end import LocalEnd
from .messages import Commit, CommunicatorTag, Farewell, Identity, Linked, ProtocolError, Refusal
from .rank_table import addresses_of, canonical
from .refused import Refused
from .secure_connection import NotAuthenticated
from .session import Session
from .sessions import cancel, part

_logger = logging.getLogger("llmdd.link")

# Between two calls on a member that is not there yet.
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.2


@dataclass(frozen=True)
class Agreement:
    """What every member of a communicator must have been told alike."""

    name: str
    ranks: dict[int, int]
    addresses: dict[int, Address]
    name_digest: bytes
    digest: bytes

    @classmethod
    def of(cls, name: str, ranks: dict[int, int], rank_table: str) -> Agreement:
        """From the arguments of ``link``: ``ranks`` is cluster id → rank.

        Raises
        ------
        RankTableError
            An address cannot be derived for every rank.
        """
        found = addresses_of(rank_table, ranks.values())
        told = repr((name, sorted(ranks.items()), canonical(rank_table)))
        return cls(
            name,
            dict(ranks),
            {cluster_id: found[rank] for cluster_id, rank in ranks.items()},
            sha256(ascii(name).encode()).digest(),
            sha256(ascii(told).encode()).digest(),
        )


class Communicator:
    """A member's communicator, from its ``link`` on. Lives on the event loop.

    Parameters
    ----------
    number
        Its id.
    agreement
        Who its members are, and where they meet.
    end
        The node whose communicator it is.
    changed
        Called when :meth:`members` has changed.
    total_time_s, attempts
        How long it may prepare, and the number of attempts that share this time. An attempt that nothing can come of,
        because the address of this member cannot be listened at, is over; the next begins when its time has come.
    """

    def __init__(
        self,
        number: int,
        agreement: Agreement,
        end: LocalEnd,
        changed: Callable[[], None],
        *,
        total_time_s: float,
        attempts: int,
    ) -> None:
        self.number = number
        self.agreement = agreement
        self._end = end
        self._changed = changed
        self._sessions: dict[int, Session] = {}
        self._callers: dict[int, tuple[int, int]] = {}
        self._strangers: dict[int, str] = {}  # why those that answer where a member should are not known
        self._parting: list[Session] = []
        self._complete = asyncio.Event()
        own_rank = agreement.ranks[end.identity.cluster_id]
        self._lower = [cluster_id for cluster_id, rank in agreement.ranks.items() if rank < own_rank]
        self._higher = [cluster_id for cluster_id, rank in agreement.ranks.items() if rank > own_rank]
        self.state, _ = COMMUNICATOR.step(COMMUNICATOR.initial, "link")
        self._meeting = asyncio.create_task(self._meet(total_time_s, attempts), name=f"communicator {number}")

    def __repr__(self) -> str:
        return f"communicator {self.number} {self.agreement.name!r}"

    def members(self) -> dict[int, Peer]:
        """The members to which transfers may run, and their memory."""
        if self.state != "OK":
            return {}
        return {cluster_id: session.memory for cluster_id, session in self._sessions.items()}

    # -- meeting --------------------------------------------------------------------------------------------------

    async def _meet(self, total_time_s: float, attempts: int) -> None:
        """Until every member is connected. Gives up at the deadline, or when a member refuses for good."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        reason: object = None
        for attempt in range(1, attempts + 1):
            end = begin + total_time_s * attempt / attempts
            try:
                await asyncio.wait_for(self._attempt(), end - clock())
                return
            except asyncio.TimeoutError:
                missing = sorted(set(self._lower + self._higher).difference(self._sessions))
                reason = f"{total_time_s} s have passed, the clusters {missing} are not connected"
                if self._strangers:
                    reason = f"{reason}: {self._strangers}"
            except OSError as error:
                reason = f"cannot listen at {self._own_address}: {error}"
                if attempt < attempts:
                    await asyncio.sleep(end - clock())
            except Refused as refused:
                reason = refused
                break
        if self.state == "PREPARING":  # it may have been dropped in this very moment
            self.give_up(reason)

    @property
    def _own_address(self) -> Address:
        return self.agreement.addresses[self._end.identity.cluster_id]

    async def _attempt(self) -> None:
        """Listen for those who call on us, and call on the others, until all are connected."""
        address = self._end.listeners.open(*self._own_address) if self._higher else None
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._call_on(cluster_id)) for cluster_id in self._lower]
        tasks.append(asyncio.create_task(self._complete.wait()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not self._complete.is_set():
                for task in done:
                    task.result()
        finally:
            if address is not None:
                self._end.listeners.retire(address)
            await cancel(tasks)

    async def _call_on(self, cluster_id: int) -> None:
        """Connect to a member, and again when it is lost meanwhile; ends only by a refusal for good."""
        pause = _FIRST_PAUSE_S
        while True:
            if cluster_id not in self._sessions:
                try:
                    await self._connect_to(cluster_id)
                    pause = _FIRST_PAUSE_S
                except Refused as refused:
                    if not refused.for_now:
                        raise
                    _logger.debug("%r: cluster %d: %s", self, cluster_id, refused)
                except NotAuthenticated as error:
                    self._note_stranger(cluster_id, str(error))
                except (ProtocolError, OSError, ValueError, LLMException) as error:
                    _logger.debug("%r: cluster %d: %s", self, cluster_id, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _note_stranger(self, cluster_id: int, reason: str) -> None:
        # Keys may be put right while the communicator prepares.
        level = logging.DEBUG if self._strangers.get(cluster_id) == reason else logging.WARNING
        self._strangers[cluster_id] = reason
        _logger.log(level, "%r: cluster %d: %s", self, cluster_id, reason)

    async def _connect_to(self, cluster_id: int) -> None:
        end = self._end
        tag = CommunicatorTag(self.agreement.name_digest, self.agreement.digest, self.number)
        channel = await connect(*self.agreement.addresses[cluster_id], end.security.keys)
        try:
            session = await initiate(channel, end, cluster_id, tag)
        except BaseException:
            channel.close()
            raise
        try:
            channel.send(Commit())
        except BaseException:
            session.discard()
            raise
        end.sessions.start(session, self, initiator=True)
        try:
            verdict = await asyncio.shield(session.verdict)
            if isinstance(verdict, Refusal):
                raise Refused.by_peer(verdict)
            if not isinstance(verdict, Linked):
                raise ProtocolError(f"unexpected message {type(verdict).__name__}")
            if not (session.farewell or session.gone):  # it may have left right behind its verdict
                self._connected(session)
        finally:
            if self._sessions.get(cluster_id) is not session:
                session.let_go()

    # -- being met ------------------------------------------------------------------------------------------------

    def awaits(self, theirs: Identity, tag: CommunicatorTag) -> bool:
        """Whether a member may connect: it is not connected, or knows better, because it is the one that was."""
        if self.state != "PREPARING" or theirs.cluster_id not in self._higher:
            return False
        return theirs.cluster_id not in self._sessions or self.was_called_by(theirs, tag)

    def was_called_by(self, theirs: Identity, tag: CommunicatorTag) -> bool:
        """Whether it was the same communicator of the same member that called last."""
        return self._callers.get(theirs.cluster_id) == (theirs.incarnation, tag.number)

    def accept(self, session: Session, tag: CommunicatorTag) -> None:
        """A member that called on us has committed."""
        self._callers[session.peer.cluster_id] = (session.peer.incarnation, tag.number)
        self._end.sessions.start(session, self, initiator=False)
        self._connected(session)
        session.say(Linked())

    def _connected(self, session: Session) -> None:
        before = self._sessions.get(session.peer.cluster_id)
        self._sessions[session.peer.cluster_id] = session
        self._strangers.pop(session.peer.cluster_id, None)
        session.note_peer()
        if before is not None:
            self._part_from(before)
        self._step("member_connected", all_connected=len(self._sessions) == len(self.agreement.ranks) - 1)
        if self.state == "OK":
            self._complete.set()

    # -- parting --------------------------------------------------------------------------------------------------

    def peer_unlinked(self, session: Session) -> None:
        """A member has dropped its communicator: it can be reached through this one no more."""
        self._lose(session)

    def peer_gone(self, session: Session) -> None:
        """A member has died, or its transfers have ended for good."""
        if self._lose(session):
            self._end.counts.links_lost += 1
            session.break_off()

    def _lose(self, session: Session) -> bool:
        cluster_id = session.peer.cluster_id
        if self._sessions.get(cluster_id) is not session:
            return False
        del self._sessions[cluster_id]
        self._changed()
        _logger.info("%r: cluster %d is connected no more", self, cluster_id)
        self._part_from(session)
        return True

    def give_up(self, reason: object) -> None:
        """Fail, and let go of the members that were connected."""
        self._step("give_up")
        _logger.warning("%r failed: %s", self, reason)
        self._part()

    def drop(self) -> None:
        """The communicator is unlinked: stop preparing and let go of the members."""
        self._step("unlink")
        self._part()

    async def parted(self, timeout_s: float) -> None:
        """Until preparation has stopped and transfers have ended; those of other members get ``timeout_s`` for it."""
        await self.stopped()
        await part(self._parting, timeout_s)
        for session in self._parting:
            session.evict()  # a member that reads still, after all this time, or stands still

    async def stopped(self) -> None:
        """Until nothing is being prepared any more."""
        await asyncio.gather(self._meeting, return_exceptions=True)

    def _part(self) -> None:
        if self._meeting is not asyncio.current_task():
            self._meeting.cancel()
        sessions = list(self._sessions.values())
        self._sessions.clear()
        self._changed()
        for session in sessions:
            session.say(Farewell())
            self._part_from(session)

    def _part_from(self, session: Session) -> None:
        session.let_go()
        self._parting = [other for other in (*self._parting, session) if not other.has_ended]

    def _step(self, event: str, **facts: bool) -> None:
        before = self.state
        self.state, effects = COMMUNICATOR.step(before, event, **facts)
        if "publish_members" in effects:
            self._changed()
        if self.state != before:
            _logger.info("%r: %s -> %s (%s)", self, before, self.state, event)
