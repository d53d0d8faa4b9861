# cython: language_level=3
"""The keys by which a cache is found (api §1.7, §3.1)."""

from cython cimport final, freelist
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t

from llmdd._core.status import invalid
from llmdd._core.validation cimport checked_int64, checked_uint32, checked_uint64, wrong_type

cdef object _MISSING = object()


cdef dict named_arguments(tuple names, tuple args, dict kwargs):
    """The arguments by name; a positional one overrides the keyword of the same name (api §1.7)."""
    if len(args) > len(names):
        raise invalid(f"Param num is over limit, {len(args)} were given and {len(names)} at most are taken")
    kwargs.update(zip(names, args))
    return kwargs


cdef object take_cluster_id(dict arguments):
    """The cluster id under either of its spellings; `cluster_id` wins."""
    cdef object other = arguments.pop("prompt_cluster_id", _MISSING)
    return arguments.pop("cluster_id", other)


cdef int refuse_unknown(dict arguments) except -1:
    if arguments:
        raise invalid(f"Unsupported param:{next(iter(arguments))}")
    return 0


@final
@freelist(64)
cdef class CacheKey:
    """Names one batch slot of a cache by the request or the prefix whose KV tensors it holds (api §1.7).

    Exactly one of `req_id` and `prefix_id` names something; the other is ``2**64 - 1``. With both at ``2**64 - 1`` the key
    is a *placeholder* for a batch slot that is not in use (seed §10).

    Parameters
    ----------
    cluster_id : int
        The cluster that owns the cache, uint64. Only selects the peer of a pull; ignored when binding. Also accepted as
        `prompt_cluster_id`.
    req_id : int
        uint64.
    model_id : int, default 0
        uint64. The same request id under two models is two keys.
    prefix_id : int, default 2**64 - 1
        uint64. A prefix key stays bound when it is pulled.

    Raises
    ------
    LLMException
        ``LLM_PARAM_INVALID``: too many, missing or unknown arguments.
    TypeError, ValueError
        An id that is no int, or no uint64.

    Examples
    --------
    >>> CacheKey(1, req_id=7)
    CacheKey(cluster_id=1, req_id=7, prefix_id=18446744073709551615, model_id=0)
    >>> CacheKey(prompt_cluster_id=1, req_id=7).cluster_id
    1
    """

    def __cinit__(self, *args, **kwargs):
        cdef dict arguments
        cdef object cluster_id, req_id
        if len(args) == 2 and not kwargs:
            self.cluster_id = checked_uint64("cluster_id", args[0])
            self.req_id = checked_uint64("req_id", args[1])
            self.prefix_id = UINT64_MAX
            return
        arguments = named_arguments(("cluster_id", "req_id", "model_id", "prefix_id"), args, kwargs)
        cluster_id = take_cluster_id(arguments)
        if cluster_id is _MISSING:
            raise invalid("Param prompt_cluster_id or cluster_id is required")
        req_id = arguments.pop("req_id", _MISSING)
        if req_id is _MISSING:
            raise invalid("Param req_id is required")
        model_id = arguments.pop("model_id", 0)
        prefix_id = arguments.pop("prefix_id", UINT64_MAX)
        refuse_unknown(arguments)
        self.cluster_id = checked_uint64("cluster_id", cluster_id)
        self.req_id = checked_uint64("req_id", req_id)
        self.model_id = checked_uint64("model_id", model_id)
        self.prefix_id = checked_uint64("prefix_id", prefix_id)

    @property
    def prompt_cluster_id(self):
        return self.cluster_id

    def _astuple(self):
        return self.cluster_id, self.req_id, self.model_id, self.prefix_id

    def __reduce__(self):
        return CacheKey, self._astuple()

    def __repr__(self):
        return (
            f"CacheKey(cluster_id={self.cluster_id}, req_id={self.req_id}, prefix_id={self.prefix_id}, "
            f"model_id={self.model_id})"
        )


@final
@freelist(16)
cdef class BlocksCacheKey:
    """Names the blocks cache of one model (api §1.7).

    Parameters
    ----------
    cluster_id : int
        The cluster that owns the cache, uint64; also accepted as `prompt_cluster_id`.
    model_id : int, default 0
        uint64.

    Raises
    ------
    LLMException
        ``LLM_PARAM_INVALID``: too many, missing or unknown arguments.
    TypeError, ValueError
        An id that is no int, or no uint64.

    Examples
    --------
    >>> BlocksCacheKey(1, model_id=2)
    BlocksCacheKey(cluster_id=1, model_id=2)
    """

    def __cinit__(self, *args, **kwargs):
        cdef dict arguments
        self.spelling = "cluster_id"
        if "prompt_cluster_id" in kwargs and "cluster_id" not in kwargs and not args:
            self.spelling = "prompt_cluster_id"
        arguments = named_arguments(("cluster_id", "model_id"), args, kwargs)
        cluster_id = take_cluster_id(arguments)
        if cluster_id is _MISSING:
            raise invalid("Param prompt_cluster_id or cluster_id is required")
        model_id = arguments.pop("model_id", 0)
        refuse_unknown(arguments)
        if not isinstance(cluster_id, int):
            raise wrong_type("The first param cluster_id", cluster_id, "int")
        if not isinstance(model_id, int):
            raise wrong_type("The second param model_id", model_id, "int")
        self.cluster_id = checked_uint64("cluster_id", cluster_id)
        self.model_id = checked_uint64("model_id", model_id)

    @property
    def prompt_cluster_id(self):
        return self.cluster_id

    def _astuple(self):
        return self.cluster_id, self.model_id

    def __reduce__(self):
        return BlocksCacheKey, self._astuple()

    def __repr__(self):
        return f"BlocksCacheKey({self.spelling}={self.cluster_id}, model_id={self.model_id})"


@final
@freelist(64)
cdef class CacheKeyByIdAndIndex:
    """Names a batch slot by the number of its cache and its place in it (api §1.7).

    Parameters
    ----------
    cluster_id : int
        The cluster that owns the cache, uint64.
    cache_id : int
        int64; ids begin at 1.
    batch_index : int, default 0
        uint32.

    Raises
    ------
    TypeError, ValueError
        A value that is no int, or out of its range.

    Examples
    --------
    >>> CacheKeyByIdAndIndex(1, 5, batch_index=3)
    CacheKeyByIdAndIndex(cluster_id=1, cache_id=5, batch_index=3)
    """

    def __init__(self, cluster_id, cache_id, batch_index=0):
        if self.made:
            raise TypeError("a CacheKeyByIdAndIndex does not change")
        self.cluster_id = checked_uint64("cluster_id", cluster_id)
        self.cache_id = checked_int64("cache_id", cache_id)
        self.batch_index = checked_uint32("batch_index", batch_index)
        self.made = True

    def _astuple(self):
        return self.cluster_id, self.cache_id, self.batch_index

    def __reduce__(self):
        return CacheKeyByIdAndIndex, self._astuple()

    def __repr__(self):
        return (
            f"CacheKeyByIdAndIndex(cluster_id={self.cluster_id}, cache_id={self.cache_id}, "
            f"batch_index={self.batch_index})"
        )


cdef CacheKeyByIdAndIndex key_by_id_and_index(uint64_t cluster_id, int64_t cache_id, uint32_t batch_index):
    """The key, without checking its values again."""
    cdef CacheKeyByIdAndIndex key = CacheKeyByIdAndIndex.__new__(CacheKeyByIdAndIndex)
    key.cluster_id = cluster_id
    key.cache_id = cache_id
    key.batch_index = batch_index
    key.made = True
    return key
