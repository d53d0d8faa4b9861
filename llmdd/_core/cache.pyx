# cython: language_level=3
"""A cache as its user holds it (api §1.8)."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject
from cython cimport final, freelist, no_gc_clear
from libc.stdint cimport int64_t, uint32_t, uint64_t

import ml_dtypes
import numpy as np

from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.enumerations import DataType, Placement
from llmdd._core.layout cimport Slot, slot_at
from llmdd._core.lifecycle cimport generation_of, pin_local, tensor_place, unpin_local
from llmdd._core.node_memory cimport NodeMemory, is_closed
from llmdd._core.status import LLMStatusCode, failure, invalid
from llmdd._core.validation cimport require_present, wrong_type

#: The NumPy type of each data type's elements.
NUMPY_TYPES = {
    DataType.DT_FLOAT: np.dtype(np.float32),
    DataType.DT_FLOAT16: np.dtype(np.float16),
    DataType.DT_INT8: np.dtype(np.int8),
    DataType.DT_INT32: np.dtype(np.int32),
    DataType.DT_UINT8: np.dtype(np.uint8),
    DataType.DT_INT16: np.dtype(np.int16),
    DataType.DT_UINT16: np.dtype(np.uint16),
    DataType.DT_UINT32: np.dtype(np.uint32),
    DataType.DT_INT64: np.dtype(np.int64),
    DataType.DT_UINT64: np.dtype(np.uint64),
    DataType.DT_DOUBLE: np.dtype(np.float64),
    DataType.DT_BOOL: np.dtype(np.bool_),
    DataType.DT_STRING: np.dtype("S16"),
    DataType.DT_BF16: np.dtype(ml_dtypes.bfloat16),
}


@no_gc_clear
cdef class ViewPin:
    def __dealloc__(self):
        # Whatever thread this runs in: unpinning takes no lock.
        if self.arena is not None:
            unpin_local(self.arena.base, self.slot)


cdef class TensorMemory:
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, self.size, False, flags)

    def __releasebuffer__(self, Py_buffer *buffer):
        pass


@final
@freelist(64)
cdef class Cache:
    """A cache, made by :class:`CacheManager` (api §1.8).

    Dropping the object releases nothing: ``deallocate_cache`` does.

    Attributes
    ----------
    cache_id : int
        Counts from 1 in every initialised instance; -1 for memory of the caller's own.
    cache_desc : CacheDesc
        As given when the cache was made.
    is_blocks_cache : bool
    """

    def __init__(self):
        raise TypeError("a Cache is made by CacheManager.allocate_cache")

    @staticmethod
    def create_cpu_cache(cache_desc, addrs):
        """Memory of the caller's own as a cache for ``swap_blocks`` (api §1.8).

        Parameters
        ----------
        cache_desc : CacheDesc
            Its placement must be HOST.
        addrs : list of int
            The address of each tensor.
        """
        require_present("cache_desc", cache_desc, CacheDesc)
        require_present("addrs", addrs, list)
        for address in addrs:
            if not isinstance(address, int):
                raise TypeError(f"addrs inner type only support [int], but got {type(address)}")
        if cache_desc.placement is not Placement.HOST:
            raise invalid(f"cache_desc placement must be HOST, it is {cache_desc.placement}")
        if len(addrs) != cache_desc.num_tensors:
            raise invalid(f"num_tensors {cache_desc.num_tensors} is not equal addrs num {len(addrs)}")
        cdef Cache cache = Cache.__new__(Cache)
        cache.cache_id = -1
        cache.cache_desc = cache_desc
        cache.shape = tuple(cache_desc.shape)
        cache.is_blocks_cache = True
        cache.addresses = list(addrs)
        return cache

    @property
    def tensor_addrs(self):
        """The address of each tensor's first byte; an empty list once the cache was deallocated or has gone (api §3.3)."""
        cdef Slot *slot
        cdef uint64_t pool, tensor
        if self.memory is None:
            return list(self.own_addresses())
        if is_dropped(self) or is_closed(self.memory):
            return []
        self.memory.enter("tensor_addrs")
        try:
            slot = slot_at(self.memory.base, self.slot)
            if generation_of(slot) != self.generation or not (slot.held or self.registered):
                return []          # it has gone, or was deallocated by its id
            pool = 0 if self.registered else <uint64_t>self.memory.pools[slot.placement]
            return [pool + tensor_place(self.memory.base, slot, tensor) for tensor in range(slot.num_tensors)]
        finally:
            self.memory.leave()

    @property
    def tensors(self):
        """The tensors as NumPy arrays over the cache's own memory: writing to them writes the cache.

        One array for each tensor, of the descriptor's shape and type (``ml_dtypes.bfloat16`` for ``DT_BF16``). Every array
        *pins* the cache: as long as one lives its memory is not given to another cache, so a forgotten array never shows
        or harms somebody else's data. Drop the arrays to let the memory go.

        Raises
        ------
        LLMException
            ``LLM_KV_CACHE_NOT_EXIST`` once the memory went back: the cache was deallocated and no key holds it any more.
            ``LLM_ENGINE_FINALIZED`` once its instance was finalized. ``LLM_PARAM_INVALID`` for memory of the caller's own
            (``register_cache``, ``create_cpu_cache``), of which the caller has arrays already.
        """
        cdef NodeMemory memory = self.memory
        cdef ViewPin pin
        cdef CriticalSection section
        cdef TensorMemory tensor_memory
        cdef Slot *slot
        cdef uint64_t tensor
        cdef list arrays = []
        if memory is None or self.registered:
            raise invalid("tensors are only offered for memory from a pool; this memory is the caller's own")
        pin = ViewPin.__new__(ViewPin)
        memory.require_open("tensors")
        pin.slot = self.slot
        # Nobody closes the memory between the look whether it is there and our own references to what is pinned.
        enter_critical_section(&section, <PyObject *>memory)
        if memory.base != NULL and pin_local(memory.base, self.slot, self.generation) == 0:
            pin.arena = memory.arena
            pin.pool = memory.pool_mapping(slot_at(memory.base, self.slot).placement)
        leave_critical_section(&section)
        if pin.arena is None:
            memory.require_open("tensors")
            raise failure("tensors", LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"cache {self.cache_id} gave its memory back")
        slot = slot_at(pin.arena.base, self.slot)
        dtype = NUMPY_TYPES[self.data_type]
        for tensor in range(slot.num_tensors):
            tensor_memory = TensorMemory.__new__(TensorMemory)
            tensor_memory.pin = pin
            tensor_memory.start = pin.pool.base + tensor_place(pin.arena.base, slot, tensor)
            tensor_memory.size = slot.row_bytes * slot.row_count
            arrays.append(np.ndarray(self.shape, dtype, tensor_memory))
        return arrays

    def __repr__(self):
        cdef Py_ssize_t count = self.cache_desc.num_tensors
        if self.memory is None:
            count = len(self.own_addresses())
        elif is_dropped(self) or is_closed(self.memory):
            count = 0
        return (
            f"Cache(cache_id = {self.cache_id}, device_tensor_addrs = {count}, "
            f"is_blocks_cache = {self.is_blocks_cache})"
        )

    cdef list own_addresses(self):
        """The addresses of a create_cpu_cache: none once it was deallocated."""
        cdef list addresses
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        addresses = self.addresses
        leave_critical_section(&section)
        return addresses

    cdef int forget_addresses(self) except -1:
        cdef list before
        cdef list none = []
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        before, self.addresses = self.addresses, none
        leave_critical_section(&section)
        return 0


cdef Cache new_cache(NodeMemory memory, CacheDesc desc, tuple shape, const Allocation *made):
    """`shape` is the descriptor's, as it was when the memory was taken."""
    cdef Cache cache = Cache.__new__(Cache)
    cache.memory = memory
    cache.cache_desc = desc
    cache.cache_id = made.cache_id
    cache.slot = made.slot
    cache.generation = made.generation
    cache.is_blocks_cache = made.blocks
    cache.registered = made.addresses != NULL
    cache.shape = shape
    cache.data_type = desc.data_type
    return cache
