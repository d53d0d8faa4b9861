"""One instance of the library: its options, its caches, its links (api §1.10)."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar, NoReturn

from llmdd._core.enumerations import LLMRole, RegisterMemStatus
from llmdd._core.peer import PeerArena
from llmdd._core.status import LLMException, LLMStatusCode, failure, invalid
from llmdd._core.tables import ENGINE
from llmdd._core.validation import check_elements, check_int32, check_type, check_uint64
from llmdd.cache_manager import CacheManager
from llmdd.cluster_info import LLMClusterInfo, address_text
from llmdd.communicator_arguments import check_link_arguments
from llmdd.link import DEFAULT_LINK_TOTAL_TIME_S, Address, LinkService, LinkTarget
from llmdd.options import EngineOptions, PoolOptions, parse_listen_address

DEFAULT_LINK_TIMEOUT_MS = 3000
MAX_CLUSTERS_PER_CALL = 16

_logger = logging.getLogger("llmdd")

# The instances of this process that are initialised. Whoever changes this, or goes through it, holds the lock.
_live: weakref.WeakSet[LLMDataDist] = weakref.WeakSet()
_changing_live = threading.Lock()


class LLMDataDist:
    """A cluster's end of LLM-DataDist: hands out caches and links to other clusters.

    Any number of instances may live in one process. Usable as a context manager, which finalizes it.

    Parameters
    ----------
    role : LLMRole
        A label: transfers run in both directions whatever the roles.
    cluster_id : int
        uint64, different for every cluster that is linked.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, or no uint64.

    Examples
    --------
    >>> config = LLMConfig()
    >>> config.enable_cache_manager = True
    >>> config.mem_pool_cfg = '{"memory_size": 1048576}'
    >>> with LLMDataDist(LLMRole.PROMPT, cluster_id=1) as datadist:
    ...     datadist.init(config.generate_options())
    ...     cache = datadist.cache_manager.allocate_cache(CacheDesc(2, (1, 64), DataType.DT_FLOAT16))
    """

    #: The instance that was initialised last and lives, or None.
    llm_engine_instance: ClassVar[LLMDataDist | None] = None

    def __init__(self, role: LLMRole, cluster_id: int) -> None:
        self._role = check_type("role", role, LLMRole)
        self._cluster_id = check_uint64("cluster_id", cluster_id)
        self._state = ENGINE.initial
        self._changing = threading.RLock()
        self._manager: CacheManager | None = None
        self._links: LinkService | None = None
        self._options: EngineOptions | None = None
        self._listen_wanted: Address | None = None

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    def init(self, options: dict[str, str]) -> None:
        """Obtain the memory pools and begin to listen (api §2.3). Does nothing on an initialised instance.

        Parameters
        ----------
        options : dict of str to str
            As :meth:`LLMConfig.generate_options` gives them.

        Raises
        ------
        AttributeError, TypeError, ValueError
            None, or something of a wrong type, or a port that is none.
        LLMException
            ``LLM_PARAM_INVALID``: an option that cannot be; ``LLM_FEATURE_NOT_ENABLED``: the cache manager is off;
            ``LLM_OUT_OF_MEMORY``: a pool's memory cannot be had; ``LLM_FAILED``: the address cannot be listened at.
            Nothing has changed then.
        """
        with self._changing:
            state, effects = ENGINE.step(self._state, "init")
            if "acquire_resources" not in effects:
                return
            wanted = EngineOptions.parse(options)
            self._acquire(wanted)
            # Last of all: other threads take the state for a promise of everything else.
            self._state = state
            with _changing_live:
                _live.add(self)
                LLMDataDist.llm_engine_instance = self

    def _acquire(self, wanted: EngineOptions) -> None:
        manager = CacheManager(
            cluster_id=self._cluster_id,
            device_pool=_pool_size(wanted.device_pool),
            host_pool=_pool_size(wanted.host_pool),
            remote_accessible=wanted.remote_accessible,
            timeout_ms=wanted.sync_kv_timeout_ms,
            cache_key_lease=wanted.cache_key_lease_ms,
        )
        links = LinkService(
            cluster_id=self._cluster_id,
            store=manager,
            remote_accessible=wanted.remote_accessible,
            transport=wanted.transport,
            link_total_time_s=wanted.link_total_time_s or DEFAULT_LINK_TOTAL_TIME_S,
            link_attempts=wanted.link_retry_count,
            parting_time_s=wanted.sync_kv_timeout_ms / 1000,
        )
        if wanted.listen_address is not None:
            host, port = wanted.listen_address
            try:
                links.listen(host, port)
            except OSError as error:
                links.close(0)
                manager.close()
                raise failure(
                    "LLMDataDist.init", LLMStatusCode.LLM_FAILED, f"cannot listen at {host} port {port}: {error}"
                ) from error
        self._manager = manager
        self._links = links
        self._options = wanted
        self._listen_wanted = wanted.listen_address

    def finalize(self) -> None:
        """Drop links, caches, pools and the listener, after the calls in progress (api §4.4).

        Does nothing on an instance that is not initialised. The instance may be initialised again.
        """
        with self._changing:
            state, effects = ENGINE.step(self._state, "finalize")
            self._state = state
            if "release_everything" not in effects:
                return
            links, manager, options = self._links, self._manager, self._options
            assert links is not None and manager is not None and options is not None
            links.close(options.sync_kv_timeout_ms)
            manager.close()
            with _changing_live:
                self._forget()

    def _forget(self) -> None:
        # Manager and options stay for calls in progress, which find the manager closed.
        self._links = None
        _live.discard(self)
        if LLMDataDist.llm_engine_instance is self:
            LLMDataDist.llm_engine_instance = None

    def _abandon(self) -> None:
        """In a forked child: the instance stays with the parent (api §4.4)."""
        self._changing = threading.RLock()
        if self._manager is not None:
            self._manager.abandon()
        self._state = ENGINE.step(self._state, "finalize")[0]
        self._forget()

    def _require_ready(self) -> LinkService:
        try:
            ENGINE.step(self._state, "call")
        except LLMException as error:
            raise LLMException("llm datadist is not initialized", status_code=error.status_code) from None
        except RuntimeError:
            raise RuntimeError("llm datadist is not initialized") from None
        links = self._links
        if links is None:  # another thread has finalized it since
            raise LLMException("llm datadist is not initialized", status_code=LLMStatusCode.LLM_ENGINE_FINALIZED)
        return links

    @property
    def cache_manager(self) -> CacheManager:
        """The caches of this instance."""
        self._require_ready()
        assert self._manager is not None
        return self._manager

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Where this instance accepts links, with the port that was really taken; None if nowhere."""
        return self._require_ready().address

    @property
    def transports(self) -> dict[int, str]:
        """How bytes travel to and from each linked cluster, by cluster id: ``"shared memory"``, or ``"nixl"``."""
        peers = self._require_ready().peers
        return {
            cluster_id: "shared memory" if isinstance(peer, PeerArena) else "nixl" for cluster_id, peer in peers.items()
        }

    def link_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = DEFAULT_LINK_TIMEOUT_MS
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Link to clusters that listen (api §4.1). The links can then be used from both ends.

        Parameters
        ----------
        clusters : list or tuple of LLMClusterInfo
            At most 16, handled at the same time.
        timeout : int, default 3000
            Milliseconds for each of them, from begin to end.

        Returns
        -------
        tuple of LLMStatusCode and list of LLMStatusCode
            Overall, the code of the last that failed or ``LLM_SUCCESS``, and one for each cluster.

        Raises
        ------
        TypeError, ValueError, LLMException
            An argument that is wrong; what happens to a link is returned, not raised.
        """
        links = self._require_ready()
        _check_timeout(timeout)
        check_elements("clusters", clusters, LLMClusterInfo)
        for cluster in clusters:
            if self._needs_local_address() and not cluster.local_ip_info_list:
                raise invalid("local_ip_info_list is empty")
            check_uint64("remote_cluster_id", _id_of(cluster))
        refused = _refused_count(clusters)
        if refused is not None:
            return refused
        codes = [self._wrong_addresses(cluster) for cluster in clusters]
        targets = [_target(cluster) for cluster, code in zip(clusters, codes, strict=True) if code is None]
        return _overall(codes, links.link(targets, timeout))

    def unlink_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = DEFAULT_LINK_TIMEOUT_MS, force: bool = False
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Drop links, after the transfer in progress on each (api §4.1).

        Parameters
        ----------
        clusters : list or tuple of LLMClusterInfo
            At most 16.
        timeout : int, default 3000
            Milliseconds for each of them.
        force : bool, default False
            Drop this end alone, without a word to the other: for a cluster that does not answer. What it is pulling
            from here is broken off, and holds no memory any more; what it is pushing to is held until it ends, or dies.

        Returns
        -------
        tuple of LLMStatusCode and list of LLMStatusCode
            As :meth:`link_clusters`.

        Raises
        ------
        TypeError, ValueError, LLMException
            An argument that is wrong.
        """
        links = self._require_ready()
        _check_timeout(timeout)
        check_elements("clusters", clusters, LLMClusterInfo)
        check_type("force", force, bool)
        for cluster in clusters:
            check_uint64("remote_cluster_id", _id_of(cluster))
        refused = _refused_count(clusters)
        if refused is not None:
            return refused
        assert self._options is not None
        local_only = force or self._options.uses_hixl
        codes = [
            LLMStatusCode.LLM_PARAM_INVALID if not local_only and len(cluster.remote_ip_info_list) != 1 else None
            for cluster in clusters
        ]
        targets = [_target(cluster) for cluster, code in zip(clusters, codes, strict=True) if code is None]
        return _overall(codes, links.unlink(targets, timeout, local_only))

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """Become a member of a communicator of two to four clusters (api §4.2).

        Every member makes this call, with the same arguments and in any order. It returns before the members are
        connected; :meth:`query_register_mem_status` tells how far they have come. When all are, each can transfer from
        and to each.

        Parameters
        ----------
        comm_name : str
            1 to 127 characters.
        cluster_rank_info : dict of int to int
            Cluster id (uint64) → rank (uint32), of every member, this one too; ranks ascending.
        rank_table : str
            JSON. Each rank needs an address in it: ``device_ip``, else ``host_ip`` or ``server_id`` of its server; and
            ``device_port``, else 16666 plus its ``device_id``.

        Returns
        -------
        int
            The communicator's id: 1, 2, and so on, until ``finalize``.

        Raises
        ------
        AttributeError, TypeError, ValueError
            None, something of a wrong type, or a number out of range.
        LLMException
            ``LLM_PARAM_INVALID``: another argument that is wrong, or 512 communicators; ``LLM_LINK_FAILED``: the rank
            table gives no address for every rank; ``LLM_FEATURE_NOT_ENABLED``: the transfer backend is ``hixl``.

        Examples
        --------
        >>> config = LLMConfig()
        >>> config.enable_cache_manager = True
        >>> member = LLMDataDist(LLMRole.DECODER, cluster_id=2)
        >>> member.init(config.generate_options())
        >>> table = '''{"server_list": [{"server_id": "node-0", "device": [
        ...     {"device_id": "0", "device_ip": "127.0.0.9", "rank_id": "0"},
        ...     {"device_id": "1", "device_ip": "127.0.0.9", "rank_id": "1"}]}]}'''
        >>> communicator = member.link("pool", {1: 0, 2: 1}, table)
        >>> member.query_register_mem_status(communicator)  # cluster 1 has not called yet
        <RegisterMemStatus.PREPARING: 1>
        >>> member.unlink(communicator)
        >>> member.finalize()
        """
        links = self._require_ready()
        check_link_arguments(comm_name, cluster_rank_info, rank_table)
        self._require_no_hixl("link")
        return links.make_communicator(comm_name, cluster_rank_info, rank_table)

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """How far a communicator has come (api §4.2).

        Parameters
        ----------
        comm_id : int
            As :meth:`link` returned it.

        Returns
        -------
        RegisterMemStatus
            ``PREPARING`` until every member is connected to this one, ``OK`` then. ``FAILED`` if that has not come
            about within ``link_total_time``, or never can: the address of this cluster in the rank table cannot be
            listened at, or another member was given another map or table.

        Raises
        ------
        TypeError, ValueError
            ``comm_id`` is no uint64.
        LLMException
            ``LLM_NOT_YET_LINK``: there is no such communicator; ``LLM_FEATURE_NOT_ENABLED``: the transfer backend is
            ``hixl``.
        """
        links = self._require_ready()
        check_uint64("comm_id", comm_id)
        self._require_no_hixl("query_register_mem_status")
        return links.communicator_status(comm_id)

    def unlink(self, comm_id: int) -> None:
        """Drop a communicator at this end, whatever has become of it (api §4.2). Every member does so for itself.

        Waits for preparation to stop and for transfers to end. A cluster that another communicator or link leads to
        stays linked.

        Parameters
        ----------
        comm_id : int
            As :meth:`link` returned it.

        Raises
        ------
        TypeError, ValueError, LLMException
            As :meth:`query_register_mem_status`.
        """
        links = self._require_ready()
        check_uint64("comm_id", comm_id)
        self._require_no_hixl("unlink")
        links.drop_communicator(comm_id)

    def switch_role(self, role: LLMRole, switch_options: dict[str, str] | None = None) -> None:
        """Take another role, and listen elsewhere or nowhere (api §4.3).

        Parameters
        ----------
        role : LLMRole
            May be the one the instance has.
        switch_options : dict of str to str, optional
            With ``llm.listenIpInfo``: where to listen from now on; an address that is listened at already is kept.
            Without it: nowhere. Other keys have no effect.

        Raises
        ------
        TypeError, ValueError
            Something of a wrong type, or a port that is none.
        LLMException
            ``LLM_PARAM_INVALID``: an address that is none; ``LLM_EXIST_LINK``: a link or communicator stands or is
            held; ``LLM_FAILED``: the address cannot be listened at; ``LLM_FEATURE_NOT_ENABLED``: the transfer backend
            is ``hixl`` and the address another. The role and the listener are then as before.

        Examples
        --------
        >>> config = LLMConfig()
        >>> config.enable_cache_manager = True
        >>> config.listen_ip_info = "127.0.0.1:0"
        >>> instance = LLMDataDist(LLMRole.PROMPT, cluster_id=1)
        >>> instance.init(config.generate_options())
        >>> instance.switch_role(LLMRole.DECODER)  # listens nowhere now
        >>> instance.switch_role(LLMRole.PROMPT, config.generate_options())
        >>> instance.finalize()
        """
        self._require_ready()
        check_type("role", role, LLMRole)
        if switch_options is not None:
            check_type("switch_options", switch_options, dict)
        wanted: Address | None = None
        if switch_options is not None and "llm.listenIpInfo" in switch_options:
            wanted = parse_listen_address(switch_options["llm.listenIpInfo"])
        with self._changing:
            links = self._require_ready()
            self._switch_listener(links, wanted)
            self._listen_wanted = wanted
            self._role = role

    def _switch_listener(self, links: LinkService, wanted: Address | None) -> None:
        assert self._options is not None
        uses_hixl = self._options.uses_hixl
        # Who asks for any free port again means the one that was found.
        address = links.address if wanted == self._listen_wanted else wanted
        if uses_hixl and wanted is not None and address != links.address:
            raise failure(
                "switch_role",
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                f"the transfer backend hixl keeps its address, {links.address}",
            )

        def permit(linked: bool) -> None:
            try:
                ENGINE.step(self._state, "switch_role", linked=linked and not uses_hixl)
            except LLMException as error:
                raise failure("switch_role", error.status_code, "unlink from every cluster first") from None

        try:
            links.switch_listener(address, permit)
        except OSError as error:
            raise failure("switch_role", LLMStatusCode.LLM_FAILED, f"cannot listen at {wanted}: {error}") from error

    def _require_no_hixl(self, tag: str) -> None:
        options = self._options
        if options is not None and options.uses_hixl:
            raise failure(
                tag, LLMStatusCode.LLM_FEATURE_NOT_ENABLED, "it is not supported by the transfer backend hixl"
            )

    @property
    def kv_cache_manager(self) -> NoReturn:
        """Of the older API, which is not there in cache manager mode: always an LLMException (api §1.10)."""
        self._require_ready()
        raise _not_in_this_mode("kv_cache_manager")

    def check_link_status(self, remote_cluster_id: int) -> NoReturn:
        """Of the older API, which is not there in cache manager mode: always an LLMException (api §1.10)."""
        self._require_ready()
        raise _not_in_this_mode("check_link_status")

    def _needs_local_address(self) -> bool:
        assert self._options is not None
        return not self._options.local_comm_res

    def _wrong_addresses(self, cluster: LLMClusterInfo) -> LLMStatusCode | None:
        if len(cluster.remote_ip_info_list) != 1:
            return LLMStatusCode.LLM_PARAM_INVALID
        if self._needs_local_address() and len(cluster.local_ip_info_list) != 1:
            return LLMStatusCode.LLM_PARAM_INVALID
        return None

    def __enter__(self) -> LLMDataDist:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finalize()

    def __repr__(self) -> str:
        return f"LLMDataDist(role={self._role}, cluster_id={self._cluster_id}, state={self._state})"


def _pool_size(pool: PoolOptions | None) -> tuple[int, int] | None:
    return None if pool is None else (pool.memory_size, pool.page_shift)


def _not_in_this_mode(name: str) -> LLMException:
    return invalid(f"{name} is not supported when llm.EnableCacheManager is configured.")


def _check_timeout(timeout: int) -> None:
    if check_int32("timeout", timeout) <= 0:
        raise invalid(f"timeout should be greater than 0, it is {timeout}")


def _id_of(cluster: LLMClusterInfo) -> int:
    """The cluster's id; unset is no int, which the check that follows refuses."""
    return cluster.remote_cluster_id  # type: ignore[return-value]


def _refused_count(
    clusters: Sequence[LLMClusterInfo],
) -> tuple[LLMStatusCode, list[LLMStatusCode]] | None:
    if not clusters:
        return LLMStatusCode.LLM_PARAM_INVALID, []
    if len(clusters) > MAX_CLUSTERS_PER_CALL:
        return LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT, []
    return None


def _target(cluster: LLMClusterInfo) -> LinkTarget:
    address = cluster.remote_ip_info_list[0] if cluster.remote_ip_info_list else None
    if address is None:
        return LinkTarget(_id_of(cluster), None, None)
    return LinkTarget(_id_of(cluster), address_text(address[0]), address[1])


def _overall(
    early: list[LLMStatusCode | None], later: list[LLMStatusCode]
) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
    """Fill the codes that the links gave into the places where no earlier check had decided."""
    given = iter(later)
    codes = [next(given) if code is None else code for code in early]
    failed = [code for code in codes if code is not LLMStatusCode.LLM_SUCCESS]
    return (failed[-1] if failed else LLMStatusCode.LLM_SUCCESS), codes


def _shutdown_handler() -> None:
    """At the end of the process: finalize every instance that lives (api §4.4)."""
    with _changing_live:
        instances = list(_live)
    for instance in instances:
        try:
            instance.finalize()
        except LLMException:
            _logger.exception("finalizing %r at exit failed", instance)


def _abandon_in_child() -> None:
    global _changing_live
    _changing_live = threading.Lock()  # a thread that is not here may hold the one there was
    for instance in list(_live):
        instance._abandon()


atexit.register(_shutdown_handler)
os.register_at_fork(after_in_child=_abandon_in_child)
