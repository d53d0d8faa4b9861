"""The soak: prefill and decode processes that serve requests while they are killed, stopped, cut off and restarted.

The supervisor plays scheduler and router. It draws requests and faults from the seed, has each request's cache offered
by a prefill process and fetched by a decode process, repairs links after faults, and looks at everything: each byte
that arrives, each call's deadline and code, and every few seconds, when all that was under way has ended, whether
anything is still held by anybody.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any

from llmdd.cli import keys

from . import faults, soak_process, workload
from .contender import Unavailable
from .faults import Fault, Kind
from .soak_judge import NOT_EXIST, SUCCESS, Judge
from .soak_messages import Call
from .soak_messages import Settings as ProcessSettings
from .soak_process import COMMAND, Gone, Process, Violation, in_time
from .switched_hosts import SwitchedHosts
from .workload import Fate, Request, Way

LOOPBACK = "127.0.0.1"
FINALIZED, NOT_LINKED = "LLM_ENGINE_FINALIZED", "LLM_NOT_YET_LINK"
TIMED_OUT, BUSY = "LLM_TIMEOUT", "LLM_LINK_BUSY"
NO_MEMORY = "LLM_OUT_OF_MEMORY"

POOL_BYTES = 32 << 20

#: Requests under way at most.
MOST_UNDER_WAY = 24

#: How long requests and faults go on before everything is let come to rest, and looked at.
STORM_S = 12.0

#: How long it may take until nobody holds anything any more.
REST_PATIENCE_S = 20.0

#: What a process may not have more of from one rest to the next.
GROWING = ("descriptors", "memory files", "mappings of llmdd")

#: How often a request is offered anew, and pulled or pushed anew, before it has failed.
PREFILLS, TRIES = 4, 30

#: Ports below those that the system gives to whoever asks for any.
PORTS = range(20_000, 32_000)


class Place(str, Enum):
    """Where the processes are."""

    ONE_HOST = "one host"
    HOSTS = "a host for each"


@dataclass(frozen=True)
class Settings:
    """What is run; times in seconds or, where the name says so, milliseconds."""

    seed: int
    seconds: float
    place: Place = Place.ONE_HOST
    prefill: int = 3
    decode: int = 3
    requests_per_second: float = 20.0
    mean_fault_gap_s: float | None = 1.0
    """Between one fault and the next; None for no faults."""
    timeout_ms: int = 1000
    margin_ms: int = 1000
    command: tuple[str, ...] = COMMAND
    """What runs a process; its settings are added."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return faults.BETWEEN_HOSTS if self.place is Place.HOSTS else faults.ANYWHERE

    @property
    def link_timeout_ms(self) -> int:
        return 10_000 if self.place is Place.HOSTS else 3000

    @property
    def lease_ms(self) -> int:
        """Of keys that have one: longer than most faults, so that the decode side keeps them, and some lapse."""
        return 4 * self.timeout_ms

    @property
    def settling_s(self) -> float:
        """How long a fault is felt after it has ended: TCP waits longer each time before it tries again."""
        return 8.0 if self.place is Place.HOSTS else 0.5


#: Told what to show of how far it is.
Show = Callable[[str], None]


@dataclass
class Findings:
    """What a run came to."""

    settings: Settings
    judge: Judge
    seconds: float = 0.0
    cores: float = 0.0
    """Processors that were busy for it on the average."""
    requests: Counter[str] = field(default_factory=Counter)
    """How the requests ended."""
    ways: Counter[str] = field(default_factory=Counter)
    """Those that were served, by their way."""
    retried: int = 0
    """Transfers that were asked for again."""
    prefilled_again: int = 0
    lost_calls: int = 0
    """Things asked of a process that died before it answered."""
    bytes_verified: int = 0
    expired_keys: int = 0
    """Those that went because their lease was over, in processes that lived to tell."""
    rests: int = 0
    """How often everything came to rest and was looked at."""
    resources: dict[int, dict[str, int]] = field(default_factory=dict)
    """What each process had when it was first at rest, by its process id."""
    processes: int = 0
    """How many there have been, one after another."""
    interrupted: bool = False
    logs: Path | None = None
    """Where the processes' logs are, if anything was violated."""

    @property
    def violations(self) -> list[str]:
        return self.judge.violations


class Outcome(str, Enum):
    SERVED = "served"
    ABORTED = "aborted"
    ABANDONED = "abandoned"
    LOST = "lost with its prefill process"
    DOUBT = "gone in a case of doubt"
    LAPSED = "gone with its lease"
    FAILED = "failed"


class PrefillAgain(Exception):
    """What was offered is gone."""


class Link:
    """The link between two instances, made anew whenever it is lost."""

    def __init__(self, soak: Soak, prefill: Process, decode: Process, remote: bool) -> None:
        self.prefill, self.decode, self.remote = prefill, decode, remote
        self.up = asyncio.Event()
        self.times = 0
        """How often it was made."""
        self.by_place = 0
        """Transfers under way that name a cache by its id or its addresses, which another may have after a restart."""
        self._soak = soak
        self._repairing = asyncio.Lock()

    @property
    def ends(self) -> frozenset[int]:
        return frozenset({self.prefill.index, self.decode.index})

    async def repair(self) -> None:
        """Drop what is left of it at both ends, and link until that succeeds."""
        async with self._repairing:
            deadline = time.monotonic() + soak_process.PATIENCE_S
            codes: Counter[str] = Counter()
            while not self.up.is_set():
                if time.monotonic() > deadline:
                    raise Violation(f"{self.decode.name} cannot be linked to {self.prefill.name}: {codes}")
                try:
                    codes[await self._attempt()] += 1
                except Gone:
                    await asyncio.sleep(0.02)

    async def _attempt(self) -> str:
        await self.prefill.ready()
        await self.decode.ready()
        generations = self.prefill.generation, self.decode.generation
        if self.times:
            await self.drop(self.decode, force=True)
            await self.drop(self.prefill, force=True)
        while self.by_place:
            await asyncio.sleep(0.01)
        there = self._address(self.prefill)
        code: str = (await self.decode.ask("link", remote=self.remote, **there))["code"]
        if code == SUCCESS and generations == (self.prefill.generation, self.decode.generation):
            self.times += 1
            self.up.set()
        else:
            await asyncio.sleep(0.05)
        return code

    async def drop(self, end: Process, force: bool) -> str:
        other = self.prefill if end is self.decode else self.decode
        code: str = (await end.ask("unlink", remote=self.remote, force=force, **self._address(other)))["code"]
        return code

    def _address(self, process: Process) -> dict[str, Any]:
        settings = process.settings
        return {
            "cluster": settings.clusters[self.remote],
            "address": settings.address,
            "port": settings.ports[self.remote],
        }

    def lost(self, times: int) -> None:
        """Say that it is broken, if it has not been made anew since it was made for so many times."""
        if self.up.is_set() and self.times == times:
            self.up.clear()
            self._soak.begin(self.repair())


class Soak:
    """One run in one place."""

    def __init__(self, settings: Settings, show: Show) -> None:
        self.settings = settings
        self._logs = Path(tempfile.mkdtemp(prefix="llmdd-soak-"))
        self._diary = (self._logs / "soak.log").open("w", encoding="utf-8", buffering=1)
        self.findings = Findings(settings, Judge(settings.margin_ms, settings.settling_s, self.note))
        self.judge = self.findings.judge
        self._show = show
        self._network: SwitchedHosts | None = None
        self.processes: list[Process] = []
        self.links: dict[tuple[int, int, bool], Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None
        self._numbers = {"request": 0, "fault": 0}
        self.must_expire: Counter[str] = Counter()
        """For each instance's incarnation, the keys that nobody has kept, or removed."""
        self.may_expire: Counter[str] = Counter()
        """The same of keys that were kept too seldom, or were pulled in a case of doubt."""
        self._expired: Counter[str] = Counter()

    def note(self, words: str) -> None:
        """Write down what has happened, for whoever looks for the reason of a violation."""
        self._diary.write(f"{datetime.datetime.now().isoformat(sep=' ', timespec='milliseconds')} {words}\n")

    # -- the whole -------------------------------------------------------------------------------------------------

    async def run(self) -> Findings:
        began, used = time.monotonic(), processor_seconds()
        self._failed = asyncio.get_running_loop().create_future()
        try:
            await self._or_failure(self._play())
        except Violation as violation:
            self.judge.violation(str(violation))
        except asyncio.CancelledError:
            self.findings.interrupted = True
        finally:
            for task in self._tasks | self._requests:
                task.cancel()
            await asyncio.gather(*self._tasks, *self._requests, return_exceptions=True)
            for process in self.processes:
                process.abolish()
            if self._network is not None:
                self._network.close()
            self._diary.close()
        self.findings.seconds = time.monotonic() - began
        self.findings.cores = (processor_seconds() - used) / self.findings.seconds
        self.findings.processes = sum(process.starts for process in self.processes)
        self.findings.lost_calls = sum(process.lost_calls for process in self.processes)
        if self.judge.violation_count:
            self.findings.logs = self._logs
        else:
            shutil.rmtree(self._logs)
        return self.findings

    async def _play(self) -> None:
        files = shared_memory_files()
        await self._start()
        deadline = time.monotonic() + self.settings.seconds
        while (left := deadline - time.monotonic()) > 0:
            # A storm that would be hardly one is a part of that before it.
            await self._storm(left if left < 1.5 * STORM_S else STORM_S)
            await self._rest()
        await self._end()
        for name in sorted(shared_memory_files() - files):
            self.judge.violation(f"/dev/shm/{name} is left")

    async def _start(self) -> None:
        settings = self.settings
        count = settings.prefill + settings.decode
        link_key = link_allowed_keys = ""
        if settings.place is Place.HOSTS:
            self._network = SwitchedHosts(count)
            made = keys.make(self._logs / "soak")
            link_key, link_allowed_keys = str(made.key), str(made.certificate)
        ports = iter(free_ports(2 * count))
        for index in range(count):
            role = "prefill" if index < settings.prefill else "decode"
            number = index if index < settings.prefill else index - settings.prefill
            told = ProcessSettings(
                name=f"{role} {number}",
                seed=settings.seed,
                prefill=settings.prefill,
                decode=settings.decode,
                parent=0,
                socket=0,
                network=None if self._network is None else self._network.networks[index],
                address=LOOPBACK if self._network is None else self._network.address(index),
                link_key=link_key,
                link_allowed_keys=link_allowed_keys,
                ports=(next(ports), next(ports)),
                clusters=(index + 1, 1001 + index),
                timeout_ms=settings.timeout_ms,
                link_timeout_ms=settings.link_timeout_ms,
                lease_ms=settings.lease_ms,
                pool_bytes=POOL_BYTES,
            )
            log = self._logs / f"{role}-{number}.log"
            self.processes.append(Process(index, told, settings.command, log, self._calls_of, self._died))
        await asyncio.gather(*(process.start() for process in self.processes))
        for prefill in self.processes[: settings.prefill]:
            for decode in self.processes[settings.prefill :]:
                for remote in (False, True):
                    self.links[prefill.index, decode.index, remote] = Link(self, prefill, decode, remote)
        await asyncio.gather(*(link.repair() for link in self.links.values()))

    def _calls_of(self, process: Process, calls: list[Call]) -> None:
        for call in calls:
            ends = {process.index}
            if call.there:
                ends.add((call.there - 1) % 1000)
            self.judge.call(call, frozenset(ends), process.stood_still(call.began_ns, call.ended_ns), process.name)

    def _died(self, process: Process) -> None:
        self._fail(Violation(f"{process.name} has ended by itself: {process.last_words()}"))

    def begin(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]] | None = None) -> None:
        """Have something done beside everything else; if it fails, all has."""
        tasks = self._tasks if group is None else group
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        assert self._failed is not None
        if not self._failed.done():
            self._failed.set_exception(failure)

    async def _or_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something, unless anything that goes on beside it fails."""
        assert self._failed is not None
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._failed.done():
            self._failed.result()
        task.result()

    # -- requests --------------------------------------------------------------------------------------------------

    async def _storm(self, seconds: float) -> None:
        """Requests and faults for so long, then the ends of all of them."""
        self.begin(self._faults(seconds))
        gaps = Random(f"{self.settings.seed}: gaps {self._numbers['request']}")
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(gaps.expovariate(self.settings.requests_per_second), left))
            if len(self._requests) < MOST_UNDER_WAY:
                drawn = workload.draw(
                    self.settings.seed, self._numbers["request"], self.settings.prefill, self.settings.decode
                )
                self._numbers["request"] += 1
                self.begin(self._serve(drawn), self._requests)
            self._show(self._progress())
        await self._all_ended()

    def _progress(self) -> str:
        requests = sum(self.findings.requests.values())
        count = sum(tally.count for tally in self.judge.faults.values())
        return (
            f"{self.settings.place.value}: {requests:,} requests, {count} faults,"
            f" {self.findings.bytes_verified / 1e9:.2f} GB verified, {self.judge.violation_count} violations"
        )

    async def _all_ended(self) -> None:
        """Wait until no request is served, no fault lasts and no link is repaired."""
        deadline = time.monotonic() + 2 * soak_process.PATIENCE_S
        while left := self._requests | self._tasks:
            if time.monotonic() > deadline:
                held = [f"{process.name}: {await process.ask('state')}" for process in self.processes]
                raise Violation(f"{len(left)} things have not ended: {left}; {held}")
            await asyncio.wait(left, timeout=1.0)

    async def _serve(self, request: Request) -> None:
        outcome = Outcome.LOST
        for attempt in range(PREFILLS):
            prefill = self.processes[(request.prefill + attempt) % self.settings.prefill]
            offered = Attempt(self, request, prefill)
            try:
                outcome = await offered.outcome()
                break
            except (PrefillAgain, Gone):
                self.findings.prefilled_again += 1
                with suppress(Gone):
                    await offered.release()  # what was offered by a successor that was not known yet
        self.findings.requests[outcome.value] += 1
        if outcome is Outcome.FAILED:
            self.judge.violation(f"{request} has failed {TRIES} times")
        if outcome is Outcome.SERVED:
            self.findings.ways[request.way.value] += 1

    # -- faults ----------------------------------------------------------------------------------------------------

    async def _faults(self, seconds: float) -> None:
        """Faults for so long, several at a time, and their ends."""
        mean_gap_s = self.settings.mean_fault_gap_s
        if mean_gap_s is None:
            return
        deadline = time.monotonic() + seconds
        while True:
            settings = self.settings
            fault = faults.draw(
                settings.seed,
                self._numbers["fault"],
                settings.prefill,
                settings.decode,
                settings.kinds,
                mean_gap_s,
                settings.timeout_ms / 1000,
            )
            if time.monotonic() + fault.gap_s > deadline:
                return
            await asyncio.sleep(fault.gap_s)
            self._numbers["fault"] += 1
            self.begin(self._inject(fault))

    async def _inject(self, fault: Fault) -> None:
        victim = self.processes[fault.victim]
        async with victim.faulting:
            await victim.ready()
            if fault.aimed:
                victim.transfer_begins.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(victim.transfer_begins.wait(), 0.5)
            await asyncio.sleep(fault.delay_s)
            if fault.kind is Kind.CUT:
                await self._cut(fault, victim)
                return
            self.note(f"{victim.name}: {fault}")
            with self.judge.fault(fault.kind, frozenset({victim.index}), True, victim.transfers):
                await self._strike(fault, victim)
            self.note(f"{victim.name}: fault {fault.number} is over")

    async def _strike(self, fault: Fault, victim: Process) -> None:
        if fault.kind in (Kind.STOP, Kind.STOP_LONG):
            victim.stop()
            await asyncio.sleep(fault.length_s)
            victim.go_on()
        elif fault.kind in (Kind.UNPLUG, Kind.SLOW):
            await self._disturb_network(fault, victim.index)
        else:
            await self._restart(fault, victim)

    async def _disturb_network(self, fault: Fault, host: int) -> None:
        network = self._network
        assert network is not None
        if fault.kind is Kind.UNPLUG:
            await asyncio.to_thread(network.unplug, host)
            await asyncio.sleep(fault.length_s)
            await asyncio.to_thread(network.plug_in, host)
            return
        await asyncio.to_thread(network.limit_rate, host, 20)
        await asyncio.sleep(fault.length_s)
        await asyncio.to_thread(network.lift_limit, host)

    async def _restart(self, fault: Fault, victim: Process) -> None:
        """End a process, or its instances, in the way of the fault; then begin again, and link again."""
        links = [link for key, link in self.links.items() if victim.index in key[:2]]
        self._lose(victim, links)
        if fault.kind is Kind.REOPEN:
            await victim.ask("reopen")
        elif fault.kind is Kind.REPLACE:
            status = await victim.quit()
            if status != 0:
                self.judge.violation(f"{victim.name} ended with {status}: {victim.last_words()}")
        else:
            if fault.kind is Kind.KILL_STOPPED:
                victim.stop()
                await asyncio.sleep(fault.length_s)
            await victim.kill()
        self._lose(victim, links)  # again: what another fault has linked meanwhile is gone, too
        if fault.kind is not Kind.REOPEN:
            await victim.start()
        await asyncio.gather(*(link.repair() for link in links))

    @staticmethod
    def _lose(victim: Process, links: list[Link]) -> None:
        """Let nobody rely on what a process had, or on its links."""
        victim.generation += 1
        for link in links:
            link.up.clear()

    async def _cut(self, fault: Fault, victim: Process) -> None:
        """Let one end drop a link without a word to the other; then link again."""
        ends = sorted((fault.victim, fault.other))
        remote = bool(fault.number % 2)
        link = self.links[ends[0], ends[1], remote]
        self.note(f"{victim.name}: {fault}")
        with self.judge.fault(Kind.CUT, link.ends, False, victim.transfers):
            link.up.clear()
            with suppress(Gone):
                await link.drop(victim, force=True)
            await link.repair()
        self.note(f"{victim.name}: fault {fault.number} is over")

    # -- rest ------------------------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """When nothing is under way nobody may hold anything."""
        await asyncio.gather(*(link.repair() for link in self.links.values()))
        for process in self.processes:
            for words in await process.ask("release"):
                self.judge.violation(f"{process.name}: {words}")
        for process in self.processes:
            await self._holds_nothing(process)
        for process in self.processes:
            await self._has_not_grown(process)
            await self._leases_are_over(process)
        self.findings.rests += 1
        self.judge.forget()

    async def _holds_nothing(self, process: Process) -> None:
        deadline = time.monotonic() + REST_PATIENCE_S
        while True:
            state = await process.ask("state")
            if not any(any(instance.values()) for instance in state):
                return
            if time.monotonic() > deadline:
                self.judge.violation(f"{process.name} still holds something: {state}")
                return
            await asyncio.sleep(0.05)

    async def _has_not_grown(self, process: Process) -> None:
        """It has as much of everything that a process can run out of as when it was first at rest."""
        found = await process.ask("resources")
        first = self.findings.resources.setdefault(process.pid, found)
        room = Counter[str]()
        if self._network is not None:
            # UCX reaches a peer by one connection or two, as either end or both have connected.
            room["descriptors"] = sum(process in (link.prefill, link.decode) for link in self.links.values())
        grown = {name: (first[name], found[name]) for name in GROWING if found[name] > first[name] + room[name]}
        if grown:
            self.judge.violation(f"{process.name} has more than at its first rest: {grown}")
            self.note(f"{process.name} has {await process.ask('descriptors')}")

    async def _leases_are_over(self, process: Process) -> None:
        """As many keys have gone with their leases as nobody kept: no more, and no fewer."""
        for incarnation, count in (await process.ask("expired")).items():
            self.findings.expired_keys += count - self._expired[incarnation]
            self._expired[incarnation] = count
            least = self.must_expire[incarnation]
            most = least + self.may_expire[incarnation]
            if not least <= count <= most:
                self.judge.violation(f"{process.name}: the leases of {count} keys were over, not of {least} to {most}")

    async def _end(self) -> None:
        for process in self.processes:
            status = await process.quit()
            if status != 0:
                self.judge.violation(f"{process.name} ended with {status}: {process.last_words()}")
        children = Path("/proc/thread-self/children")
        pids = {str(process.pid) for process in self.processes}
        if children.exists() and (left := pids & set(children.read_text(encoding="ascii").split())):
            self.judge.violation(f"processes are left: {left}")


class Attempt:
    """One request, offered by one prefill process."""

    def __init__(self, soak: Soak, request: Request, prefill: Process) -> None:
        self._soak, self._request, self._prefill = soak, request, prefill
        self._findings, self._judge = soak.findings, soak.judge
        self._left = list(request.used)
        self._doubtful = False
        """Whether a key may be gone although no pull has said that it succeeded."""
        self._expecting: set[Process] = set()
        """The decode processes that keep the leases."""

    async def outcome(self) -> Outcome:
        """What became of it.

        Raises
        ------
        PrefillAgain, Gone
            What was offered is gone, with its process or its instance.
        """
        await self._prefill.ready()
        self._generation = self._prefill.generation
        offer = await self._insist(self._prefill, "offer", request=self._request.number)
        if offer["code"] != SUCCESS:
            raise PrefillAgain
        self._incarnation, self._cache_id = offer["incarnation"], offer["cache_id"]
        if self._request.fate is Fate.ABORTED:
            await self.release()
            return Outcome.ABORTED
        self._offered = time.monotonic()
        if self._request.fate is Fate.ABANDONED:
            await self._abandon()
            return Outcome.ABANDONED
        try:
            outcome = await (self._pushed() if self._request.way.pushes else self._pulled())
        except PrefillAgain:
            await self._forget()
            raise
        if len(self._expecting) > 1 or outcome is not Outcome.SERVED:
            await self._forget()
        bound = self._request.registered or self._request.kept or self._request.way is Way.PULL_PREFIX
        if bound or outcome is not Outcome.SERVED:
            await self.release()
        return outcome

    async def _insist(self, process: Process, method: str, **arguments: Any) -> dict[str, Any]:
        """Ask again while memory is short, or others hold what is needed."""
        while True:
            answer: dict[str, Any] = await process.ask(method, **arguments)
            self._note(answer)
            if answer["code"] not in (NO_MEMORY, TIMED_OUT):
                return answer
            await asyncio.sleep(0.05)

    async def release(self) -> None:
        """Have the prefill side let go of a request that is over, or that nobody comes for."""
        await self._insist(self._prefill, "withdraw", request=self._request.number)

    async def _abandon(self) -> None:
        """Nobody comes: leases lapse by themselves, others have to be let go of."""
        if not self._request.leased:
            await asyncio.sleep(0.3)
            await self.release()
            return
        if self._request.number % 2:
            decode, _ = await self._decode(0)
            with suppress(Gone):
                await self._expect(decode)
            await asyncio.sleep(0.3)
            await self._forget()
        self._soak.must_expire[str(self._incarnation)] += len(self._request.used)

    async def _expect(self, decode: Process) -> None:
        """Let a decode process keep the leases of the request from now on."""
        if self._request.leased and decode not in self._expecting:
            self._expecting.add(decode)
            await decode.ask("expect", **self._leases())

    async def _forget(self) -> None:
        """Let nobody keep them any more."""
        for decode in self._expecting:
            with suppress(Gone):
                await decode.ask("forget", **self._leases())

    def _leases(self) -> dict[str, Any]:
        return {
            "request": self._request.number,
            "cluster": self._prefill.settings.clusters[self._request.way.remote],
            "cache_id": self._cache_id,
        }

    def _require_offer(self) -> None:
        if self._prefill.generation != self._generation:
            raise PrefillAgain

    async def _decode(self, number: int) -> tuple[Process, Link]:
        """A decode process to which the prefill process is linked: the request's own first, then the others."""
        index = (self._request.decode + number // 3) % self._soak.settings.decode + self._soak.settings.prefill
        link = self._soak.links[self._prefill.index, index, self._request.way.remote]
        await in_time(link.up.wait(), f"no link from {link.decode.name} to {link.prefill.name}")
        self._require_offer()
        return self._soak.processes[index], link

    async def _pulled(self) -> Outcome:
        for number in range(TRIES):
            decode, link = await self._decode(number)
            generation, times = decode.generation, link.times
            try:
                await self._expect(decode)
                fetched = await self._transferring(
                    link,
                    decode.ask(
                        "fetch",
                        request=self._request.number,
                        cluster=self._prefill.settings.clusters[self._request.way.remote],
                        incarnation=self._incarnation,
                        cache_id=self._cache_id,
                        rows=self._left,
                    ),
                )
            except Gone:
                self._doubtful = True
                self._findings.retried += 1
                await asyncio.sleep(0.02)
                continue
            self._note(fetched)
            code = fetched["code"]
            if code == SUCCESS:
                return Outcome.SERVED
            self._require_offer()
            if code == NOT_EXIST:
                return await self._gone(decode)
            between_hosts = self._soak.settings.place is Place.HOSTS
            if code == FINALIZED or generation != decode.generation:
                self._doubtful = True
            if between_hosts and code in (TIMED_OUT, NOT_LINKED):
                self._doubtful = True
            await self._before_retry(code, link, times)
        return Outcome.FAILED

    async def _gone(self, decode: Process) -> Outcome:
        """How it comes that a key is not bound any more; it had better be one of the ways that there are."""
        if not await self._lives(self._prefill, self._incarnation):
            raise PrefillAgain
        if self._request.leased:
            self._soak.may_expire[str(self._incarnation)] += len(self._left)
        if self._request.leased and 1000 * (time.monotonic() - self._offered) > self._soak.settings.lease_ms:
            return Outcome.LAPSED
        if not self._doubtful:
            self._judge.violation(f"{decode.name}: {self._request} has no key any more, and was not pulled")
        return Outcome.DOUBT

    def _note(self, answer: dict[str, Any]) -> None:
        """What has arrived."""
        flaws = answer.get("flaws", [])
        if flaws:
            others = f"; and {len(flaws) - 1} more of it" if len(flaws) > 1 else ""
            self._judge.violation(flaws[0] + others)
        self._findings.bytes_verified += answer.get("verified", 0)
        if "done" in answer:
            self._left = [row for row in self._left if row not in answer["done"]]

    async def _lives(self, process: Process, incarnation: int) -> bool:
        """Whether an instance is the one that it was, and not a successor."""
        now = await process.ask("incarnation", remote=self._request.way.remote)
        return bool(now == incarnation)

    async def _before_retry(self, code: str, link: Link, times: int) -> None:
        self._soak.note(f"request {self._request.number}, {link.prefill.name} and {link.decode.name}: {code}")
        self._findings.retried += 1
        if code == NOT_LINKED:
            link.lost(times)
        elif code == NO_MEMORY:
            await asyncio.sleep(0.2)
        elif code != BUSY:
            await asyncio.sleep(0.02)

    async def _transferring(self, link: Link, asking: Coroutine[Any, Any, Any]) -> Any:
        ends = (link.prefill, link.decode)
        by_place = self._request.way.pushes or self._request.way is Way.PULL_BY_ID
        link.by_place += by_place
        for process in ends:
            process.transfers += 1
            process.transfer_begins.set()
        try:
            return await asking
        finally:
            link.by_place -= by_place
            for process in ends:
                process.transfers -= 1

    async def _pushed(self) -> Outcome:
        """Into room that a decode process has made; into another's, if it dies."""
        for number in range(TRIES):
            decode, link = await self._decode(number)
            self._left = list(self._request.used)
            try:
                room = await self._insist(decode, "make_room", request=self._request.number)
                if room["code"] != SUCCESS:
                    continue
                complete = await self._fill(decode, link, room)
                cleared = await self._cleared(decode, complete)
            except Gone:
                self._require_offer()
                continue
            if complete and cleared:
                return Outcome.SERVED
            self._require_offer()
        return Outcome.FAILED

    async def _cleared(self, decode: Process, complete: bool) -> bool:
        """Have the room looked at and given back; False if it was gone."""
        cleared = await self._insist(
            decode, "clear_room", request=self._request.number, incarnation=self._incarnation, complete=complete
        )
        return bool(cleared["code"] == SUCCESS)

    async def _fill(self, decode: Process, link: Link, room: dict[str, Any]) -> bool:
        """Push until everything is there; False if the room, or what was to fill it, is gone."""
        generation = decode.generation
        for _ in range(TRIES):
            await in_time(link.up.wait(), f"no link from {link.decode.name} to {link.prefill.name}")
            if decode.generation != generation or self._prefill.generation != self._generation:
                return False
            times = link.times
            try:
                given = await self._transferring(
                    link,
                    self._prefill.ask(
                        "give",
                        request=self._request.number,
                        cluster=decode.settings.clusters[self._request.way.remote],
                        cache_id=room["cache_id"],
                        addresses=room["addresses"],
                        rows=self._left,
                    ),
                )
            except Gone:
                return False
            self._left = [row for row in self._left if row not in given["done"]]
            code = given["code"]
            if code == SUCCESS:
                return True
            if code == FINALIZED or decode.generation != generation:
                return False
            if code == NOT_EXIST:
                if await self._lives(decode, room["incarnation"]):
                    self._judge.violation(f"{self._prefill.name}: the room for {self._request} is gone")
                return False
            await self._before_retry(code, link, times)
        return False


def free_ports(count: int) -> list[int]:
    """Ports at which nobody listens, in the order in which they were found from a random one on."""
    found: list[int] = []
    begin = Random().randrange(len(PORTS))
    for offset in range(len(PORTS)):
        port = PORTS[(begin + offset) % len(PORTS)]
        with suppress(OSError), socket.create_server((LOOPBACK, port)):
            found.append(port)
        if len(found) == count:
            return found
    raise Unavailable(f"no {count} ports of {PORTS} are free")


def shared_memory_files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "llmdd" in name}


def processor_seconds() -> float:
    """What this process and all those that it has waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(settings: Settings, show: Show = lambda words: None) -> Findings:
    """Run it.

    Raises
    ------
    Unavailable
        If this machine, or this user, cannot; the message says what it takes.
    """
    return asyncio.run(interruptible(Soak(settings, show).run()))


async def interruptible(work: Coroutine[Any, Any, Findings]) -> Findings:
    """Let an interrupt end it as it ends by itself."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGINT)
