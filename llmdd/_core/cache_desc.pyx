# cython: language_level=3
"""The description of a cache's tensors (api §1.6)."""

from cython cimport critical_section
from libc.stdint cimport int64_t, uint32_t

from llmdd._core.enumerations import ELEMENT_BYTES, DataType, Placement
from llmdd._core.status import invalid
from llmdd._core.validation cimport checked_int32, checked_int64, checked_uint32, require_type, wrong_type

cdef object _DEVICE = Placement.DEVICE
cdef object _DATA_TYPE = DataType
cdef object _PLACEMENT = Placement
cdef dict _ELEMENT_BYTES = ELEMENT_BYTES

cdef int64_t INT64_MAX = 0x7FFFFFFFFFFFFFFF

cdef enum:
    MAX_DIMENSIONS = 32


cdef class CacheDesc:
    """What a cache consists of: `num_tensors` tensors of one shape and type (api §1.6).

    Parameters
    ----------
    num_tensors : int
        uint32; usually two for each layer, keys and values.
    shape : tuple or list of int
        Shape of one tensor, 1 to 32 dimensions, each greater than 0 when the cache is allocated.
    data_type : DataType
    placement : Placement, default Placement.DEVICE
        Which of the two pools the cache is allocated from.
    batch_dim_index : int, default 0
        Which dimension counts the batch slots. For a cache of batch slots every dimension before it must be 1 (api D23).
    seq_len_dim_index : int, default -1
        Which dimension counts tokens; -1 if none does. Kept, without effect.
    kv_tensor_format : str, optional
        Kept, without effect.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, or a number out of its range (seed §6).
    LLMException
        ``LLM_PARAM_INVALID``: an empty shape, or an index outside it.

    Examples
    --------
    >>> desc = CacheDesc(2, (4, 128), DataType.DT_FLOAT16)
    >>> desc.batch_size, desc.size
    (4, 1024)
    """

    def __init__(
        self,
        num_tensors,
        shape,
        data_type,
        placement=_DEVICE,
        batch_dim_index=0,
        seq_len_dim_index=-1,
        kv_tensor_format=None,
    ):
        self.num_tensors = checked_uint32("num_tensors", num_tensors)
        if not isinstance(shape, (list, tuple)):
            raise wrong_type("shape", shape, "list, tuple")
        shape = list(shape) if isinstance(shape, list) else tuple(shape)  # the caller's may change
        for dimension in shape:
            if not isinstance(dimension, int):
                raise TypeError(f"shape inner type only support [int], but got {type(dimension)}")
        require_type("data_type", data_type, _DATA_TYPE)
        require_type("placement", placement, _PLACEMENT)
        require_type("batch_dim_index", batch_dim_index, int)
        self.seq_len_dim_index = checked_int32("seq_len_dim_index", seq_len_dim_index)
        if kv_tensor_format is not None:
            require_type("kv_tensor_format", kv_tensor_format, str)
        if not 0 <= batch_dim_index < len(shape):
            raise invalid(f"batch_dim_index is {batch_dim_index}, it must be in [0, {len(shape)}) for shape {shape}")
        if not -1 <= seq_len_dim_index < len(shape):
            raise invalid(f"seq_len_dim_index is {seq_len_dim_index}, it must be -1 or in [0, {len(shape)})")
        for dimension in shape:
            checked_int64("shape", dimension)
        self.shape = shape
        self.data_type = data_type
        self.placement = placement
        self.batch_dim_index = batch_dim_index
        self.kv_tensor_format = kv_tensor_format
        self.cached_size = -1
        self.device = placement is _DEVICE
        self.element_bytes = _ELEMENT_BYTES[data_type]

    @property
    def batch_dim(self):
        return self.batch_dim_index

    @property
    def batch_size(self):
        with critical_section(self):
            return self.shape[self.batch_dim_index]

    @property
    def size(self):
        """Bytes of one tensor. LLMException if a dimension is not positive or the size overflows int64 (api D67)."""
        with critical_section(self):
            if self.cached_size < 0:
                self.cached_size = checked_tensor_bytes(self)
            return self.cached_size

    def update_dim(self, dim_index, dim_value):
        """Replace one dimension (api D24). Caches allocated before keep theirs.

        Raises
        ------
        LLMException
            ``LLM_PARAM_INVALID``: no such dimension.
        TypeError, ValueError
            A value that is no int, or no int64.

        Examples
        --------
        >>> desc = CacheDesc(2, (4, 128), DataType.DT_FLOAT16)
        >>> desc.update_dim(0, 8); desc.shape, desc.batch_size
        ([8, 128], 8)
        """
        require_type("dim_index", dim_index, int)
        with critical_section(self):
            if not 0 <= dim_index < len(self.shape):
                raise invalid(f"dim_index is {dim_index}, it must be in [0, {len(self.shape)})")
            checked_int64("dim_value", dim_value)
            shape = list(self.shape)
            shape[dim_index] = dim_value
            self.shape = shape
            self.cached_size = -1

    # The rest is for a caller in a critical section of the descriptor.

    cdef int64_t batch_slots(self) except -1:
        return self.shape[self.batch_dim_index]

    cdef bint slots_are_contiguous(self) except -1:
        """Whether each batch slot is one run of bytes in its tensor."""
        cdef int64_t dimension
        for dimension in range(self.batch_dim_index):
            if self.shape[dimension] != 1:
                return False
        return True

    def __reduce__(self):
        with critical_section(self):
            return CacheDesc, (
                self.num_tensors,
                self.shape,
                self.data_type,
                self.placement,
                self.batch_dim_index,
                self.seq_len_dim_index,
                self.kv_tensor_format,
            )

    def __repr__(self):
        with critical_section(self):
            return (
                f"CacheDesc(num_tensors={self.num_tensors}, shape={self.shape}, data_type={self.data_type}, "
                f"placement={self.placement}, batch_dim_index={self.batch_dim_index}, "
                f"seq_len_dim_index={self.seq_len_dim_index},kv_tensor_format={self.kv_tensor_format})"
            )


cdef int64_t checked_tensor_bytes(CacheDesc desc) except -1:
    """Bytes of one tensor, or why there cannot be such a tensor."""
    cdef int64_t size = desc.element_bytes
    cdef int64_t dimension
    if len(desc.shape) > MAX_DIMENSIONS:
        raise invalid(f"shape has {len(desc.shape)} dimensions, {MAX_DIMENSIONS} at most are supported")
    for dimension in desc.shape:
        if dimension <= 0:
            raise invalid(f"shape is {desc.shape}, every dimension must be greater than 0")
        if size > INT64_MAX // dimension:
            raise invalid(f"shape is {desc.shape}, the size of a tensor must fit in int64")
        size *= dimension
    return size
