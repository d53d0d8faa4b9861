# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Runs of pages (see ``page_pool.pxd``)."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from llmdd._core.atomic cimport count_bits, highest_bit, lowest_bit
from llmdd._core.layout cimport PageTree

NO_RUN = <uint64_t>-1

cdef uint64_t ALL = <uint64_t>-1


cdef struct Span:
    # How many pages are missing from the longest free run at the low end, at the high end, and anywhere.
    uint64_t low
    uint64_t high
    uint64_t best


cdef inline uint64_t *bitmap(char *arena, PageTree *tree) noexcept nogil:
    return <uint64_t *>(arena + tree.offset)


cdef inline Span *nodes(char *arena, PageTree *tree) noexcept nogil:
    return <Span *>(arena + tree.offset + tree.words * sizeof(uint64_t))


cdef uint64_t page_tree_words(uint64_t pages) noexcept nogil:
    """Bitmap words for `pages`: a power of two, so that the tree is complete."""
    cdef uint64_t words = 1
    while words * 64 < pages:
        words *= 2
    return words


cdef uint64_t page_tree_bytes(uint64_t pages) noexcept nogil:
    return page_tree_words(pages) * (sizeof(uint64_t) + sizeof(Span))


cdef void page_tree_init(char *arena, PageTree *tree, uint64_t offset, uint64_t pages) noexcept nogil:
    """An entirely free pool over zeroed memory at `offset`."""
    tree.offset = offset
    tree.pages = pages
    tree.words = page_tree_words(pages)
    tree.free_pages = pages
    if pages < tree.words * 64:
        set_run(arena, tree, 1, 0, tree.words * 64, pages, tree.words * 64, True)


cdef inline uint64_t longest_run(uint64_t free) noexcept nogil:
    """Of how many bits the longest run of ones is, in a word with some zero: where runs of 1, 2, 4, ... begin, then by how
    much one is longer."""
    cdef uint64_t[7] begins
    cdef uint64_t length, starts, longer
    cdef int power = 0
    if free == 0:
        return 0
    begins[0] = free
    while power < 6:
        begins[power + 1] = begins[power] & (begins[power] >> (<uint64_t>1 << power))
        if begins[power + 1] == 0:
            break
        power += 1
    starts = begins[power]
    length = <uint64_t>1 << power
    while power:
        power -= 1
        longer = starts & (begins[power] >> length)
        if longer:
            starts = longer
            length += <uint64_t>1 << power
    return length


cdef inline Span span_of_word(uint64_t taken) noexcept nogil:
    cdef Span span
    if taken == 0:
        span.low = span.high = span.best = 0
    elif taken == ALL:
        span.low = span.high = span.best = 64
    else:
        span.low = 64 - lowest_bit(taken)
        span.high = 64 - (63 - highest_bit(taken))
        span.best = 64 - longest_run(~taken)
    return span


cdef inline Span span_of(char *arena, PageTree *tree, uint64_t node) noexcept nogil:
    if node >= tree.words:
        return span_of_word(bitmap(arena, tree)[node - tree.words])
    return nodes(arena, tree)[node]


cdef inline bint join(Span *span, const Span *left, const Span *right, uint64_t half) noexcept nogil:
    """Make `span` that of two neighbours of `half` pages each; whether it was another before."""
    cdef uint64_t low = left.low + half if left.low else right.low
    cdef uint64_t high = right.high + half if right.high else left.high
    cdef uint64_t best = min(min(left.best, right.best) + half, left.high + right.low)
    if span.low == low and span.high == high and span.best == best:
        return False
    span.low = low
    span.high = high
    span.best = best
    return True


cdef inline bint refresh(char *arena, PageTree *tree, uint64_t node, uint64_t half) noexcept nogil:
    """Bring a node up to date with its children, which span `half` pages each; whether it changed."""
    cdef Span left, right
    cdef Span *spans = nodes(arena, tree)
    if 2 * node < tree.words:
        return join(spans + node, spans + 2 * node, spans + 2 * node + 1, half)
    left = span_of_word(bitmap(arena, tree)[2 * node - tree.words])
    right = span_of_word(bitmap(arena, tree)[2 * node + 1 - tree.words])
    return join(spans + node, &left, &right, half)


cdef inline void set_uniform(char *arena, PageTree *tree, uint64_t node, uint64_t size, bint taken) noexcept nogil:
    """The whole span of `node` becomes taken or free; what lies below is left stale until someone descends."""
    cdef Span *span
    if node >= tree.words:
        bitmap(arena, tree)[node - tree.words] = ALL if taken else 0
        return
    span = nodes(arena, tree) + node
    span.low = span.high = span.best = size if taken else 0


cdef inline bint set_in_word(uint64_t *word, uint64_t first, uint64_t end, bint taken) noexcept nogil:
    """Make bits [first, end) of a bitmap word taken or free. False if some already was."""
    cdef uint64_t mask = (ALL >> (64 - (end - first))) << first
    cdef bint sound = (word[0] & mask) == (0 if taken else mask)
    word[0] = word[0] | mask if taken else word[0] & ~mask
    return sound


cdef bint set_short_run(char *arena, PageTree *tree, uint64_t first, uint64_t count, bint taken) noexcept nogil:
    """set_run for a run within one word of the bitmap: down to the word, and up as far as spans change."""
    cdef uint64_t leaf = tree.words + first // 64
    cdef uint64_t depth = lowest_bit(tree.words)
    cdef uint64_t half = tree.words * 32
    cdef uint64_t node, missing
    cdef bint sound
    while depth:
        node = leaf >> depth
        missing = nodes(arena, tree)[node].best
        if missing == 0 or missing == 2 * half:
            set_uniform(arena, tree, 2 * node, half, missing != 0)
            set_uniform(arena, tree, 2 * node + 1, half, missing != 0)
        half //= 2
        depth -= 1
    sound = set_in_word(bitmap(arena, tree) + first // 64, first % 64, first % 64 + count, taken)
    node = leaf // 2
    half = 64
    while node and refresh(arena, tree, node, half):
        node //= 2
        half *= 2
    return sound


cdef bint change_run(char *arena, PageTree *tree, uint64_t first, uint64_t count, bint taken) noexcept nogil:
    """Make a run taken or free. False if some page of it already was."""
    if first // 64 == (first + count - 1) // 64:
        return set_short_run(arena, tree, first, count, taken)
    return set_run(arena, tree, 1, 0, tree.words * 64, first, first + count, taken)


cdef bint set_run(
    char *arena, PageTree *tree, uint64_t node, uint64_t begin, uint64_t size, uint64_t first, uint64_t end, bint taken
) noexcept nogil:
    """Make pages [first, end) taken or free below `node`, which spans `size` pages from `begin`.

    False if some page already was.
    """
    cdef uint64_t half = size // 2
    cdef uint64_t middle = begin + half
    cdef Span span
    cdef bint sound = True
    if first <= begin and begin + size <= end:
        span = span_of(arena, tree, node)
        set_uniform(arena, tree, node, size, taken)
        return span.best == (0 if taken else size)
    if node >= tree.words:
        first = first - begin if first > begin else 0
        end = end - begin if end < begin + size else size
        return set_in_word(bitmap(arena, tree) + (node - tree.words), first, end, taken)
    span = nodes(arena, tree)[node]
    if span.best == 0 or span.best == size:
        set_uniform(arena, tree, 2 * node, half, span.best == size)
        set_uniform(arena, tree, 2 * node + 1, half, span.best == size)
    if first < middle:
        sound = set_run(arena, tree, 2 * node, begin, half, first, end, taken)
    if end > middle:
        sound = set_run(arena, tree, 2 * node + 1, middle, half, first, end, taken) and sound
    refresh(arena, tree, node, half)
    return sound


cdef uint64_t find_run(char *arena, PageTree *tree, uint64_t count) noexcept nogil:
    """The lowest page that begins a free run of `count`."""
    cdef uint64_t node = 1
    cdef uint64_t begin = 0
    cdef uint64_t size = tree.words * 64
    cdef uint64_t starts, length, half
    cdef Span left, right
    if count == 0 or count > size or size - span_of(arena, tree, 1).best < count:
        return NO_RUN
    while node < tree.words:
        if nodes(arena, tree)[node].best == 0:
            return begin
        half = size // 2
        left = span_of(arena, tree, 2 * node)
        right = span_of(arena, tree, 2 * node + 1)
        size = half
        if half >= count + left.best:
            node = 2 * node
        elif (half - left.high) + (half - right.low) >= count:
            return begin + left.high
        else:
            node = 2 * node + 1
            begin += half
    # Each step leaves the bits that begin a run twice as long, or as long as still needed.
    starts = ~bitmap(arena, tree)[node - tree.words]
    length = count
    while length > 1:
        half = length // 2
        starts &= starts >> half
        length -= half
    return begin + lowest_bit(starts)


cdef uint64_t take_run(char *arena, PageTree *tree, uint64_t count) noexcept nogil:
    """Take the lowest run of `count` pages; its first page, or NO_RUN if there is none."""
    cdef uint64_t first
    if count > tree.free_pages:
        return NO_RUN
    first = find_run(arena, tree, count)
    if first != NO_RUN:
        change_run(arena, tree, first, count, True)
        tree.free_pages -= count
    return first


cdef bint return_run(char *arena, PageTree *tree, uint64_t first, uint64_t count) noexcept nogil:
    """Give `count` pages from `first` back. False if any of them was free: someone has lost count."""
    if count == 0 or first + count > tree.pages:
        return False
    tree.free_pages += count
    return change_run(arena, tree, first, count, False)


cdef bint run_is_taken(char *arena, PageTree *tree, uint64_t first, uint64_t count) noexcept nogil:
    """Whether every one of `count` pages from `first` is taken."""
    cdef uint64_t page
    for page in range(first, first + count):
        if not page_is_taken(arena, tree, page):
            return False
    return True


cdef bint page_is_taken(char *arena, PageTree *tree, uint64_t page) noexcept nogil:
    cdef uint64_t node = 1
    cdef uint64_t begin = 0
    cdef uint64_t size = tree.words * 64
    cdef uint64_t best
    while node < tree.words:
        best = nodes(arena, tree)[node].best
        if best == 0:
            return False
        if best == size:
            return True
        size //= 2
        node = 2 * node
        if page >= begin + size:
            node += 1
            begin += size
    return (bitmap(arena, tree)[node - tree.words] >> (page - begin)) & 1


cdef uint64_t count_taken(char *arena, PageTree *tree, uint64_t node, uint64_t size) except? 0:
    """Pages taken below `node`; every node that is not uniform must be what its children make it."""
    cdef Span span, expected
    cdef uint64_t half = size // 2
    if node >= tree.words:
        return count_bits(bitmap(arena, tree)[node - tree.words])
    span = nodes(arena, tree)[node]
    if span.best == 0 or span.best == size:
        assert span.low == span.high == span.best, f"page tree node {node} is uniform and is not"
        return span.best
    left, right = span_of(arena, tree, 2 * node), span_of(arena, tree, 2 * node + 1)
    expected.low = expected.high = expected.best = 0
    join(&expected, &left, &right, half)
    assert (span.low, span.high, span.best) == (expected.low, expected.high, expected.best), f"page tree node {node}"
    return count_taken(arena, tree, 2 * node, half) + count_taken(arena, tree, 2 * node + 1, half)


cdef int page_tree_check(char *arena, PageTree *tree) except -1:
    """Every invariant of the tree."""
    cdef uint64_t total = tree.words * 64
    cdef uint64_t taken = count_taken(arena, tree, 1, total)
    assert taken == tree.pages - tree.free_pages + (total - tree.pages), "the count of free pages is not the bitmap's"
    return 0


cdef class PagePool:
    """A page pool over private memory: the runs of :class:`CacheStore`'s pools, to be used and tested alone.

    Parameters
    ----------
    pages : int
        How many pages there are, at least 1.

    Examples
    --------
    >>> pool = PagePool(10)
    >>> pool.take(4), pool.take(4), pool.take(4)
    (0, 4, None)
    >>> pool.give_back(0, 4); pool.free_pages
    6
    """

    cdef char *memory
    cdef PageTree tree

    def __cinit__(self, uint64_t pages):
        if pages == 0:
            raise ValueError("pages is 0; a pool has at least one page")
        self.memory = <char *>calloc(1, page_tree_bytes(pages))
        if self.memory == NULL:
            raise MemoryError(f"{page_tree_bytes(pages)} bytes for the page tree of {pages} pages")
        page_tree_init(self.memory, &self.tree, 0, pages)

    def __dealloc__(self):
        free(self.memory)

    @property
    def free_pages(self):
        return self.tree.free_pages

    def take(self, uint64_t count):
        """Take the lowest free run of `count` pages; its first page, or None."""
        cdef uint64_t first = take_run(self.memory, &self.tree, count)
        return None if first == NO_RUN else first

    def give_back(self, uint64_t first, uint64_t count):
        """Give a run back. ValueError, and no change, if any page of it is free or outside the pool."""
        if count == 0 or first > self.tree.pages or count > self.tree.pages - first:
            raise ValueError(f"pages [{first}, {first + count}) are not in a pool of {self.tree.pages}")
        if not run_is_taken(self.memory, &self.tree, first, count):
            raise ValueError(f"pages [{first}, {first + count}) are not all taken")
        return_run(self.memory, &self.tree, first, count)

    def check(self):
        """Every invariant of the pool."""
        page_tree_check(self.memory, &self.tree)
